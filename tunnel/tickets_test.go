package tunnel

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/lockedfile"
)

func TestTicketsResume(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			server := startTicketServer(t, version)

			t.Run("in memory", func(t *testing.T) {
				var tickets Tickets
				server.dial(t, &tickets, false)
				server.dial(t, &tickets, true)
			})
			t.Run("after a restart", func(t *testing.T) {
				file := filepath.Join(t.TempDir(), "raimon", "tickets.json")
				server.dial(t, ticketsIn(file), false)
				server.dial(t, ticketsIn(file), true)
				server.dial(t, ticketsIn(file), true)
			})
			t.Run("by key", func(t *testing.T) {
				file := filepath.Join(t.TempDir(), "tickets.json")
				server.dial(t, &Tickets{File: file, Key: "a:443", fileTimeout: patience}, false)
				server.dial(t, &Tickets{File: file, Key: "b:443", fileTimeout: patience}, false)
				server.dial(t, ticketsIn(file), false)
				server.dial(t, &Tickets{File: file, Key: "a:443", fileTimeout: patience}, true)
			})
		})
	}
}

func TestTicketsParallelDials(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, where := range []string{"memory", "file"} {
			t.Run(tls.VersionName(version)+" "+where, func(t *testing.T) {
				server := startTicketServer(t, version)
				tickets := new(Tickets)
				if where == "file" {
					tickets = ticketsIn(filepath.Join(t.TempDir(), "tickets.json"))
				}

				server.dial(t, tickets, false)
				if got := server.dialAtOnce(t, slices.Repeat([]*Tickets{tickets}, 10)); got != 1 {
					t.Errorf("ten dials with one ticket: %d resumed, want 1", got)
				}
				if got := server.dialAtOnce(t, slices.Repeat([]*Tickets{tickets}, 10)); got != 10 {
					t.Errorf("ten dials with ten tickets: %d resumed, want 10", got)
				}
			})
		}
	}
}

func TestTicketsSharedFile(t *testing.T) {
	server := startTicketServer(t, tls.VersionTLS13)
	file := filepath.Join(t.TempDir(), "tickets.json")
	var processes []*Tickets
	for range 10 {
		processes = append(processes, ticketsIn(file))
	}

	server.dial(t, ticketsIn(file), false)
	if got := server.dialAtOnce(t, processes); got != 1 {
		t.Errorf("ten processes with one ticket: %d resumed, want 1", got)
	}
	if got := server.dialAtOnce(t, processes); got != 10 {
		t.Errorf("ten processes with ten tickets: %d resumed, want 10", got)
	}
}

func TestTicketsPutNil(t *testing.T) {
	server := startTicketServer(t, tls.VersionTLS13)
	var tickets Tickets
	server.dial(t, &tickets, false)
	tickets.Put("localhost", nil)
	server.dial(t, &tickets, true)
}

// Processes that share a file come to it in another order than their tickets came to them.
func TestTicketsPutLate(t *testing.T) {
	var list ticketList
	newer, older := testTicket(fmt.Sprintf("%064d", 0), 1), testTicket(fmt.Sprintf("%064d", 0), 2)
	older.Stored--
	list.put(newer)
	list.put(older)
	if len(list) != 2 {
		t.Errorf("%d tickets kept, want 2", len(list))
	}
}

func TestTicketsNewestFirst(t *testing.T) {
	var tickets Tickets
	for i := range 3 * ticketsPerKey {
		tickets.memory.put(testTicket(tickets.key("localhost"), byte(i)))
	}
	for i := range ticketsPerKey {
		state, ok := tickets.Get("localhost")
		if !ok {
			t.Fatalf("%d tickets kept, want %d", i, ticketsPerKey)
		}
		label, session, err := state.ResumptionState()
		if err != nil || label[0] != byte(3*ticketsPerKey-1-i) {
			t.Fatalf("ticket %d is %v, %v", i, label, err)
		}
		if session.EarlyData {
			t.Fatalf("ticket %d offers early data", i)
		}
	}
	if _, ok := tickets.Get("localhost"); ok {
		t.Fatalf("more than %d tickets kept", ticketsPerKey)
	}
}

