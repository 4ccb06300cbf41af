package options

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/net/http/httpguts"

	"raimon/internal/resolve"
)

// problem is what is wrong with a value. The value itself is not in it: it may be a secret.
func problem(text, hint string) error { return &Error{Problem: text, Hint: hint} }

func setOneOf(field *string, v string, values ...string) error {
	v = strings.ToLower(v)
	if !slices.Contains(values, v) {
		return problem("no such value", "write one of "+strings.Join(values, ", "))
	}
	*field = v
	return nil
}

// setHost takes what may stand in a Host header, so that none can end the line and start another.
func setHost(field *string, v string) error {
	for i := range len(v) {
		switch c := v[i]; {
		case c >= 0x80:
			return problem("it is not plain ASCII", "write the name as DNS has it, starting with xn--")
		case c <= ' ' || c == 0x7f:
			return problem("it holds a blank or a control character", "write host=example.com")
		case strings.IndexByte("/\\?#@\"<>^`{|}", c) >= 0:
			return problem(fmt.Sprintf("it holds %q", c), "write only the name, as in host=example.com;path=/ws")
		}
	}
	*field = v
	return nil
}

func setPath(field *string, v string) error {
	if !strings.HasPrefix(v, "/") {
		return problem(`it does not start with "/"`, "write path=/ws")
	}
	if strings.ContainsFunc(v, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
		return problem("it holds a blank or a control character", "write %20 for a blank")
	}
	if _, err := url.ParseRequestURI(v); err != nil {
		return problem("it is not the path of a URL", "write %25 for a percent sign")
	}
	*field = v
	return nil
}

// setServerName takes a name or an IP address as certificates have it.
func setServerName(field *string, v string) error {
	if addr, err := netip.ParseAddr(v); err != nil || addr.Zone() != "" {
		if err := setHost(new(string), v); err != nil {
			return err
		}
		if strings.ContainsAny(v, ":[],") {
			return problem("it is not one name without a port", "write only the name, as in example.com")
		}
	}
	*field = v
	return nil
}

func setALPN(field *[]string, v string) error {
	names := list(v)
	for _, name := range names {
		if len(name) > 255 {
			return problem("a protocol is longer than 255 bytes", "write alpn=http/1.1")
		}
	}
	*field = names
	return nil
}

func setPins(field *[][]byte, v string) error {
	const hint = "write the 32 bytes of a SHA-256 in base64; several are separated by commas"
	var pins [][]byte
	for _, s := range list(v) {
		pin, err := decodeBase64(s)
		if err != nil {
			return problem("it is not base64", hint)
		}
		if len(pin) != sha256.Size {
			return problem(fmt.Sprintf("it is %d bytes long, not %d", len(pin), sha256.Size), hint)
		}
		pins = append(pins, pin)
	}
	if pins == nil {
		return problem("it names no key", hint)
	}
	*field = pins
	return nil
}

// setCertificates takes PEM, whose line ends may have become blanks, or the bare base64 body of one certificate.
func setCertificates(field *[]byte, v string) error {
	const begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
	bodies := []string{v}
	if strings.Contains(v, "-----") {
		bodies = nil
		for {
			_, rest, found := strings.Cut(v, begin)
			if !found {
				break
			}
			var body string
			body, v, found = strings.Cut(rest, end)
			if !found {
				return problem("the END line is missing", "write the whole PEM file, or only what stands between BEGIN and END")
			}
			bodies = append(bodies, body)
		}
		if bodies == nil {
			return problem("it is PEM without a certificate", "write the certificate, not the key")
		}
	}

	var out bytes.Buffer
	for _, body := range bodies {
		der, err := decodeBase64(strings.Join(strings.Fields(body), ""))
		if err != nil {
			return problem("it is not base64", "write the PEM file, with or without its BEGIN and END lines")
		}
		if _, err := x509.ParseCertificate(der); err != nil {
			return problem("it is not a certificate", "write the PEM file, with or without its BEGIN and END lines")
		}
		if err := pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
			return err
		}
	}
	*field = out.Bytes()
	return nil
}

