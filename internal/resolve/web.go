package resolve

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"time"

	"raimon/tunnel"
)

// messageType is what a DNS message is called in HTTP (RFC 8484, section 6).
const messageType = "application/dns-message"

// web asks over HTTPS (RFC 8484), with HTTP/2 where the server has it.
type web struct {
	url     string
	connect func() *http.Transport

	mu      sync.Mutex
	current *http.Transport
}

func newWeb(s *Server, via *tunnel.Dialer, config *tls.Config) *web {
	w := &web{url: s.url}
	w.connect = func() *http.Transport {
		return &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				ctx, cancel := context.WithTimeout(ctx, dialTime)
				defer cancel()
				return via.Dial(ctx, s.address)
			},
			TLSClientConfig:        config.Clone(),
			TLSHandshakeTimeout:    dialTime,
			ForceAttemptHTTP2:      true,
			DisableCompression:     true,
			IdleConnTimeout:        30 * time.Second,
			MaxResponseHeaderBytes: 64 << 10,
		}
	}
	w.current = w.connect()
	return w
}

// ask tries again on a new connection where a kept one fails or stays silent.
func (w *web) ask(ctx context.Context, query []byte) ([]byte, error) {
	transport := w.transport()
	limited, cancel := context.WithCancel(ctx)
	defer cancel()
	var kept atomic.Bool
	traced := httptrace.WithClientTrace(limited, &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) {
		if c.Reused && !kept.Swap(true) {
			silence := time.AfterFunc(keptTime, cancel)
			context.AfterFunc(limited, func() { silence.Stop() })
		}
	}})
	answer, status, err := w.post(traced, transport, query)
	if err != nil && status == 0 && kept.Load() && ctx.Err() == nil {
		w.renew(transport)
		answer, _, err = w.post(ctx, w.transport(), query)
	}
	return answer, err
}

// post sends query (RFC 8484, section 4.1). Status is 0 where no answer has come.
func (w *web) post(ctx context.Context, transport *http.Transport, query []byte) (answer []byte, status int, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(query))
	if err != nil {
		return nil, 0, err
	}
	request.Header.Set("Content-Type", messageType)
	request.Header.Set("Accept", messageType)
	request.Header.Set("User-Agent", "") // none is sent: it is nobody's business
	response, err := transport.RoundTrip(request)
	if err != nil {
		return nil, 0, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, response.StatusCode, fmt.Errorf("answered %d %s", response.StatusCode, http.StatusText(response.StatusCode))
	}
	if kind, _, err := mime.ParseMediaType(response.Header.Get("Content-Type")); err != nil || kind != messageType {
		return nil, response.StatusCode, fmt.Errorf("answered with something else than %s", messageType)
	}
	answer, err = io.ReadAll(io.LimitReader(response.Body, maxMessage+1))
	if err != nil {
		return nil, 0, err
	}
	if len(answer) > maxMessage || !answers(answer, query) {
		return nil, response.StatusCode, errNoMessage
	}
	return answer, response.StatusCode, nil
}

func (w *web) transport() *http.Transport {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.current
}

// renew replaces failed, unless another question has done so already: questions that still wait on it
// keep its connections from being closed, and from being left.
func (w *web) renew(failed *http.Transport) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.current == failed {
		w.current = w.connect()
	}
	failed.CloseIdleConnections()
}

func (w *web) forget() { w.renew(w.transport()) }
