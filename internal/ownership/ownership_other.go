//go:build !unix

package ownership

import "os"

// Inherit has nothing to do: what is created gets its rights from the folder.
func Inherit(*os.Root, string) error { return nil }
