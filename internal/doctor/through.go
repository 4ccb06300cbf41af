package doctor

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"raimon/internal/text"
	"raimon/tunnel"
)

const (
	// webPatience is for the answer of the edge's web server.
	webPatience = 3 * time.Second
	// maxHead is how much of that answer is read.
	maxHead = 64 << 10
	// maxSkew is how far apart two clocks may be.
	maxSkew = time.Minute

	rounds    = 20
	roundSize = 64
	flood     = 2 * time.Second
	floodSize = 32 << 20
	// drain is how long what is still on its way then is waited for.
	drain = time.Second
)

// greeting is what a target has said by itself.
type greeting struct {
	text []byte
	err  error // it has hung up
}

// lookAtClock asks the web server at the edge for the time. Where there is none it listens to what the target says, in its place;
// either way TLS has brought its tickets by then.
func (e *examination) lookAtClock(ctx context.Context, l *line) greeting {
	if e.ws == nil {
		return listen(ctx, l)
	}
	var answer *http.Response
	asked := time.Now()
	err := talk(ctx, l.conn, min(webPatience, e.Tunnel.Timeout), func() (err error) {
		if _, err = fmt.Fprintf(l.conn, "HEAD / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", e.ws.Host); err != nil {
			return err
		}
		answer, err = http.ReadResponse(bufio.NewReader(io.LimitReader(l.conn, maxHead)), &http.Request{Method: http.MethodHead})
		return err
	})
	if err != nil {
		return greeting{} // the upgrade will say what is wrong, if anything is
	}
	answer.Body.Close()
	e.server = plain(answer.Header.Get("Server"), 40)
	theirs, err := http.ParseTime(answer.Header.Get("Date"))
	if err != nil {
		return greeting{}
	}
	ours := asked.Add(time.Since(asked) / 2)
	switch skew := theirs.Sub(ours).Round(time.Second); {
	case skew.Abs() <= maxSkew:
		e.ok("clock", "agrees with that of the edge", 0)
	case skew > 0:
		e.warn("clock", "this machine's is "+skew.String()+" behind that of the edge", wrongClock, 0)
	default:
		e.warn("clock", "this machine's is "+skew.Abs().String()+" ahead of that of the edge", wrongClock, 0)
	}
	return greeting{}
}

const wrongClock = "set it by the network's time: certificates are good only between two dates"

// listen takes what comes within a moment.
func listen(ctx context.Context, l *line) greeting {
	buf := make([]byte, 512)
	var n int
	err := talk(ctx, l.conn, l.patience(), func() (err error) {
		n, err = l.conn.Read(buf)
		return err
	})
	if errors.Is(err, os.ErrDeadlineExceeded) || n > 0 {
		err = nil
	}
	return greeting{buf[:n], err}
}

// lookAtUpgrade asks for the tunnel, on an edge that waits if it can.
func (e *examination) lookAtUpgrade(ctx context.Context, l *line) bool {
	took, err := e.upgrade(ctx, l)
	var refused *tunnel.UpgradeError
	switch {
	case errors.As(err, &refused):
		found, advice := err.Error(), e.advice(err)
		if e.server != "" {
			found += " (a web server that calls itself " + e.server + ")"
			advice += "; or that web server stands in front of the edge, and does not pass WebSocket upgrades on"
		}
		if e.via != nil {
			advice += "; or the proxy opens TLS, and does not pass them on"
		}
		return e.failWith("upgrade", found, advice, took)
	case err != nil:
		return e.fail("upgrade", err, took)
	}
	found := "101, the edge is "
	switch name := tunnel.PeerName(l.conn); {
	case tunnel.Waiting(l.conn):
		found += "raimon, and waits until a program comes: fit for pool="
	case name == "raimon":
		found += "an older raimon, which does not wait for programs: with pool= its target is dialed ahead"
	case name != "":
		found += name + ", which does not wait for programs: with pool= its target is dialed ahead"
	default:
		found += "another program, or behind a proxy that drops the header Raimon: with pool= its target is dialed ahead"
	}
	return e.ok("upgrade", found, took)
}

