//go:build !unix || portable

package tunnel

// Elsewhere a buffer is held while waiting for data.
type socketReader struct{}

func (s *socket) bind() {}

func (s *socket) readBuffer(limit int) (*buffer, error) { return readWith(s, limit) }

// ReadNow reads nothing: whether a Read would wait cannot be known here.
func ReadNow(Conn, []byte) (int, error) { return 0, nil }

func (s *socket) write(p []byte) (int, error) { return s.Conn.Write(p) }
