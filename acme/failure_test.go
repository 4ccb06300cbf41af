package acme

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"
	"go.uber.org/zap"

	"raimon/storage"
)

func problem(kind, detail string, status int) error {
	return fmt.Errorf("[192.0.2.1] solving challenges: %w (order=https://ca.example/order/17)", acme.Problem{Type: acme.ProblemTypeNamespace + kind, Detail: detail, Status: status})
}

// Each reason is a sentence that says who said what, and comes with what to do.
func TestExplain(t *testing.T) {
	for _, test := range []struct {
		err         error
		reason, fix string
		refused     bool
	}{
		{problem("connection", "192.0.2.1: Connection refused", 400), "ca.example says: 192.0.2.1: Connection refused", "open port 443", true},
		{problem("unauthorized", "wrong answer", 403), "wrong answer", "another server answers", true},
		{problem("unauthorized", "192.0.2.1: Invalid response from http://a.example/.well-known/acme-challenge/TWxLZ0VfTWxLZ0VfTWxLZ0Vf: 404", 403), "acme-challenge/…: 404", "another server answers", true},
		{errors.New("[a.example] creating new order: unknown profile name 'x'; supported profiles: map[] (ca=https://ca.example/dir)"), "creating new order: unknown profile name 'x'; supported profiles: map[]", "leave it away", true},
		{fmt.Errorf("[a.example] solving challenges: presenting for challenge: %w (order=https://ca.example/order/17)", &ConfigError{Problem: "no such zone", Fix: "name the zone"}), "no such zone", "name the zone", true},
		{problem("caa", "forbidden", 403), "forbidden", "CAA record", true},
		{problem("dns", "SERVFAIL", 400), "SERVFAIL", "cannot look up", true},
		{problem("externalAccountRequired", "need EAB", 403), "need EAB", "eab=kid:key", true},
		{problem("rejectedIdentifier", "policy forbids", 400), "policy forbids", "does not issue for", true},
		{problem("invalidProfile", "no profile x", 400), "no profile x", "profile=", true},
		{problem("rateLimited", "too many certificates (5) already issued: retry after 2026-01-02 03:04:05 UTC: see https://x/", 429), "too many certificates", "rate-limited until 2026-01-02T03:04:05Z", true},
		{problem("serverInternal", "oops", 500), "oops", "the CA has a problem", false},
		{fmt.Errorf("attempt 1: https://ca.example/new-order: %w", errors.New("HTTP 503: try later")), "ca.example answers with status 503", "tried again", false},
		{fmt.Errorf("https://ca.example/x: %w", errors.New("HTTP 404: <html>")), "ca.example answers with status 404", "acme-ca=", true},
		{fmt.Errorf("performing request: %w", &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}), "ca.example cannot be reached: dial tcp: connection refused", "is the CA up", false},
		{fmt.Errorf("performing request: %w", &net.OpError{Op: "dial", Err: &net.DNSError{Name: "ca.example", Err: "no such host", IsNotFound: true}}), "lookup ca.example", "check its DNS", false},
		{fmt.Errorf("unable to acquire lock: %w", &fs.PathError{Op: "open", Path: "/x/locks", Err: syscall.EROFS}), "the storage (file:/x): open: read-only file system", "read-only", false},
		{fmt.Errorf("unable to acquire lock: %w", &fs.PathError{Op: "mkdir", Path: "/x", Err: syscall.EACCES}), "the storage (file:/x): mkdir: permission denied", "this user may write", false},
		{&fs.PathError{Op: "write", Path: "/x", Err: syscall.ENOSPC}, "the storage (file:/x): write: no space left", "disk is full", false},
	} {
		ca := &authority{CA: CA{Directory: "https://ca.example/dir"}, certmagic: &certmagic.Config{Storage: &vault{Storage: &storage.File{Root: "/x"}}}}
		f := explain(t.Context(), "192.0.2.1", ca, test.err)
		if !strings.Contains(f.Reason, test.reason) || !strings.Contains(f.Fix, test.fix) || f.refused != test.refused {
			t.Errorf("%v:\ngot %q, %q, refused %v,\nwant %q, %q, %v", test.err, f.Reason, f.Fix, f.refused, test.reason, test.fix, test.refused)
		}
		if strings.Contains(f.Reason, "/order/17") {
			t.Errorf("the reason differs from attempt to attempt: %s", f.Reason)
		}
		if !errors.Is(f.err, test.err) {
			t.Errorf("%v is lost", test.err)
		}
	}
}

func TestParseRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, test := range []struct {
		value string
		want  time.Time
	}{
		{"", time.Time{}},
		{"soon", time.Time{}},
		{"-5", time.Time{}},
		{"120", now.Add(2 * time.Minute)},
		{"Fri, 02 Jan 2026 04:00:00 GMT", time.Date(2026, 1, 2, 4, 0, 0, 0, time.UTC)},
		{"99999999", now.Add(latestRetry)},
		{"Fri, 02 Jan 2099 04:00:00 GMT", now.Add(latestRetry)},
	} {
		got, ok := parseRetryAfter(test.value, now)
		if !got.Equal(test.want) || ok == test.want.IsZero() {
			t.Errorf("%q: got %v, %v, want %v", test.value, got, ok, test.want)
		}
	}
}

// With two CAs both reasons are told, and the one that may be asked first says when.
func TestJoinFailures(t *testing.T) {
	now := time.Now()
	f := joinFailures([]*Failure{
		{Reason: "a", Fix: "do a", RetryAfter: now.Add(time.Hour), refused: true, err: context.Canceled},
		{Reason: "b", RetryAfter: now.Add(time.Minute), err: fs.ErrExist},
	})
	if f.Reason != "a; b" || f.Fix != "do a" || !f.RetryAfter.Equal(now.Add(time.Minute)) || f.refused || !errors.Is(f, fs.ErrExist) {
		t.Errorf("got %+v", f)
	}
	f = joinFailures([]*Failure{{Reason: "a", RetryAfter: now.Add(time.Hour)}, {Reason: "b"}})
	if !f.RetryAfter.IsZero() {
		t.Errorf("the second CA may be asked at once, but not before %v", f.RetryAfter)
	}
}

// The client of certmagic tells of Retry-After in its log alone.
func TestBridgeHearsRetryAfter(t *testing.T) {
	a := &authority{}
	logger := zap.New(&bridge{heard: a.heard})
	answer := func(status int, after string) {
		logger.Debug("http request", zap.Int("status_code", status), zap.Any("response_headers", http.Header{"Retry-After": {after}}))
	}
	now := time.Now()
	answer(200, "60")
	if at := a.notBefore(now); !at.IsZero() {
		t.Errorf("a good answer means %v", at)
	}
	answer(429, "60")
	for range 2 { // several names may have been put off
		if at := a.notBefore(now); at.Sub(now) < 50*time.Second || at.Sub(now) > 61*time.Second {
			t.Errorf("got %v, want in a minute", at)
		}
	}
	if at := a.notBefore(now.Add(2 * time.Minute)); !at.IsZero() {
		t.Errorf("it is told when it is past: %v", at)
	}
}
