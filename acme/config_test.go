package acme

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/mholt/acmez/v3/acme"
)

var nameTests = []struct{ name, want, problem string }{
	{"example.com", "example.com", ""},
	{"Example.COM.", "example.com", ""},
	{"*.example.com", "*.example.com", ""},
	{"bücher.example", "xn--bcher-kva.example", ""},
	{"localhost", "localhost", ""},
	{"192.0.2.1", "192.0.2.1", ""},
	{"::ffff:192.0.2.1", "192.0.2.1", ""},
	{"[2001:DB8::0:1]", "2001:db8::1", ""},
	{"", "", "a name is empty"},
	{"a b.example", "", "has a space"},
	{"https://example.com", "", "is no name"},
	{"example.com/ws", "", "is no name"},
	{"me@example.com", "", "is no name"},
	{"example.com:443", "", "has a port"},
	{"a.*.example.com", "", "the star stands for a whole first label"},
	{"*", "", "the star stands for a whole first label"},
	{"*.*.example.com", "", "the star stands for a whole first label"},
	{"under_score.example", "", "is no DNS name"},
	{"-a.example", "", "is no DNS name"},
	{"a..example", "", "is no DNS name"},
	{".", "", "is no DNS name"},
	{strings.Repeat("a", 64) + ".example", "", "is no DNS name"},
	{strings.Repeat("a.", 127) + "example", "", "is no DNS name"},
	{"192.0.2.1.", "192.0.2.1", ""},
	{"192.0.2.256", "", "is no DNS name"},
	{"\xbc", "", "is no DNS name"},
	{"0.0.0.0", "", "is no address of a server"},
	{"fe80::1%eth0", "", "is no address of a server"},
	{"../../etc", "", "is no name"},
}

func TestParseName(t *testing.T) {
	for _, test := range nameTests {
		got, err := ParseName(test.name)
		if test.problem == "" {
			if got != test.want || err != nil {
				t.Errorf("%q: got %q, %v, want %q", test.name, got, err, test.want)
			}
			continue
		}
		var mistake *ConfigError
		if !errors.As(err, &mistake) || !strings.Contains(mistake.Problem, test.problem) || mistake.Fix == "" || mistake.Field != "Names" {
			t.Errorf("%q: got %q, %v, want %q and what to do", test.name, got, err, test.problem)
		}
	}
}

func FuzzParseName(f *testing.F) {
	for _, test := range nameTests {
		f.Add(test.name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		got, err := ParseName(name)
		if err != nil {
			return
		}
		if again, err := ParseName(got); err != nil || again != got {
			t.Errorf("%q became %q, and that %q, %v", name, got, again, err)
		}
		if strings.ContainsAny(got, "/\\ \x00") || canonical(got) != got {
			t.Errorf("%q became %q", name, got)
		}
	})
}

func TestCheck(t *testing.T) {
	dns := solver{}
	private := []CA{{Directory: "https://ca.internal/dir"}}
	for _, test := range []struct {
		about          string
		c              Config
		field, problem string
	}{
		{"names", Config{Names: []string{"a.example", "A.example."}}, "", ""},
		{"nothing", Config{}, "Names", "no name"},
		{"wildcard", Config{Names: []string{"*.a.example"}}, "Names", "wildcard"},
		{"wildcard with dns", Config{Names: []string{"*.a.example"}, DNS: dns}, "", ""},
		{"address", Config{Names: []string{"192.0.2.1"}}, "Names", "profile"},
		{"address with profile", Config{Names: []string{"192.0.2.1"}, Profile: "shortlived"}, "", ""},
		{"address with dns", Config{Names: []string{"192.0.2.1"}, Profile: "shortlived", DNS: dns}, "Names", "proves names only"},
		{"no public name", Config{Names: []string{"edge"}}, "Names", "not a public name"},
		{"no public name, private CA", Config{Names: []string{"edge"}, CAs: private}, "", ""},
		{"on demand alone", Config{Allow: func(context.Context, string) error { return nil }}, "", ""},
		{"unknown CA", Config{Names: []string{"a.example"}, CAs: []CA{{Directory: "letsencript"}}}, "CAs", "neither a URL nor"},
		{"http", Config{Names: []string{"a.example"}, CAs: []CA{{Directory: "http://a.example/dir"}}}, "CAs", "not encrypted"},
		{"twice", Config{Names: []string{"a.example"}, CAs: append(private, private...)}, "CAs", "twice"},
		{"zerossl", Config{Names: []string{"a.example"}, CAs: []CA{{Directory: ZeroSSL}}}, "EAB", "account"},
		{"half an EAB", Config{Names: []string{"a.example"}, CAs: []CA{{Directory: ZeroSSL, EABKeyID: "kid"}}}, "EAB", "key is missing"},
		{"EAB", Config{Names: []string{"a.example"}, CAs: []CA{{Directory: ZeroSSL, EABKeyID: "kid", EABKey: "a+/_-b=="}}}, "", ""},
		{"EAB that is no base64", Config{Names: []string{"a.example"}, CAs: []CA{{Directory: ZeroSSL, EABKeyID: "kid", EABKey: "not!base64"}}}, "EAB", "not base64"},
		{"mail address", Config{Names: []string{"a.example"}, Email: "me"}, "Email", "no mail address"},
		{"mail address with name", Config{Names: []string{"a.example"}, Email: "Me <me@a.example>"}, "Email", "no mail address"},
		{"key", Config{Names: []string{"a.example"}, KeyType: "dsa"}, "KeyType", "unknown"},
	} {
		err := test.c.Check()
		if test.problem == "" {
			if err != nil {
				t.Errorf("%s: %v", test.about, err)
			}
			continue
		}
		var mistake *ConfigError
		if !errors.As(err, &mistake) || mistake.Field != test.field || !strings.Contains(mistake.Problem, test.problem) || mistake.Fix == "" {
			t.Errorf("%s: got %v, want %q and what to do", test.about, err, test.problem)
		}
	}
	twice := Config{Names: []string{"a.example", "A.example."}}
	if err := twice.Check(); err != nil || len(twice.Names) != 1 {
		t.Errorf("one name in two spellings: %q, %v", twice.Names, err)
	}
}

// Without a way for the CA to look, it is not asked.
func TestNewNeedsAChallenge(t *testing.T) {
	_, err := New(Config{Names: []string{"a.example"}})
	var mistake *ConfigError
	if !errors.As(err, &mistake) || !strings.Contains(mistake.Problem, "could not find out") {
		t.Errorf("got %v", err)
	}
}

// solver is never used.
type solver struct{}

func (solver) Present(context.Context, acme.Challenge) error { return errors.ErrUnsupported }
func (solver) CleanUp(context.Context, acme.Challenge) error { return errors.ErrUnsupported }
