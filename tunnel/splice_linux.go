//go:build !portable

package tunnel

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/gobwas/ws"
	"golang.org/x/sys/unix"
)

const (
	// pipeSize is asked of every pipe: the larger, the fewer calls, and the fewer frames.
	pipeSize = 1 << 20
	// smallestPipe is what a pipe must hold to be worth more than a copy. Past their share users get 8 KiB.
	smallestPipe = 64 << 10
	// maxPipes bounds the pipes of this process; beyond it bytes are copied. Users other than root may
	// own 64 MiB of pipes (pipe(7)): enough for a client and an edge.
	maxPipes = 32
	// framePart is how much of a frame is spliced at once. Over loopback it comes in segments of 64 KiB, of which a pipe has room for
	// fifteen: what fills a whole pipe with pages at the sender takes two at the receiver.
	framePart = 960 << 10
	// frameParts are the most of a frame that another raimon is sent: it takes a frame as it comes.
	frameParts = 4
	// pipeIdle is how long an unused pipe is kept.
	pipeIdle = 2 * time.Second
)

// pipe is a kernel buffer between two sockets.
type pipe struct {
	r, w int
	n    int // bytes inside
}

// pipePool lends pipes to directions while they move data.
type pipePool struct {
	mu   sync.Mutex
	idle []*pipe
	open int
	trim *time.Timer
}

var pipes pipePool

// get returns an empty pipe, or nil when none is to be had: the caller copies then.
func (pp *pipePool) get() *pipe {
	pp.mu.Lock()
	defer pp.mu.Unlock()
	if n := len(pp.idle); n > 0 {
		p := pp.idle[n-1]
		pp.idle = pp.idle[:n-1]
		return p
	}
	if pp.open >= maxPipes {
		return nil
	}
	p := openPipe()
	if p != nil {
		pp.open++
	}
	return p
}

func openPipe() *pipe {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil
	}
	p := &pipe{r: fds[0], w: fds[1]}
	size, err := unix.FcntlInt(uintptr(p.w), unix.F_SETPIPE_SZ, pipeSize)
	if err != nil {
		size, err = unix.FcntlInt(uintptr(p.w), unix.F_GETPIPE_SZ, 0)
	}
	if err != nil || size < smallestPipe {
		p.close()
		return nil
	}
	return p
}

func (p *pipe) close() {
	unix.Close(p.r)
	unix.Close(p.w)
}

// put takes p back. A pipe that still holds bytes of a broken stream is closed.
func (pp *pipePool) put(p *pipe) {
	if p == nil {
		return
	}
	pp.mu.Lock()
	defer pp.mu.Unlock()
	if p.n != 0 {
		pp.open--
		p.close()
		return
	}
	pp.idle = append(pp.idle, p)
	if pp.trim == nil {
		pp.trim = time.AfterFunc(pipeIdle, pp.closeIdle)
	} else {
		pp.trim.Reset(pipeIdle)
	}
}

// closeIdle closes every pipe that nobody uses.
func (pp *pipePool) closeIdle() {
	pp.mu.Lock()
	defer pp.mu.Unlock()
	for _, p := range pp.idle {
		p.close()
	}
	pp.open -= len(pp.idle)
	pp.idle = nil
}

// spliceReader holds one move from a socket into a pipe.
type spliceReader struct {
	try func(fd uintptr) bool // nil: nothing has been moved yet
	max int
	p   *pipe
	err error
}

// spliceWriter holds one move of a frame header and a pipe's bytes into a socket.
type spliceWriter struct {
	try  func(fd uintptr) bool
	head []byte
	p    *pipe
	part bool // the last splice of this attempt has sent something, but less than asked
	err  error
}

var spliceWriters = sync.Pool{New: func() any {
	w := new(spliceWriter)
	w.try = w.drain
	return w
}}

// spliceSource is a Conn whose next bytes can be moved without looking at them.
type spliceSource interface {
	// spliceable says how many bytes lie ahead that need no look; 0 asks for a read. It may wait for
	// data to tell.
	spliceable() (int, error)
	// fill waits for data and moves up to max bytes of it into a borrowed pipe, which the caller
	// gives back. A nil pipe without an error says that no pipe is to be had.
	fill(max int) (*pipe, error)
}

// spliceSink is a Conn that can send what is in a pipe.
type spliceSink interface {
	// drainable says how many bytes may go out at once as they are; 0: none.
	drainable() int
	// drain sends all that p holds, at most as many, and returns how many bytes it has sent. It may go on with what src, where p was filled
	// if that is a bare socket, holds besides. Errors are writeErrors, save those of src: the relay goes by whose they are.
	drain(p *pipe, src *socket) (sent int, err error)
}

func (s *socket) spliceable() (int, error) { return pipeSize, nil }
func (s *socket) drainable() int           { return pipeSize }

func (s *socket) fill(max int) (*pipe, error) { return s.move(nil, max) }