// upgrade makes a tunnel of l.
func (e *examination) upgrade(ctx context.Context, l *line) (took time.Duration, err error) {
	ws := *e.ws
	ws.Wait = true
	begin := time.Now()
	err = e.limited(ctx, func(ctx context.Context) error {
		c, err := ws.Client(ctx, l.conn)
		if err == nil {
			l.conn = c
		}
		return err
	})
	took = time.Since(begin)
	l.took += took
	if err != nil {
		err = e.Tunnel.Dialer.Through(e.Tunnel.Remote, err)
	}
	return took, err
}

// lookAtEcho measures the way to the edge and back, through the tunnel.
func (e *examination) lookAtEcho(ctx context.Context, l *line) {
	var trips []time.Duration
	err := talk(ctx, l.conn, e.Tunnel.Timeout, func() (err error) {
		if err = tunnel.Echo(l.conn); err == nil {
			err = tunnel.AwaitOpen(l.conn)
		}
		if err == nil {
			trips, err = roundTrips(l.conn, time.Now().Add(e.Tunnel.Timeout/2))
		}
		return err
	})
	var closed *tunnel.CloseError
	switch {
	case errors.As(err, &closed) && closed.Code == 1002:
		e.ok("echo", "left out: the raimon at the other end is older than that", 0)
		return
	case err != nil:
		e.fail("echo", err, 0)
		return
	}
	slices.Sort(trips)
	e.ok("echo", fmt.Sprintf("%d bytes there and back: %s, at worst %s (median of %d)",
		roundSize, show(trips[len(trips)/2]), show(trips[len(trips)-1]), len(trips)), 0)
	e.lookAtThroughput(ctx, l.conn)
}

// roundTrips sends something small again and again; no more once the time has come.
func roundTrips(c tunnel.Conn, until time.Time) (trips []time.Duration, err error) {
	sent, received := make([]byte, roundSize), make([]byte, roundSize)
	for len(trips) < rounds && (len(trips) == 0 || time.Now().Before(until)) {
		rand.Read(sent)
		begin := time.Now()
		if _, err := c.Write(sent); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(c, received); err != nil {
			return nil, err
		}
		trips = append(trips, time.Since(begin))
		if !bytes.Equal(sent, received) {
			return nil, errors.New("something else has come back than was sent")
		}
	}
	return trips, nil
}

// lookAtThroughput sends as much as goes for a while, and measures what comes back meanwhile. It ends the stream.
func (e *examination) lookAtThroughput(ctx context.Context, c tunnel.Conn) {
	var received int
	var took time.Duration
	err := talk(ctx, c, flood+drain, func() error {
		begin := time.Now()
		sending := make(chan error, 1)
		go func() { sending <- send(c, floodSize, begin.Add(flood)) }()
		var err error
		received, took, err = receive(c, begin, flood)
		if sendErr := <-sending; err == nil {
			err = sendErr
		}
		return err
	})
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		e.fail("throughput", err, took)
		return
	}
	found := rate(received, took) + " both ways at once: as much as the slower of them carries"
	if again := tunnel.HealthOf(c).Retransmitted; again > 0 {
		found += fmt.Sprintf("; packets sent again: %d", again)
	}
	e.ok("throughput", found, took)
}

// send sends size bytes, or fewer when the time has come, and ends the stream.
func send(c tunnel.Conn, size int, until time.Time) error {
	b := make([]byte, 16<<10)
	rand.Read(b) // nothing on the way is to compress it
	for size > 0 && time.Now().Before(until) {
		n, err := c.Write(b[:min(size, len(b))])
		size -= n
		if err != nil {
			return err
		}
	}
	return c.CloseWrite()
}

// receive reads to the end, and counts what comes before limit is over: so much in so long.
func receive(c tunnel.Conn, begin time.Time, limit time.Duration) (received int, took time.Duration, err error) {
	b := make([]byte, 64<<10)
	for {
		n, err := c.Read(b)
		if now := time.Since(begin); n > 0 && now <= limit {
			received, took = received+n, now
		}
		if err == io.EOF {
			return received, took, nil
		}
		if err != nil {
			return received, took, err
		}
	}
}

