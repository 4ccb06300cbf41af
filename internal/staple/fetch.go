package staple

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/crypto/ocsp"
)

const (
	// fetchTimeout is for all responders of a certificate together: each has an equal share of what is left.
	fetchTimeout = 10 * time.Second

	maxResponders = 4
	maxRedirects  = 3
	maxResponse   = 64 << 10 // with a delegate's RSA certificate it takes some 2 KiB
	maxHead       = 16 << 10
)

// ErrNoResponder means that the certificate names no responder that can be asked over HTTP. Nothing
// is wrong then: several CAs, Let's Encrypt among them, have no OCSP.
var ErrNoResponder = errors.New("the certificate names no OCSP responder")

// Fetch asks the leaf's responders, one after the other until one gives a response that says "good",
// that passes Parse and that is in its time. It takes 10 seconds at most, or until ctx ends.
//
// A nil client is one with the proxy of the environment. Another's transport has to limit the head
// of answers itself (http.Transport.MaxResponseHeaderBytes is 10 MiB by default).
//
// Errors wrap ErrNoResponder, ErrNoIssuer, ErrRevoked or what ended ctx where they apply.
func Fetch(ctx context.Context, client *http.Client, chain []*x509.Certificate) (*Staple, error) {
	if len(chain) > 0 && len(responders(chain[0])) == 0 {
		return nil, ErrNoResponder
	}
	leaf, issuer, err := leafAndIssuer(chain)
	if err != nil {
		return nil, err
	}
	// SHA-1 identifies the issuer here and secures nothing; some responders know no other hash
	// (RFC 5019, section 2.1.1).
	request, err := ocsp.CreateRequest(leaf, issuer, nil)
	if err != nil {
		return nil, fmt.Errorf("OCSP request: %w", err)
	}

	client, done := boundedClient(client)
	defer done()
	deadline := time.Now().Add(fetchTimeout)
	urls := responders(leaf)
	for i, url := range urls {
		share := time.Until(deadline) / time.Duration(len(urls)-i)
		s, askErr := ask(ctx, client, url, share, request, chain)
		if askErr == nil {
			return s, nil
		}
		if err == nil {
			err = fmt.Errorf("OCSP responder %q: %w", url, askErr)
		} else {
			err = fmt.Errorf("%w; %q: %w", err, url, askErr)
		}
		if errors.Is(askErr, ErrRevoked) || ctx.Err() != nil {
			break
		}
	}
	return nil, err
}

// responders are the URLs that we can ask. Others, such as ldap, are as good as none.
func responders(leaf *x509.Certificate) []string {
	var urls []string
	for _, server := range leaf.OCSPServer {
		u, err := url.Parse(server)
		if err == nil && isHTTP(u) && len(urls) < maxResponders {
			urls = append(urls, server)
		}
	}
	return urls
}

func isHTTP(u *url.URL) bool {
	return (u.Scheme == "http" || u.Scheme == "https") && u.Host != ""
}

// boundedClient returns a copy of client that does not follow wherever an answer leads.
func boundedClient(client *http.Client) (bounded *http.Client, done func()) {
	bounded, done = new(http.Client), func() {}
	if client != nil {
		*bounded = *client
	} else {
		transport := &http.Transport{Proxy: http.ProxyFromEnvironment, MaxResponseHeaderBytes: maxHead, ForceAttemptHTTP2: true}
		bounded.Transport, done = transport, transport.CloseIdleConnections
	}
	own := bounded.CheckRedirect
	bounded.CheckRedirect = func(next *http.Request, via []*http.Request) error {
		switch {
		case len(via) > maxRedirects:
			return fmt.Errorf("more than %d redirects", maxRedirects)
		case !isHTTP(next.URL):
			return errors.New("redirect to another protocol than HTTP")
		case next.Method != http.MethodPost: // 301, 302, 303: the request would be lost on the way
			return errors.New("redirect that turns the request into a GET")
		case own != nil:
			return own(next, via)
		}
		return nil
	}
	return bounded, done
}

// ask makes one request (RFC 6960, appendix A.1).
func ask(ctx context.Context, client *http.Client, server string, limit time.Duration, request []byte, chain []*x509.Certificate) (*Staple, error) {
	limited, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %v", limit.Round(time.Millisecond)))
	defer cancel()
	der, err := post(limited, client, server, request)
	if err != nil {
		if limited.Err() != nil && errors.Is(err, limited.Err()) {
			return nil, context.Cause(limited)
		}
		// It repeats the method, and the URL of the last redirect, which may be very long.
		if failed, ok := errors.AsType[*url.Error](err); ok {
			err = failed.Err
		}
		return nil, err
	}
	s, err := parse(der, chain)
	if err != nil {
		return nil, err
	}
	if err := s.Check(time.Now()); err != nil {
		return nil, err
	}
	if s.status != nil {
		return nil, s.status
	}
	return s, nil
}

func post(ctx context.Context, client *http.Client, server string, request []byte) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, server, bytes.NewReader(request))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/ocsp-request")
	r.Header.Set("Accept", "application/ocsp-response")
	answer, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("HTTP status %d", answer.StatusCode)
	}
	der, err := io.ReadAll(io.LimitReader(answer.Body, maxResponse+1))
	if err != nil {
		return nil, err
	}
	if len(der) > maxResponse {
		return nil, fmt.Errorf("the answer is larger than %d bytes", maxResponse)
	}
	return der, nil
}
