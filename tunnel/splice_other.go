//go:build !linux || portable

package tunnel

// Without splice(2) every byte is copied through a pooled buffer.
type spliceReader struct{}

// splice moves nothing here.
func (d *direction) splice() (moved int, err error) { return 0, nil }
