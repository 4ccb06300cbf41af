//go:build load && linux

package load

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"raimon/internal/commandtest"
	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

const (
	handOvers       = 50
	handOverEvery   = 200 * time.Millisecond
	newPerSecond    = 500
	transferLasts   = 3        // generations of edges
	transferBlock   = 32 << 10 // bytes
	connectPatience = 10 * time.Second
)

// One edge after another takes over, under new connections and with transfers open: no connection is refused, no byte
// is lost, clients resume. Then the last one is killed, and another is back at once.
func TestHandOver(t *testing.T) {
	folder := t.TempDir()
	config := filepath.Join(folder, "edge.toml")
	address := "127.0.0.1:" + tunneltest.FreePort()
	text := fmt.Sprintf(`listen = [%q]
storage = %q
http = "off"
log-tunnels = "debug"

[[site]]
names = ["edge.test"]
certificate = "self-signed"

[[site.route]]
path = "/tunnel"
target = %q
`, address, filepath.Join(folder, "storage"), tunneltest.Echo(t))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	start := func(flags ...string) *commandtest.Process {
		return commandtest.Start(t, exec.Command("raimons", append([]string{"-config", config}, flags...)...))
	}
	v := &visitor{address: address, config: &tls.Config{ServerName: "edge.test", InsecureSkipVerify: true, ClientSessionCache: tls.NewLRUClientSessionCache(8)}}
	edge := start()
	if err := v.echo(t.Context()); err != nil { // has a ticket for all the others
		t.Fatal(err)
	}
	v.opened.Store(0)

	stop := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() { v.come(t, stop) })
	type generation struct {
		edge *commandtest.Process
		end  func() error // of its transfer
	}
	var old []generation
	leave := func() {
		g := old[0]
		old = old[1:]
		if err := g.end(); err != nil {
			t.Errorf("a transfer of %d generations: %v", transferLasts, err)
		}
		if status := g.edge.Ended(t); status != 0 {
			t.Errorf("an edge that has handed over ended with status %d", status)
		}
	}
	pace := time.NewTicker(handOverEvery)
	defer pace.Stop()
	for n := range handOvers {
		<-pace.C
		end, err := v.transfer(t.Context(), uint64(n))
		if err != nil {
			t.Fatal(err)
		}
		old = append(old, generation{edge, end})
		next := start("-take-over")
		next.Log.Wait(t, "the process before us has handed over")
		edge.Log.Wait(t, "handed over: open tunnels go on")
		edge = next
		if len(old) > transferLasts {
			leave()
		}
	}
	for len(old) > 0 {
		leave()
	}
	close(stop)
	all.Wait()
	t.Logf("%d hand-overs, %d connections, %d of them resumed", handOvers, v.opened.Load(), v.resumed.Load())
	if v.resumed.Load() != v.opened.Load() {
		t.Errorf("%d of %d connections have resumed, want all", v.resumed.Load(), v.opened.Load())
	}

	serial := v.serial.Load()
	edge.Kill()
	began := time.Now()
	start()
	v.resumed.Store(0)
	if err := v.echo(t.Context()); err != nil {
		t.Fatal(err)
	}
	if v.resumed.Load() != 1 || v.serial.Load() != serial {
		t.Errorf("after kill -9: resumed %v, the same certificate %v; want both", v.resumed.Load() == 1, v.serial.Load() == serial)
	}
	t.Logf("back %v after kill -9", time.Since(began).Round(time.Millisecond))
}

// visitor opens tunnels to an edge.
type visitor struct {
	address         string
	config          *tls.Config
	opened, resumed atomic.Int64
	serial          atomic.Value // of the certificate
}

func (v *visitor) open(ctx context.Context) (tunnel.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectPatience)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", v.address)
	if err != nil {
		return nil, err
	}
	config := v.config.Clone()
	config.VerifyConnection = func(s tls.ConnectionState) error {
		if s.DidResume {
			v.resumed.Add(1)
		}
		v.serial.Store(s.PeerCertificates[0].SerialNumber.String())
		return nil
	}
	t := tunnel.Transport{&tunnel.TLS{ClientConfig: config}, &tunnel.WebSocket{Host: "edge.test", Path: "/tunnel"}}
	up, err := t.Client(ctx, c.(tunnel.Conn))
	if err != nil {
		c.Close()
		return nil, err
	}
	v.opened.Add(1)
	return up, nil
}

// echo sends a few bytes through a tunnel of its own and takes them back.
func (v *visitor) echo(ctx context.Context) error {
	c, err := v.open(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(connectPatience))
	text := []byte("there and back")
	if _, err := c.Write(text); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	back, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	if !bytes.Equal(back, text) {
		return fmt.Errorf("got %q back, want %q", back, text)
	}
	return nil
}

// come opens newPerSecond tunnels a second until stop.
func (v *visitor) come(t testing.TB, stop <-chan struct{}) {
	var all sync.WaitGroup
	defer all.Wait()
	ticker := time.NewTicker(time.Second / newPerSecond)
	defer ticker.Stop()
	var told atomic.Int64
	for {
		select {
		case <-stop:
			return
		case <-ticker.C:
		}
		all.Go(func() {
			if err := v.echo(context.Background()); err != nil && told.Add(1) <= 10 {
				t.Errorf("a new connection: %v", err)
			}
		})
	}
}

// transfer sends blocks through one tunnel, and compares what comes back, until end.
func (v *visitor) transfer(ctx context.Context, seed uint64) (end func() error, err error) {
	c, err := v.open(ctx)
	if err != nil {
		return nil, err
	}
	stop, result := make(chan struct{}), make(chan error, 1)
	go func() {
		defer c.Close()
		random := rand.NewChaCha8([32]byte{byte(seed)})
		out, back := make([]byte, transferBlock), make([]byte, transferBlock)
		for {
			select {
			case <-stop:
				c.CloseWrite()
				if n, err := c.Read(back); n != 0 || err != io.EOF {
					result <- fmt.Errorf("at the end: %d bytes and %v, want an end", n, err)
					return
				}
				result <- nil
				return
			case <-time.After(5 * time.Millisecond):
			}
			random.Read(out)
			c.SetDeadline(time.Now().Add(connectPatience))
			_, err := c.Write(out)
			if err == nil {
				_, err = io.ReadFull(c, back)
			}
			if err == nil && !bytes.Equal(out, back) {
				err = errors.New("what came back is something else")
			}
			if err != nil {
				result <- err
				return
			}
		}
	}()
	return func() error {
		close(stop)
		return <-result
	}, nil
}
