package acme

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"raimon/storage"
)

// onDemand is a Manager without a CA that answers, and a way to ask it by a real handshake.
func onDemand(t *testing.T, allow func(context.Context, string) error) (m *Manager, ask func(name string) error) {
	t.Helper()
	m, err := New(Config{
		Allow:   allow,
		CAs:     []CA{{Directory: "https://127.0.0.1:1/dir"}}, // tcpmux: nobody has it
		HTTP:    true,
		Storage: &storage.File{Root: t.TempDir()},
	})
	if err != nil {
		t.Fatal(err)
	}
	m.clock.unreached, m.clock.lastUnreached = 10*time.Millisecond, 10*time.Millisecond
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return m, func(name string) (err error) {
		a, b := net.Pipe()
		defer a.Close()
		go func() {
			defer b.Close()
			tls.Client(b, &tls.Config{ServerName: name, InsecureSkipVerify: true}).Handshake()
		}()
		limited, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var asked error
		tls.Server(a, &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			cert, err := m.GetCertificate(hello)
			asked = err
			return cert, err
		}}).HandshakeContext(limited)
		return asked
	}
}

// Whatever strangers ask for, the decision is asked once for each name, and never for nonsense.
func TestOnDemandRefusals(t *testing.T) {
	var asked atomic.Int32
	m, ask := onDemand(t, func(_ context.Context, name string) error {
		asked.Add(1)
		return ErrNotAllowed
	})
	for _, name := range []string{"a.test", "A.TEST", "a.test"} {
		if err := ask(name); !errors.Is(err, ErrUnknownName) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times about one name", n)
	}
	for _, name := range []string{"", "under_score.test", "a..test", "-a.test"} {
		if err := ask(name); !errors.Is(err, ErrUnknownName) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times: also about what is no name", n)
	}
	if status := m.Status(); len(status) != 0 {
		t.Errorf("kept: %+v", status)
	}
}

// Clients that ask for one name at the same time wait for one decision.
func TestOnDemandDecidesOnce(t *testing.T) {
	var asked atomic.Int32
	decide := make(chan struct{})
	m, ask := onDemand(t, func(_ context.Context, name string) error {
		asked.Add(1)
		<-decide
		return nil
	})
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			// The CA is away: there is no certificate, but it is not for the name.
			if err := ask("a.test"); err == nil || errors.Is(err, ErrUnknownName) {
				t.Errorf("got %v, want the reason why there is no certificate yet", err)
			}
		})
	}
	close(decide)
	all.Wait()
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	if status := m.Status(); len(status) != 1 || status[0].Name != "a.test" || status[0].LastError == "" {
		t.Errorf("status %+v", status)
	}
}

// A name that is not allowed any more, and has no certificate, is forgotten.
func TestOnDemandLetsGo(t *testing.T) {
	var refused atomic.Bool
	m, ask := onDemand(t, func(context.Context, string) error {
		if refused.Load() {
			return ErrNotAllowed
		}
		return nil
	})
	if err := ask("a.test"); err == nil || errors.Is(err, ErrUnknownName) {
		t.Errorf("got %v, want the reason why there is no certificate yet", err)
	}
	refused.Store(true)
	for end := time.Now().Add(20 * time.Second); len(m.Status()) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it is still kept: %+v", m.Status())
		}
	}
	if n := m.onDemandCount(); n != 0 {
		t.Errorf("%d names are counted", n)
	}
	if err := ask("a.test"); !errors.Is(err, ErrUnknownName) {
		t.Errorf("later: %v", err)
	}
}

// Where nobody decides, that is not a no: the next client may be luckier.
func TestOnDemandSilence(t *testing.T) {
	var asked atomic.Int32
	m, ask := onDemand(t, func(context.Context, string) error { asked.Add(1); return errors.New("down") })
	if err := ask("a.test"); err == nil || errors.Is(err, ErrUnknownName) {
		t.Errorf("got %v", err)
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	// One that was allowed before, and has a certificate, is served.
	key, chain := keyAndChain(t, "b.test")
	name := pairName(m.authorities[0].issuer, "b.test")
	for extension, value := range map[string][]byte{".key": key, ".crt": chain, ".json": []byte("{}")} {
		if err := m.storage.Store(t.Context(), name+extension, value); err != nil {
			t.Fatal(err)
		}
	}
	if err := ask("b.test"); err != nil {
		t.Error(err)
	}
}

// A flood of names meets a limit, and takes no more memory than it may.
func TestOnDemandFlood(t *testing.T) {
	var d demand
	now := time.Now()
	for i := range maxAsking {
		if _, err := d.begin(fmt.Sprint(i), now, 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.begin("one more", now, 0); err == nil {
		t.Error("there is no limit to decisions at a time")
	}
	for i := range maxAsking {
		d.end(fmt.Sprint(i), now.Add(refusalLasts))
	}
	for i := range maxRefusals + 100 {
		name := fmt.Sprintf("n%d", i)
		if _, err := d.begin(name, now, 0); err != nil {
			t.Fatal(err)
		}
		d.end(name, now.Add(refusalLasts))
	}
	if len(d.refusals) > maxRefusals || len(d.asking) != 0 {
		t.Errorf("%d refusals, %d decisions are remembered", len(d.refusals), len(d.asking))
	}
	// After a while the same name may be asked about again.
	last := fmt.Sprintf("n%d", maxRefusals+99)
	if _, err := d.begin(last, now.Add(refusalLasts-time.Second), 0); !errors.Is(err, ErrUnknownName) {
		t.Errorf("too early: %v", err)
	}
	if c, err := d.begin(last, now.Add(refusalLasts+time.Second), 0); c != nil || err != nil {
		t.Errorf("later: %v, %v", c, err)
	}
}

func TestAsk(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/moved":
			http.Redirect(w, r, "/?domain=good.test", http.StatusFound)
		case r.URL.Query().Get("key") != "k" || r.URL.Query().Get("domain") != "good.test":
			w.WriteHeader(http.StatusForbidden)
		}
	}))
	defer server.Close()
	program := filepath.Join(t.TempDir(), "ask")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n[ \"$1 $2\" = \"a good.test\" ] && exit 0\necho \"not $2\" >&2; exit 3\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		spec, name, want string
	}{
		{server.URL + "/?key=k", "good.test", ""},
		{server.URL + "/?key=k", "bad.test", "answers with status 403"},
		{server.URL + "/moved", "bad.test", "answers with status 302"},
		{"http://127.0.0.1:1/", "good.test", "connection refused"},
		{program + " a", "good.test", ""},
		{program + " a", "bad.test", "exit status 3: not bad.test"},
	} {
		allow, err := Ask(test.spec)
		if err != nil {
			t.Errorf("%s: %v", test.spec, err)
			continue
		}
		err = allow(t.Context(), test.name)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s, %s: got %v, want %q", test.spec, test.name, err, test.want)
		}
	}
	for _, spec := range []string{"http://", "https:///x", " ", "/no/such/program"} {
		var mistake *ConfigError
		if _, err := Ask(spec); !errors.As(err, &mistake) || mistake.Fix == "" {
			t.Errorf("%q: got %v, want what to do", spec, err)
		}
	}
}
