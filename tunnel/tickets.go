package tunnel

import (
	"cmp"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rogpeppe/go-internal/lockedfile"
)

const (
	// No ticket outlives seven days (RFC 8446, section 4.6.1). crypto/tls holds a TLS 1.3 ticket to
	// the exact lifetime its server gave, but a TLS 1.2 ticket to none: this limit serves both.
	ticketLifetime = 7 * 24 * time.Hour

	ticketsPerKey   = 16  // enough for a burst of parallel dials
	ticketsInAll    = 128 // in memory, and again in the file
	ticketSizeLimit = 64 << 10
	ticketFileLimit = 1 << 20

	// A dial waits no longer than this for the ticket file; a full handshake is cheaper.
	ticketFileTimeout = 250 * time.Millisecond

	// The ticket left in the file for the next start is renewed this often.
	ticketReserveAge = time.Minute
)

var (
	errTicketFileBusy   = errors.New("an earlier access has not ended")
	errTicketFileSlow   = errors.New("locked for too long by another process, or too slow")
	errTicketFileBroken = errors.New("not a ticket file") // without details: the content is secret
)

// Tickets keeps TLS session tickets so that later connections resume (RFC 8446, section 2.2). It is
// a [tls.ClientSessionCache] for the connections to one server with one set of trust options.
//
// A ticket is used once: Get removes it, also when other goroutines and other processes that share
// File ask at the same time. It never offers early data. The zero value keeps tickets in memory.
//
// No trouble with the file ends a connection: without a ticket there is a full handshake.
type Tickets struct {
	// File, if not empty, keeps tickets across restarts; see [TicketFile]. It is written with mode
	// 0600, and its folder made with 0700 if missing. On unix a file that others can access or
	// that another user owns is not trusted: it is ignored with a warning, and later replaced. On
	// Windows the access list of the folder is relied upon.
	//
	// A file of another version of Go is passed over too: crypto/tls promises no stable encoding.
	File string

	// Key tells apart tickets that share a file: server, port and all trust options (certificate
	// authorities, pins, skipped verification, client certificate). It is stored as a hash only, but
	// do not put secrets into it.
	Key string

	// Log receives at most one warning about File; nil means no log.
	Log *slog.Logger

	mu       sync.Mutex
	memory   ticketList
	reserved map[string]time.Time // by key: when we last left a ticket in the file and did not take it back
	busy     atomic.Bool          // an access to the file is under way, perhaps one that we gave up on
	warned   bool

	fileTimeout time.Duration // zero means ticketFileTimeout; tests differ
}

// TicketFile returns the usual place for [Tickets.File]: raimon/tickets.json in the user's cache folder.
func TicketFile() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("ticket file: %w", err)
	}
	return filepath.Join(dir, "raimon", "tickets.json"), nil
}

// Get takes the newest ticket for sessionKey. It may wait 250 ms for the file.
func (t *Tickets) Get(sessionKey string) (*tls.ClientSessionState, bool) {
	key := t.key(sessionKey)
	t.mu.Lock()
	defer t.mu.Unlock()

	found, ok := t.memory.take(key, time.Now())
	if !ok && t.File != "" {
		found, ok = t.takeFromFile(key)
	}
	if !ok {
		return nil, false
	}
	state, err := found.state()
	return state, err == nil
}

// Put stores a ticket. It may wait 250 ms for the file.
//
// Put with a nil state does nothing: crypto/tls calls it after a handshake with a ticket that proved
// stale, or that was merely cut off (handshake_client.go). Get has removed that ticket; the others may be good.
func (t *Tickets) Put(sessionKey string, state *tls.ClientSessionState) {
	if state == nil {
		return
	}
	added, err := newTicket(t.key(sessionKey), state)
	if err != nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()

	// Each ticket is either in memory or in the file, so that it is used once. The file gets one now
	// and then, for the next start; the rest stay here, where taking one costs no system call.
	if t.File != "" && time.Since(t.reserved[added.Key]) > ticketReserveAge && t.putInFile(added) {
		return
	}
	t.memory.put(added)
}