func TestTicketsKeysBounded(t *testing.T) {
	var tickets Tickets
	for i := range 2 * ticketsInAll {
		tickets.memory.put(testTicket(tickets.key(fmt.Sprint(i)), 0))
	}
	if len(tickets.memory) != ticketsInAll {
		t.Errorf("%d tickets kept, want %d", len(tickets.memory), ticketsInAll)
	}

	// Large tickets: the file holds the newest that fit.
	for i := range tickets.memory {
		tickets.memory[i].Session = bytes.Repeat([]byte{2}, ticketSizeLimit/2)
	}
	data, err := encodeTickets(tickets.memory)
	if err != nil || len(data) > ticketFileLimit {
		t.Fatalf("file of %d bytes, %v", len(data), err)
	}
	kept, err := parseTickets(data, time.Now())
	if err != nil || len(kept) == 0 || kept[0].Key != tickets.memory[0].Key {
		t.Errorf("%d tickets kept, %v", len(kept), err)
	}
}

func TestTicketsExpire(t *testing.T) {
	server := startTicketServer(t, tls.VersionTLS12)
	file := filepath.Join(t.TempDir(), "tickets.json")
	week := int64(ticketLifetime / time.Second)

	for _, test := range []struct {
		age    int64
		resume bool
	}{{week - 60, true}, {week, false}, {-60, false}} {
		tickets := new(Tickets)
		server.dial(t, tickets, false)
		tickets.memory[0].Stored -= test.age
		if err := writeTicketFile(file, tickets.memory); err != nil {
			t.Fatal(err)
		}
		server.dial(t, tickets, test.resume)
		server.dial(t, ticketsIn(file), test.resume)
	}
}

func TestTicketFileBroken(t *testing.T) {
	server := startTicketServer(t, tls.VersionTLS13)
	for name, data := range brokenTicketFiles(t) {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "tickets.json")
			if err := os.WriteFile(file, data, 0o600); err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))

			server.dial(t, &Tickets{File: file, fileTimeout: patience, Log: logger}, false)
			server.dial(t, &Tickets{File: file, fileTimeout: patience, Log: logger}, true)

			if n := strings.Count(log.String(), "\n"); n > 1 {
				t.Errorf("%d log lines, want one at most:\n%s", n, &log)
			}
			if strings.Contains(log.String(), "secret") {
				t.Errorf("content in the log: %s", &log)
			}
		})
	}
}

func TestTicketFileNotPrivate(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no mode bits")
	}
	server := startTicketServer(t, tls.VersionTLS13)
	spoil := map[string]func(file string) error{
		"group may read":   func(file string) error { return os.Chmod(file, 0o640) },
		"others may write": func(file string) error { return os.Chmod(file, 0o602) },
		"symbolic link": func(file string) error {
			return moveAside(file, func(moved string) error { return os.Symlink(moved, file) })
		},
	}
	if os.Geteuid() == 0 {
		spoil["another owner"] = func(file string) error { return os.Chown(file, 65534, -1) }
	}
	for name, do := range spoil {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "raimon", "tickets.json")
			server.dial(t, ticketsIn(file), false)
			if err := do(file); err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer

			server.dial(t, &Tickets{File: file, fileTimeout: patience, Log: slog.New(slog.NewTextHandler(&log, nil))}, false)

			if strings.Count(log.String(), "level=WARN") != 1 {
				t.Errorf("log: %q, want one warning", &log)
			}
			server.dial(t, ticketsIn(file), true)
			modes := map[string]os.FileMode{file: 0o600, file + ".lock": 0o600, filepath.Dir(file): 0o700 | os.ModeDir}
			for path, want := range modes {
				if info, err := os.Lstat(path); err != nil || info.Mode() != want {
					t.Errorf("%s: %v, %v, want mode %v", path, info.Mode(), err, want)
				}
			}
		})
	}
}

