package tunnel

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An ordinary system call tells the scheduler of itself, and in a process that was idle this wakes a thread of the runtime that
// looks after calls which last (sysmon). For a keystroke that costs more than all the rest: half of the processor time of a
// round trip, and a third of the trip; of bulk over wss it is a twentieth. A call that copies a few kilobytes and does not block needs
// nobody to look after it. One that copies more does if all processors have bulk to move: whoever looks after it lets others have the
// processor, and a round trip beside bulk takes 1 ms in place of 9.
//
// The thread also sees to it that no goroutine keeps a processor for itself. So a direction that always finds more to read makes an
// ordinary call now and then.
//
// Idle tunnels keep the stack that these functions need: each call more on the way down counts.
const (
	quickSize    = 32 << 10 // bytes of a call that is quick in any case
	ordinaryRead = 8        // each so many of a streak is no quick one
)

var processors = int32(runtime.GOMAXPROCS(0))

// isLong tells whether a call that copies size bytes might keep others waiting, beside so many directions that move bulk. Those that wait for
// their peers meanwhile are counted as well: then a call is an ordinary one without need.
func isLong(size int, floods int32) bool { return size > quickSize && floods >= processors }

// quickRead is read(2) on a descriptor that does not block. Streak is how many reads have brought something since one has not.
func quickRead(fd int, p []byte, streak uint32) (int, error) {
	if len(p) == 0 || streak%ordinaryRead == ordinaryRead-1 || isLong(len(p), floods.Load()+1) {
		return unix.Read(fd, p)
	}
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

// quickWrite is write(2) on a descriptor that does not block. A direction that moves bulk counts among floods itself.
func quickWrite(fd int, p []byte) (int, error) {
	if len(p) == 0 || isLong(len(p), floods.Load()) {
		return unix.Write(fd, p)
	}
	n, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}