// key hashes what a ticket is for, which bounds its length and keeps names out of the file.
func (t *Tickets) key(sessionKey string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d:%s%s", len(t.Key), t.Key, sessionKey))
	return hex.EncodeToString(sum[:])
}

func (t *Tickets) takeFromFile(key string) (ticket, bool) {
	delete(t.reserved, key)
	var found ticket
	var ok bool
	err := t.editFile(func(list *ticketList) bool {
		found, ok = list.take(key, time.Now())
		return ok
	})
	if err != nil {
		// A ticket that could not be struck off may be used by someone else. And found is not to be
		// touched: an access that was too slow still writes to it.
		return ticket{}, false
	}
	return found, ok
}

// putInFile reports whether the ticket has gone to the file, or may still get there.
func (t *Tickets) putInFile(added ticket) bool {
	err := t.editFile(func(list *ticketList) bool {
		list.put(added)
		return true
	})
	if err != nil {
		return errors.Is(err, errTicketFileSlow)
	}
	if t.reserved == nil || len(t.reserved) >= ticketsInAll {
		t.reserved = make(map[string]time.Time)
	}
	t.reserved[added.Key] = time.Now()
	return true
}

// editFile changes the tickets in the file. t.mu is held.
//
// The lock of a stopped process or a dead network folder may block for ever, and no system call here takes a
// deadline. One goroutine at most is left waiting; until it ends, the file is out of use.
func (t *Tickets) editFile(change func(*ticketList) (changed bool)) error {
	if !t.busy.CompareAndSwap(false, true) {
		return errTicketFileBusy
	}
	type outcome struct{ ignored, err error }
	done := make(chan outcome, 1)
	go func() {
		ignored, err := editTicketFile(t.File, change)
		t.busy.Store(false)
		done <- outcome{ignored, err}
	}()
	timeout := time.NewTimer(cmp.Or(t.fileTimeout, ticketFileTimeout))
	defer timeout.Stop()
	select {
	case o := <-done:
		t.warn("ticket file ignored", o.ignored)
		t.warn("ticket file not used", o.err)
		return o.err
	case <-timeout.C:
		t.warn("ticket file not used", errTicketFileSlow)
		return errTicketFileSlow
	}
}

func (t *Tickets) warn(message string, err error) {
	if err == nil || t.Log == nil || t.warned {
		return
	}
	t.warned = true
	t.Log.Warn(message, "file", t.File, "error", err)
}

// editTicketFile reads the file, changes it and replaces it, all under a lock between processes. What is in
// the way of reading is returned as ignored: the list then starts empty.
func editTicketFile(name string, change func(*ticketList) (changed bool)) (ignored, err error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return nil, err
	}
	// The lock has a file of its own because renaming puts another file in the place of name.
	lock, err := lockedfile.OpenFile(name+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer lock.Close()

	list, ignored := readTicketFile(name, time.Now())
	if !change(&list) {
		return ignored, nil
	}
	return ignored, writeTicketFile(name, list)
}

// readTicketFile returns the tickets in a private file; a missing file holds none.
func readTicketFile(name string, now time.Time) (ticketList, error) {
	before, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !before.Mode().IsRegular() { // to open a pipe would block
		return nil, errors.New("not a regular file")
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !os.SameFile(before, info) {
		return nil, errors.New("replaced while it was opened")
	}
	if err := ticketFilePrivate(info); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, ticketFileLimit+1))
	if err != nil {
		return nil, err
	}
	return parseTickets(data, now)
}

// writeTicketFile replaces the file at once. There is no fsync: a lost ticket costs a full handshake.
func writeTicketFile(name string, list ticketList) error {
	data, err := encodeTickets(list)
	if err != nil {
		return err
	}
	// The lock is ours, so a file of this name was left by a crash.
	temporary := name + ".tmp"
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(temporary, name)
	}
	if err != nil {
		os.Remove(temporary)
	}
	return err
}

