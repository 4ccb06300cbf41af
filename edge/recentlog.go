package edge

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	recentEntries = 50
	// What is remembered of an entry: strangers have a say in it.
	maxAttrs     = 24
	maxAttrBytes = 512
)

// LogEntry is a line of the log.
type LogEntry struct {
	Time    time.Time `json:"time"`
	Level   string    `json:"level"`
	Message string    `json:"message"`
	Attrs   []LogAttr `json:"attrs,omitempty"`
}

// LogAttr is an attribute of a line of the log. Groups are part of the key, as in request.path.
type LogAttr struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// RecentLog is a slog.Handler that remembers the last 50 warnings and errors, whether the handler behind it
// writes them or not. Make it with NewRecentLog. Nil remembers nothing.
type RecentLog struct {
	next   slog.Handler
	ring   *logRing
	attrs  []LogAttr // of WithAttrs
	prefix string    // of WithGroup
}

type logRing struct {
	mu      sync.Mutex
	entries []LogEntry // the oldest first
}

// NewRecentLog remembers what goes to next.
func NewRecentLog(next slog.Handler) *RecentLog {
	return &RecentLog{next: next, ring: new(logRing)}
}

// Entries are the lines that are remembered, the newest first.
func (l *RecentLog) Entries() []LogEntry {
	if l == nil {
		return []LogEntry{}
	}
	l.ring.mu.Lock()
	defer l.ring.mu.Unlock()
	all := append([]LogEntry{}, l.ring.entries...)
	slices.Reverse(all)
	return all
}

// Enabled implements slog.Handler.
func (l *RecentLog) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn || l.next.Enabled(ctx, level)
}

// Handle implements slog.Handler.
func (l *RecentLog) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn {
		e := LogEntry{Time: r.Time, Level: r.Level.String(), Message: shortened(r.Message), Attrs: slices.Clone(l.attrs)}
		r.Attrs(func(a slog.Attr) bool {
			e.Attrs = appendAttr(e.Attrs, l.prefix, a)
			return len(e.Attrs) < maxAttrs
		})
		l.ring.add(e)
	}
	if !l.next.Enabled(ctx, r.Level) {
		return nil
	}
	return l.next.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (l *RecentLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *l
	c.next = l.next.WithAttrs(attrs)
	c.attrs = slices.Clone(l.attrs)
	for _, a := range attrs {
		c.attrs = appendAttr(c.attrs, l.prefix, a)
	}
	return &c
}

// WithGroup implements slog.Handler.
func (l *RecentLog) WithGroup(name string) slog.Handler {
	if name == "" {
		return l
	}
	c := *l
	c.next = l.next.WithGroup(name)
	c.prefix += name + "."
	return &c
}

// appendAttr adds a, and what is in it where it is a group.
func appendAttr(to []LogAttr, prefix string, a slog.Attr) []LogAttr {
	value := a.Value.Resolve()
	if a.Key == "" && value.Kind() != slog.KindGroup || len(to) >= maxAttrs {
		return to
	}
	if value.Kind() != slog.KindGroup {
		return append(to, LogAttr{Key: shortened(prefix + a.Key), Value: shortened(value.String())})
	}
	if a.Key != "" {
		prefix += a.Key + "."
	}
	for _, member := range value.Group() {
		to = appendAttr(to, prefix, member)
	}
	return to
}

// shortened is text of bounded length, in memory of its own.
func shortened(text string) string {
	if len(text) > maxAttrBytes {
		return strings.ToValidUTF8(text[:maxAttrBytes], "") + "…"
	}
	return strings.Clone(text)
}

func (r *logRing) add(e LogEntry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.entries) >= recentEntries {
		r.entries = slices.Delete(r.entries, 0, 1)
	}
	r.entries = append(r.entries, e)
}
