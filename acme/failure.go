package acme

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/mholt/acmez/v3/acme"
)

// ConfigError is a mistake in a Config, and what to do about it.
type ConfigError struct {
	Problem string
	Fix     string
	// Field is the name of the field of Config that it is about.
	Field string
}

func (e *ConfigError) Error() string { return e.Problem }

// Hint says what to do.
func (e *ConfigError) Hint() string { return e.Fix }

// Failure is why there is no new certificate.
type Failure struct {
	// Reason is one sentence, without anything that changes from one attempt to the next.
	Reason string
	// Fix says what to do; empty if there is nothing to say.
	Fix string
	// RetryAfter is when the CA wants to be asked again; zero if it has not said so.
	RetryAfter time.Time

	refused bool // the CA has answered, and the answer was no
	err     error
}

func (f *Failure) Error() string { return f.Reason }
func (f *Failure) Hint() string  { return f.Fix }
func (f *Failure) Unwrap() error { return f.err }

// faultOfCA is what to do about a CA that sends what it should not.
const faultOfCA = "this is a fault of the CA: another can be named in acme-ca="

// same tells whether f and another failure are the same for people.
func (f *Failure) same(reason string) bool {
	return varying.ReplaceAllString(f.Reason, "#") == varying.ReplaceAllString(reason, "#")
}

// joinFailures makes one of those of all CAs, in the order in which they were asked.
func joinFailures(all []*Failure) *Failure {
	if len(all) == 1 {
		return all[0]
	}
	joined := &Failure{refused: true}
	var errs []error
	var reasons []string
	for _, f := range all {
		reasons = append(reasons, f.Reason)
		if joined.Fix == "" {
			joined.Fix = f.Fix
		}
		// The first that may be asked again decides when; zero is any time.
		if f == all[0] || f.RetryAfter.Before(joined.RetryAfter) {
			joined.RetryAfter = f.RetryAfter
		}
		joined.refused = joined.refused && f.refused
		errs = append(errs, f)
	}
	joined.Reason, joined.err = strings.Join(reasons, "; "), errors.Join(errs...)
	return joined
}

// explain says in words what err, which a sent back, means; a is nil where no CA was asked.
func explain(ctx context.Context, name string, a *authority, err error) *Failure {
	var f *Failure
	if errors.As(err, &f) {
		return f
	}
	f = &Failure{Reason: tidy(err.Error()), err: err}
	if a == nil {
		f.Fix = hintOf(err)
		return f
	}
	host := a.host()
	var problem acme.Problem
	if errors.As(err, &problem) {
		f.refused = problem.Status < 500
		f.Reason = host + " says: " + reasonOf(problem)
		f.Fix = problemFix(ctx, name, a, problem)
		if a.EABKeyID != "" && strings.Contains(err.Error(), "registering account") {
			f.Fix = "eab= is wrong, or has been used up: the website of the CA gives you another"
		}
		return f.putOff(a, problem.Status)
	}
	if fix := storageFix(err); fix != "" {
		f.Reason, f.Fix = a.storageReason(err), fix
		return f
	}
	var (
		dns       *net.DNSError
		op        *net.OpError
		authority x509.UnknownAuthorityError
		hostname  x509.HostnameError
		invalid   x509.CertificateInvalidError
	)
	switch {
	case hintOf(err) != "": // of a DNS provider: somebody has to do something
		f.refused, f.Fix = true, hintOf(err)
	case strings.Contains(err.Error(), "unknown profile name"):
		f.refused = true
		f.Fix = "the CA does not know this profile=: leave it away, or use one of those that it has"
	case errors.As(err, &dns):
		f.Reason = tidy(dns.Error())
		f.Fix = "this machine cannot look up the CA's name: check its DNS and its way to the network"
	case errors.As(err, &authority):
		f.Reason = host + ": " + authority.Error()
		f.Fix = "for a private CA name its root with acme-root=; for a public one, something between breaks TLS open"
	case errors.As(err, &hostname), errors.As(err, &invalid):
		f.Fix = "is this the CA's address, and is the clock of this machine right?"
	case errors.As(err, &op), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		f.Reason = host + " cannot be reached: " + innermost(err)
		f.Fix = "is the CA up, and may this machine connect to it? it is tried again, by itself"
	case statusOf(err) >= 500, statusOf(err) == http.StatusTooManyRequests:
		f.Reason = fmt.Sprintf("%s answers with status %d", host, statusOf(err))
		f.Fix = "the CA has a problem, or too many requests: it is tried again, by itself"
		return f.putOff(a, statusOf(err))
	case statusOf(err) >= 400:
		f.refused = true
		f.Reason = fmt.Sprintf("%s answers with status %d", host, statusOf(err))
		f.Fix = "acme-ca= is the URL of an ACME directory, such as https://acme-v02.api.letsencrypt.org/directory"
	}
	return f
}

