package edge

import (
	"cmp"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"
)

// LogFile appends to a file, which others may move away: then, within a second, or at once with Reopen, there is a new
// one of the name. Its methods may be called concurrently.
type LogFile struct {
	name string
	log  *slog.Logger

	mu      sync.Mutex
	file    *os.File
	closed  bool
	looked  time.Time // when the name was compared with the file
	lost    error     // why the name could not be opened when it was not that of the file any more
	failing bool
}

// OpenLogFile opens the file, or makes it with mode 0640. Log hears of it when writing begins to fail and
// when it goes on; nil discards that.
func OpenLogFile(name string, log *slog.Logger) (*LogFile, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	l := &LogFile{name: name, log: log.With("file", name)}
	if err := l.Reopen(); err != nil {
		return nil, err
	}
	return l, nil
}

// Reopen opens the name anew. Where that fails, what was open before stays in use.
func (l *LogFile) Reopen() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.reopen()
}

func (l *LogFile) reopen() error {
	if l.closed {
		return os.ErrClosed
	}
	file, err := os.OpenFile(l.name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	old := l.file
	l.file, l.looked, l.lost = file, time.Now(), nil
	if old != nil {
		return old.Close()
	}
	return nil
}

// Write appends p, or returns an error, which is logged once until it is over.
func (l *LogFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return 0, os.ErrClosed
	}
	if now := time.Now(); now.Sub(l.looked) >= time.Second {
		l.looked = now
		l.lost = l.follow()
	}
	n, err := l.file.Write(p)
	switch trouble := cmp.Or(err, l.lost); {
	case trouble != nil && !l.failing:
		l.failing = true
		l.log.Error("access log", "error", trouble)
	case trouble == nil && l.failing:
		l.failing = false
		l.log.Info("access log goes on")
	}
	return n, err
}

// follow opens the name anew if another file, or none, has it.
func (l *LogFile) follow() error {
	named, err := os.Stat(l.name)
	if errors.Is(err, fs.ErrNotExist) {
		return l.reopen()
	}
	if err != nil {
		return err
	}
	open, err := l.file.Stat()
	if err != nil {
		return err
	}
	if os.SameFile(named, open) {
		return nil
	}
	return l.reopen()
}

// Close closes the file. Nothing can be written any more.
func (l *LogFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return os.ErrClosed
	}
	l.closed = true
	return l.file.Close()
}
