package storagetest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"

	"raimon/storage"
)

// childEnv holds the address of the storage that a child opens.
const childEnv = "RAIMON_STORAGETEST_CHILD"

const replyPrefix = "storagetest: "

// child is another process that has the storage open and does as it is told.
type child struct {
	t       testing.TB
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	replies chan string // closed when the process has ended
}

// start starts a child, which is killed at the end of the test if not before.
func (s *suite) start(t testing.TB, address string) *child {
	t.Helper()
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	only := "^" + strings.ReplaceAll(regexp.QuoteMeta(s.test), "/", "$/^") + "$"
	c := &child{t: t, cmd: exec.Command(binary, "-test.run="+only, "-test.count=1"), replies: make(chan string, 1)}
	c.cmd.Env = append(os.Environ(), childEnv+"="+address)
	c.cmd.Stderr = os.Stderr
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(c.replies)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			if reply, ok := strings.CutPrefix(lines.Text(), replyPrefix); ok {
				c.replies <- reply
			}
		}
	}()
	t.Cleanup(c.kill)
	return c
}

// do sends an order and waits until it is done, which must go well.
func (c *child) do(order string) {
	c.t.Helper()
	if reply := c.try(order); reply != "ok" {
		c.t.Fatalf("child: %s: %s", order, reply)
	}
}

// try sends an order and returns the reply: "ok" or the error.
func (c *child) try(order string) string {
	c.t.Helper()
	c.send(order)
	return c.reply(order)
}

func (c *child) send(order string) {
	c.t.Helper()
	if _, err := fmt.Fprintln(c.stdin, order); err != nil {
		c.t.Fatalf("child: %s: %v", order, err)
	}
}

func (c *child) reply(order string) string {
	c.t.Helper()
	select {
	case reply, ok := <-c.replies:
		if !ok {
			c.t.Fatalf("child: %s: the process ended", order)
		}
		return reply
	case <-time.After(2 * patience):
		c.t.Fatalf("child: %s: no reply", order)
	}
	return ""
}

// kill is kill -9, and waits until the process is gone.
func (c *child) kill() {
	if c.cmd.ProcessState != nil {
		return
	}
	c.cmd.Process.Kill()
	for range c.replies {
	}
	c.cmd.Wait()
	c.stdin.Close()
}

// obey is what a child does: it carries out orders, a line each. When there are no more, whoever gave
// them is gone, and so is the child, whatever it is at.
func (b Backend) obey(address string, in io.Reader, out io.Writer) (code int) {
	st, err := b.Open(address, time.Now)
	if err != nil {
		fmt.Fprintln(os.Stderr, "child:", err)
		return 1
	}
	orders := make(chan string)
	go func() {
		for lines := bufio.NewScanner(in); lines.Scan(); {
			orders <- lines.Text()
		}
		os.Exit(0)
	}()
	for order := range orders {
		reply := "ok"
		if err := carryOut(st, out, strings.Fields(order)); errors.Is(err, storage.ErrNotHeld) {
			reply = notHeld
		} else if err != nil {
			reply = err.Error()
		}
		fmt.Fprintln(out, replyPrefix+reply)
	}
	return 0
}

// notHeld is the reply that stands for storage.ErrNotHeld.
const notHeld = "not held"

func carryOut(st certmagic.Storage, out io.Writer, order []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	verb, arg := order[0], order[1]
	switch verb {
	case "lock":
		return st.Lock(ctx, arg)
	case "unlock":
		return st.Unlock(ctx, arg)
	case "renew":
		return st.(certmagic.LockLeaseRenewer).RenewLockLease(ctx, arg, time.Minute)
	case "count": // count FILE TIMES
		times, err := strconv.Atoi(order[2])
		if err != nil {
			return err
		}
		for range times {
			if err := count(ctx, st, arg); err != nil {
				return err
			}
		}
		return nil
	case "store": // for ever
		fmt.Fprintln(out, replyPrefix+"ok")
		for {
			for _, value := range [][]byte{newValue, oldValue} {
				if err := st.Store(context.Background(), arg, value); err != nil {
					return err
				}
			}
		}
	}
	return fmt.Errorf("no such order: %s", verb)
}

// count adds one to the number in a file, under a lock without which it goes wrong.
func count(ctx context.Context, st certmagic.Storage, file string) error {
	if err := st.Lock(ctx, "count"); err != nil {
		return err
	}
	err := func() error {
		mark, err := os.OpenFile(file+".inside", os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return fmt.Errorf("another holds the lock too: %w", err)
		}
		mark.Close()
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(string(text))
		if err != nil {
			return fmt.Errorf("another writes too: %w", err)
		}
		time.Sleep(time.Millisecond) // a slow writer: without a lock another gets in between
		if err := os.WriteFile(file, []byte(strconv.Itoa(n+1)), 0o600); err != nil {
			return err
		}
		return os.Remove(file + ".inside")
	}()
	return errors.Join(err, st.Unlock(ctx, "count"))
}
