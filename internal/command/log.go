package command

import (
	"io"
	"log/slog"
	"math"
	"os"
)

// levels are the words of loglevel=.
var levels = map[string]slog.Level{
	"debug":   slog.LevelDebug,
	"info":    slog.LevelInfo,
	"":        slog.LevelInfo,
	"warning": slog.LevelWarn,
	"error":   slog.LevelError,
	"none":    math.MaxInt,
}

// newLogger writes text for people on a terminal and JSON otherwise, unless format says which.
func newLogger(w io.Writer, format string, level slog.Leveler) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	if format == "text" || format == "" && isTerminal(w) {
		return slog.New(slog.NewTextHandler(w, o))
	}
	return slog.New(slog.NewJSONHandler(w, o))
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
