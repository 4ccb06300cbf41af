package edge

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"raimon/internal/tunneltest"
	"raimon/storage"
)

// keyRing runs TicketKeys, as one process of an edge does.
type keyRing struct {
	*TicketKeys
	*logLines
	stop func() // ends the process; it is called anyway when the test ends
}

// newKeyRing starts a process. The test is in a synctest bubble.
func newKeyRing(t testing.TB, storage KeyStorage) *keyRing {
	t.Helper()
	lines := new(logLines)
	r := &keyRing{TicketKeys: &TicketKeys{Storage: storage, Log: slog.New(slog.NewTextHandler(lines, nil))}, logLines: lines}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Run(ctx)
	}()
	r.stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(r.stop)
	return r
}

// using returns the secrets in use, the one that encrypts first.
func (r *keyRing) using() []ticketSecret {
	r.TicketKeys.mu.Lock()
	defer r.TicketKeys.mu.Unlock()
	return slices.Clone(r.inUse)
}

// isLocal tells whether tickets are encrypted with a key of this process alone.
func (r *keyRing) isLocal() bool {
	front := r.using()[0]
	r.TicketKeys.mu.Lock()
	defer r.TicketKeys.mu.Unlock()
	return slices.Contains(r.local, front)
}

// server makes a bound config for both sites and versions of this test.
func (r *keyRing) server(t testing.TB, cert tls.Certificate, site, policy string) *tls.Config {
	t.Helper()
	config := &tls.Config{Certificates: []tls.Certificate{cert}}
	r.Bind(config, site, policy)
	return config
}

// after lets time go by and Run come to rest.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// ticketCert makes a certificate that outlives tickets.
func ticketCert(t testing.TB) tls.Certificate {
	t.Helper()
	key := newKey(t)
	leaf := newAuthority(t, "Test CA").issue(t, "a.example", key.Public())
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

// ticketHolder is a client that has one ticket, and shows it to whatever server it talks to.
type ticketHolder struct {
	version uint16
	ticket  *tls.ClientSessionState
	keeps   bool             // the one it has, whatever new ones it gets
	clock   func() time.Time // nil means time.Now; one that stands still shows tickets of any age
}

func (h *ticketHolder) Get(string) (*tls.ClientSessionState, bool) { return h.ticket, h.ticket != nil }

func (h *ticketHolder) Put(_ string, ticket *tls.ClientSessionState) {
	if !h.keeps {
		h.ticket = ticket
	}
}

// resumes connects to a server with config over a socket, and tells whether the server took the ticket.
func (h *ticketHolder) resumes(t testing.TB, config *tls.Config) bool {
	t.Helper()
	dialed, accepted := tunneltest.Pair(t)
	defer dialed.Close()
	defer accepted.Close()
	server := tls.Server(accepted, config)
	served := make(chan error, 1)
	go func() {
		_, err := server.Write([]byte("x"))
		served <- err
	}()
	client := tls.Client(dialed, &tls.Config{
		ServerName: "a.example", InsecureSkipVerify: true, ClientSessionCache: h,
		MinVersion: h.version, MaxVersion: h.version, Time: h.clock,
	})
	if _, err := io.ReadFull(client, make([]byte, 1)); err != nil {
		t.Fatalf("client: %v", err)
	}
	if err := <-served; err != nil {
		t.Fatalf("server: %v", err)
	}
	if h.ticket == nil && !config.SessionTicketsDisabled {
		t.Fatal("the client got no ticket")
	}
	resumed := server.ConnectionState().DidResume
	if client.ConnectionState().DidResume != resumed {
		t.Error("client and server do not agree whether they resumed")
	}
	return resumed
}

// eachVersion runs a test for TLS 1.2 and 1.3, in a bubble each.
func eachVersion(t *testing.T, test func(t *testing.T, version uint16)) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, version) })
		})
	}
}

