//go:build interop

package interop

import (
	"bufio"
	"io"
	"net"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// cutTest is a tunnel that is about to be cut.
type cutTest struct {
	target       *target
	edge, client *process
	edgeAddress  string
	edgeFiles    int // open before there was a tunnel
	clientFiles  int

	id   string
	conn *net.TCPConn
	in   *bufio.Reader
}

// newCutTest opens a tunnel; flooded ones are full in both directions.
func newCutTest(t testing.TB, c transportCase, flooded bool) *cutTest {
	t.Helper()
	x := &cutTest{target: newTarget(t), id: newID()}
	x.edge, x.edgeAddress = startRaimons(t, x.target.address, c.server)
	var address string
	x.client, address = startRaimonc(t, x.edgeAddress, c.client)
	if err := tryEcho(t, address, 1); err != nil { // whatever is opened once is open now
		t.Fatal(err)
	}
	x.edge.await(t, "tunnel closed")
	x.client.await(t, "tunnel closed")
	x.edgeFiles, x.clientFiles = x.edge.settledFiles(t), x.client.settledFiles(t)
	if strings.HasPrefix(c.name, "ws") { // the connection that was kept is that of the tunnel, and ends with it
		x.edgeFiles, x.clientFiles = x.edgeFiles-1, x.clientFiles-1
	}

	order := "hold"
	if flooded {
		order = "flood"
	}
	x.conn = dial(t, address, "%s %s", order, x.id)
	x.in = bufio.NewReader(x.conn)
	if line, err := x.in.ReadString('\n'); line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if flooded {
		flood(x.conn)
	}
	return x
}

// appSees wants the application to see a reset.
func (x *cutTest) appSees(t testing.TB) {
	t.Helper()
	x.conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, x.in); !isReset(err) {
		t.Errorf("the application sees %v, want a reset", err)
	}
}

// targetSees wants the target to see a reset.
func (x *cutTest) targetSees(t testing.TB) {
	t.Helper()
	select {
	case report := <-x.target.report(x.id):
		if !strings.Contains(report, "reset") && !strings.Contains(report, "broken pipe") {
			t.Errorf("the target sees %q, want a reset", report)
		}
	case <-time.After(patience):
		t.Error("the target sees nothing")
	}
}

func leavesNothing(t testing.TB, p *process, files int) {
	t.Helper()
	eventually(t, patience, "open files are as many as before", func() bool { return p.files(t) == files })
}

func TestKilled(t *testing.T) {
	for _, c := range transports(t) {
		for _, flooded := range []bool{true, false} {
			if c.name == "tcp" && !flooded {
				continue // the kernel ends an idle connection of a dead process with FIN: nobody can tell
			}
			name := c.name + " idle"
			if flooded {
				name = c.name + " flooded"
			}
			t.Run(name+" client", func(t *testing.T) {
				t.Parallel()
				x := newCutTest(t, c, flooded)
				x.client.Process.Kill()
				x.targetSees(t)
				if flooded {
					x.appSees(t)
				}
				leavesNothing(t, x.edge, x.edgeFiles)
			})
			t.Run(name+" edge", func(t *testing.T) {
				t.Parallel()
				x := newCutTest(t, c, flooded)
				x.edge.Process.Kill()
				x.appSees(t)
				if flooded {
					x.targetSees(t)
				}
				leavesNothing(t, x.client, x.clientFiles)
			})
		}
	}
}

// A reset of the tunnel's own connection is a reset at both ends.
func TestDestroyed(t *testing.T) {
	if !destroys(t) {
		t.Skip("this kernel does not destroy sockets for ss -K (CONFIG_INET_DIAG_DESTROY, CAP_NET_ADMIN)")
	}
	for _, c := range transports(t) {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			x := newCutTest(t, c, false)
			destroy(t, x.edgeAddress)
			x.appSees(t)
			x.targetSees(t)
			leavesNothing(t, x.edge, x.edgeFiles)
			leavesNothing(t, x.client, x.clientFiles)
		})
	}
}

func destroy(t testing.TB, address string) {
	t.Helper()
	if out, err := exec.Command(program(t, "ss"), "-tnK", "dst", address).CombinedOutput(); err != nil {
		t.Logf("ss -K: %v: %s", err, out)
	}
}

// destroys tries ss -K on a connection of the test's own.
func destroys(t testing.TB) bool {
	t.Helper()
	g := newTarget(t)
	c := dial(t, g.address, "hold %s", newID())
	destroy(t, g.address)
	c.SetReadDeadline(time.Now().Add(time.Second))
	_, err := io.Copy(io.Discard, c)
	return isReset(err) || isAborted(err)
}

func isAborted(err error) bool {
	return err != nil && strings.Contains(err.Error(), syscall.ECONNABORTED.Error())
}
