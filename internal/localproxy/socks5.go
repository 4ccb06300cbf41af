package localproxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
)

// The numbers of RFC 1928 and RFC 1929.
const (
	socks4Version = 4
	socks5Version = 5
	loginVersion  = 1

	methodNone     = 0
	methodPassword = 2
	methodNoneFits = 0xff

	commandConnect = 1

	addressIPv4 = 1
	addressName = 3
	addressIPv6 = 4

	replySucceeded   = 0
	replyFailure     = 1
	replyForbidden   = 2
	replyHost        = 4
	replyRefused     = 5
	replyExpired     = 6
	replyCommand     = 7
	replyAddressType = 8
)

// hearSOCKS5 reads on to the end of the request. Programs may send all of it, and more, without waiting.
func (d *dialogue) hearSOCKS5() (*asking, error) {
	if err := d.greeting(); err != nil {
		return nil, fmt.Errorf("socks5 greeting: %w", err)
	}
	target, err := d.request()
	if err != nil {
		return nil, fmt.Errorf("socks5 request: %w", err)
	}
	return &asking{
		Conn: d.rest(), bare: d.conn, target: target,
		yes: reply(replySucceeded),
		no:  func(r reason) []byte { return reply(r.socks) },
	}, nil
}

// greeting settles how the program says who it is (RFC 1928, section 3).
func (d *dialogue) greeting() error {
	offered, err := d.counted(1)
	if err != nil {
		return err
	}
	offers := func(method byte) bool { return bytes.IndexByte(offered, method) >= 0 }
	switch {
	case !d.layer.asksLogin() && offers(methodNone):
		_, err := d.conn.Write([]byte{socks5Version, methodNone})
		return err
	case offers(methodPassword): // also where nobody is asked: some programs that have a password offer nothing else
		if _, err := d.conn.Write([]byte{socks5Version, methodPassword}); err != nil {
			return err
		}
		return d.login()
	}
	no := &refusal{err: errors.New("of the ways to log in that the program offers, none is spoken here"), answer: []byte{socks5Version, methodNoneFits}}
	if d.layer.asksLogin() {
		no.err = errors.New("the program offers no user and password")
		no.hint = "give the program the user and the password of this port; one that knows no password for SOCKS may know one for HTTP"
	}
	return no
}

// login checks user and password (RFC 1929, section 2), if anybody is asked for them.
func (d *dialogue) login() error {
	version, err := d.in.Peek(1)
	if err != nil {
		return fmt.Errorf("login: %w", unexpected(err))
	}
	if version[0] != loginVersion {
		return &refusal{err: fmt.Errorf("login: version %d in place of 1", version[0]), answer: []byte{loginVersion, replyFailure}}
	}
	user, err := d.counted(1)
	if err != nil {
		return fmt.Errorf("login: %w", err)
	}
	password, err := d.counted(0)
	if err != nil {
		return fmt.Errorf("login: %w", err)
	}
	if d.layer.asksLogin() && !d.layer.isLogin(string(user), string(password)) {
		return &refusal{err: errLogin, hint: loginHint, answer: []byte{loginVersion, replyFailure}}
	}
	_, err = d.conn.Write([]byte{loginVersion, replySucceeded})
	return err
}

var errLogin = errors.New("login: the user or the password is wrong")

const loginHint = "the program's settings need the user and the password of this port"

// counted reads a field that has its length, one byte, before it; skip is how many bytes come before that.
func (d *dialogue) counted(skip int) ([]byte, error) {
	head := make([]byte, skip+1)
	if err := d.read(head); err != nil {
		return nil, err
	}
	field := make([]byte, head[skip])
	return field, d.read(field)
}

// request reads where the program wants to go (RFC 1928, section 4).
func (d *dialogue) request() (target string, err error) {
	var head [4]byte // version, command, reserved, type of address
	if err := d.read(head[:]); err != nil {
		return "", err
	}
	if head[0] != socks5Version {
		return "", &refusal{err: fmt.Errorf("version %d in place of 5", head[0]), answer: reply(replyFailure)}
	}
	host, err := d.host(head[3])
	if err != nil {
		return "", err
	}
	var port [2]byte
	if err := d.read(port[:]); err != nil {
		return "", err
	}
	if head[1] != commandConnect {
		return "", &refusal{
			err:    fmt.Errorf("command %d (%s) is not served", head[1], commandNames[head[1]]),
			hint:   "only TCP connections to elsewhere go through the tunnel: turn off in the program what needs UDP (QUIC, HTTP/3), or incoming connections",
			answer: reply(replyCommand),
		}
	}
	target, err = parseTarget(host, strconv.Itoa(int(binary.BigEndian.Uint16(port[:]))))
	if err != nil {
		return "", &refusal{err: err, answer: reply(replyFailure)}
	}
	return target, nil
}

var commandNames = map[byte]string{2: "BIND", 3: "UDP ASSOCIATE"}

// host reads an address (RFC 1928, section 5).
func (d *dialogue) host(kind byte) (string, error) {
	switch kind {
	case addressIPv4:
		var ip [4]byte
		err := d.read(ip[:])
		return netip.AddrFrom4(ip).String(), err
	case addressIPv6:
		var ip [16]byte
		err := d.read(ip[:])
		return netip.AddrFrom16(ip).String(), err
	case addressName:
		name, err := d.counted(0)
		return string(name), err
	}
	return "", &refusal{err: fmt.Errorf("type of address %d is unknown", kind), answer: reply(replyAddressType)}
}

// read fills b.
func (d *dialogue) read(b []byte) error {
	_, err := io.ReadFull(d.in, b)
	return unexpected(err)
}

// unexpected is err in the middle of what is said.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// reply is an answer to a request (RFC 1928, section 6). The address at which the other end sees the connection is
// not known here, and no program asks for it: it is 0.0.0.0:0.
func reply(code byte) []byte {
	return []byte{socks5Version, code, 0, addressIPv4, 0, 0, 0, 0, 0, 0}
}

// refuseSOCKS4 answers that the request is rejected, which reads the same in SOCKS4 and 4a. They are not spoken: the
// programs of today that speak them speak SOCKS5 as well, and they know no IPv6, no password and no reasons; plain SOCKS4
// has names looked up here and not at the other end.
func refuseSOCKS4() error {
	return fmt.Errorf("socks4 request: %w", &refusal{
		err:    errors.New("version 4 is not spoken"),
		hint:   "set the program to SOCKS5 (in a URL: socks5h://)",
		answer: []byte{0, 0x5b, 0, 0, 0, 0, 0, 0},
	})
}
