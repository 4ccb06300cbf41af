package acmetest

import (
	"encoding/json"
	"io"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Fault answers a request in place of the server that it was meant for.
type Fault func(http.ResponseWriter, *http.Request)

// Hang does not answer until the client gives up or the server is closed or taken down.
func Hang() Fault {
	return func(_ http.ResponseWriter, r *http.Request) {
		// net/http notices that a client has gone only after its request was read.
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	}
}

// Problem answers with an ACME error, such as "serverInternal" or "rateLimited" (RFC 8555, section 6.7), and,
// unless retryAfter is zero, the whole seconds after which to come again.
func Problem(status int, name string, retryAfter time.Duration) Fault {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/problem+json")
		setRetryAfter(w.Header(), retryAfter)
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(map[string]any{
			"type":   "urn:ietf:params:acme:error:" + name,
			"detail": "acmetest was told to answer so",
			"status": status,
		})
	}
}

// RateLimited is Problem with what Let's Encrypt answers to who asks for too much.
func RateLimited(retryAfter time.Duration) Fault {
	return Problem(http.StatusTooManyRequests, "rateLimited", retryAfter)
}

// Plain answers as something between client and CA does, a load balancer for example: no ACME error.
func Plain(status int, retryAfter time.Duration) Fault {
	return func(w http.ResponseWriter, _ *http.Request) {
		setRetryAfter(w.Header(), retryAfter)
		http.Error(w, http.StatusText(status), status)
	}
}

func setRetryAfter(header http.Header, d time.Duration) {
	if d > 0 {
		header.Set("Retry-After", strconv.FormatInt(int64(math.Ceil(d.Seconds())), 10))
	}
}

// Faults switches faults on and off and counts requests, by resource: for a CA those named in Resources.
type Faults struct {
	mu       sync.Mutex
	faults   map[string]Fault
	always   Fault // where faults has none
	requests map[string]int
	accepted map[string]int
}

func newFaults() *Faults {
	return &Faults{faults: map[string]Fault{}, requests: map[string]int{}, accepted: map[string]int{}}
}

// Fail answers requests for resources, or, where none are named, for all, with fault until Mend.
func (f *Faults) Fail(fault Fault, resources ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(resources) == 0 {
		f.always = fault
	}
	for _, r := range resources {
		f.faults[r] = fault
	}
}

// Mend ends all faults. Requests that hang by then hang on.
func (f *Faults) Mend() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.always = nil
	clear(f.faults)
}

// Requests is how many requests for resources, or for all, have come, faults and refused nonces included.
func (f *Faults) Requests(resources ...string) int { return f.sum(f.requests, resources) }

// Accepted is how many requests for resources, or for all, were answered with success.
func (f *Faults) Accepted(resources ...string) int { return f.sum(f.accepted, resources) }

func (f *Faults) sum(counts map[string]int, resources []string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for r, count := range counts {
		if len(resources) == 0 || slices.Contains(resources, r) {
			n += count
		}
	}
	return n
}

// serve counts a request and lets answer or a fault answer it.
func (f *Faults) serve(resource string, w http.ResponseWriter, r *http.Request, answer func(*recorder, *http.Request)) {
	if fault := f.arrived(resource); fault != nil {
		fault(w, r)
		return
	}
	recorder := &recorder{ResponseWriter: w}
	answer(recorder, r)
	if recorder.status < 300 {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.accepted[resource]++
	}
}

func (f *Faults) arrived(resource string) Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests[resource]++
	if fault, ok := f.faults[resource]; ok {
		return fault
	}
	return f.always
}

// recorder remembers the status of an answer and lets its header be changed before it is sent.
type recorder struct {
	http.ResponseWriter
	status int // 0: not known yet
	change func(status int, header http.Header)
}

func (r *recorder) WriteHeader(status int) {
	r.status = status
	if r.change != nil {
		r.change(status, r.Header())
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.WriteHeader(http.StatusOK)
	}
	return r.ResponseWriter.Write(p)
}

func (f *Faults) counts(of map[string]int) map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(of)
}