// moveAside moves the file aside and hands its new name on.
func moveAside(file string, then func(moved string) error) error {
	if err := os.Rename(file, file+".moved"); err != nil {
		return err
	}
	return then(file + ".moved")
}

func TestTicketFileUnwritable(t *testing.T) {
	server := startTicketServer(t, tls.VersionTLS13)
	folders := map[string]func(dir string) error{
		"folder is a file": func(dir string) error { return os.WriteFile(dir, nil, 0o600) },
	}
	if os.Geteuid() > 0 {
		folders["read-only folder"] = func(dir string) error { return os.Mkdir(dir, 0o500) }
	}
	folders["file is a folder"] = func(dir string) error {
		return os.MkdirAll(filepath.Join(dir, "tickets.json"), 0o700)
	}
	for name, occupy := range folders {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "raimon")
			if err := occupy(dir); err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			tickets := ticketsIn(filepath.Join(dir, "tickets.json"))
			tickets.Log = slog.New(slog.NewTextHandler(&log, nil))

			server.dial(t, tickets, false)
			server.dial(t, tickets, true)
			server.dial(t, tickets, true)

			if strings.Count(log.String(), "level=WARN") != 1 {
				t.Errorf("log: %q, want one warning", &log)
			}
			if _, err := os.Stat(tickets.File + ".tmp"); err == nil {
				t.Error("temporary file left behind")
			}
		})
	}
}

func TestTicketFileLockHeld(t *testing.T) {
	server := startTicketServer(t, tls.VersionTLS13)
	tickets := &Tickets{File: filepath.Join(t.TempDir(), "tickets.json"), fileTimeout: time.Millisecond}
	lock, err := lockedfile.Create(tickets.File + ".lock")
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()

	server.dial(t, tickets, false)
	server.dial(t, tickets, true)
	server.dial(t, tickets, true)

	// The goroutine that waits for the lock ends with it.
	if !tickets.busy.Load() {
		t.Error("nobody waits for the lock")
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); tickets.busy.Load(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("still waiting for a free lock")
		}
	}
}

func TestTicketLeftByCrash(t *testing.T) {
	server := startTicketServer(t, tls.VersionTLS13)
	file := filepath.Join(t.TempDir(), "tickets.json")
	if err := os.WriteFile(file+".tmp", []byte("half"), 0o644); err != nil {
		t.Fatal(err)
	}
	server.dial(t, ticketsIn(file), false)
	server.dial(t, ticketsIn(file), true)
}

func TestTicketOfServerRefused(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		server := startTicketServer(t, version)
		var tickets Tickets
		server.dial(t, &tickets, false)

		// A server's session has no certificates here; a handshake with it would panic.
		tickets.memory[0].Session = server.lastSession()
		server.dial(t, &tickets, false)
	}
}

func TestTicketFile(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	file, err := TicketFile()
	if err != nil || !strings.HasSuffix(filepath.ToSlash(file), "/raimon/tickets.json") {
		t.Errorf("%q, %v", file, err)
	}
}

func FuzzTicketFile(f *testing.F) {
	for _, data := range brokenTicketFiles(f) {
		if len(data) <= ticketFileLimit { // a longer one only slows the fuzzer down
			f.Add(data)
		}
	}
	server := startTicketServer(f, tls.VersionTLS13)
	tickets := new(Tickets)
	server.dial(f, tickets, false)
	valid, err := encodeTickets(tickets.memory)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(valid)
	tickets.memory[0].Session = server.lastSession()
	ofServer, err := encodeTickets(tickets.memory)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(ofServer)

	now := time.Now()
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := parseTickets(data, now)
		if err != nil && len(list) > 0 {
			t.Errorf("%d tickets along with an error", len(list))
		}
		if len(list) > ticketsInAll {
			t.Errorf("%d tickets", len(list))
		}
		perKey := make(map[string]int)
		for _, k := range list {
			if perKey[k.Key]++; perKey[k.Key] > ticketsPerKey {
				t.Errorf("%d tickets for one key", perKey[k.Key])
			}
			if len(k.Ticket)+len(k.Session) > ticketSizeLimit {
				t.Errorf("ticket of %d bytes", len(k.Ticket)+len(k.Session))
			}
			state, err := k.state()
			if err != nil {
				continue
			}
			if _, session, _ := state.ResumptionState(); session.EarlyData {
				t.Error("early data offered")
			}
			// crypto/tls looks into the ticket before it sends the ClientHello.
			here, there := net.Pipe()
			there.Close()
			config := &tls.Config{ServerName: "localhost", RootCAs: server.roots, ClientSessionCache: oneTicket{state}}
			tls.Client(here, config).Handshake()
			here.Close()
		}
	})
}