func setProxy(field *string, v string) error {
	const hint = "write proxy=socks5://127.0.0.1:1080 (or http, https, socks5h), or proxy=off"
	if v == "off" {
		*field = v
		return nil
	}
	// url.Parse would repeat the URL, and its password, in the error.
	u, err := url.Parse(v)
	if err != nil || u.Hostname() == "" {
		return problem("it is not a URL with a host", hint)
	}
	if !slices.Contains([]string{"http", "https", "socks5", "socks5h"}, u.Scheme) {
		return problem("no such kind of proxy", hint)
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return problem("the port is not between 1 and 65535", hint)
		}
	}
	if strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return problem("something follows the host and port", hint)
	}
	*field = v
	return nil
}

func setResolver(field **resolve.Server, v string) error {
	server, err := resolve.Parse(v)
	if err != nil {
		return problem(err.Error(), "write dns=9.9.9.9, or dns=tcp://9.9.9.9, dns=tls://9.9.9.9, dns=https://9.9.9.9/dns-query")
	}
	*field = server
	return nil
}

// setToken takes where a token is found, or one that can stand in a header. Errors hold nothing of it.
func setToken(field *string, v string) error {
	const hint = "write token=file:/path, token=command:program, or the token that raimons token has printed"
	isElsewhere, err := checkElsewhere(v, hint)
	if err != nil {
		return err
	}
	if !isElsewhere && (len(v) > 4096 || strings.ContainsFunc(v, func(r rune) bool { return r <= ' ' || r > '~' })) {
		return problem("it is longer than 4096 bytes, or holds a blank or anything but printable ASCII", hint)
	}
	*field = v
	return nil
}

// checkElsewhere tells whether v says where a secret is found, and refuses it if it says nowhere.
func checkElsewhere(v, hint string) (bool, error) {
	for _, kind := range []string{"file:", "command:"} {
		if where, found := strings.CutPrefix(v, kind); found {
			if strings.TrimSpace(where) == "" {
				return false, problem("nothing stands behind "+kind, hint)
			}
			return true, nil
		}
	}
	return false, nil
}

// setLogin takes where a user and a password are found, or these. Errors hold nothing of them.
func setLogin(field *string, key, v string) error {
	hint := fmt.Sprintf("write %[1]s=file:/path, %[1]s=command:program, or %[1]s=user:password", key)
	isElsewhere, err := checkElsewhere(v, hint)
	if err != nil {
		return err
	}
	if !isElsewhere && !IsLogin(v) {
		return problem("it is not user:password, or holds a control character", hint)
	}
	*field = v
	return nil
}

// IsLogin tells whether v is a user, a colon and a password, of which no byte is a control character.
func IsLogin(v string) bool {
	return strings.Index(v, ":") > 0 && !strings.ContainsFunc(v, unicode.IsControl)
}

// maxHeader is how many bytes all of header= may have.
const maxHeader = 64 << 10

// ownFields are those that the upgrade or the way to it is made of, and what says so instead.
var ownFields = map[string]string{
	"host": "host=", "user-agent": "user-agent=", "proxy-authorization": "proxy-auth=",
	"connection": "", "content-length": "", "expect": "", "http2-settings": "", "keep-alive": "", "proxy-connection": "", "raimon": "", "raimon-target": "",
	"te": "", "trailer": "", "transfer-encoding": "", "upgrade": "",
}

// setHeader adds one field. Errors may hold its name, never its value.
func setHeader(fields *[]Header, v string) error {
	const hint = "write header=Name: value, header=Name: file:/path or header=Name: command:program"
	name, value, found := strings.Cut(v, ":")
	value = strings.TrimSpace(value)
	if !found || value == "" {
		return problem("it is not a name, a colon and a value", hint)
	}
	if !httpguts.ValidHeaderFieldName(name) {
		return problem("the name has something in it that no header's name may have", hint)
	}
	instead, isOwn := ownFields[strings.ToLower(name)]
	switch {
	case instead != "":
		return problem(name+" has an option of its own", "write "+instead)
	case isOwn || strings.HasPrefix(strings.ToLower(name), "sec-websocket-"):
		return problem(name+" is part of the upgrade itself", "remove it")
	}
	isElsewhere, err := checkElsewhere(value, hint)
	if err != nil {
		return err
	}
	if !isElsewhere && !IsHeaderValue(value) {
		return problem("the value of "+name+" has a control character", hint)
	}
	size := len(v)
	for _, other := range *fields {
		if strings.EqualFold(other.Name, name) {
			return problem(name+" is given twice", "write it once")
		}
		size += len(other.Name) + len(other.Value)
	}
	if size > maxHeader {
		return problem("all of them together have more than 64 KiB", "write shorter ones")
	}
	*fields = append(*fields, Header{name, value})
	return nil
}

