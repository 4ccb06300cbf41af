package dns

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/miekg/dns"
)

const (
	fudge        = 300 // seconds by which clocks may differ (RFC 8945, section 10)
	keyFileLimit = 64 << 10
)

// key is a TSIG key.
type key struct {
	name      string // canonical: lower case, with a dot at the end
	algorithm string // as the library calls it
	secret    string // base64
}

// keyFromSpec reads keyname:secret. The secret is base64, either as it is or with %2F for / and so on.
func keyFromSpec(s, algorithm string) (*key, error) {
	name, secret, ok := strings.Cut(s, ":")
	secret, err := url.PathUnescape(secret)
	if !ok || err != nil {
		return nil, problem("what stands before the @ is not keyname:secret", keyHint)
	}
	if algorithm == "" {
		algorithm = "hmac-sha256"
	}
	return newKey(name, algorithm, secret)
}

const keyHint = "make a key with: tsig-keygen raimon. >/path/to/key, and give key-file=/path/to/key"

func newKey(name, algorithm, secret string) (*key, error) {
	name = strings.TrimSuffix(name, ".")
	if !isHostName(name) {
		return nil, problem("the name of the key is not made of letters, digits, hyphens and dots", keyHint)
	}
	raw, err := base64.StdEncoding.DecodeString(secret)
	if err != nil || len(raw) == 0 {
		return nil, problem("the secret of the key is not base64", keyHint)
	}
	algorithm = dns.CanonicalName(algorithm)
	switch algorithm {
	case dns.HmacSHA1, dns.HmacSHA224, dns.HmacSHA256, dns.HmacSHA384, dns.HmacSHA512:
		return &key{dns.CanonicalName(name), algorithm, secret}, nil
	}
	return nil, problem("the algorithm of the key is not supported", "hmac-sha256 is the usual one; hmac-sha1, -sha224, -sha384 and -sha512 work too")
}

// keyFromFile reads a file with one key, as tsig-keygen and ddns-confgen write it.
func keyFromFile(path string) (*key, error) {
	data, err := readFile(path, keyFileLimit)
	if err != nil {
		return nil, &hinted{fmt.Errorf("key-file: %w", err), "name the file that tsig-keygen wrote, and let the user that runs this program read it"}
	}
	k, err := parseKeyFile(string(data))
	if err != nil {
		return nil, prefix("key-file "+path, err)
	}
	return k, nil
}

// parseKeyFile reads a key clause of BIND: key "name" { algorithm hmac-sha256; secret "base64"; };
func parseKeyFile(text string) (*key, error) {
	const hint = `the file holds: key "raimon" { algorithm hmac-sha256; secret "..."; };`
	malformed := func(text string) (*key, error) { return nil, problem(text, hint) }
	words, err := bindWords(text)
	if err != nil {
		return malformed(err.Error())
	}
	if len(words) < 3 || words[0] != "key" || words[2] != "{" {
		return malformed("it does not begin with a key clause")
	}
	name, words := words[1], words[3:]
	set := map[string]string{}
	for len(words) > 0 && words[0] != "}" {
		if len(words) < 3 || words[2] != ";" || set[words[0]] != "" {
			return malformed("the key clause is malformed")
		}
		set[strings.ToLower(words[0])] = words[1]
		words = words[3:]
	}
	if len(words) == 0 {
		return malformed("the key clause does not end")
	}
	if len(words) > 2 || len(words) == 2 && words[1] != ";" {
		return malformed("more than one key is in it")
	}
	return newKey(name, set["algorithm"], set["secret"])
}

// bindWords splits a file of BIND's into words, strings and punctuation, without comments.
func bindWords(s string) ([]string, error) {
	var words []string
	for {
		s = strings.TrimLeft(s, " \t\r\n")
		if s == "" {
			return words, nil
		}
		var end int
		switch {
		case s[0] == '#' || strings.HasPrefix(s, "//"):
			_, s, _ = strings.Cut(s, "\n")
			continue
		case strings.HasPrefix(s, "/*"):
			_, after, closed := strings.Cut(s[2:], "*/")
			if !closed {
				return nil, errors.New("a comment does not end")
			}
			s = after
			continue
		case s[0] == '"':
			inside, after, closed := strings.Cut(s[1:], `"`)
			if !closed {
				return nil, errors.New("a quote does not end")
			}
			words, s = append(words, inside), after
			continue
		case strings.IndexByte("{};", s[0]) >= 0:
			end = 1
		default:
			// No comment begins inside a word: base64 may hold slashes.
			if end = strings.IndexAny(s, " \t\r\n{};\""); end < 0 {
				end = len(s)
			}
		}
		words, s = append(words, s[:end]), s[end:]
	}
}