func BenchmarkTicketFile(b *testing.B) {
	server := startTicketServer(b, tls.VersionTLS13)
	tickets := ticketsIn(filepath.Join(b.TempDir(), "tickets.json"))
	server.dial(b, tickets, false)
	b.ReportAllocs()
	for b.Loop() {
		state, ok := tickets.Get("localhost")
		if !ok {
			b.Fatal("no ticket")
		}
		tickets.Put("localhost", state) // to the file, because the one there was taken
	}
}

// patience makes up for a slow disk: it is no failure here.
const patience = 30 * time.Second

func ticketsIn(file string) *Tickets { return &Tickets{File: file, fileTimeout: patience} }

type oneTicket struct{ state *tls.ClientSessionState }

func (c oneTicket) Get(string) (*tls.ClientSessionState, bool) { return c.state, true }
func (c oneTicket) Put(string, *tls.ClientSessionState)        {}

// brokenTicketFiles returns contents of which nothing can be used. "secret" in them must not be seen elsewhere.
func brokenTicketFiles(tb testing.TB) map[string][]byte {
	tb.Helper()
	valid, err := encodeTickets(ticketList{testTicket(new(Tickets).key("localhost"), 1)})
	if err != nil {
		tb.Fatal(err)
	}
	edit := func(old, new string) []byte {
		if !bytes.Contains(valid, []byte(old)) {
			tb.Fatalf("no %q in %s", old, valid)
		}
		return bytes.Replace(valid, []byte(old), []byte(new), 1)
	}
	var many ticketList // of other servers, more than are kept of one and in all
	for i := range 4 * ticketsInAll {
		many = append(many, testTicket(new(Tickets).key(fmt.Sprint(i%20)), 1))
	}
	crowd, err := json.Marshal(ticketFile{ticketFileVersion, runtime.Version(), many})
	if err != nil {
		tb.Fatal(err)
	}
	return map[string][]byte{
		"empty":          nil,
		"zeros":          make([]byte, 4096), // a crash before the data reached the disk
		"cut":            valid[:len(valid)/2],
		"not json":       []byte("secret"),
		"wrong type":     []byte(`{"version":"secret"}`),
		"number":         []byte(`{"version":1,"tickets":[{"stored":1e999}],"go":"secret"}`),
		"null":           []byte("null"),
		"bad base64":     edit(`"ticket":"`, `"ticket":"*secret*`),
		"later version":  edit(`"version":1`, `"version":2`),
		"another go":     edit(runtime.Version(), "go1.0"),
		"no session":     edit(`"session":"`, `"session":"","x":"`),
		"broken session": edit(`"session":"`, `"session":"AAAC`),
		"no key":         edit(`"key":"`, `"key":"","x":"`),
		"too large":      append(valid, bytes.Repeat([]byte(" "), ticketFileLimit)...),
		"crowd":          crowd,
	}
}