// IsHeaderValue tells whether v can be the value of a header's field: not empty, and one line.
func IsHeaderValue(v string) bool {
	return v != "" && httpguts.ValidHeaderFieldValue(v)
}

func setUserAgent(field *string, v string) error {
	if len(v) > 4096 || !IsHeaderValue(v) {
		return problem("it is longer than 4096 bytes, or has a control character", "write user-agent=Mozilla/5.0, or what is expected there")
	}
	*field = v
	return nil
}

func setMark(field *uint32, v string) error {
	digits, base := v, 10
	if hex, found := strings.CutPrefix(v, "0x"); found {
		digits, base = hex, 16
	}
	n, err := strconv.ParseUint(digits, base, 32)
	if err != nil {
		return problem("it is not a number below 2^32", "write a number such as 255 or 0xff")
	}
	*field = uint32(n)
	return nil
}

// setCount takes a number from 0 to limit.
func setCount(field *int, v string, limit int) error {
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 || n > limit {
		return problem(fmt.Sprintf("it is not a number from 0 to %d", limit), "write a number such as 2")
	}
	*field = n
	return nil
}

func setMode(o *Options, v string) error {
	switch strings.ToLower(v) {
	case "websocket":
		o.WS = true
		return nil
	case "quic":
		return problem("QUIC is not spoken here", "write mode=websocket on both ends, with tls to encrypt")
	}
	return problem("no such mode", "write mode=websocket")
}

func setMux(_ *Options, v string) error {
	n, err := strconv.ParseUint(v, 10, 64)
	switch {
	case err != nil && !errors.Is(err, strconv.ErrRange):
		return problem("it is not a number", "write mux=0 on both ends")
	case err != nil || n > 0:
		return problem("several connections in one tunnel are not supported", "write mux=0 on both ends")
	}
	return nil
}

// setTimeout is setTime for a limit that must exist.
func setTimeout(field *time.Duration, v string) error {
	if err := setTime(field, v, 0); err != nil {
		return err
	}
	if *field == 0 {
		return problem("it cannot be off", "write a time such as 10s")
	}
	return nil
}

// ParseTime reads a time as the options have it: in Go's syntax, or as a bare number of seconds. "off" and 0
// become off; where off is 0 they are refused. Its error has a Hint.
func ParseTime(text string, off time.Duration) (d time.Duration, err error) {
	set := func(field *time.Duration, v string) error { return setTime(field, v, off) }
	if off == 0 {
		set = setTimeout
	}
	err = set(&d, text)
	return d, err
}

// CheckPath tells what is wrong with the path of an upgrade request. Its error has a Hint.
func CheckPath(path string) error {
	if path == "" {
		return problem("path is missing", `add path = "/ws"`)
	}
	return setPath(new(string), path)
}

// setTime takes a duration in Go's syntax or a bare number of seconds. "off" and 0 become off.
func setTime(field *time.Duration, v string, off time.Duration) error {
	if v == "off" {
		*field = off
		return nil
	}
	if strings.Trim(v, "0123456789.") == "" {
		v += "s"
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		return problem("it is not a time", "write a time such as 30s, 1m30s or 30 (seconds)")
	}
	if d < 0 {
		return problem("it is negative", "write a time such as 30s")
	}
	if d == 0 {
		d = off
	}
	*field = d
	return nil
}

// list splits at commas, trims and drops what is empty; nil if nothing is left.
func list(v string) []string {
	var items []string
	for item := range strings.SplitSeq(v, ",") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}

// decodeBase64 takes either alphabet, padded or not.
func decodeBase64(s string) ([]byte, error) {
	s = strings.NewReplacer("-", "+", "_", "/").Replace(s)
	return base64.RawStdEncoding.DecodeString(strings.TrimRight(s, "="))
}

// setList keeps empty items, whose place counts.
func setList(field *[]string, v string) error {
	for item := range strings.SplitSeq(v, ",") {
		*field = append(*field, strings.TrimSpace(item))
	}
	return nil
}
