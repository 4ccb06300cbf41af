// Demo runs a CA, has raimons obtain a certificate from it, sends random data through a wss tunnel and
// back, and has the certificate renewed while the tunnel is open. Everything stays on this machine;
// make demo runs it.
package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"raimon/internal/acmetest"
)

const (
	fileSize  = 256 << 20 // bytes, each way
	afterSize = 16 << 20  // of what follows the renewal
	megabyte  = 1 << 20
	timeLimit = 2 * time.Minute

	name          = "edge.example.com"
	tunnelOptions = "ws;host=" + name + ";path=/ws;tls;"
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
	dir, err := os.MkdirTemp("", "raimon-demo")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := build(ctx, dir); err != nil {
		return err
	}
	ca, err := acmetest.Start(acmetest.Config{})
	if err != nil {
		return err
	}
	defer ca.Close()
	target, err := startTarget()
	if err != nil {
		return err
	}
	defer target.Close()

	d := &demo{ca: ca, raimons: filepath.Join(dir, "raimons"), storage: filepath.Join(dir, "storage")}
	begin := time.Now()
	edge, err := start(ctx, end, d.raimons, "127.0.0.1:0", target.Addr().String(), tunnelOptions+
		"acme="+name+";acme-ca="+ca.Directory+";acme-root="+ca.Root.File+";http=off;storage="+d.storage)
	if err != nil {
		return err
	}
	defer edge.stop()
	ca.TLSALPN01.To(edge.address) // where the CA looks who has the name
	client, err := start(ctx, end, filepath.Join(dir, "raimonc"), "127.0.0.1:0", edge.address, tunnelOptions+"sni="+name+";ca="+ca.IssuingRoot.File)
	if err != nil {
		return err
	}
	defer client.stop()

	fmt.Printf("\n  you --tcp--> raimonc --wss--> raimons --tcp--> target, which sends all of it back\n")
	fmt.Printf("       %-21s %-18s %s\n", client.address, edge.address, target.Addr())
	fmt.Printf("                                   |\n")
	fmt.Printf("                                 ACME   a CA at %s\n\n", strings.TrimSuffix(strings.TrimPrefix(ca.Directory, "https://"), "/dir"))
	if err := edge.await(ctx, "certificate obtained"); err != nil {
		return err
	}
	d.took = time.Since(begin)
	return d.show(ctx, edge.address, client.address)
}

// demo is what show needs to know.
type demo struct {
	ca               *acmetest.CA
	raimons, storage string
	took             time.Duration // to the first certificate
}

func (d *demo) show(ctx context.Context, edge, client string) error {
	first, err := d.certificate(ctx, edge)
	if err != nil {
		return err
	}
	fmt.Printf("  obtained     in %.1f s, from %q, until %s\n", d.took.Seconds(), first.Issuer.CommonName, first.NotAfter.Format(time.DateOnly))

	tunnel, err := open(ctx, client)
	if err != nil {
		return err
	}
	defer tunnel.Close()
	t, err := tunnel.sendAndReceive(fileSize)
	if err != nil {
		return err
	}
	fmt.Printf("  sent         %d bytes, sha-256 %x\n", t.sent.bytes, t.sent.sum)
	fmt.Printf("  came back    %d bytes, sha-256 %x\n", t.received.bytes, t.received.sum)
	fmt.Printf("  speed        %d MB there and back in %.2f s: %.0f MB/s each way at once\n",
		fileSize/megabyte, t.duration.Seconds(), fileSize/megabyte/t.duration.Seconds())

	begin := time.Now()
	out, err := exec.CommandContext(ctx, d.raimons, "certs", "renew", name, "storage="+d.storage).CombinedOutput()
	if err != nil {
		return fmt.Errorf("raimons certs renew: %w\n%s", err, out)
	}
	second, err := d.certificate(ctx, edge)
	if err != nil {
		return err
	}
	if second.SerialNumber.Cmp(first.SerialNumber) == 0 {
		return errors.New("after the renewal it is still the old certificate")
	}
	fmt.Printf("  renewed      in %.1f s, serial %x… is now %x…\n", time.Since(begin).Seconds(), first.SerialNumber.Bytes()[:4], second.SerialNumber.Bytes()[:4])

	if _, err := tunnel.sendAndReceive(afterSize); err != nil {
		return fmt.Errorf("after the renewal: %w", err)
	}
	if err := tunnel.end(); err != nil {
		return fmt.Errorf("after the renewal: %w", err)
	}
	fmt.Printf("  the tunnel   has not noticed: %d MB more there and back, and a clean end\n", afterSize/megabyte)
	fmt.Print(byHand)
	return nil
}

// certificate is what the edge shows to everybody, checked as a client does.
func (d *demo) certificate(ctx context.Context, edge string) (*x509.Certificate, error) {
	chain, err := shownCertificates(ctx, edge, d.ca.IssuingRoot.Pool)
	if err != nil {
		return nil, fmt.Errorf("ask raimons for its certificate: %w", err)
	}
	return chain[0], nil
}

func build(ctx context.Context, dir string) error {
	begin := time.Now()
	fmt.Print("building raimons and raimonc ... ")
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "raimon").Output()
	if err != nil {
		fmt.Println()
		return fmt.Errorf("go list -m raimon: %w", err)
	}
	out, err := exec.CommandContext(ctx, "go", "build", "-C", strings.TrimSpace(string(root)), "-o", dir+string(filepath.Separator), "./cmd/...").CombinedOutput()
	if err != nil {
		fmt.Println()
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	fmt.Printf("%.1f s\n", time.Since(begin).Seconds())
	return nil
}

const byHand = `
The same by hand: "make build", then each line in a terminal of its own. 127.0.0.1:22 is the target,
here ssh; any other TCP server will do. On a public machine the first and all of acme-ca, acme-root
and ca go away, raimons listens on :443, and the certificate comes from Let's Encrypt.

  go run -C internal/acmetest ./pebble -address 127.0.0.1:14000 -dir /tmp -tls-to 127.0.0.1:8443

  bin/raimons 127.0.0.1:8443 127.0.0.1:22 '` + tunnelOptions + `acme=` + name + `;acme-ca=https://127.0.0.1:14000/dir;acme-root=/tmp/root.pem;http=off;storage=/tmp/raimon'

  bin/raimonc 127.0.0.1:2222 127.0.0.1:8443 '` + tunnelOptions + `sni=` + name + `;ca=/tmp/issuing-root.pem'

  ssh -p 2222 127.0.0.1

  bin/raimons certs list storage=/tmp/raimon
`
