//go:build !linux

package sockets

import "path/filepath"

// withPath calls do with the path of the socket name in folder.
func withPath(folder, name string, do func(path string) error) error {
	path := filepath.Join(folder, name)
	if len(path) > maxPath {
		return errTooLong
	}
	return do(path)
}
