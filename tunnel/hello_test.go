package tunnel_test

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// Whatever was read ahead, and in however many steps, Relay has the bare connection.
func TestNestedReadAhead(t *testing.T) {
	dialed, accepted := tunneltest.Pair(t)
	c := tunnel.ReadAhead(tunnel.ReadAhead(accepted, []byte("b")), []byte("a"))
	far, target := tunneltest.Pair(t)
	relayed := make(chan error, 1)
	go func() {
		_, _, err := tunnel.Relay(t.Context(), c, far, time.Second)
		relayed <- err
	}()
	io.WriteString(dialed, "c")
	dialed.CloseWrite()
	target.CloseWrite()
	if got, err := io.ReadAll(target); err != nil || string(got) != "abc" {
		t.Errorf("%q arrives, %v", got, err)
	}
	if err := <-relayed; err != nil {
		t.Error(err)
	}
}

// A ClientHello in records of one byte is not kept for ever.
func TestPeekHelloIsBounded(t *testing.T) {
	dialed, accepted := tunneltest.Pair(t)
	go func() {
		io.WriteString(dialed, "\x16\x03\x01\x00\x04\x01\x00\xff\x00")
		for range 100_000 {
			if _, err := io.WriteString(dialed, "\x16\x03\x01\x00\x01x"); err != nil {
				return
			}
		}
	}()
	_, _, err := tunnel.PeekHello(t.Context(), accepted, new(tunnel.Info))
	if err == nil || !strings.Contains(err.Error(), "16 KiB") {
		t.Errorf("%v, want that it is too long", err)
	}
	var timeout net.Error
	if errors.As(err, &timeout) {
		t.Error("it ended by a timeout")
	}
}