// refill is fill of a pipe that is there, and empty. There has to be more to come.
func (s *socket) refill(p *pipe, max int) error {
	_, err := s.move(p, max)
	if err == io.EOF {
		err = errCut
	}
	return err
}

// move fills p, or if that is nil a borrowed pipe, which it returns.
func (s *socket) move(p *pipe, max int) (*pipe, error) {
	r := &s.reader.splice
	if r.try == nil {
		r.try = s.tryFill
	}
	r.max, r.p, r.err = max, p, nil
	err := s.raw.Read(r.try)
	if err == nil {
		err = r.err
	}
	p, r.p = r.p, nil
	return p, err
}

// tryFill borrows a pipe, if there is none yet, only for the attempt, so that waiting holds none.
func (s *socket) tryFill(fd uintptr) bool {
	r := &s.reader.splice
	p := r.p
	if p == nil {
		if p = pipes.get(); p == nil {
			return true
		}
	}
	n, err := retryEINTR(func() (int, error) { return quickFill(int(fd), p.w, r.max, s.reader.streak) })
	if (err == nil && n == 0 || err == unix.EAGAIN) && quickIoctl(int(fd), unix.SIOCATMARK) != 0 {
		n, err = fillUrgent(int(fd), p.w)
	}
	if n > 0 {
		s.reader.streak++
		p.n = n
		r.p = p
		return true
	}
	s.reader.streak = 0
	if r.p == nil {
		pipes.put(p)
	}
	switch err {
	case nil:
		r.err = s.end()
	case unix.EAGAIN:
		return false
	default:
		r.err = os.NewSyscallError("splice", err)
	}
	return true
}

// fillUrgent moves the urgent byte that comes next, unless it is announced and not there yet. To splice(2) it looks like the end of what
// there is, and of the stream if all of that has come.
func fillUrgent(fd, pipe int) (int, error) {
	var b [1]byte
	n, err := unix.Read(fd, b[:])
	if n != 1 {
		return n, err
	}
	return unix.Write(pipe, b[:])
}

// queued is how many bytes have come that are sure to be read next. Of a unix socket it is not known: its number has urgent bytes in it, which
// nothing reads.
func (s *socket) queued() int {
	if _, ok := s.Conn.(*net.TCPConn); !ok {
		return 0
	}
	q := queueReaders.Get().(*queueReader)
	defer queueReaders.Put(q)
	if s.raw.Control(q.try) != nil {
		return 0
	}
	return q.n
}

// queueReader holds one look at what a socket has queued.
type queueReader struct {
	try func(fd uintptr)
	n   int
}

var queueReaders = sync.Pool{New: func() any {
	q := new(queueReader)
	q.try = func(fd uintptr) { q.n = quickIoctl(int(fd), unix.SIOCINQ) }
	return q
}}

func (s *socket) drain(p *pipe, _ *socket) (sent int, err error) {
	sent = p.n
	if _, err = s.drainAfter(nil, p); err != nil {
		err = writeError{err}
	}
	return sent - p.n, err
}

// drainAfter sends head and all that p holds, in one segment where they fit, and returns what of head is not sent.
func (s *socket) drainAfter(head []byte, p *pipe) (unsent []byte, err error) {
	s.writing.Lock()
	w := spliceWriters.Get().(*spliceWriter)
	w.head, w.p = head, p
	floods.Add(1)
	if err = s.raw.Write(w.try); err == nil {
		err = w.err
	}
	floods.Add(-1)
	unsent = w.head
	s.noteReset(err)
	if w.part && errors.Is(err, unix.EPIPE) {
		// A splice(2) that has sent something keeps the error for itself, and the next one only hears
		// that nothing can be sent: it may have been a reset.
		s.reset = true
	}
	s.writing.Unlock()
	w.head, w.p, w.part, w.err = nil, nil, false, nil
	spliceWriters.Put(w)
	return unsent, err
}

func (w *spliceWriter) drain(fd uintptr) bool {
	w.part = false
	for w.p.n > 0 {
		if len(w.head) > 0 {
			w.err = w.sendHead(fd)
		} else {
			w.err = w.empty(fd)
		}
		if w.err == unix.EAGAIN {
			return false
		}
		if w.err != nil {
			return true
		}
	}
	return true
}

// sendHead sends what it can of the head, to leave together with what follows.
func (w *spliceWriter) sendHead(fd uintptr) error {
	n, err := retryEINTR(func() (int, error) { return quickSend(int(fd), w.head, unix.MSG_MORE|unix.MSG_NOSIGNAL) })
	if err != nil {
		return sysError("sendto", err)
	}
	w.head = w.head[n:]
	return nil
}

// empty sends what it can of the pipe.
func (w *spliceWriter) empty(fd uintptr) error {
	n, err := retryEINTR(func() (int, error) { return quickDrain(w.p.r, int(fd), w.p.n) })
	if err == nil && n == 0 {
		err = unix.EPIPE
	}
	if err != nil {
		return sysError("splice", err)
	}
	w.part = n < w.p.n
	w.p.n -= n
	return nil
}

