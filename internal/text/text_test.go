package text_test

import (
	"testing"
	"time"

	"raimon/internal/text"
)

func TestBytes(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 9940: "9.9 kB", 9960: "10 kB", 999_499: "999 kB", 999_500: "1.0 MB", 1 << 62: "4.6 EB"} {
		if got := text.Bytes(n); got != want {
			t.Errorf("%d: got %q, want %q", n, got, want)
		}
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0 s", 59900 * time.Millisecond: "59 s", 90 * time.Second: "1 min 30 s", 25 * time.Hour: "1 d 1 h", 119 * time.Minute: "1 h 59 min",
	} {
		if got := text.Span(d); got != want {
			t.Errorf("%v: got %q, want %q", d, got, want)
		}
	}
}

func TestPrintable(t *testing.T) {
	for s, want := range map[string]string{
		"":                        "",
		"größer":                  "größer",
		"two\r\nlines\tand\u2028": "two  lines and ",
		"\x1b[31mred\a":           "\ufffd[31mred\ufffd",
		"\u202eright to left":     "\ufffdright to left",
		"\xff":                    "\ufffd",
	} {
		if got := text.Printable(s); got != want {
			t.Errorf("%q: got %q, want %q", s, got, want)
		}
	}
}

func TestShorten(t *testing.T) {
	for _, test := range []struct {
		s     string
		limit int
		want  string
	}{{"", 0, ""}, {"größer", 6, "größer"}, {"größer", 5, "größ…"}, {"ab", 1, "…"}, {"ab", 0, "…"}} {
		if got := text.Shorten(test.s, test.limit); got != test.want {
			t.Errorf("%q, %d: got %q, want %q", test.s, test.limit, got, test.want)
		}
	}
}
