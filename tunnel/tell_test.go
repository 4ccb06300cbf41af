package tunnel

import (
	"log/slog"
	"testing"
)

// A line that nobody wants costs nothing.
func TestSilentLogAllocatesNothing(t *testing.T) {
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError}))
	s := &Session{f: &Forwarder{Log: log, Reason: func(*Info, error) string { t.Error("the reason was asked for"); return "" }}, relay: &relay{by: byClient}}
	s.info.Attrs = []any{"site", "a.test"}
	if n := testing.AllocsPerRun(100, func() { s.tell(nil) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
