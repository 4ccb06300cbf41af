package main

import (
	"testing"

	"raimon/internal/commandtest"
	"raimon/internal/options"
)

func TestMain(m *testing.M) { commandtest.Main(m, "raimons", main, "raimonc") }

func TestScripts(t *testing.T) { commandtest.Scripts(t) }

func TestHelpShowsEveryOption(t *testing.T) { commandtest.Help(t, options.Server) }