// ticketFile is the content of the file.
type ticketFile struct {
	Version int        `json:"version"`
	Go      string     `json:"go"` // SessionState.Bytes may change between Go versions
	Tickets ticketList `json:"tickets"`
}

const ticketFileVersion = 1

// parseTickets never returns more than the limits above. Tickets of another version are no error.
func parseTickets(data []byte, now time.Time) (ticketList, error) {
	var file ticketFile
	if len(data) > ticketFileLimit || json.Unmarshal(data, &file) != nil || file.Version == 0 {
		return nil, errTicketFileBroken
	}
	if file.Version != ticketFileVersion || file.Go != runtime.Version() {
		return nil, nil
	}
	return file.Tickets.bounded(now), nil
}

// encodeTickets leaves out the oldest tickets if the file would grow too large.
func encodeTickets(list ticketList) ([]byte, error) {
	for {
		data, err := json.Marshal(ticketFile{ticketFileVersion, runtime.Version(), list})
		if err != nil || len(data) <= ticketFileLimit {
			return data, err
		}
		list = list[:len(list)*3/4]
	}
}

// ticket is one ticket together with the secret that goes with it.
type ticket struct {
	Key     string `json:"key"`
	Stored  int64  `json:"stored"` // seconds since 1970
	Ticket  []byte `json:"ticket"`
	Session []byte `json:"session"`
}

func newTicket(key string, state *tls.ClientSessionState) (ticket, error) {
	label, session, err := state.ResumptionState()
	if err != nil {
		return ticket{}, err
	}
	if session == nil {
		return ticket{}, errors.New("ticket without a session")
	}
	encoded, err := session.Bytes()
	if err != nil {
		return ticket{}, err
	}
	return ticket{Key: key, Stored: time.Now().Unix(), Ticket: label, Session: encoded}, nil
}

func (k ticket) state() (*tls.ClientSessionState, error) {
	// The third byte is the type, 2 a client's (crypto/tls/ticket.go). A server's session may lack
	// certificates, and a handshake with it would panic.
	if len(k.Session) < 3 || k.Session[2] != 2 {
		return nil, errors.New("not a client's session")
	}
	session, err := tls.ParseSessionState(k.Session)
	if err != nil {
		return nil, err
	}
	session.EarlyData = false // crypto/tls never sets it over TCP; a file might
	return tls.NewResumptionState(k.Ticket, session)
}

func (k ticket) usable(now time.Time) bool {
	age := now.Unix() - k.Stored
	return k.Stored > 0 && age >= 0 && age < int64(ticketLifetime/time.Second) &&
		len(k.Key) == hex.EncodedLen(sha256.Size) && len(k.Ticket)+len(k.Session) <= ticketSizeLimit
}

// ticketList holds the tickets of all keys, the newest first.
type ticketList []ticket

func (l *ticketList) put(added ticket) {
	*l = slices.Insert(*l, 0, added).bounded(time.Now())
}

// take removes the newest usable ticket for a key.
func (l *ticketList) take(key string, now time.Time) (ticket, bool) {
	i := slices.IndexFunc(*l, func(k ticket) bool { return k.Key == key && k.usable(now) })
	if i < 0 {
		return ticket{}, false
	}
	found := (*l)[i]
	*l = slices.Delete(*l, i, i+1)
	return found, true
}

// bounded drops what is too old, too large or too many. It reuses l.
func (l ticketList) bounded(now time.Time) ticketList {
	kept := 0
	perKey := make(map[string]int)
	l = slices.DeleteFunc(l, func(k ticket) bool {
		if kept == ticketsInAll || perKey[k.Key] == ticketsPerKey || !k.usable(now) {
			return true
		}
		kept++
		perKey[k.Key]++
		return false
	})
	return l
}
