package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// leavesNothing fails the test if it leaves goroutines or sockets behind. Call it first:
// what is cleaned up later is cleaned up before it looks. Not for parallel tests.
func leavesNothing(t testing.TB) {
	t.Helper()
	goroutines, sockets := runtime.NumGoroutine(), openSockets()
	t.Cleanup(func() {
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			if runtime.NumGoroutine() <= goroutines && openSockets() <= sockets {
				return
			}
		}
		stacks := make([]byte, 64<<10)
		t.Errorf("%d goroutines and %d sockets became %d and %d\n%s", goroutines, sockets,
			runtime.NumGoroutine(), openSockets(), stacks[:runtime.Stack(stacks, true)])
	})
}

// openSockets returns 0 where the system does not tell. Pipes do not count: package net keeps
// those it splices with.
func openSockets() (n int) {
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, entry := range entries {
		if to, _ := os.Readlink("/proc/self/fd/" + entry.Name()); strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}

// nameServer answers every question with the addresses of the right family, which may be changed.
type nameServer struct {
	mu        sync.Mutex
	addresses []netip.Addr
}

func (s *nameServer) set(addresses ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addresses = nil
	for _, a := range addresses {
		s.addresses = append(s.addresses, netip.MustParseAddr(a))
	}
}

func (s *nameServer) answer(query []byte) ([]byte, error) {
	var message dnsmessage.Message
	if err := message.Unpack(query); err != nil {
		return nil, err
	}
	message.Response, message.Authoritative = true, true
	message.Additionals = nil
	question := message.Questions[0]
	header := dnsmessage.ResourceHeader{Name: question.Name, Class: question.Class}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.addresses {
		switch {
		case a.Is4() && question.Type == dnsmessage.TypeA:
			message.Answers = append(message.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AResource{A: a.As4()}})
		case a.Is6() && question.Type == dnsmessage.TypeAAAA:
			message.Answers = append(message.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
		}
	}
	return message.Pack()
}

// resolverFor returns a resolver that asks a name server in this test.
func resolverFor(t testing.TB, s *nameServer) *net.Resolver {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 1500)
		for {
			n, client, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			if answer, err := s.answer(b[:n]); err != nil {
				t.Error(err)
			} else {
				c.WriteTo(answer, client)
			}
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", c.LocalAddr().String())
	}}
}

// greet accepts connections until the test ends and sends each one a greeting; then it echoes.
func greet(t testing.TB, l net.Listener, greeting string) {
	t.Helper()
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				io.WriteString(c, greeting)
				io.Copy(c, c)
				c.(Conn).CloseWrite()
			})
		}
	})
	t.Cleanup(func() { l.Close(); all.Wait() })
}

// echoTarget returns the address of a server that echoes.
func echoTarget(t testing.TB) (address string) {
	t.Helper()
	l := listenOn(t, ListenConfig{}, "127.0.0.1:0")[0]
	greet(t, l, "")
	return l.Addr().String()
}

// converse sends a message, ends its direction, and wants greeting and message back, byte by byte.
func converse(t testing.TB, c Conn, greeting string) {
	t.Helper()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, "ping\x00pong"); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if want := greeting + "ping\x00pong"; err != nil || string(b) != want {
		t.Fatalf("received %q, %v, want %q", b, err, want)
	}
}

func TestDial(t *testing.T) {
	leavesNothing(t)
	c, err := (&Dialer{}).Dial(t.Context(), echoTarget(t))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, ok := c.(*net.TCPConn); !ok {
		t.Errorf("got %T, want a bare *net.TCPConn", c)
	}
	converse(t, c, "")
}

func TestDialErrors(t *testing.T) {
	leavesNothing(t)
	if _, err := (&Dialer{}).Dial(t.Context(), "127.0.0.1"); err == nil {
		t.Error("no port: no error")
	}
	if _, err := (&Dialer{}).Dial(t.Context(), "127.0.0.1:"+freePort()); !errors.Is(err, errRefused) {
		t.Errorf("got %v, want ECONNREFUSED", err)
	}
	if _, err := (&Dialer{}).Dial(t.Context(), "unix:"+t.TempDir()+"/none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (&Dialer{}).Dial(ctx, echoTarget(t)); err == nil {
		t.Error("ctx has ended: no error")
	}
}

