//go:build interop

package interop

import (
	"crypto/tls"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"

	"raimon/edge"
	"raimon/internal/tunneltest"
)

// What openssl can ask for in the middle of a connection ends that connection at most, and soon. Others go on.
func TestFloodsOfHandshakes(t *testing.T) {
	ca := tunneltest.NewCA(t)
	cert := ca.Issue(t, "raw.test")
	echo := tunneltest.Echo(t)
	address := startEdge(t, &edge.Config{
		Listeners: []edge.Listener{{Address: "127.0.0.1:0"}},
		Sites: []*edge.Site{{
			Raw:         &edge.Route{Target: echo},
			Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil },
		}},
	})[0]
	for name, test := range map[string]struct{ version, command string }{
		"renegotiation":                   {"-tls1_2", "R\n"},
		"key updates":                     {"-tls1_3", "k\n"},
		"key updates that want an answer": {"-tls1_3", "K\n"},
	} {
		t.Run(name, func(t *testing.T) {
			good, err := withName(&tls.Config{RootCAs: ca.Pool}, "raw.test").Client(t.Context(), connect(t, address))
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(minute(t), program(t, "openssl"), "s_client", "-connect", address, test.version, "-quiet", "-no_ign_eof")
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			flooding := make(chan struct{})
			go func() {
				defer close(flooding)
				for range 10_000 {
					if _, err := io.WriteString(in, test.command); err != nil {
						return
					}
					time.Sleep(time.Millisecond) // s_client obeys one command a read
				}
			}()
			for range 20 {
				if _, err := fmt.Fprintln(good, "hello"); err != nil {
					t.Fatal(err)
				}
				got := make([]byte, len("hello\n"))
				if _, err := io.ReadFull(good, got); err != nil || strings.TrimSpace(string(got)) != "hello" {
					t.Fatalf("the good tunnel: %q, %v", got, err)
				}
			}
			select {
			case <-ended:
			case <-time.After(patience):
				t.Error("the flood goes on")
				cmd.Process.Kill()
				<-ended
			}
			in.Close()
			<-flooding
		})
	}
}
