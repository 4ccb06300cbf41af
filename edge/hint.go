package edge

// hintedError is an error with what a person can do about it.
type hintedError struct {
	error
	hint string
}

func (e *hintedError) Unwrap() error { return e.error }

// Hint says what to do.
func (e *hintedError) Hint() string { return e.hint }
