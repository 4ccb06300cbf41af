package edge_test

import (
	"crypto/x509"
	"testing"

	"raimon/internal/acmetest"
	"raimon/internal/tunneltest"
)

// One listener has certificates of all kinds; the server name decides.
func TestChoice(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	own := tunneltest.NewCA(t)
	files := own.Write(t, t.TempDir(), own.Issue(t, "files.test", "*.files.test", "both.test"))
	judge := newJudge(t, "demanded.test")
	const refused = ""
	for _, test := range []struct {
		name, options string
		want          map[string]string // by server name, the first name in the certificate that is shown
	}{
		{"all", "acme=managed.test,both.test;servername=self.test;cert=" + files.Cert + ";key=" + files.Key, map[string]string{
			"managed.test": "managed.test", "MANAGED.test.": "managed.test", "self.test": "self.test",
			"files.test": "files.test", "www.files.test": "files.test",
			"both.test":    "files.test", // what the user made by hand wins
			"unknown.test": "files.test", "": "files.test",
		}},
		{"acme and servername", "acme=managed.test;servername=self.test", map[string]string{
			"managed.test": "managed.test", "self.test": "self.test", "unknown.test": "self.test", "": "managed.test",
		}},
		{"acme alone", "acme=managed.test,other.test", map[string]string{
			"managed.test": "managed.test", "other.test": "other.test", "unknown.test": refused, "sub.managed.test": refused, "": "managed.test",
		}},
		{"on demand and files", "on-demand=" + judge.URL + ";cert=" + files.Cert + ";key=" + files.Key, map[string]string{
			"demanded.test": "demanded.test", "files.test": "files.test", "": "files.test", "unknown.test": "files.test",
		}},
		{"on demand alone", "on-demand=" + judge.URL, map[string]string{
			"demanded.test": "demanded.test", "unknown.test": refused, "": refused,
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := start(t, ca, test.options)
			ca.TLSALPN01.To(e.tunnels)
			for name, want := range test.want {
				state, err := visit(e.tunnels, name, nil)
				switch {
				case want == refused && err != nil && err.Error() == unknownName:
				case err != nil || want == refused:
					t.Errorf("%q: %v, want %q", name, err, want)
				default:
					if got := firstName(state.PeerCertificates[0]); got != want {
						t.Errorf("%q: the certificate of %q is shown, want that of %q", name, got, want)
					}
				}
			}
			e.wantQuiet(t)
		})
	}
}

func firstName(c *x509.Certificate) string {
	if len(c.DNSNames) == 0 {
		return ""
	}
	return c.DNSNames[0]
}