func TestTicketsSurviveRestart(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint16) {
		cert, root := ticketCert(t), t.TempDir()
		client := &ticketHolder{version: version}
		for start := range 4 {
			r := newKeyRing(t, &storage.File{Root: root})
			config := r.server(t, cert, "a.example", "")
			synctest.Wait() // until the storage was read
			if got, want := client.resumes(t, config), start > 0; got != want {
				t.Errorf("start %d: resumed %v, want %v", start, got, want)
			}
			if !client.resumes(t, config) {
				t.Errorf("start %d: the second connection did not resume", start)
			}
			r.stop()
			r.want(t)
			time.Sleep(10 * time.Hour)
		}
		info, err := os.Stat(filepath.Join(root, ticketKey))
		if err != nil {
			t.Fatal(err)
		}
		if mode := info.Mode().Perm(); runtime.GOOS != "windows" && mode != 0o600 {
			t.Errorf("the value has mode %v", mode)
		}
	})
}

// A ticket of one site is no ticket at another, nor under another client policy; and no error.
func TestTicketsStayAtTheirSite(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint16) {
		cert := ticketCert(t)
		for name, keys := range map[string]KeyStorage{"stored": &storage.File{Root: t.TempDir()}, "local": nil} {
			r := newKeyRing(t, keys)
			own := r.server(t, cert, "a.example", "")
			synctest.Wait()
			client := &ticketHolder{version: version}
			client.resumes(t, own)
			client.keeps = true
			for _, other := range []struct{ site, policy string }{
				{"b.example", ""}, {"a.example", "mtls"}, {"", "a.example"}, {"a.exampl", "e"},
			} {
				if client.resumes(t, r.server(t, cert, other.site, other.policy)) {
					t.Errorf("%s: resumed at %q", name, other)
				}
			}
			if !client.resumes(t, r.server(t, cert, "a.example", "")) {
				t.Errorf("%s: did not resume at its own site", name)
			}
		}
	})
}

// One port, two sites: what crypto/tls mixes up by itself.
func TestTicketsBehindGetConfigForClient(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint16) {
		r := newKeyRing(t, nil)
		cert := ticketCert(t)
		site := "a.example"
		sites := make(map[string]*tls.Config)
		for _, name := range []string{"a.example", "b.example"} {
			sites[name] = r.server(t, cert, name, "")
		}
		port := &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return sites[site], nil }}
		r.Bind(port, "", "")

		client := &ticketHolder{version: version}
		client.resumes(t, port)
		client.keeps = true
		site = "b.example"
		if client.resumes(t, port) {
			t.Error("a ticket of one site was taken at another")
		}
		site = "a.example"
		if !client.resumes(t, port) {
			t.Error("did not resume at its own site")
		}
	})
}

// Each config of a site, whatever the client offers, follows the rotation.
func TestTicketsWithALPN(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint16) {
		cert := ticketCert(t)
		keys := newFakeStorage()
		first := newKeyRing(t, keys)
		site := newSiteConfigs(&Site{Tickets: "a.example", Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }}, first.TicketKeys)
		config := &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) { return site.choose(hello), nil }}
		synctest.Wait()
		for range 12 {
			client := &ticketHolder{version: version}
			client.resumes(t, config)
			second := newKeyRing(t, keys)
			other := second.server(t, cert, "a.example", "")
			synctest.Wait()
			if !client.resumes(t, other) {
				t.Error("the ticket is not from today's key")
			}
			second.stop()
			after(24 * time.Hour)
		}
	})
}

func TestTicketsDisabled(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint16) {
		r := newKeyRing(t, nil)
		config := &tls.Config{Certificates: []tls.Certificate{ticketCert(t)}, SessionTicketsDisabled: true}
		r.Bind(config, "a.example", "")
		if len(r.bound) != 0 {
			t.Error("the config was bound")
		}
		client := &ticketHolder{version: version}
		for range 2 {
			if client.resumes(t, config) {
				t.Error("resumed")
			}
		}
		if client.ticket != nil {
			t.Error("the client got a ticket")
		}
	})
}

