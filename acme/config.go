package acme

import (
	"encoding/base64"
	"fmt"
	"net/mail"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/net/idna"
)

// KeyTypes are the values of Config.KeyType.
var KeyTypes = [...]string{"p256", "p384", "ed25519", "rsa2048", "rsa4096"}

// ParseName checks a DNS name, a wildcard or an IP address and returns it as certificates have it: in
// lower case, international names in ASCII (RFC 5891), addresses in their short form.
func ParseName(name string) (string, error) {
	fault := func(problem, fix string) (string, error) {
		return "", &ConfigError{Field: "Names", Problem: problem, Fix: fix}
	}
	switch {
	case name == "":
		return fault("a name is empty", "names are separated by one comma, as in example.com,www.example.com")
	case strings.ContainsAny(name, " \t\r\n"):
		return fault(fmt.Sprintf("%q has a space in it", name), "names are separated by commas, as in example.com,www.example.com")
	case strings.Contains(name, "://") || strings.Contains(name, "/"):
		return fault(fmt.Sprintf("%q is no name", name), "leave away https:// and what comes after the name")
	case strings.Contains(name, "@"):
		return fault(fmt.Sprintf("%q is no name", name), "the address of a person goes into email=")
	}
	name = strings.TrimSuffix(name, ".")
	if ip, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
		if ip.Zone() != "" || ip.IsUnspecified() || ip.IsMulticast() {
			return fault(fmt.Sprintf("%q is no address of a server", name), "give the public address of this machine")
		}
		return ip.Unmap().String(), nil
	}
	base, wildcard := strings.CutPrefix(name, "*.")
	if strings.Contains(base, "*") {
		return fault(fmt.Sprintf("%q: the star stands for a whole first label only", name), "write *.example.com")
	}
	if strings.Contains(base, ":") {
		return fault(fmt.Sprintf("%q has a port in it", name), "certificates are for names: leave the port away")
	}
	ascii, err := idna.Lookup.ToASCII(base)
	if err == nil {
		_, err = idna.Lookup.ToASCII(ascii) // it makes names of bytes that are no text, but does not take them back
	}
	if err != nil {
		return fault(fmt.Sprintf("%q is no DNS name: %v", name, err), "a name has letters, digits, hyphens and dots, as example.com")
	}
	if len(ascii) > 253 || ascii == "" || strings.Trim(ascii[strings.LastIndexByte(ascii, '.')+1:], "0123456789") == "" {
		return fault(fmt.Sprintf("%q is no DNS name", name), "a name has letters, digits, hyphens and dots, as example.com")
	}
	for label := range strings.SplitSeq(ascii, ".") {
		if label == "" || len(label) > 63 || strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") || strings.Contains(label, "_") {
			return fault(fmt.Sprintf("%q is no DNS name", name), "a name has letters, digits, hyphens and dots, as example.com")
		}
	}
	if wildcard {
		return "*." + ascii, nil
	}
	return ascii, nil
}

// canonical is a server name as it is looked up; it need not be valid.
func canonical(name string) string {
	name = strings.ToLower(strings.TrimSuffix(strings.TrimSpace(name), "."))
	if ip, err := netip.ParseAddr(name); err == nil {
		return ip.Unmap().String()
	}
	if ascii, err := idna.Lookup.ToASCII(name); err == nil {
		return ascii
	}
	return name
}

func isIP(name string) bool {
	_, err := netip.ParseAddr(name)
	return err == nil
}