func TestDialTriesAllAddresses(t *testing.T) {
	leavesNothing(t)
	target := echoTarget(t)
	_, port, _ := net.SplitHostPort(target)
	for _, addresses := range [][]string{
		{"::1", "127.0.0.1"},
		{"127.0.0.2", "127.0.0.3", "127.0.0.1"},
	} {
		var server nameServer
		server.set(addresses...)
		c, err := (&Dialer{Resolver: resolverFor(t, &server)}).Dial(t.Context(), "edge.test:"+port)
		if err != nil {
			t.Errorf("%v: %v", addresses, err)
			continue
		}
		defer c.Close()
		converse(t, c, "")
	}
}

func TestDialLooksUpNamesEachTime(t *testing.T) {
	leavesNothing(t)
	target := echoTarget(t)
	_, port, _ := net.SplitHostPort(target)
	var server nameServer
	server.set("127.0.0.9")
	d := Dialer{Resolver: resolverFor(t, &server)}

	if c, err := d.Dial(t.Context(), "edge.test:"+port); !errors.Is(err, errRefused) {
		t.Fatalf("got %v, %v, want ECONNREFUSED", c, err)
	}
	server.set("127.0.0.1")
	c, err := d.Dial(t.Context(), "edge.test:"+port)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestDialerClone(t *testing.T) {
	d := &Dialer{
		Proxy:       func(string) (*url.URL, error) { return nil, nil },
		ProxyTLS:    &tls.Config{},
		ProxyUser:   func(context.Context) (*url.Userinfo, error) { return nil, nil },
		UserAgent:   "a",
		FastOpen:    true,
		Fwmark:      1,
		ProtectPath: "b",
		Resolver:    namesOf(),
		Log:         slog.Default(),
	}
	d.memory.worked("edge.test:1", netip.MustParseAddr("127.0.0.1"), true, nil)
	before, after := reflect.ValueOf(d).Elem(), reflect.ValueOf(d.Clone()).Elem()
	for i := range before.NumField() {
		field := before.Type().Field(i)
		if field.IsExported() && (before.Field(i).IsZero() || fmt.Sprint(before.Field(i)) != fmt.Sprint(after.Field(i))) {
			t.Errorf("%s is %v, and %v in the clone", field.Name, before.Field(i), after.Field(i))
		}
	}
	if d.Clone().memory.of("edge.test:1").addresses != nil {
		t.Error("the clone remembers")
	}
}

// Of the addresses that a name has, those are dialed that are allowed. What is asked about is what is dialed: a name
// server that says something else the next time changes nothing.
func TestDialAllowed(t *testing.T) {
	leavesNothing(t)
	target := echoTarget(t)
	_, port, _ := net.SplitHostPort(target)
	errNot := errors.New("not there")
	for _, test := range []struct {
		addresses, then []string
		allowed         string // nothing else is
		ok              bool
	}{
		{[]string{"127.0.0.1"}, nil, "127.0.0.1", true},
		{[]string{"127.0.0.2", "::1", "127.0.0.1"}, nil, "127.0.0.1", true},
		{[]string{"127.0.0.1"}, nil, "127.0.0.2", false},
		{[]string{"127.0.0.2"}, []string{"127.0.0.1"}, "127.0.0.2", false},
	} {
		var server nameServer
		server.set(test.addresses...)
		d := Dialer{Resolver: resolverFor(t, &server)}
		var asked []string
		c, err := d.DialAllowed(t.Context(), "edge.test:"+port, func(at netip.AddrPort) error {
			if test.then != nil {
				server.set(test.then...)
			}
			asked = append(asked, at.String())
			if at.Addr() != netip.MustParseAddr(test.allowed) {
				return errNot
			}
			return nil
		})
		if (err == nil) != test.ok || len(asked) == 0 {
			t.Errorf("%v with %s allowed: %v, asked about %v", test.addresses, test.allowed, err, asked)
		}
		if err == nil {
			if got := c.RemoteAddr().String(); got != test.allowed+":"+port {
				t.Errorf("dialed %s", got)
			}
			c.Close()
		}
	}
	for _, address := range []string{"unix:/run/x", "127.0.0.1", "http://a"} {
		if _, err := new(Dialer).DialAllowed(t.Context(), address, func(netip.AddrPort) error { return nil }); err == nil {
			t.Errorf("%s is dialed", address)
		}
	}
}