// testTicket returns a ticket that parses, though no server would take it.
func testTicket(key string, label byte) ticket {
	certificate := testTicketCertificate()
	session := []byte{3, 3, 2, 0xc0, 0x2f, 0, 0, 0, 0, 0x6a, 0, 0, 0, 1, 7, 0, 0, 0, 1, 1} // early_data is set
	list := slices.Concat(uint24(len(certificate)), certificate, []byte{0, 0})
	session = slices.Concat(session, uint24(len(list)), list, uint24(0), []byte{2, 'h', '2'}, []byte{0, 29})
	return ticket{Key: key, Stored: time.Now().Unix(), Ticket: []byte{label}, Session: session}
}

func uint24(n int) []byte { return []byte{byte(n >> 16), byte(n >> 8), byte(n)} }

var testTicketCertificate = sync.OnceValue(func() []byte {
	certificate, err := newTicketCertificate()
	if err != nil {
		panic(err)
	}
	return certificate.Certificate[0]
})

func newTicketCertificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "localhost"},
		DNSNames:              []string{"localhost"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// ticketServer is a crypto/tls server that sends one byte to everyone.
type ticketServer struct {
	address string
	roots   *x509.CertPool

	mu      sync.Mutex
	session []byte
}

func startTicketServer(tb testing.TB, version uint16) *ticketServer {
	tb.Helper()
	certificate, err := newTicketCertificate()
	if err != nil {
		tb.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(certificate.Certificate[0])
	if err != nil {
		tb.Fatal(err)
	}
	server := &ticketServer{roots: x509.NewCertPool()}
	server.roots.AddCert(leaf)
	config := &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: version, MaxVersion: version}
	config.WrapSession = func(state tls.ConnectionState, session *tls.SessionState) ([]byte, error) {
		encoded, err := session.Bytes()
		server.mu.Lock()
		server.session = encoded
		server.mu.Unlock()
		if err != nil {
			return nil, err
		}
		return config.EncryptTicket(state, session)
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		tb.Fatal(err)
	}
	server.address = listener.Addr().String()

	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				if _, err := c.Write([]byte{1}); err == nil {
					io.Copy(io.Discard, c)
				}
			})
		}
	})
	tb.Cleanup(func() {
		listener.Close()
		serving.Wait()
	})
	return server
}

// lastSession returns the server's half of the last ticket it gave.
func (s *ticketServer) lastSession() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.session
}

// dial connects once and reads, which is when a TLS 1.3 client gets its ticket.
func (s *ticketServer) dial(tb testing.TB, cache tls.ClientSessionCache, wantResume bool) {
	tb.Helper()
	resumed, err := s.tryDial(cache)
	if err != nil {
		tb.Fatal(err)
	}
	if resumed != wantResume {
		tb.Errorf("resumed: %v, want %v", resumed, wantResume)
	}
}

func (s *ticketServer) tryDial(cache tls.ClientSessionCache) (resumed bool, err error) {
	c, err := tls.Dial("tcp", s.address, &tls.Config{ServerName: "localhost", RootCAs: s.roots, ClientSessionCache: cache})
	if err != nil {
		return false, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		return false, err
	}
	return c.ConnectionState().DidResume, nil
}

// dialAtOnce dials once with each cache and returns how many resumed. No dial gets a new ticket before all have
// asked for an old one.
func (s *ticketServer) dialAtOnce(tb testing.TB, caches []*Tickets) (resumed int) {
	tb.Helper()
	var asking, dialing sync.WaitGroup
	asking.Add(len(caches))
	results := make([]bool, len(caches))
	for i, cache := range caches {
		dialing.Go(func() {
			var err error
			if results[i], err = s.tryDial(togetherCache{cache, &asking}); err != nil {
				tb.Error(err)
			}
		})
	}
	dialing.Wait()
	for _, r := range results {
		if r {
			resumed++
		}
	}
	return resumed
}

// togetherCache lets no Get return before all have been called.
type togetherCache struct {
	*Tickets
	asking *sync.WaitGroup
}

func (c togetherCache) Get(key string) (*tls.ClientSessionState, bool) {
	state, ok := c.Tickets.Get(key)
	c.asking.Done()
	c.asking.Wait()
	return state, ok
}
