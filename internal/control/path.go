package control

// maxPath is how many bytes of a path every system takes for a socket: 104 with a zero byte at the end
// on macOS and FreeBSD, 108 on Linux and Windows.
const maxPath = 103

var errTooLong = &Error{Text: "the path is too long for a socket", Fix: "name a folder with a shorter path in storage="}
