package acmetest

import (
	"errors"
	"io"
	"net"
	"strconv"
	"sync"
	"time"
)

// doorPatience is how long a validation waits for a Door to be told where it leads. Pebble's own limit
// is 15 s.
const doorPatience = 12 * time.Second

// Door is the port on which challenges of one type are validated.
type Door struct {
	// Port is what the CA connects to, on the address that the name resolves to.
	Port int

	listener net.Listener // nil: Fixed
	closed   chan struct{}
	ended    sync.WaitGroup

	mu        sync.Mutex
	addresses []string
	told      chan struct{} // closed when addresses changed
	count     int
}

// openDoor opens a Door on a free port of 127.0.0.1, or describes port.
func openDoor(port int) (*Door, error) {
	d := &Door{Port: port, closed: make(chan struct{}), told: make(chan struct{})}
	if port != 0 {
		return d, nil
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	d.listener, d.Port = listener, listener.Addr().(*net.TCPAddr).Port
	d.ended.Go(d.accept)
	return d, nil
}

// To sets the addresses to which validations are passed on, each to the next one in turn. Those that wait
// since nothing was set yet go on; with no address they wait again. It panics if the Door is Fixed.
func (d *Door) To(addresses ...string) {
	if d.Fixed() {
		panic("acmetest: Door.To: Config fixed port " + strconv.Itoa(d.Port))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.addresses = addresses
	close(d.told)
	d.told = make(chan struct{})
}

// Fixed tells whether Config set the port, so that nothing passes here.
func (d *Door) Fixed() bool { return d.listener == nil }

// Count is how many connections were passed on. Pebble makes three for each validation.
func (d *Door) Count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.count
}

func (d *Door) accept() {
	for {
		conn, err := d.listener.Accept()
		if err != nil {
			return
		}
		d.ended.Go(func() { d.pass(conn.(*net.TCPConn)) })
	}
}

func (d *Door) pass(conn *net.TCPConn) {
	defer conn.Close()
	address, err := d.next()
	if err != nil {
		return
	}
	target, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer target.Close()
	over := make(chan struct{})
	defer close(over)
	d.ended.Go(func() {
		select {
		case <-d.closed:
			conn.Close()
			target.Close()
		case <-over:
		}
	})

	var back sync.WaitGroup
	back.Go(func() { copyStream(conn, target.(*net.TCPConn)) })
	copyStream(target.(*net.TCPConn), conn)
	back.Wait()
}

// copyStream ends to when from ended. What went wrong shows at both ends.
func copyStream(to, from *net.TCPConn) {
	if _, err := io.Copy(to, from); err != nil {
		to.Close()
		return
	}
	to.CloseWrite()
}

// next waits until there is an address.
func (d *Door) next() (string, error) {
	patience := time.After(doorPatience)
	for {
		d.mu.Lock()
		told := d.told
		if len(d.addresses) > 0 {
			defer d.mu.Unlock()
			address := d.addresses[d.count%len(d.addresses)]
			d.count++
			return address, nil
		}
		d.mu.Unlock()
		select {
		case <-told:
		case <-patience:
			return "", errors.New("no address was set")
		case <-d.closed:
			return "", net.ErrClosed
		}
	}
}

func (d *Door) close() error {
	close(d.closed)
	if d.listener == nil {
		return nil
	}
	err := d.listener.Close()
	d.ended.Wait()
	return err
}