// explainRevocation is explain where no name was to be proved.
func explainRevocation(ctx context.Context, name string, a *authority, err error) *Failure {
	f := explain(ctx, name, a, err)
	if f.refused && f.RetryAfter.IsZero() {
		f.Fix = "only the account that has obtained a certificate may revoke it"
	}
	return f
}

// putOff notes what a has said about when to come again.
func (f *Failure) putOff(a *authority, status int) *Failure {
	if status != http.StatusTooManyRequests && status != http.StatusServiceUnavailable {
		return f
	}
	f.RetryAfter = a.notBefore(time.Now())
	if at, ok := retryTime(f.Reason); ok {
		f.RetryAfter = later(f.RetryAfter, earlier(at, time.Now().Add(latestRetry)))
	}
	if !f.RetryAfter.IsZero() {
		f.Fix = "rate-limited until " + f.RetryAfter.UTC().Format(time.RFC3339) + ": it is tried again then, by itself; further CAs in acme-ca= would be asked meanwhile"
	}
	return f
}

func (a *authority) storageReason(err error) string {
	return fmt.Sprintf("the storage (%v): %s", a.certmagic.Storage, innermost(err))
}

// host is the CA as people call it.
func (a *authority) host() string {
	_, rest, _ := strings.Cut(a.Directory, "://")
	host, _, _ := strings.Cut(rest, "/")
	return host
}

// reasonOf is what the CA says, without URLs, which have numbers of the attempt in them.
func reasonOf(p acme.Problem) string {
	reason := p.Detail
	for _, sub := range p.Subproblems {
		reason += "; "
		if sub.Identifier.Value != "" {
			reason += sub.Identifier.Value + ": "
		}
		reason += sub.Detail
	}
	if reason == "" {
		reason = strings.TrimPrefix(p.Type, acme.ProblemTypeNamespace)
	}
	return tidy(reason)
}

func problemFix(ctx context.Context, name string, a *authority, p acme.Problem) string {
	switch p.Type {
	case acme.ProblemTypeConnection, acme.ProblemTypeTLS, acme.ProblemTypeDNS, acme.ProblemTypeUnauthorized, acme.ProblemTypeIncorrectResponse:
		if a.issuer != nil && a.issuer.DNS01Solver != nil {
			return "the CA does not see the TXT record of _acme-challenge." + strings.TrimPrefix(name, "*.") + ": do all name servers of the zone answer it?"
		}
	}
	switch p.Type {
	case acme.ProblemTypeConnection, acme.ProblemTypeTLS:
		if fix := resolveFix(ctx, name); fix != "" {
			return fix
		}
		return "the CA does not get through to this program: open port 443 (TLS-ALPN-01) or port 80 (HTTP-01) to the world, and check that " + name + " is this machine"
	case acme.ProblemTypeDNS:
		if fix := resolveFix(ctx, name); fix != "" {
			return fix
		}
		return "the CA cannot look up " + name + ": check its A, AAAA and CAA records"
	case acme.ProblemTypeUnauthorized, acme.ProblemTypeIncorrectResponse:
		if fix := resolveFix(ctx, name); fix != "" {
			return fix
		}
		return "another server answers for " + name + ": check that its A and AAAA records point here, and nothing else sits on ports 80 and 443"
	case acme.ProblemTypeCAA:
		return "a CAA record of " + name + " forbids this CA: add it there, or choose another with acme-ca="
	case acme.ProblemTypeRateLimited:
		return "too many certificates or failures: it is tried again later, by itself; for experiments there is acme-ca=letsencrypt-staging"
	case acme.ProblemTypeExternalAccountRequired:
		return "this CA wants an account of yours: add eab=kid:key, which its website gives you"
	case acme.ProblemTypeRejectedIdentifier, acme.ProblemTypeUnsupportedIdentifier:
		return "this CA does not issue for " + name + ": for an IP address it may take a profile= of its own"
	case acme.ProblemTypeInvalidContact, acme.ProblemTypeUnsupportedContact:
		return "the CA does not accept email="
	case acme.ProblemTypeUserActionRequired:
		return "the CA wants you to visit " + plain(p.Instance)
	case acme.ProblemTypeNamespace + "invalidProfile":
		return "the CA does not know this profile=: its directory (acme-ca=) lists those that it has"
	case acme.ProblemTypeBadCSR, acme.ProblemTypeBadPublicKey, acme.ProblemTypeBadSignatureAlgorithm:
		return "the CA does not take this kind of key: choose another with key-type="
	case acme.ProblemTypeServerInternal:
		return "the CA has a problem: it is tried again, by itself"
	}
	return ""
}

