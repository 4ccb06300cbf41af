package edge

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"
)

var ticketEpoch = time.Unix(1_800_000_000, 0)

// ticketList makes secrets that begin so many hours after ticketEpoch.
func ticketList(hours ...int) ticketSecrets {
	var l ticketSecrets
	for _, h := range hours {
		l = append(l, newTicketSecret(ticketEpoch.Add(time.Duration(h)*time.Hour)))
	}
	return l
}

// hours is the reverse of ticketList.
func (l ticketSecrets) hours() []int {
	var hours []int
	for _, s := range l {
		hours = append(hours, int(s.begin().Sub(ticketEpoch)/time.Hour))
	}
	return hours
}

func TestTicketSecretsPlanned(t *testing.T) {
	for name, test := range map[string]struct {
		have, want []int
	}{
		"none":              {nil, []int{-1, 23, 47}},
		"just begun":        {[]int{0}, []int{0, 24, 48}},
		"complete":          {[]int{-1, 23, 47}, []int{-1, 23, 47}},
		"one is due":        {[]int{-24, 0, 24}, []int{-24, 0, 24, 48}},
		"overdue":           {[]int{-30}, []int{-30, -1, 23, 47}},
		"last second":       {[]int{-24}, []int{-24, -1, 23, 47}},
		"expired":           {[]int{-192, -191, -24, 0, 24, 48}, []int{-191, -24, 0, 24, 48}},
		"a gap":             {[]int{0, 40}, []int{0, 24, 40}},
		"a clock far ahead": {[]int{0, 24, 48, 90000, 90024}, []int{0, 24, 48, 90000, 90024}},
		"our clock behind":  {[]int{90000, 90024, 90048}, []int{-1, 23, 47, 90000, 90024, 90048}},
		"two of one second": {[]int{0, 0, 24, 48}, []int{0, 0, 24, 48}},
	} {
		have := ticketList(test.have...)
		before := slices.Clone(have)
		got, changed := have.planned(ticketEpoch)
		if !slices.Equal(got.hours(), test.want) {
			t.Errorf("%s: got secrets from hours %v, want %v", name, got.hours(), test.want)
		}
		if want := !slices.Equal(test.have, test.want); changed != want {
			t.Errorf("%s: changed %v, want %v", name, changed, want)
		}
		if !slices.Equal(have, before) {
			t.Errorf("%s: the list itself was changed", name)
		}
		for _, s := range got {
			if slices.Contains(test.have, int(s.begin().Sub(ticketEpoch)/time.Hour)) && !slices.Contains(have, s) {
				t.Errorf("%s: a secret was replaced", name)
			}
		}
		if again, changed := got.planned(ticketEpoch); changed {
			t.Errorf("%s: planned anew: %v", name, again.hours())
		}
		if _, ok := got.current(ticketEpoch); !ok {
			t.Errorf("%s: no secret for now", name)
		}
	}
}

// Whatever clocks do, the list stays short and has a secret for now.
func TestTicketSecretsAreBounded(t *testing.T) {
	var l ticketSecrets
	for day := range 100 {
		l, _ = l.planned(ticketEpoch.AddDate(0, 0, 1000-10*day)) // the clock runs backwards
		if len(l) > maxTicketSecrets {
			t.Fatalf("%d secrets", len(l))
		}
	}
	if _, ok := l.current(ticketEpoch.AddDate(0, 0, 10)); !ok {
		t.Error("no secret for now")
	}
	l, _ = l.planned(ticketEpoch.AddDate(10, 0, 0))
	if len(l) != 3 {
		t.Errorf("%d secrets ten years later, want 3", len(l))
	}
}

func TestTicketSecretsValue(t *testing.T) {
	l := ticketList(0, 0, 24, 48)
	value := l.marshal()
	got, err := parseTicketSecrets(value)
	if err != nil || !slices.Equal(got, l) {
		t.Fatalf("got %v, %v, want %v", got.hours(), err, l.hours())
	}
	for i := range value {
		spoilt := bytes.Clone(value)
		spoilt[i] ^= 0x20
		if _, err := parseTicketSecrets(spoilt); !errors.Is(err, errTicketsDamaged) {
			t.Fatalf("byte %d is wrong: %v, want errTicketsDamaged", i, err)
		}
		if _, err := parseTicketSecrets(value[:i]); !errors.Is(err, errTicketsDamaged) {
			t.Fatalf("%d bytes only: %v, want errTicketsDamaged", i, err)
		}
	}
}

// ticketValues are values with a good checksum.
func ticketValues() map[string][]byte {
	many := make([]int, maxTicketSecrets+1)
	values := map[string][]byte{
		"no secrets":    ticketSecrets(nil).marshal(),
		"too many":      ticketList(many...).marshal(),
		"upside down":   ticketList(24, 0).marshal(),
		"before 1970":   ticketSecrets{{from: -1}}.marshal(),
		"after 9999":    ticketSecrets{{from: maxTicketTime + 1}}.marshal(),
		"no version":    []byte(ticketFormat),
		"half a secret": append([]byte(ticketFormat+ticketVersion+"\n"), make([]byte, 20)...),
	}
	for name := range values {
		if name == "no version" || name == "half a secret" {
			sum := sha256.Sum256(values[name])
			values[name] = append(values[name], sum[:]...)
		}
	}
	return values
}

func TestTicketSecretsWrong(t *testing.T) {
	for name, value := range ticketValues() {
		if l, err := parseTicketSecrets(value); l != nil || !errors.Is(err, errTicketsDamaged) {
			t.Errorf("%s: got %v, %v, want errTicketsDamaged", name, l.hours(), err)
		}
	}
	if l, err := parseTicketSecrets(newerTickets()); l != nil || err == nil || errors.Is(err, errTicketsDamaged) {
		t.Errorf("of a newer version: got %v, %v", l.hours(), err)
	}
}

// newerTickets is what a version may write that is not made yet.
func newerTickets() []byte {
	value := []byte(ticketFormat + "2\nwhatever that is")
	sum := sha256.Sum256(value)
	return append(value, sum[:]...)
}

func FuzzTicketSecrets(f *testing.F) {
	f.Add([]byte{})
	f.Add(newerTickets())
	f.Add(ticketList(0, 24, 48).marshal())
	for _, value := range ticketValues() {
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		for range 2 { // as it is, and with a checksum that fits
			l, err := parseTicketSecrets(value)
			if (err == nil) != (l != nil) {
				t.Fatalf("got %v and %v", l, err)
			}
			if err == nil && !bytes.Equal(l.marshal(), value) {
				t.Fatalf("%q comes back as %q", value, l.marshal())
			}
			l.planned(ticketEpoch)
			sum := sha256.Sum256(value)
			value = append(bytes.Clone(value), sum[:]...)
		}
	})
}

// A key for one use says nothing of a key for another.
func TestTicketKeysDiffer(t *testing.T) {
	secrets := ticketList(0, 24)
	seen := make(map[[32]byte]string)
	for _, use := range []ticketUse{
		{"", ""}, {"a", ""}, {"", "a"}, {"ab", "c"}, {"a", "bc"}, {"a\x00", "b"}, {"a", "\x00b"}, {"abc", ""}, {"A", ""},
	} {
		keys := use.keys(secrets)
		if !slices.Equal(keys, use.keys(secrets)) {
			t.Errorf("%q: other keys the second time", use)
		}
		for i, key := range keys {
			name := fmt.Sprintf("%q of secret %d", use, i)
			if other := seen[key]; other != "" || key == secrets[i].secret {
				t.Errorf("%s has the key of %s", name, other)
			}
			seen[key] = name
		}
	}
}
