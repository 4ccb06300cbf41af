package sockets

import "errors"

// maxPath is how many bytes of a path every system takes for a socket: 104 with a zero byte at the end
// on macOS and FreeBSD, 108 on Linux and Windows.
const maxPath = 103

var errTooLong = errors.New("the path is too long for a socket")
