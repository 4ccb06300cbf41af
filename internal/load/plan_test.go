//go:build load && linux

package load

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"
)

// kind is how a tunnel of the soak ends.
type kind int

const (
	atOnce       kind = iota // both ends speak at once and finish
	appFirst                 // the target answers after the app's end
	targetFirst              // the app answers after the target's end
	appResets                // in the middle
	targetResets             // in the middle
	appDies                  // in the middle, as a process that is killed
	targetDies               // in the middle
	kinds
)

func (k kind) String() string {
	return [...]string{"at once", "app first", "target first", "reset by the app", "reset by the target", "left by the app", "left by the target"}[k]
}

// plan is the life of a tunnel. Direction 0 comes from the app, direction 1 from the target.
type plan struct {
	kind  kind
	bytes [2]int64
	upto  int64 // what the one who leaves sends before
	pause time.Duration
}

func (p plan) String() string {
	return fmt.Sprintf("%v, %d and %d bytes, %d before leaving, pause %v", p.kind, p.bytes[0], p.bytes[1], p.upto, p.pause)
}

func drawPlan(random *rand.Rand) plan {
	p := plan{kind: kind(random.IntN(int(kinds)))}
	for d := range p.bytes {
		p.bytes[d] = random.Int64N(1 << (1 + random.IntN(22)))
	}
	leaver := 0
	if p.kind == targetResets || p.kind == targetDies {
		leaver = 1
	}
	p.upto = random.Int64N(p.bytes[leaver] + 1)
	if random.IntN(4) == 0 {
		p.pause = time.Duration(random.IntN(1500)) * time.Millisecond
	}
	return p
}

// wrongError is what nothing excuses: other bytes, or a cut that looks like an end.
type wrongError struct{ error }

func (e *wrongError) Unwrap() error { return e.error }

// follow lives as p says and returns what did not go as it should.
func (l *line) follow(p plan) error {
	deadline := time.Now().Add(patience)
	l.app.SetDeadline(deadline)
	l.target.SetDeadline(deadline)
	err := l.act(p)
	for d, early := range l.early {
		switch {
		case early == nil:
		case l.reset[1-d].Load(): // the kernel tells of a reset once: the other direction has heard of it
		case p.kind == appDies && d == 0, p.kind == targetDies && d == 1: // nobody can tell this from an end
		default:
			return &wrongError{fmt.Errorf("%w (%v)", early, err)}
		}
	}
	return err
}

func (l *line) act(p plan) error {
	switch p.kind {
	case atOnce:
		return together(
			func() error { return l.say(0, p.bytes[0], p.pause) },
			func() error { return l.say(1, p.bytes[1], 0) },
			func() error { return l.hear(0, p.bytes[0]) },
			func() error { return l.hear(1, p.bytes[1]) },
		)
	case appFirst:
		return l.oneByOne(0, p)
	case targetFirst:
		return l.oneByOne(1, p)
	case appResets, appDies:
		return l.leave(0, p)
	default:
		return l.leave(1, p)
	}
}

// oneByOne ends direction d before the other begins.
func (l *line) oneByOne(d int, p plan) error {
	return together(
		func() error { return l.say(d, p.bytes[d], 0) },
		func() error { return l.hear(1-d, p.bytes[1-d]) },
		func() error {
			if err := l.hear(d, p.bytes[d]); err != nil {
				return err
			}
			time.Sleep(p.pause)
			return l.say(1-d, p.bytes[1-d], 0)
		},
	)
}

// leave lets the source of direction d go away in the middle, while the other side floods it.
func (l *line) leave(d int, p plan) error {
	from, _ := l.ends(d)
	var others sync.WaitGroup
	var heard error
	others.Go(func() { l.send(1-d, p.bytes[1-d]) }) // into the void
	others.Go(func() { heard = l.hear(d, p.bytes[d]+1) })
	err := l.send(d, p.upto)
	time.Sleep(p.pause)
	if p.kind == appResets || p.kind == targetResets {
		from.SetLinger(0)
	}
	from.Close()
	others.Wait()
	if heard == nil {
		return &wrongError{errors.New("more than was sent has arrived")}
	}
	if errors.As(heard, new(*wrongError)) {
		return heard
	}
	return err
}

// say sends n bytes of direction d and then its end, with a pause in the middle.
func (l *line) say(d int, n int64, pause time.Duration) error {
	half := n / 2
	if err := l.send(d, half); err != nil {
		return err
	}
	time.Sleep(pause)
	l.sent[d] = half
	if err := l.send(d, n-half); err != nil {
		return err
	}
	from, _ := l.ends(d)
	if err := from.CloseWrite(); err != nil {
		return fmt.Errorf("end: %w", err)
	}
	return nil
}

// hear wants n bytes of direction d and then its end.
func (l *line) hear(d int, n int64) error {
	_, to := l.ends(d)
	b := make([]byte, pieceSize)
	var at int64
	for {
		m, err := to.Read(b)
		if at+int64(m) > n {
			return &wrongError{fmt.Errorf("%d bytes instead of %d", at+int64(m), n)}
		}
		if string(b[:m]) != string(l.piece(d, at, int64(m))) {
			return &wrongError{fmt.Errorf("other bytes than were sent, after %d of %d", at, n)}
		}
		at += int64(m)
		switch {
		case err == io.EOF && at == n:
			return nil
		case err == io.EOF:
			l.early[d] = fmt.Errorf("an end after %d of %d bytes", at, n)
			return l.early[d]
		case err != nil:
			return fmt.Errorf("receive after %d of %d: %w", at, n, err)
		}
	}
}
