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
	ordinaryFill = 32       // the same of splices, which bring more
)

var processors = int32(runtime.GOMAXPROCS(0))

// isLong tells whether a call that copies size bytes might keep others waiting, beside so many directions that move bulk. Those that wait for
// their peers meanwhile are counted as well: then a call is an ordinary one without need.
func isLong(size int, floods int32) bool { return size > quickSize && floods >= processors }

// isOrdinary tells whether the next read of a streak is to be told of, as each so many are.
func isOrdinary(streak, each uint32) bool { return streak%each == each-1 }

// quickRead is read(2) on a descriptor that does not block. Streak is how many reads have brought something since one has not.
func quickRead(fd int, p []byte, streak uint32) (int, error) {
	if len(p) == 0 || !isHead(len(p)) && isOrdinary(streak, ordinaryRead) || isLong(len(p), floods.Load()+1) {
		return unix.Read(fd, p)
	}
	return result(unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p))))
}

// quickWrite is write(2) on a descriptor that does not block. A direction that moves bulk counts among floods itself.
func quickWrite(fd int, p []byte) (int, error) {
	if len(p) == 0 || isLong(len(p), floods.Load()) {
		return unix.Write(fd, p)
	}
	return result(unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p))))
}

// quickFill is splice(2) from a socket that does not block into a pipe; streak as quickRead has it.
func quickFill(fd, pipe, size int, streak uint32) (int, error) {
	return splice(fd, pipe, size, isOrdinary(streak, ordinaryFill) || isLong(size, floods.Load()+1))
}

// quickDrain is splice(2) from a pipe to a socket that does not block.
func quickDrain(pipe, fd, size int) (int, error) {
	return splice(pipe, fd, size, isLong(size, floods.Load()))
}

func splice(from, to, size int, ordinary bool) (int, error) {
	const flags = unix.SPLICE_F_MOVE | unix.SPLICE_F_NONBLOCK
	if ordinary {
		n, err := unix.Splice(from, nil, to, nil, size, flags)
		return int(n), err
	}
	return result(unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(size), flags))
}

// quickSend is sendto(2) of a few bytes on a socket that does not block.
func quickSend(fd int, p []byte, flags int) (int, error) {
	n, err := result(unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), uintptr(flags), 0, 0))
	if err == unix.ENOSYS { // 32 bits of x86 before Linux 4.3
		return unix.SendmsgN(fd, p, nil, nil, flags)
	}
	return n, err
}

// quickIoctl is ioctl(2) that asks a socket for a number (tcp(7)): 0 if it does not tell.
func quickIoctl(fd, request int) int {
	var n int32
	if _, err := result(unix.RawSyscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(unsafe.Pointer(&n)))); err != nil {
		return 0
	}
	return int(n)
}

func result(n, _ uintptr, errno unix.Errno) (int, error) {
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}
