package tunnel_test

import (
	"io"
	"testing"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// Whatever is done first with a connection that the peer has reset, it is seen as that.
func TestIsReset(t *testing.T) {
	c, peer := tunneltest.Pair(t)
	peer.SetLinger(0)
	peer.Close()
	if _, err := io.ReadAll(c); !tunnel.IsReset(err) {
		t.Errorf("read: %v is no reset", err)
	}
	if _, err := c.Write([]byte("x")); !tunnel.IsReset(err) {
		t.Errorf("write: %v is no reset", err)
	}
	if err := c.CloseWrite(); !tunnel.IsReset(err) {
		t.Errorf("end of the direction: %v is no reset", err)
	}
}
