package edge

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/slogtest"
)

// What goes through it arrives as it would without it.
func TestRecentLogPasses(t *testing.T) {
	var b bytes.Buffer
	err := slogtest.TestHandler(NewRecentLog(slog.NewJSONHandler(&b, nil)), func() []map[string]any {
		var all []map[string]any
		for line := range strings.Lines(b.String()) {
			entry := make(map[string]any)
			if err := json.Unmarshal([]byte(line), &entry); err != nil {
				t.Fatal(err)
			}
			all = append(all, entry)
		}
		return all
	})
	if err != nil {
		t.Error(err)
	}
}

func TestRecentLog(t *testing.T) {
	var b bytes.Buffer
	recent := NewRecentLog(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelError}))
	log := slog.New(recent)
	log.Info("nothing to remember")
	log.With("site", "a.test").WithGroup("request").With("path", "/x").Warn("slow",
		"error", errors.New("broken"), slog.Group("peer", "name", "b", slog.Group("", "port", 1)), slog.Attr{}, "n", 7)
	if b.Len() != 0 {
		t.Errorf("a warning was written at level error: %s", &b)
	}
	got := recent.Entries()
	if len(got) != 1 {
		t.Fatalf("remembered are %+v", got)
	}
	var text []string
	for _, a := range got[0].Attrs {
		text = append(text, a.Key+"="+a.Value)
	}
	const want = "site=a.test request.path=/x request.error=broken request.peer.name=b request.peer.port=1 request.n=7"
	if all := strings.Join(text, " "); all != want || got[0].Level != "WARN" || got[0].Message != "slow" || got[0].Time.IsZero() {
		t.Errorf("got %s %s at %v, want %s", got[0].Level, all, got[0].Time, want)
	}
	log.Error("bad")
	if !strings.Contains(b.String(), "msg=bad") {
		t.Errorf("an error was not written: %s", &b)
	}
}

// However much is logged, what is remembered stays small.
func TestRecentLogIsBounded(t *testing.T) {
	recent := NewRecentLog(slog.DiscardHandler)
	log := slog.New(recent)
	long := strings.Repeat("ä", 100_000)
	var attrs []any
	for n := range 200 {
		attrs = append(attrs, fmt.Sprint("key", n), long)
	}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for n := range 100 {
				log.With(attrs...).Warn(fmt.Sprint(n, long), attrs...)
			}
		})
	}
	all.Wait()
	log.Warn("the last")
	entries := recent.Entries()
	if len(entries) != recentEntries || entries[0].Message != "the last" {
		t.Fatalf("%d entries, the first of which is %q", len(entries), entries[0].Message)
	}
	size := 0
	for _, e := range entries {
		size += len(e.Message)
		for _, a := range e.Attrs {
			size += len(a.Key) + len(a.Value)
		}
	}
	if limit := recentEntries * (maxAttrs + 1) * (2*maxAttrBytes + 8); size > limit {
		t.Errorf("%d bytes are remembered, want at most %d", size, limit)
	}
	if !(*RecentLog)(nil).isEmpty() || !recent.Enabled(context.Background(), slog.LevelWarn) || recent.Enabled(context.Background(), slog.LevelInfo) {
		t.Error("it is not enabled as it should be")
	}
}

func (l *RecentLog) isEmpty() bool { return len(l.Entries()) == 0 }
