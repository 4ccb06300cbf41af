package control

import (
	"io/fs"
	"os"

	"golang.org/x/sys/windows"
)

const errRefused = windows.WSAECONNREFUSED

// Who may open a socket comes from its folder here.
func private(*os.Root, string, fs.FileInfo, fs.FileMode) error { return nil }
