//go:build interop

package interop

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// website is behind web.test: the page that browses, and data.
func (h *house) website() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, busyPage)
	})
	mux.HandleFunc("GET /data/{n}", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.Atoi(r.PathValue("n"))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Sum", sumOf(n))
		io.Copy(w, stream(n))
	})
	mux.HandleFunc("PUT /upload", func(w http.ResponseWriter, r *http.Request) {
		s := newSum()
		if _, err := io.Copy(s, r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		io.WriteString(w, s.String())
	})
	mux.HandleFunc("GET /over", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		fmt.Fprint(w, h.over.Load())
	})
	mux.HandleFunc("POST /report", func(w http.ResponseWriter, r *http.Request) {
		text, err := io.ReadAll(r.Body)
		if err != nil {
			text = []byte(err.Error())
		}
		h.reports <- string(text)
	})
	return mux
}

// busyPage works until /over says so: one WebSocket for all the time on each of two paths, short ones, and requests,
// of which the digests are looked at. Digests are for pages whose certificate is trusted.
const busyPage = `<!doctype html><meta charset=utf-8><title>raimon</title>
<script>
const count = {rounds: 0, short: 0, requests: 0, protocol: "", secure: isSecureContext};
let over = false;
const wait = ms => new Promise(done => setTimeout(done, ms));

function open(path) {
	return new Promise((done, fail) => {
		const socket = new WebSocket("wss://" + location.host + path);
		socket.binaryType = "arraybuffer";
		socket.onerror = () => fail(new Error(path + ": error"));
		socket.onopen = () => { socket.send(new TextEncoder().encode("echo\n")); done(socket); };
	});
}

function echo(socket, size) {
	return new Promise((done, fail) => {
		const data = crypto.getRandomValues(new Uint8Array(size));
		let got = 0;
		socket.onclose = event => fail(new Error("closed with " + event.code + " after " + got));
		socket.onmessage = event => {
			for (const b of new Uint8Array(event.data)) if (b !== data[got++]) return fail(new Error("another byte at " + (got - 1)));
			if (got === size) done();
		};
		for (let i = 0, n = 1; i < size; i += n, n = n * 3 + 1) socket.send(data.slice(i, i + n));
	});
}

function close(socket) {
	return new Promise((done, fail) => {
		socket.onclose = event => event.code === 1000 && event.wasClean ? done() : fail(new Error("closed with " + event.code));
		socket.close(1000);
	});
}

async function long(path) {
	const socket = await open(path);
	for (; !over; count.rounds++) { await echo(socket, 50000); await wait(50); }
	await close(socket);
}

async function short(path) {
	for (; !over; count.short++) {
		const socket = await open(path);
		await echo(socket, 3000);
		await close(socket);
		await wait(200);
	}
}

async function requests() {
	for (let n = 0; !over; n++, count.requests++) {
		const size = 1000 * (n % 60);
		const answer = await fetch("/data/" + size + "?" + n);
		const body = await answer.arrayBuffer();
		const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", body)).slice(0, 8);
		const sum = body.byteLength + " " + [...digest].map(b => b.toString(16).padStart(2, "0")).join("");
		if (answer.status !== 200 || sum !== answer.headers.get("Sum")) throw new Error(answer.status + " with " + sum);
		await wait(50);
	}
}

async function watch() {
	while (!over) { await wait(300); over = await (await fetch("/over")).text() === "true"; }
}

async function main() {
	let text;
	try {
		await Promise.all([long("/one"), long("/two"), short("/one"), short("/two"), requests(), watch()]);
		count.protocol = performance.getEntriesByType("navigation")[0].nextHopProtocol;
		text = JSON.stringify(count);
	} catch (error) {
		over = true;
		text = "" + error;
	}
	await fetch("/report", {method: "POST", body: text});
}
main();
</script>`

// browse starts a browser that trusts the CA and has web.test open.
func (h *house) browse(t testing.TB) *process {
	t.Helper()
	home := t.TempDir()
	db := filepath.Join(home, ".pki", "nssdb")
	if err := os.MkdirAll(db, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"-N", "--empty-password"}, {"-A", "-n", "pebble", "-t", "C,,", "-i", h.ca.IssuingRoot}} {
		if out, err := exec.Command(program(t, "certutil"), append([]string{"-d", "sql:" + db}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("certutil %q: %v\n%s", args, err, out)
		}
	}
	return startChromium(t, home, "--host-resolver-rules=MAP web.test "+host(h.address), h.url("web.test", "/"))
}

// browserEnds wants the page to have had no trouble.
func (h *house) browserEnds(t testing.TB, browser *process) {
	t.Helper()
	h.over.Store(true)
	var report string
	select {
	case report = <-h.reports:
	case <-time.After(2 * patience):
		t.Fatal("the page does not report")
	}
	var count struct {
		Rounds, Short, Requests int
		Protocol                string
		Secure                  bool
	}
	if err := json.Unmarshal([]byte(report), &count); err != nil {
		t.Fatalf("the page reports %q", report)
	}
	if count.Rounds < 20 || count.Short < 10 || count.Requests < 20 || count.Protocol != "h2" || !count.Secure {
		t.Errorf("the page reports %+v", count)
	}
	t.Logf("the page: %+v", count)
	if err := browser.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	select {
	case <-browser.done:
	case <-time.After(patience):
		t.Error("the browser does not end")
	}
}
