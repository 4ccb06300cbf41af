package tunnel

import "errors"

// IsRefused tells whether nobody listens where err comes from.
func IsRefused(err error) bool { return errors.Is(err, errRefused) }