// sysError names the call that failed; EAGAIN is no failure and stays as it is.
func sysError(call string, err error) error {
	if err == unix.EAGAIN {
		return err
	}
	return os.NewSyscallError(call, err)
}

// spliceable is what is left of an unmasked data frame that is worth the calls. Between the frames of
// a flood it waits for the next header and reads no more than that.
func (f *frames) spliceable() (int, error) {
	f.reading.Lock()
	defer f.reading.Unlock()
	bare, ok := f.Conn.(*socket)
	if !ok {
		return 0, nil
	}
	if f.left == 0 && f.headLen == 0 && f.floodHead > 0 && f.readErr == nil && len(f.pending) == 0 {
		if err := f.readHeader(bare); err != nil {
			return 0, err
		}
	}
	unmasked := !f.header.Masked || f.header.Mask == [4]byte{}
	worthIt := f.floodHead > 0 || f.left >= probeSize
	if !unmasked || !worthIt || f.readErr != nil || len(f.pending) > 0 || f.header.OpCode.IsControl() {
		return 0, nil
	}
	return int(min(f.left, pipeSize)), nil
}

// readHeader reads a header of the size that the frame before had.
func (f *frames) readHeader(s *socket) error {
	f.waits()
	b, err := s.readBuffer(int(f.floodHead))
	if err != nil {
		f.came(0)
		return f.broke(err)
	}
	f.came(b.len())
	n := f.takeHeader(b.bytes())
	for f.headLen > 0 && n < b.len() {
		n += f.takeHeader(b.bytes()[n:])
	}
	f.pending = append(f.pending, b.bytes()[n:]...)
	b.free()
	return nil
}

// fill moves payload of the frame that is being read.
func (f *frames) fill(max int) (*pipe, error) {
	f.reading.Lock()
	defer f.reading.Unlock()
	f.waits()
	p, err := f.Conn.(*socket).fill(max)
	if p == nil {
		f.came(0)
		if err != nil {
			err = f.broke(err)
		}
		return nil, err
	}
	f.came(p.n)
	f.left -= int64(p.n)
	if f.left == 0 {
		f.frameDone()
	}
	return p, nil
}

// drainable is a part of a frame where payload leaves as it is: from an edge, or with the mask key 0.
func (f *frames) drainable() int {
	if _, bare := f.Conn.(*socket); !bare || f.client && f.mask != MaskSkip {
		return 0
	}
	return framePart
}

// drain sends what p holds as one frame, to which belongs what src has queued if that fills pipes too. Fewer frames are fewer calls.
func (f *frames) drain(p *pipe, src *socket) (sent int, err error) {
	f.writing.Lock()
	defer f.writing.Unlock()
	err = f.writable()
	if err == nil && (f.owed > 0 || len(f.unsent) > 0) {
		err = os.ErrDeadlineExceeded // only a Write of the same caller can complete that frame
	}
	if err != nil {
		return 0, writeError{err}
	}
	f.awaitHeadTaken()
	more := 0 // bytes of the frame that are not in p
	if src != nil && p.n == framePart && f.peer == peerRaimon {
		more = min(src.queued()/framePart, frameParts-1) * framePart
	}
	head := f.spliceHead(p.n + more)
	unsent := head
	for {
		part := p.n
		unsent, err = f.Conn.(*socket).drainAfter(unsent, p)
		f.wrote()
		sent += part - p.n
		if err != nil {
			err = writeError{err}
			break
		}
		if more == 0 {
			return sent, nil
		}
		if err = src.refill(p, min(more, framePart)); err != nil { // may bring less
			break
		}
		more -= p.n
	}
	f.torn = f.torn || len(unsent) < len(head)
	return sent, err
}

// spliceHead is the header of a frame whose payload of length bytes is spliced.
func (f *frames) spliceHead(length int) []byte {
	h := f.nextHeader(ws.OpBinary, length)
	head := f.drainHead[:ws.HeaderSize(h)]
	f.putHeader(head, h)
	return head
}

// splice moves the next bytes inside the kernel where both ends allow it. It returns 0 without an
// error where they have to be read instead.
func (d *direction) splice() (moved int, err error) {
	src, ok := d.src.(spliceSource)
	if !ok {
		return 0, nil
	}
	dst, ok := d.dst.(spliceSink)
	if !ok {
		return 0, nil
	}
	max := dst.drainable()
	if max == 0 {
		return 0, nil
	}
	ahead, err := src.spliceable()
	if ahead == 0 || err != nil {
		return 0, err
	}
	max = min(max, ahead)
	p, err := src.fill(max)
	if p == nil {
		return 0, err
	}
	d.bulk = p.n >= probeSize/4 || p.n == max
	bare, _ := d.src.(*socket)
	moved, err = dst.drain(p, bare)
	pipes.put(p)
	return moved, err
}
