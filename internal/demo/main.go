// Demo builds raimons and raimonc, sends random data through a wss tunnel between them and back, and
// shows how to do the same by hand. Everything stays on this machine; make demo runs it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

const (
	size      = 256 << 20 // bytes, each way
	megabyte  = 1 << 20
	timeLimit = 2 * time.Minute

	serverOptions = "ws;host=edge.example.com;path=/ws;tls;servername=edge.example.com"
	clientOptions = "ws;host=edge.example.com;path=/ws;tls;sni=edge.example.com;pin="
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, timeLimit, fmt.Errorf("not done after %v", timeLimit))
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		stop()
		os.Exit(1)
	}
}

// run prefers the reason why all was ended to the errors that this led to.
func run(ctx context.Context) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	err := demonstrate(ctx, end)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}

// demonstrate calls end if a program ends before its time.
func demonstrate(ctx context.Context, end func(error)) error {
	bin, err := os.MkdirTemp("", "raimon-demo")
	if err != nil {
		return err
	}
	defer os.RemoveAll(bin)
	if err := build(ctx, bin); err != nil {
		return err
	}

	target, err := startTarget()
	if err != nil {
		return err
	}
	defer target.Close()
	// A key that is kept would be one more thing to clean up.
	edge, err := start(ctx, end, filepath.Join(bin, "raimons"), "127.0.0.1:0", target.Addr().String(), serverOptions+";storage=off")
	if err != nil {
		return err
	}
	defer edge.stop()
	client, err := start(ctx, end, filepath.Join(bin, "raimonc"), "127.0.0.1:0", edge.address, clientOptions+edge.pin)
	if err != nil {
		return err
	}
	defer client.stop()

	fmt.Printf("\n  you --tcp--> raimonc --wss--> raimons --tcp--> target, which sends all of it back\n")
	fmt.Printf("       %-21s %-18s %s\n\n", client.address, edge.address, target.Addr())
	if err := showCertificate(ctx, edge); err != nil {
		return err
	}
	if err := showTransfer(ctx, client.address); err != nil {
		return err
	}
	fmt.Print(byHand)
	return nil
}

func build(ctx context.Context, bin string) error {
	begin := time.Now()
	fmt.Print("building raimons and raimonc ... ")
	out, err := exec.CommandContext(ctx, "go", "build", "-o", bin+string(filepath.Separator), "raimon/cmd/...").CombinedOutput()
	if err != nil {
		fmt.Println()
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	fmt.Printf("%.1f s\n", time.Since(begin).Seconds())
	return nil
}

func showCertificate(ctx context.Context, edge *program) error {
	certificate, err := shownCertificate(ctx, edge.address)
	if err != nil {
		return fmt.Errorf("ask raimons for its certificate: %w", err)
	}
	if pin := pinOf(certificate); pin != edge.pin {
		return fmt.Errorf("raimons logs the pin %s, but shows a certificate with %s", edge.pin, pin)
	}
	fmt.Printf("  certificate  %s, self-signed, until %s\n", certificate.Subject, certificate.NotAfter.Format(time.DateOnly))
	fmt.Printf("  pin          %s\n", edge.pin)
	return nil
}

func showTransfer(ctx context.Context, address string) error {
	t, err := sendAndReceive(ctx, address)
	if err != nil {
		return fmt.Errorf("transfer: %w", err)
	}
	fmt.Printf("  sent         %d bytes, sha-256 %x\n", t.sent.bytes, t.sent.sum)
	fmt.Printf("  came back    %d bytes, sha-256 %x\n", t.received.bytes, t.received.sum)
	if t.sent != t.received {
		return errors.New("what came back is not what was sent")
	}
	fmt.Printf("  speed        %d MB there and back in %.2f s: %.0f MB/s each way at once\n",
		size/megabyte, t.duration.Seconds(), size/megabyte/t.duration.Seconds())
	return nil
}

const byHand = `
The same by hand: "make build", then each line in a terminal of its own. 127.0.0.1:22 is the target,
here ssh; any other TCP server will do. raimons prints its pin when it starts: write it in place of PIN.

  bin/raimons 127.0.0.1:8443 127.0.0.1:22 '` + serverOptions + `'

  bin/raimonc 127.0.0.1:2222 127.0.0.1:8443 '` + clientOptions + `PIN'

  ssh -p 2222 127.0.0.1
`
