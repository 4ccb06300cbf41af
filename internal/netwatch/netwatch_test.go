package netwatch

import (
	"context"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

func TestAddresses(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()

	addresses, err := Addresses()

	if err != nil {
		t.Fatal(err)
	}
	if own := l.Addr().(*net.TCPAddr).AddrPort().Addr().Unmap(); !addresses[own] {
		t.Errorf("%v is not in %v", own, addresses)
	}
	if other := netip.MustParseAddr("192.0.2.77"); addresses[other] { // for documentation: RFC 5737
		t.Errorf("%v is in %v", other, addresses)
	}
}

func TestWatchEnds(t *testing.T) {
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		Watch(ctx, func(c Change) { t.Logf("the machine's network has changed: %+v", c) })
	}()

	cancel()

	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("Watch goes on after its context has ended")
	}
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
}

func TestLate(t *testing.T) {
	for _, tt := range []struct{ passed, want time.Duration }{
		{beatPause, 0},
		{beatPause - time.Second, 0}, // the beat before was late
		{beatPause + tolerated, 0},   // a busy machine
		{6 * time.Second, 3 * time.Second},
		{8*time.Hour + beatPause, 8 * time.Hour},
		{-time.Hour, 0}, // where the time of day has to do
	} {
		if got := late(tt.passed, beatPause); got != tt.want {
			t.Errorf("late(%v) = %v, want %v", tt.passed, got, tt.want)
		}
	}
}

func TestBeatOfRuntime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*beatPause+beatPause/2)
		defer cancel()
		beats := 0
		beatOfRuntime(ctx, beatPause, func() { beats++ })
		if beats != 10 {
			t.Errorf("%d beats, want 10", beats)
		}
	})
}

func TestSince(t *testing.T) {
	addresses := func(list ...string) map[netip.Addr]bool {
		set := map[netip.Addr]bool{}
		for _, a := range list {
			set[netip.MustParseAddr(a)] = true
		}
		return beyondLink(set)
	}
	home := snapshot{addresses("192.168.1.2", "2001:db8::2", "127.0.0.1", "::1"), [2]route{{device: 2, gateway: "router"}}}
	tests := []struct {
		name string
		now  snapshot
		want Change
	}{
		{"the same", snapshot{home.addresses, home.routes}, Change{}},
		{"link-local addresses", snapshot{addresses("192.168.1.2", "2001:db8::2", "fe80::1", "169.254.0.1"), home.routes}, Change{}},
		{"another address", snapshot{addresses("192.168.1.3", "2001:db8::2"), home.routes}, Change{Addresses: true}},
		{"no address", snapshot{addresses(), home.routes}, Change{Addresses: true}},
		{"unknown addresses", snapshot{nil, home.routes}, Change{}},
		{"another gateway", snapshot{home.addresses, [2]route{{device: 2, gateway: "cable"}}}, Change{Routes: true}},
		{"no link", snapshot{home.addresses, [2]route{{device: 2, gateway: "router", down: true}}}, Change{Routes: true}},
		{"ipv6 beside", snapshot{home.addresses, [2]route{home.routes[0], {device: 2, gateway: "router"}}}, Change{Routes: true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.now.since(home); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
	if known := (snapshot{}).or(home); known.since(home) != (Change{Routes: true}) {
		t.Error("addresses are forgotten when they cannot be learnt")
	}
}
