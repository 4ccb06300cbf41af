package acmetest_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/acme"

	"raimon/internal/acmetest"
)

func wantBody(t testing.TB, answer *http.Response, status int, part string) {
	t.Helper()
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != status || !strings.Contains(string(body), part) {
		t.Errorf("got %s %q (%v), want %d with %q", answer.Status, body, err, status, part)
	}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{RejectNonces: -1})
	c := newClient(t, ca)
	order := func() error {
		_, err := c.AuthorizeOrder(t.Context(), acme.DomainIDs("example.com"))
		return err
	}

	ca.Fail(acmetest.RateLimited(90*time.Second), acmetest.NewOrder, acmetest.NewAccount)
	err := order()
	wantProblem(t, err, "rateLimited")
	if d, limited := acme.RateLimit(err); !limited || d.Round(time.Second) != 90*time.Second {
		t.Errorf("%v: come again after %v, want 90 s", err, d)
	}
	if _, err := c.Discover(t.Context()); err != nil {
		t.Errorf("what does not fail: %v", err)
	}

	ca.Fail(acmetest.Problem(http.StatusServiceUnavailable, "serverInternal", 0), acmetest.NewOrder)
	wantProblem(t, order(), "serverInternal")

	ca.Fail(acmetest.Plain(http.StatusServiceUnavailable, 1500*time.Millisecond))
	answer, err := newHTTPClient(t, ca).Get(ca.Directory)
	if err != nil {
		t.Fatal(err)
	}
	wantBody(t, answer, http.StatusServiceUnavailable, "Service Unavailable")
	if after := answer.Header.Get("Retry-After"); after != "2" {
		t.Errorf("Retry-After: %q, want 2", after)
	}

	ca.Mend()
	if err := order(); err != nil {
		t.Errorf("mended: %v", err)
	}
	if requests, accepted := ca.Requests(acmetest.NewOrder), ca.Accepted(acmetest.NewOrder); requests != 3 || accepted != 1 {
		t.Errorf("%d orders requested, %d accepted, want 3 and 1", requests, accepted)
	}
}

func TestHang(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	c := newClient(t, ca)
	ca.Fail(acmetest.Hang(), acmetest.NewOrder)
	ctx, giveUp := context.WithCancel(t.Context())
	defer giveUp()
	ended := make(chan error, 1)

	go func() {
		_, err := c.AuthorizeOrder(ctx, acme.DomainIDs("example.com"))
		ended <- err
	}()

	waitFor(t, "request", func() bool { return ca.Requests(acmetest.NewOrder) == 1 })
	select {
	case err := <-ended:
		t.Errorf("an answer came: %v", err)
	default:
	}
	giveUp()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Close and Down end requests that hang.
func TestHangEnds(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*acmetest.CA) error{"Close": (*acmetest.CA).Close, "Down": (*acmetest.CA).Down} {
		ca := acmetest.New(t, acmetest.Config{})
		ca.Fail(acmetest.Hang())
		ended := make(chan error, 1)
		go func() {
			_, err := newStranger(t, ca).Discover(t.Context())
			ended <- err
		}()
		waitFor(t, "request", func() bool { return ca.Requests(acmetest.Directory) == 1 })

		if err := end(ca); err != nil {
			t.Errorf("%s: %v", name, err)
		}

		if err := <-ended; err == nil {
			t.Errorf("%s: an answer came", name)
		}
	}
}

func TestDown(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	c, s := newClient(t, ca), newSite(t, ca)

	if err := errors.Join(ca.Down(), ca.Down()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.AuthorizeOrder(t.Context(), acme.DomainIDs("example.com")); err == nil {
		t.Error("a connection from before lives on")
	}
	_, err := newStranger(t, ca).Discover(t.Context())
	if refused, ok := errors.AsType[*net.OpError](err); !ok || refused.Op != "dial" {
		t.Errorf("got %v, want a refused connection", err)
	}

	if err := errors.Join(ca.Up(), ca.Up()); err != nil {
		t.Fatal(err)
	}
	mustObtain(t, c, s, "example.com")
	if n := len(ca.Accounts()); n != 1 {
		t.Errorf("%d accounts, want the one from before", n)
	}
}