func rate(bytes int, took time.Duration) string {
	return text.Bytes(int64(float64(bytes)/max(took.Seconds(), 1e-6))) + "/s"
}

// lookAtTarget has an edge that waits reach its target, as for a program.
func (e *examination) lookAtTarget(ctx context.Context) {
	l, err := e.open(ctx)
	if err != nil {
		e.failOpen(err)
		return
	}
	defer l.close()
	if took, err := e.upgrade(ctx, l); err != nil {
		e.fail("upgrade", err, took)
		return
	}
	if e.Options.Socks {
		e.lookAtChoice(ctx, l)
		return
	}
	begin := time.Now()
	err = talk(ctx, l.conn, e.Tunnel.Timeout, func() error {
		if err := tunnel.Take(l.conn, ""); err != nil {
			return err
		}
		return tunnel.AwaitOpen(l.conn)
	})
	e.opening = time.Since(begin)
	if err != nil {
		e.fail("target", err, e.opening)
		return
	}
	greeting := listen(ctx, l)
	l.end(ctx)
	if e.lookAtGreeting(greeting) {
		e.sum(l.took)
	}
}

// lookAtChoice has an edge reach its target although programs are to choose theirs: who has none to offer lets them. Of
// a route that has one, only its config says whether it also takes those of programs.
func (e *examination) lookAtChoice(ctx context.Context, l *line) {
	err := talk(ctx, l.conn, e.Tunnel.Timeout, func() error {
		if err := tunnel.Take(l.conn, ""); err != nil {
			return err
		}
		return tunnel.AwaitOpen(l.conn)
	})
	var refused *tunnel.TargetError
	switch chosen := errors.As(err, &refused); {
	case chosen && refused.Reason == tunnel.ReasonForbidden:
		e.ok("target", "programs choose it", 0)
	case chosen && refused.Reason == tunnel.ReasonBusy, err != nil && !chosen:
		e.fail("target", err, 0)
		return
	default:
		e.warn("target", "the edge has one of its own here, and does not say whether programs may choose another",
			"without targets in its route every program is refused: ask who runs the edge, or leave socks away for the edge's own target", 0)
	}
	l.end(ctx)
	e.sum(l.took)
}

// lookAtGreeting says whether the target is there, as far as that can be told.
func (e *examination) lookAtGreeting(g greeting) bool {
	said := plain(strings.Trim(string(g.text), "\x00\r\n\t "), 80)
	switch {
	case g.err == io.EOF:
		return e.warn("target", "it hangs up at once, without a word", "that may be its way with strangers: its own log says more", e.opening)
	case tunnel.IsReset(g.err), errors.Is(g.err, io.ErrUnexpectedEOF): // all that an edge can say in tcp and tls
		return e.failWith("target", "the edge hangs up: "+g.err.Error(), "it has probably not reached its target: its log says why", 0)
	case g.err != nil:
		return e.fail("target", fmt.Errorf("the edge hangs up: %w", g.err), 0)
	case said != "":
		return e.ok("target", "it says: "+said, e.opening)
	case e.opening > 0:
		return e.ok("target", "the edge has reached it; it waits for its client to speak", e.opening)
	}
	return e.ok("target", "it says nothing by itself: whether it is there shows when it is used", 0)
}

// sum says what programs will notice of all this.
func (e *examination) sum(connecting time.Duration) {
	found := "a program waits " + show(connecting+e.opening) + " for a new connection"
	if e.opening > 0 {
		found += ", " + show(e.opening) + " for one from the pool"
	} else if !e.Options.Socks {
		found += ", and not at all for one from the pool"
	}
	if e.ws != nil && e.Options.Pool == 0 {
		found += " (there is none: pool=2 would keep two ready)"
	}
	e.ok("programs", found, 0)
}
