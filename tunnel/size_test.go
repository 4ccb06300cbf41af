package tunnel

import "unsafe"

// What each idle tunnel has fits the sizes that Go's allocator has. Where this does not compile, a field has been added: there may be room
// for it between others. It has two sockets.
var (
	_ [512 - unsafe.Sizeof(frames{})]byte
	_ [320 - unsafe.Sizeof(relay{})]byte
	_ [256 - unsafe.Sizeof(Session{})]byte
	_ [128 - unsafe.Sizeof(socket{})]byte
)
