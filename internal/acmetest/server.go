package acmetest

import (
	"cmp"
	"crypto/tls"
	"errors"
	"log"
	"net"
	"net/http"
	"sync"
	"time"
)

// maxBody is more than any request of ACME, OCSP or the management has.
const maxBody = 1 << 20

// server is an HTTP server that can be taken down and brought up again at the same address.
type server struct {
	address     string
	handler     http.Handler
	certificate *tls.Certificate // nil: plain HTTP
	log         *log.Logger

	mu      sync.Mutex
	running *http.Server // nil: down
	ended   chan error   // gets what Serve returned
	closed  bool
	busy    sync.WaitGroup              // handlers
	since   map[*http.Request]time.Time // of busy
}

// serve listens at address, where empty means a free port of 127.0.0.1.
func serve(address string, handler http.Handler, certificate *tls.Certificate, logger *log.Logger) (*server, error) {
	s := &server{address: cmp.Or(address, "127.0.0.1:0"), handler: handler, certificate: certificate, log: logger,
		since: map[*http.Request]time.Time{}}
	if err := s.up(); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *server) up() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running != nil {
		return nil
	}
	listener, err := net.Listen("tcp", s.address)
	if err != nil {
		return err
	}
	s.address = listener.Addr().String()
	running := &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second, ErrorLog: s.log}
	ended := make(chan error, 1)
	if s.certificate == nil {
		go func() { ended <- running.Serve(listener) }()
	} else {
		running.TLSConfig = &tls.Config{Certificates: []tls.Certificate{*s.certificate}}
		go func() { ended <- running.ServeTLS(listener, "", "") }()
	}
	s.running, s.ended = running, ended
	return nil
}

// ServeHTTP lets close wait for handlers, which http.Server.Close does not.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !s.begin(r) {
		panic(http.ErrAbortHandler)
	}
	defer s.end(r)
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	s.handler.ServeHTTP(w, r)
}

func (s *server) begin(r *http.Request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.busy.Add(1)
	s.since[r] = time.Now()
	return true
}

func (s *server) end(r *http.Request) {
	s.mu.Lock()
	delete(s.since, r)
	s.mu.Unlock()
	s.busy.Done()
}

// stuck tells whether a request has been waiting for its answer for longer than Pebble ever takes.
func (s *server) stuck() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, since := range s.since {
		if time.Since(since) > stuckAfter {
			return true
		}
	}
	return false
}

func (s *server) down() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running == nil {
		return nil
	}
	err := s.running.Close()
	if ended := <-s.ended; !errors.Is(ended, http.ErrServerClosed) {
		err = errors.Join(err, ended)
	}
	s.running = nil
	return err
}

func (s *server) close() error {
	err := s.down()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		s.busy.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return err
	case <-time.After(closeLimit):
		return errors.Join(err, ErrStuck)
	}
}

const (
	// closeLimit is how long close waits for handlers.
	closeLimit = 20 * time.Second
	stuckAfter = 10 * time.Second
)

// ErrStuck is of CA.Close: requests have not been answered, and will never be.
var ErrStuck = errors.New("requests are being answered for ever")
