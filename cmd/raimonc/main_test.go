package main

import (
	"testing"

	"raimon/internal/commandtest"
	"raimon/internal/options"
)

func TestMain(m *testing.M) { commandtest.Main(m, "raimonc", main, "raimons") }

func TestScripts(t *testing.T) { commandtest.Scripts(t) }

func TestHelpShowsEveryOption(t *testing.T) { commandtest.Help(t, options.Client) }
