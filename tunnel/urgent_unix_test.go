//go:build unix

package tunnel

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Urgent data is carried like all other, in its place, whichever end it comes from, and what stands behind it too.
func TestUrgentData(t *testing.T) {
	l := listenOn(t, ListenConfig{}, "127.0.0.1:0")[0]
	far, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	for name, upwards := range map[string]bool{"up": true, "down": false} {
		t.Run(name, func(t *testing.T) {
			program, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer program.Close()
			accepted, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			dialed, err := new(Dialer).Dial(t.Context(), far.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			target, err := far.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer target.Close()
			over := make(chan error, 1)
			go func() {
				_, _, err := Relay(t.Context(), accepted.(Conn), dialed, time.Minute)
				accepted.Close()
				dialed.Close()
				over <- err
			}()

			from, to := program.(*net.TCPConn), target.(*net.TCPConn)
			if !upwards {
				from, to = to, from
			}
			to.CloseWrite()
			part := bytes.Repeat([]byte("."), 1<<20)
			var want []byte
			go func() {
				defer from.CloseWrite()
				for range 5 {
					from.Write(part)
					sendUrgent(t, from, '!')
				}
				from.Write(part)
			}()
			for range 5 {
				want = append(append(want, part...), '!')
			}
			want = append(want, part...)
			to.SetDeadline(time.Now().Add(time.Minute))
			got, err := io.ReadAll(to)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("received %d bytes, %d of them urgent, want %d and 5; %v", len(got), bytes.Count(got, []byte("!")), len(want), err)
			}
			if err := <-over; err != nil {
				t.Error(err)
			}
		})
	}
}

func sendUrgent(t testing.TB, c *net.TCPConn, b byte) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Error(err)
		return
	}
	var sendErr error
	err = raw.Write(func(fd uintptr) bool {
		sendErr = unix.Send(int(fd), []byte{b}, unix.MSG_OOB)
		return sendErr != unix.EAGAIN
	})
	if err != nil || sendErr != nil {
		t.Errorf("urgent byte: %v, %v", err, sendErr)
	}
}