// Day by day: tickets live for a week, and their keys not much longer.
func TestTicketRotation(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint16) {
		for name, keys := range map[string]KeyStorage{"stored": newFakeStorage(), "local": nil} {
			cert := ticketCert(t)
			r := newKeyRing(t, keys)
			config := r.server(t, cert, "a.example", "")
			// A server that does not look at the age of tickets: its keys alone decide.
			start := time.Now()
			ageless := &tls.Config{Certificates: []tls.Certificate{cert}, Time: func() time.Time { return start }}
			r.Bind(ageless, "a.example", "")
			synctest.Wait()

			visit := func() *ticketHolder {
				client := &ticketHolder{version: version}
				client.resumes(t, config)
				client.keeps = true
				return client
			}
			first := visit()
			first.clock = ageless.Time
			fronts := map[ticketSecret]bool{r.using()[0]: true}
			for d := 1; d <= 10; d++ {
				yesterday := visit()
				after(24 * time.Hour)
				if !yesterday.resumes(t, config) {
					t.Errorf("%s: day %d: yesterday's ticket did not resume", name, d)
				}
				if got, want := first.resumes(t, config), d <= 7; got != want {
					t.Errorf("%s: day %d: the first ticket resumed %v, want %v", name, d, got, want)
				}
				if got, want := first.resumes(t, ageless), d < 8; got != want {
					t.Errorf("%s: day %d: the first ticket's key is there: %v, want %v", name, d, got, want)
				}
				fronts[r.using()[0]] = true
				if len(fronts) != d+1 {
					t.Errorf("%s: day %d: %d keys so far, want a new one each day", name, d, len(fronts))
				}
			}
			if n := len(r.using()); n > 12 {
				t.Errorf("%s: %d secrets in use, want 12 at most", name, n)
			}
		}
	})
}

// Clocks of two edges differ by a few minutes: they read each other's tickets all the same.
func TestTicketsOfEdgesWithOtherClocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := newFakeStorage()
		ahead := newKeyRing(t, keys)
		synctest.Wait()
		behind := &TicketKeys{stored: ahead.stored}
		for range 24 * 60 / 5 {
			now := time.Now()
			behind.update(now.Add(-5 * time.Minute))
			if front := ahead.using()[0]; !slices.Contains(behind.inUse, front) {
				t.Fatal("the edge that is behind cannot read a ticket of the one that is ahead")
			}
			if !slices.Contains(ahead.using(), behind.inUse[0]) {
				t.Fatal("the edge that is ahead cannot read a ticket of the one that is behind")
			}
			after(5 * time.Minute)
		}
	})
}

// A config that is gone is not kept in memory by its keys.
func TestTicketConfigsAreForgotten(t *testing.T) {
	var r TicketKeys
	kept := &tls.Config{}
	r.Bind(kept, "kept.example", "")
	for range 100 {
		r.Bind(&tls.Config{}, "gone.example", "")
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		runtime.GC()
		r.update(time.Now())
		r.mu.Lock()
		n := len(r.bound)
		r.mu.Unlock()
		if n == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d configs are bound, want 1", n)
		}
	}
	runtime.KeepAlive(kept)
}

func TestTicketKeysEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := newFakeStorage()
		keys.deaf = make(chan struct{})
		lines := new(logLines)
		k := &TicketKeys{Storage: keys, Log: slog.New(slog.NewTextHandler(lines, nil))}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		began := time.Now()
		k.Run(ctx)
		if took := time.Since(began); took != 10*time.Second+ticketLeave {
			t.Errorf("Run returned after %v, want 5s after ctx ended", took)
		}
		lines.want(t, "left behind")
		close(keys.deaf)
		synctest.Wait()

		keys.deaf = nil
		keys.hangs = true
		began = time.Now()
		ctx, cancel = context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		k.Run(ctx)
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("Run returned after %v, want 10s", took)
		}
		lines.want(t)
	})
}

// Handshakes, rotation and Bind at the same time; the race detector looks on.
func TestTicketKeysConcurrently(t *testing.T) {
	cert := ticketCert(t)
	k := &TicketKeys{}
	config := &tls.Config{Certificates: []tls.Certificate{cert}}
	k.Bind(config, "a.example", "")
	done := make(chan struct{})
	var rotation sync.WaitGroup
	rotation.Go(func() {
		for day := 0; ; day++ {
			select {
			case <-done:
				return
			default:
				k.adopt(ticketList(24 * day))
				k.Bind(&tls.Config{}, "b.example", "")
			}
		}
	})
	defer rotation.Wait()
	defer close(done)
	client := &ticketHolder{version: tls.VersionTLS13}
	for range 30 {
		client.resumes(t, config)
	}
}
