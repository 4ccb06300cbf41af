package program

import (
	"strings"
	"testing"
)

func TestTail(t *testing.T) {
	var x tail
	for _, part := range []string{strings.Repeat("a", outputLimit), "b", "", strings.Repeat("c", outputLimit-1)} {
		if n, err := x.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatalf("write: %d, %v", n, err)
		}
	}
	if got, want := x.String(), "...b"+strings.Repeat("c", outputLimit-1); got != want {
		t.Errorf("%d bytes, %.10q", len(got), got)
	}
	x = tail{}
	x.Write([]byte("all of it\n"))
	if got := x.String(); got != "all of it" {
		t.Errorf("%q", got)
	}
}
