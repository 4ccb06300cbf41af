package acmetest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

// management is what README.md lists under "Management".
func (ca *CA) management() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", ca.pebble.management)
	mux.HandleFunc("POST /set-renewal-info/", func(w http.ResponseWriter, r *http.Request) {
		ca.front.renewal.Lock()
		defer ca.front.renewal.Unlock()
		ca.pebble.management.ServeHTTP(w, r)
	})
	mux.HandleFunc("GET /status", ca.status)
	mux.HandleFunc("POST /set-txt", post(func(r struct{ Host, Value string }) error {
		if r.Host == "" || r.Value == "" {
			return fmt.Errorf("host or value is missing")
		}
		ca.DNS.SetTXT(r.Host, r.Value)
		return nil
	}))
	mux.HandleFunc("POST /clear-txt", post(func(r struct{ Host string }) error {
		ca.DNS.ClearTXT(r.Host)
		return nil
	}))
	mux.HandleFunc("POST /lead", post(ca.lead))
	mux.HandleFunc("POST /fail", post(ca.fail))
	mux.HandleFunc("POST /mend", func(http.ResponseWriter, *http.Request) { ca.Mend() })
	return mux
}

// post decodes the JSON body of a request for handle, whose errors are the client's.
func post[T any](handle func(T) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var request T
		decoder := json.NewDecoder(r.Body)
		decoder.DisallowUnknownFields()
		err := decoder.Decode(&request)
		if err == nil {
			err = handle(request)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	}
}

func (ca *CA) lead(r struct{ HTTP, TLS []string }) error {
	for _, d := range []struct {
		door      *Door
		addresses []string
	}{{ca.HTTP01, r.HTTP}, {ca.TLSALPN01, r.TLS}} {
		if len(d.addresses) == 0 {
			continue
		}
		if d.door.Fixed() {
			return fmt.Errorf("port %d was fixed at the start", d.door.Port)
		}
		d.door.To(d.addresses...)
	}
	return nil
}

func (ca *CA) fail(r struct {
	Kind       string // hang, problem or plain
	Status     int
	Error      string // for problem: the last part of the ACME error's name
	RetryAfter int    // seconds
	Resources  []string
}) error {
	retryAfter := time.Duration(r.RetryAfter) * time.Second
	if r.Kind != "hang" && (r.Status < 400 || r.Status > 599) {
		return fmt.Errorf("status %d is not an error", r.Status)
	}
	switch r.Kind {
	case "hang":
		ca.Fail(Hang(), r.Resources...)
	case "problem":
		ca.Fail(Problem(r.Status, r.Error, retryAfter), r.Resources...)
	case "plain":
		ca.Fail(Plain(r.Status, retryAfter), r.Resources...)
	default:
		return fmt.Errorf("kind %q is none of hang, problem, plain", r.Kind)
	}
	return nil
}

// status tells what has happened so far.
func (ca *CA) status(w http.ResponseWriter, _ *http.Request) {
	type certificate struct {
		Serial    string    `json:"serial"`
		Names     []string  `json:"names"`
		NotBefore time.Time `json:"notBefore"`
		NotAfter  time.Time `json:"notAfter"`
		Revoked   bool      `json:"revoked"`
	}
	var certificates []certificate
	for _, c := range ca.Issued() {
		names := c.DNSNames
		for _, ip := range c.IPAddresses {
			names = append(names, ip.String())
		}
		certificates = append(certificates, certificate{
			c.SerialNumber.Text(16), names, c.NotBefore, c.NotAfter, ca.Revoked(c),
		})
	}
	w.Header().Set("Content-Type", "application/json")
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.Encode(map[string]any{
		"accounts":     ca.Accounts(),
		"certificates": certificates,
		"requests":     ca.counts(ca.requests),
		"accepted":     ca.counts(ca.accepted),
	})
}