// resolveFix looks whether the CA had a chance.
func resolveFix(ctx context.Context, name string) string {
	if net.ParseIP(name) != nil {
		return ""
	}
	limited, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := net.DefaultResolver.LookupHost(limited, strings.TrimPrefix(name, "*."))
	var dns *net.DNSError
	if errors.As(err, &dns) && dns.IsNotFound {
		return name + " does not resolve here: add an A or AAAA record that points to this machine"
	}
	return ""
}

// storageFix is empty where err is not about files.
func storageFix(err error) string {
	var file *fs.PathError
	switch {
	case errors.Is(err, syscall.ENOSPC):
		return "the disk is full: make room; what is in use goes on being served"
	case errors.Is(err, syscall.EROFS):
		return "the disk is read-only: mount it for writing, or choose another folder with storage="
	case errors.Is(err, fs.ErrPermission) && errors.As(err, &file):
		return "name a folder that this user may write with storage="
	case errors.As(err, &file):
		return "check the folder that storage= names"
	}
	return ""
}

func hintOf(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

// innermost is the text of what err wraps last, which says more than the ways that it took.
func innermost(err error) string {
	var file *fs.PathError
	if errors.As(err, &file) {
		return file.Op + ": " + file.Err.Error() // its name may be a temporary one
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Error()
	}
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err.Error()
		}
		err = inner
	}
}

// tidy leaves out what says nothing to people, and what differs from one attempt to the next: certmagic's
// steps, order URLs, tokens, the ports of a connection. Others have had a part in it: what a terminal would
// obey is left out too, and what nobody would read.
func tidy(reason string) string {
	reason = plain(reason)
	reason = certmagicText.ReplaceAllString(reason, "")
	reason = tokenText.ReplaceAllString(reason, "$1…")
	return portText.ReplaceAllString(reason, "$1->")
}

func plain(text string) string {
	text = strings.Map(func(r rune) rune {
		if !unicode.IsSpace(r) && !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, strings.ToValidUTF8(text[:min(len(text), maxReason)], ""))
	return strings.Join(strings.Fields(text), " ")
}

// maxReason is many times what a CA has ever had to say, in bytes.
const maxReason = 2000

var (
	certmagicText = regexp.MustCompile(`^\[[^\]]*\] |solving challenges: |presenting for challenge: | ?\((order|ca)=[^)]*\)`)
	tokenText     = regexp.MustCompile(`(acme-challenge/)[\w-]{16,}`)
	portText      = regexp.MustCompile(`([\d.]{7,}|\]):\d+->`)
	// varying is what may still differ between two texts that mean the same.
	varying = regexp.MustCompile(`[\w-]{20,}|\d+`)

	statusText = regexp.MustCompile(`HTTP (\d{3}): `)
	// Let's Encrypt: "… retry after 2025-01-31 12:00:00 UTC: see …"
	retryText = regexp.MustCompile(`(?i)retry after (\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d) ?(UTC|Z)`)
)

// statusOf is the HTTP status of an answer that was no ACME problem; 0 if err does not tell. The ACME
// client has it in its text only.
func statusOf(err error) int {
	m := statusText.FindStringSubmatch(err.Error())
	if m == nil {
		return 0
	}
	status, _ := strconv.Atoi(m[1])
	return status
}

func retryTime(reason string) (time.Time, bool) {
	m := retryText.FindStringSubmatch(reason)
	if m == nil {
		return time.Time{}, false
	}
	at, err := time.Parse(time.DateTime, m[1]+" "+m[2])
	return at, err == nil
}

// latestRetry bounds what a CA may ask for.
const latestRetry = 7 * 24 * time.Hour

// parseRetryAfter reads the header of that name: seconds or a date (RFC 9110, section 10.2.3).
func parseRetryAfter(value string, now time.Time) (time.Time, bool) {
	if value == "" {
		return time.Time{}, false
	}
	at, err := http.ParseTime(value)
	if seconds, e := strconv.ParseUint(value, 10, 31); e == nil {
		at, err = now.Add(time.Duration(seconds)*time.Second), nil
	}
	if err != nil {
		return time.Time{}, false
	}
	return earlier(at, now.Add(latestRetry)), true
}
