//go:build load && linux

package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"raimon/internal/commandtest"
	"raimon/internal/tunneltest"
)

// TestEdgeRestarts has programs come all the time to a client with a pool, whose edge is killed again and again. Each
// connection works or fails within its limit, none has an answer that is cut and looks complete, and in the end the
// client holds no more than before.
func TestEdgeRestarts(t *testing.T) {
	const (
		visits = 10_000
		crowd  = 20
		wait   = 5 * time.Second
		limit  = wait + 2*time.Second // a busy machine has a part in it
	)
	edge := newStation(t, "mortal edge", "raimons", tunneltest.Echo(t), "ws;host=edge.test;path=/ws")
	client := newStation(t, "client", "raimonc", edge.address, fmt.Sprintf("ws;host=edge.test;path=/ws;pool=4;reuse=1s;wait=%[1]v;timeout=%[1]v", wait))
	settled := func() held {
		// Four connections are ready, and nobody is under way.
		time.Sleep(time.Second)
		return inspect(t, client.process, client.socket)
	}
	before := settled()

	ctx, cancel := context.WithCancel(t.Context())
	var killer sync.WaitGroup
	killer.Go(func() {
		for tick := time.NewTicker(250 * time.Millisecond); ctx.Err() == nil; {
			select {
			case <-ctx.Done():
			case <-tick.C:
				edge.die(t)
			}
		}
	})
	var came, worked, failed atomic.Int64
	var longest atomic.Int64
	var programs sync.WaitGroup
	for range crowd {
		programs.Go(func() {
			for came.Add(1) <= visits {
				begin := time.Now()
				err := visitEcho(client.address, []byte(fmt.Sprint("who is there? ", begin.UnixNano())), limit)
				took := time.Since(begin)
				for last := longest.Load(); int64(took) > last && !longest.CompareAndSwap(last, int64(took)); last = longest.Load() {
				}
				var wrong *wrongError
				switch {
				case err == nil:
					worked.Add(1)
				case errors.As(err, &wrong) || took > limit:
					t.Errorf("after %v: %v", took, err)
				default:
					failed.Add(1)
				}
			}
		})
	}
	programs.Wait()
	cancel()
	killer.Wait()

	t.Logf("%d connections worked, %d failed, the longest took %v, the edge died %d times",
		worked.Load(), failed.Load(), time.Duration(longest.Load()).Round(time.Millisecond), edge.epoch.Load()/2)
	if worked.Load() < visits*9/10 {
		t.Errorf("only %d of %d connections worked", worked.Load(), visits)
	}
	var after held
	if !eventually(commandtest.Patience, func() bool {
		after = inspect(t, client.process, client.socket)
		return after.Descriptors <= before.Descriptors && after.Goroutines <= before.Goroutines
	}) {
		t.Errorf("the client holds %v\nbefore the first connection: %v", after, before)
	}
}

// visitEcho says message to the echo behind the client at address. A *wrongError is an answer that differs, or that is
// cut and does not look so.
func visitEcho(address string, message []byte, limit time.Duration) error {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * limit))
	if _, err := c.Write(message); err != nil {
		return err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	answer, err := io.ReadAll(c)
	switch {
	case !bytes.HasPrefix(message, answer):
		return &wrongError{fmt.Errorf("said %q, heard %q", message, answer)}
	case err == nil && len(answer) < len(message):
		return &wrongError{fmt.Errorf("said %q, heard %q and the end", message, answer)}
	}
	return err
}
