package faults

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"raimon/internal/acmetest"
	"raimon/internal/tunneltest"
)

// disk is a small file system of its own. Only root can have one.
type disk struct {
	dir    string // where it is mounted
	filler atomic.Bool
	ended  sync.WaitGroup
	closed chan struct{}
}

const diskOptions = "size=512k,mode=0700"

func newDisk(t testing.TB) *disk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a file system")
	}
	d := &disk{dir: t.TempDir(), closed: make(chan struct{})}
	if err := syscall.Mount("faults", d.dir, "tmpfs", 0, diskOptions); err != nil {
		t.Skipf("mount a tmpfs: %v", err) // in a container without the right to
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(d.dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	d.ended.Go(d.fill)
	t.Cleanup(func() {
		close(d.closed)
		d.ended.Wait()
	})
	return d
}

// setFull takes all the room there is, and whatever gets free, or gives it back.
func (d *disk) setFull(t testing.TB, full bool) {
	t.Helper()
	d.filler.Store(full)
	eventually(t, func() error {
		if d.room() > 0 == full {
			return errors.New("the filler has not done it yet")
		}
		return nil
	})
}

func (d *disk) room() uint64 {
	var s syscall.Statfs_t
	if err := syscall.Statfs(d.dir, &s); err != nil {
		panic(err) // it is mounted
	}
	return s.Bavail
}

func (d *disk) fill() {
	block := make([]byte, 4096)
	name := filepath.Join(d.dir, ".~filler")
	tick := time.NewTicker(200 * time.Microsecond)
	defer tick.Stop()
	for {
		select {
		case <-d.closed:
			return
		case <-tick.C:
		}
		if !d.filler.Load() {
			os.Remove(name)
			continue
		}
		file, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			continue // the disk is read-only
		}
		for err == nil {
			_, err = file.Write(block)
		}
		file.Close()
	}
}

func (d *disk) setReadOnly(t testing.TB, readOnly bool) {
	t.Helper()
	flags := uintptr(syscall.MS_REMOUNT)
	if readOnly {
		flags |= syscall.MS_RDONLY
	}
	eventually(t, func() error { return syscall.Mount("faults", d.dir, "tmpfs", flags, diskOptions) }) // EBUSY while a file is open for writing
}

// once wants one line that says so, and no other error line.
func (e *edge) once(t testing.TB, line string) {
	t.Helper()
	e.Log.Wait(t, line)
	if n := e.Log.Count(`"level":"ERROR"`); n != 1 {
		t.Errorf("%d error lines, want one with %q:\n%s", n, line, e.Log)
	}
}

// diskFaults are the ways in which a disk takes nothing.
var diskFaults = map[string]struct {
	fault func(*disk, testing.TB, bool)
	hint  string
}{
	"full":      {func(d *disk, t testing.TB, on bool) { d.setFull(t, on) }, "the disk is full: make room"},
	"read-only": {func(d *disk, t testing.TB, on bool) { d.setReadOnly(t, on) }, "the disk is read-only: mount it for writing"},
}

// Nothing can be stored at the renewal.
func TestNothingCanBeStored(t *testing.T) {
	t.Parallel()
	for about, test := range diskFaults {
		t.Run(about, func(t *testing.T) {
			t.Parallel()
			d := newDisk(t)
			ca := acmetest.New(t, profile(20*time.Second))
			e := setup{cas: []*acmetest.CA{ca}, storage: d.dir}.start(t)
			reachable(e)
			old := e.servedSoon(t, name)
			test.fault(d, t, true)

			e.Log.Wait(t, `"certificate not renewed"`)
			// Until just before the end of the certificate, which takes several attempts in.
			for time.Until(old.NotAfter) > 2*time.Second {
				if got, err := e.serves(name); err != nil {
					t.Fatal(err)
				} else if !got.Equal(old) {
					t.Fatal("a renewal has come though nothing can be stored: then this test tests something else")
				}
			}
			e.once(t, test.hint)
			test.fault(d, t, false)
			e.replacedSoon(t, name, old)
			if pair, err := stored(d.dir, ca, name); err != nil || pair.Leaf.Equal(old) {
				t.Errorf("in the storage: %v, want the new certificate", err)
			}
		})
	}
}

// Nothing can be stored at the first start.
func TestStartWithoutRoom(t *testing.T) {
	t.Parallel()
	for about, test := range diskFaults {
		t.Run(about, func(t *testing.T) {
			t.Parallel()
			d := newDisk(t)
			ca := acmetest.New(t, acmetest.Config{})
			test.fault(d, t, true)
			e := setup{cas: []*acmetest.CA{ca}, storage: d.dir, tuning: &tuning{Pause: time.Second}}.start(t)
			reachable(e)
			e.Log.Wait(t, `"no certificate yet"`)
			if _, err := e.shown(name); err == nil {
				t.Error("a certificate is shown, though there is none")
			}
			e.once(t, test.hint)
			test.fault(d, t, false)
			e.servedSoon(t, name)
			if n := len(ca.Accounts()); n != 1 {
				t.Errorf("%d accounts, want one", n)
			}
		})
	}
}

// The certificate has been ordered when the disk does not take it any more. (A disk does not become
// read-only meanwhile: the file of the lock is open.)
func TestObtainedButNotStored(t *testing.T) {
	t.Parallel()
	d := newDisk(t)
	ca := acmetest.New(t, acmetest.Config{RejectNonces: -1})
	e := setup{cas: []*acmetest.CA{ca}, storage: d.dir, tuning: &tuning{Pause: 100 * time.Millisecond, Look: 200 * time.Millisecond}}.start(t)
	// The CA comes through here, which it does when all is stored that has to be stored before.
	var full sync.Once
	ca.TLSALPN01.To(tunneltest.Serve(t, func(c *net.TCPConn) {
		full.Do(func() { d.setFull(t, true) })
		pass(c, e.Address)
	}))

	leaf := e.servedSoon(t, name)
	e.Log.Wait(t, `"certificate obtained but not stored: it is served from memory"`)
	if _, err := stored(d.dir, ca, name); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the disk has taken the certificate (%v): then this test tests something else", err)
	}
	d.setFull(t, false)
	e.Log.Wait(t, `"certificate stored"`)
	pair, err := stored(d.dir, ca, name)
	if err != nil || !pair.Leaf.Equal(leaf) {
		t.Errorf("in the storage: %v; want the certificate that is served", err)
	}
	if got, err := e.serves(name); err != nil || !got.Equal(leaf) {
		t.Errorf("served: %v; want the certificate from before", err)
	}
	if n := ca.Requests(acmetest.NewOrder); n != 1 {
		t.Errorf("the CA was asked %d times for one certificate", n)
	}
	e.once(t, "not stored")
}

// pass carries one connection to address.
func pass(c *net.TCPConn, address string) {
	to, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer to.Close()
	var back sync.WaitGroup
	back.Go(func() {
		io.Copy(c, to)
		c.CloseWrite()
	})
	io.Copy(to, c)
	to.(*net.TCPConn).CloseWrite()
	back.Wait()
}
