package edge_test

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"raimon/edge"
	"raimon/internal/tunneltest"
)

// Nor does time tell the path of a tunnel. Suspects are asked in turn, so that what else the machine does befalls all of
// them, and medians are compared; what is left of chance has several tries.
func TestProberSeesNoTunnelByTime(t *testing.T) {
	const (
		tries    = 6
		requests = 600 // of each suspect
		tolerant = 10  // percent
	)
	folder, err := edge.Folder(website(t))
	if err != nil {
		t.Fatal(err)
	}
	tokens := &edge.Tokens{File: filepath.Join(t.TempDir(), "tokens"), Log: slog.New(slog.DiscardHandler)}
	if err := os.WriteFile(tokens.File, []byte("alice "+edge.HashToken("alice's")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := tokens.Load(); err != nil {
		t.Fatal(err)
	}
	const tokenPath = "/ws/tokens"
	all := append(routes(t), &edge.Route{Path: tokenPath, Target: tunneltest.Echo(t), Access: edge.Access{Tokens: tokens}})
	with := run(t, nil, &edge.Site{Behind: folder, Routes: all})
	without := run(t, nil, &edge.Site{Behind: folder})
	refused := []timed{{"another path", with, nobodyPath}, {"without tunnels", without, nobodyPath}, {"a locked tunnel", with, lockedPath}, {"a tunnel for tokens", with, tokenPath}}
	everybody := append(slices.Clone(refused), timed{"an open tunnel", with, openPath})
	for _, test := range []struct {
		name, text string
		suspects   []timed
	}{
		{"upgrade", upgradeText, refused},
		{"wrong token", strings.Replace(upgradeText, "\r\n\r\n", "\r\nAuthorization: Bearer bob's\r\n\r\n", 1), refused},
		{"odd upgrade", strings.Replace(upgradeText, "Version: 13", "Version: 8", 1), everybody},
		{"page", "GET %s HTTP/1.1\r\nHost: edge.test\r\n\r\n", everybody},
	} {
		t.Run(test.name, func(t *testing.T) {
			var told error
			for range tries {
				medians := medianTimes(t, test.text, requests, test.suspects)
				told = nil
				for n, median := range medians {
					if off := (median - medians[0]).Abs(); off*100 > medians[0]*tolerant {
						told = fmt.Errorf("%s takes %v, %s %v", test.suspects[0].name, medians[0], test.suspects[n].name, median)
					}
				}
				if told == nil {
					t.Logf("medians: %v", medians)
					return
				}
			}
			t.Error(told)
		})
	}
}

// timed is a suspect whose answers are waited for.
type timed struct{ name, address, path string }

// medianTimes asks each suspect so many times, on a connection of its own.
func medianTimes(t *testing.T, text string, requests int, suspects []timed) []time.Duration {
	t.Helper()
	conns := make([]net.Conn, len(suspects))
	answers := make([]*bufio.Reader, len(suspects))
	took := make([][]time.Duration, len(suspects))
	for n, s := range suspects {
		c, err := net.Dial("tcp", s.address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		conns[n], answers[n] = c, bufio.NewReader(c)
	}
	for range requests {
		for _, n := range rand.Perm(len(suspects)) {
			request := strings.Replace(text, "%s", suspects[n].path, 1)
			begin := time.Now()
			if _, err := io.WriteString(conns[n], request); err != nil {
				t.Fatal(err)
			}
			answer, err := http.ReadResponse(answers[n], nil)
			if err != nil {
				t.Fatalf("%s: %v", suspects[n].name, err)
			}
			took[n] = append(took[n], time.Since(begin))
			if _, err := io.Copy(io.Discard, answer.Body); err != nil || answer.StatusCode == http.StatusSwitchingProtocols {
				t.Fatalf("%s: status %d, %v", suspects[n].name, answer.StatusCode, err)
			}
		}
	}
	medians := make([]time.Duration, len(suspects))
	for n := range took {
		slices.Sort(took[n])
		medians[n] = took[n][len(took[n])/2]
	}
	return medians
}
