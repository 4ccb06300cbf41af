package edge

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// newTokens makes Tokens whose file holds text.
func newTokens(t testing.TB, text string) (*Tokens, *logLines) {
	t.Helper()
	lines := new(logLines)
	tokens := &Tokens{File: filepath.Join(t.TempDir(), "tokens"), Interval: time.Second, Log: slog.New(slog.NewTextHandler(lines, nil))}
	write(t, tokens.File, []byte(text))
	return tokens, lines
}

func (t *Tokens) wantUser(tb testing.TB, token, want string) {
	tb.Helper()
	if got, ok := t.User(token); got != want || ok != (want != "") {
		tb.Errorf("the user of token %q is %q, %v, want %q", token, got, ok, want)
	}
}

func TestTokens(t *testing.T) {
	sum := sha256.Sum256([]byte("carol's"))
	tokens, _ := newTokens(t, "\ufeff# who may in\r\n\n"+
		"alice "+HashToken("alice's")+"\r\n"+
		"\tbob \t "+strings.ToUpper(strings.TrimPrefix(HashToken("bob's"), "sha256:"))+"\n")
	if err := tokens.Load(); err == nil {
		t.Error("a hash without sha256: was taken")
	}
	write(t, tokens.File, []byte("\ufeff# who may in\r\n\n"+
		"alice "+HashToken("alice's")+"\r\n"+
		"\tbob \t sha256:"+strings.ToUpper(strings.TrimPrefix(HashToken("bob's"), "sha256:"))+"\n"+
		"alice "+HashToken("alice's second")+"\n"+
		"carol@example.com sha256:"+base64.StdEncoding.EncodeToString(sum[:])+"\n"+
		"dörte sha256:"+base64.RawURLEncoding.EncodeToString(make([]byte, 32))))
	tokens.wantUser(t, "alice's", "")
	if err := tokens.Load(); err != nil {
		t.Fatal(err)
	}
	for token, want := range map[string]string{
		"alice's": "alice", "alice's second": "alice", "bob's": "bob", "carol's": "carol@example.com",
		"": "", "alice": "", "bob's ": "", HashToken("bob's"): "",
	} {
		tokens.wantUser(t, token, want)
	}
}

func TestTokensRefused(t *testing.T) {
	const secret = "s3cr3t-t0ken"
	good := "alice " + HashToken("alice's") + "\n"
	for name, test := range map[string]struct{ text, want, hint string }{
		"a plain token":         {good + "bob " + secret, "line 2: no sha256: stands behind the name", "raimons token"},
		"a token alone":         {secret, "line 1: a single word", "raimons token"},
		"no name":               {HashToken(secret), "line 1: the name is missing", "raimons token"},
		"short hash":            {"bob sha256:" + secret, "line 1: what stands behind sha256:", "raimons token"},
		"half a hash":           {"bob " + HashToken(secret)[:40], "line 1: what stands behind sha256:", "raimons token"},
		"the rest of a line":    {"bob " + HashToken("bob's") + " " + secret, "line 1: something stands behind the hash", "raimons token"},
		"the hash of nothing":   {"bob " + HashToken(""), "line 1: the hash of nothing", "raimons token"},
		"a token twice":         {good + "# " + secret + "\nbob " + HashToken("alice's"), "line 3: the same token as in line 1", "of their own"},
		"a control character":   {"b\x1bob " + HashToken("bob's"), "cannot be printed", "raimons token"},
		"no UTF-8":              {"b\xffob " + HashToken("bob's"), "cannot be printed", "raimons token"},
		"a long name":           {strings.Repeat("b", maxTokenName+1) + " " + HashToken("bob's"), "longer than 128 bytes", "raimons token"},
		"too large":             {strings.Repeat("#\n", maxTokenFile/2) + "#", "larger than 1048576 bytes", ""},
		"a line after too many": {manyTokens(maxTokens + 1), "more than 10000 tokens", ""},
	} {
		t.Run(name, func(t *testing.T) {
			tokens, lines := newTokens(t, test.text)
			err := tokens.Load()
			wantError(t, err, test.want)
			var hinted interface{ Hint() string }
			if hint := ""; test.hint != "" {
				if errors.As(err, &hinted) {
					hint = hinted.Hint()
				}
				if !strings.Contains(hint, test.hint) {
					t.Errorf("hint %q, want one with %q", hint, test.hint)
				}
			}
			if err != nil && (strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), HashToken(secret))) {
				t.Errorf("the error holds what stands in the file: %v", err)
			}
			lines.want(t)
			tokens.wantUser(t, "alice's", "")
		})
	}
	missing := &Tokens{File: filepath.Join(t.TempDir(), "none")}
	if err := missing.Load(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
}

func manyTokens(n int) string {
	var b strings.Builder
	for n := range n {
		sum := sha256.Sum256(fmt.Append(nil, n))
		fmt.Fprintf(&b, "u sha256:%s\n", base64.RawStdEncoding.EncodeToString(sum[:]))
	}
	return b.String()
}

func TestTokensWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tokens, lines := newTokens(t, "alice "+HashToken("one"))
		if err := tokens.Load(); err != nil {
			t.Fatal(err)
		}
		lines.want(t, "tokens taken up")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go tokens.Watch(ctx)
		looks := func(n int) {
			time.Sleep(time.Duration(n) * time.Second)
			synctest.Wait()
		}

		write(t, tokens.File, []byte("alice "+HashToken("two")))
		looks(2)
		tokens.wantUser(t, "one", "")
		tokens.wantUser(t, "two", "alice")
		lines.want(t, "count=1")

		t.Log("a file that is wrong leaves the tokens as they are, and is told of once")
		write(t, tokens.File, []byte("alice s3cr3t"))
		looks(10)
		tokens.wantUser(t, "two", "alice")
		for _, line := range lines.take() {
			if !strings.Contains(line, "tokens refused, those in use stay") || strings.Contains(line, "s3cr3t") {
				t.Errorf("logged %q", line)
			}
		}

		t.Log("the same file again")
		write(t, tokens.File, []byte("alice "+HashToken("two")))
		looks(3)
		lines.want(t, "holds the tokens in use again")

		t.Log("an empty file lets nobody in")
		write(t, tokens.File, nil)
		looks(3)
		tokens.wantUser(t, "two", "")
		lines.want(t, "count=0")
	})
}

func FuzzTokens(f *testing.F) {
	for _, seed := range []string{"", "# x", "alice " + HashToken("one"), "alice one", "a sha256:\nb", HashToken("x"), "\ufeffa " + HashToken("")} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := parseTokens(data)
		if err != nil && entries != nil {
			t.Error("entries beside an error")
		}
		for _, e := range entries {
			if !IsTokenName(e.name) || e.hash == sha256.Sum256(nil) {
				t.Errorf("took the name %q", e.name)
			}
		}
	})
}

func BenchmarkTokensUser(b *testing.B) {
	tokens, _ := newTokens(b, manyTokens(1000))
	if err := tokens.Load(); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		tokens.User("nobody's")
	}
}