// Check finds what would be refused, or could never work, before a CA is asked, and brings Names into
// their usual form. How CAs can reach us is left to New.
func (c *Config) Check() error {
	var names []string
	for _, name := range c.Names {
		name, err := ParseName(name)
		if err != nil {
			return err
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) > 0 {
		c.Names = names
	}
	for _, check := range []func() error{c.checkNames, c.checkCAs, c.checkAccount} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (c *Config) checkNames() error {
	if len(c.Names) == 0 && c.Allow == nil {
		return &ConfigError{Field: "Names", Problem: "no name is given", Fix: "add acme=example.com"}
	}
	for _, name := range c.Names {
		switch {
		case strings.HasPrefix(name, "*.") && c.DNS == nil:
			return &ConfigError{Field: "Names", Problem: fmt.Sprintf("%q is a wildcard, which a CA only gives to those who can change the DNS (DNS-01)", name),
				Fix: "add dns=, or name every host in acme="}
		case isIP(name) && c.DNS != nil:
			return &ConfigError{Field: "Names", Problem: fmt.Sprintf("%q is an IP address, and dns= proves names only", name),
				Fix: "leave away dns=, or the address"}
		case isIP(name) && c.Profile == "":
			return &ConfigError{Field: "Names", Problem: fmt.Sprintf("%q is an IP address, for which CAs want a profile to be named", name),
				Fix: "add profile=shortlived, as Let's Encrypt calls it, or what your CA calls it"}
		case !isIP(name) && !strings.Contains(name, ".") && c.OnlyPublic():
			return &ConfigError{Field: "Names", Problem: fmt.Sprintf("%q is not a public name, so that no public CA issues for it", name),
				Fix: "give the whole name, as in " + name + ".example.com, name a private CA with acme-ca=, or use servername= for a self-signed certificate"}
		}
	}
	return nil
}

// OnlyPublic tells whether all CAs are those that everybody trusts.
func (c *Config) OnlyPublic() bool {
	for _, ca := range c.CAs {
		switch ca.Directory {
		case LetsEncrypt, LetsEncryptStaging, ZeroSSL, Google:
		default:
			return false
		}
	}
	return true
}

func (c *Config) checkCAs() error {
	seen := make(map[string]bool)
	for i, ca := range c.CAs {
		u, err := url.Parse(ca.Directory)
		switch {
		case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
			return &ConfigError{Field: "CAs", Problem: fmt.Sprintf("%q is neither a URL nor the short name of a CA", ca.Directory),
				Fix: "use letsencrypt, letsencrypt-staging, zerossl, google, or the URL of an ACME directory"}
		case u.Scheme == "http":
			return &ConfigError{Field: "CAs", Problem: fmt.Sprintf("%q is not encrypted", ca.Directory), Fix: "ACME is spoken over https (RFC 8555, section 6.1)"}
		case seen[ca.Directory]:
			return &ConfigError{Field: "CAs", Problem: fmt.Sprintf("%q is given twice", ca.Directory), Fix: "name each CA once, in the order in which they are tried"}
		case ca.EABKeyID == "" && (ca.Directory == ZeroSSL || ca.Directory == Google):
			return &ConfigError{Field: "EAB", Problem: fmt.Sprintf("%s wants an account of yours", u.Host), Fix: "add eab=kid:key, which its website gives you"}
		case (ca.EABKeyID == "") != (ca.EABKey == ""):
			return &ConfigError{Field: "EAB", Problem: "the key is missing", Fix: "write eab=kid:key, as the CA's website shows them"}
		}
		key, err := decodeBase64(ca.EABKey)
		if err != nil {
			return &ConfigError{Field: "EAB", Problem: "the key is not base64", Fix: "write eab=kid:key, as the CA's website shows them"}
		}
		c.CAs[i].EABKey = base64.RawURLEncoding.EncodeToString(key)
		seen[ca.Directory] = true
	}
	return nil
}

// decodeBase64 takes either alphabet, padded or not: websites show keys in all of these forms.
func decodeBase64(s string) ([]byte, error) {
	s = strings.NewReplacer("+", "-", "/", "_").Replace(strings.TrimRight(s, "="))
	return base64.RawURLEncoding.DecodeString(s)
}

func (c *Config) checkAccount() error {
	if c.Email != "" {
		a, err := mail.ParseAddress(c.Email)
		if err != nil || a.Address != c.Email {
			return &ConfigError{Field: "Email", Problem: fmt.Sprintf("%q is no mail address", c.Email), Fix: "write email=me@example.com"}
		}
	}
	if c.KeyType != "" && !slices.Contains(KeyTypes[:], c.KeyType) {
		return &ConfigError{Field: "KeyType", Problem: fmt.Sprintf("%q is unknown", c.KeyType), Fix: "use " + strings.Join(KeyTypes[:], ", ")}
	}
	return nil
}

func (c *Config) checkChallenges() error {
	if !c.HTTP && !c.TLS && c.DNS == nil {
		return &ConfigError{Problem: "a CA could not find out whether the names are yours: port 443 is not ours, port 80 is not either, and dns= is not given",
			Fix: "listen on :443, leave http=:80 to raimons, or add dns="}
	}
	return nil
}
