package edge

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var discard = slog.New(slog.DiscardHandler)

// One short RSA key serves all tests: making and checking them is slow.
var rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		panic(err)
	}
	return key
})

type encodedKey struct {
	key   crypto.Signer
	label string // of PEM
	der   []byte
}

// encodedKeys returns every key type in each of its encodings.
func encodedKeys(t testing.TB) map[string]encodedKey {
	t.Helper()
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys := make(map[string]encodedKey)
	add := func(name string, key crypto.Signer, label string, der []byte, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		keys[name] = encodedKey{key, label, der}
	}
	pkcs8 := func(name string, key crypto.Signer) {
		t.Helper()
		der, err := x509.MarshalPKCS8PrivateKey(key)
		add(name+" PKCS#8", key, "PRIVATE KEY", der, err)
	}
	pkcs8("RSA", rsaKey())
	add("RSA PKCS#1", rsaKey(), "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey()), nil)
	pkcs8("Ed25519", ed)
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		name := curve.Params().Name
		pkcs8(name, key)
		der, err := x509.MarshalECPrivateKey(key)
		add(name+" SEC1", key, "EC PRIVATE KEY", der, err)
	}
	return keys
}

func TestEncodings(t *testing.T) {
	ca := newAuthority(t, "Test CA")
	parameters := pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7}})
	for name, k := range encodedKeys(t) {
		t.Run(name, func(t *testing.T) {
			leaf := ca.issue(t, "one.example", k.key.Public())
			chain := certPEM(leaf, ca.cert)
			key := pem.EncodeToMemory(&pem.Block{Type: k.label, Bytes: k.der})
			keys := map[string][]byte{
				"PEM":            key,
				"DER":            k.der,
				"base64":         []byte(base64.StdEncoding.EncodeToString(k.der) + "\n"),
				"parameters":     slices.Concat(parameters, key),
				"carriage":       bytes.ReplaceAll(key, []byte("\n"), []byte("\r\n")),
				"no final line":  bytes.TrimSpace(key),
				"after cert":     slices.Concat(chain, key),
				"text before":    slices.Concat([]byte("Bag Attributes\n  friendlyName: x\n"), key),
				"byte order":     slices.Concat([]byte("\xef\xbb\xbf"), key),
				"mislabelled":    pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: k.der}),
				"headers though": pem.EncodeToMemory(&pem.Block{Type: k.label, Headers: map[string]string{"X-Note": "y"}, Bytes: k.der}),
			}
			certs := map[string][]byte{
				"PEM":          chain,
				"DER":          leaf.Raw,
				"DER chain":    slices.Concat(leaf.Raw, ca.cert.Raw),
				"carriage":     bytes.ReplaceAll(chain, []byte("\n"), []byte("\r\n")),
				"text between": slices.Concat([]byte(" 0 s:CN = x\n"), certPEM(leaf), []byte("\n 1 s:CN = y\n"), certPEM(ca.cert), []byte("bye")),
				"with key":     slices.Concat(parameters, key, chain),
				"byte order":   slices.Concat([]byte("\xef\xbb\xbf"), chain),
				"X509":         pem.EncodeToMemory(&pem.Block{Type: "X509 CERTIFICATE", Bytes: leaf.Raw}),
			}
			for certName, cert := range certs {
				for keyName, key := range keys {
					content := certificateContent{cert: fileContent{data: cert}, key: fileContent{data: key}}
					next, err := content.parse()
					if err != nil {
						t.Errorf("cert %s, key %s: %v", certName, keyName, err)
						continue
					}
					got := next.bare
					if !got.Leaf.Equal(leaf) || !bytes.Equal(got.Certificate[0], leaf.Raw) {
						t.Errorf("cert %s, key %s: another leaf", certName, keyName)
					}
					wantChain := 2
					if certName == "DER" || certName == "X509" {
						wantChain = 1
					}
					if len(got.Certificate) != wantChain {
						t.Errorf("cert %s: %d certificates, want %d", certName, len(got.Certificate), wantChain)
					}
				}
			}
		})
	}
}

type wrongFile struct {
	data      []byte
	cert, key string // what is said of it as a certificate and as a key; empty if it is one
}

// wrongFiles is what people point cert= and key= at.
func wrongFiles(t testing.TB) map[string]wrongFile {
	t.Helper()
	ca := newAuthority(t, "Test CA")
	key := newKey(t)
	pkcs8 := keyPEM(t, key)
	block, _ := pem.Decode(pkcs8)
	chain := certPEM(ca.cert, ca.cert)
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "x"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	crl, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour),
	}, ca.cert, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	x25519, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	label := func(label string) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: label, Bytes: []byte("anything")})
	}
	encrypted := pem.EncodeToMemory(&pem.Block{
		Type:    "RSA PRIVATE KEY",
		Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-256-CBC,00"},
		Bytes:   []byte("anything"),
	})
	utf16 := []byte("\xff\xfe")
	for _, b := range chain {
		utf16 = append(utf16, b, 0)
	}
	return map[string]wrongFile{
		"empty":           {nil, "the file is empty", "the file is empty"},
		"blank":           {[]byte(" \r\n"), "the file is empty", "the file is empty"},
		"text":            {[]byte("hello, world"), "neither PEM nor DER", "neither PEM nor DER"},
		"UTF-16":          {utf16, "UTF-16", "UTF-16"},
		"certificate":     {chain, "", "a certificate, not a private key"},
		"certificate DER": {ca.cert.Raw, "", "a certificate, not a private key"},
		"key":             {pkcs8, "a private key, not a certificate", ""},
		"key DER":         {block.Bytes, "a private key, not a certificate", ""},
		"request":         {label("CERTIFICATE REQUEST"), "a certificate request (", "a certificate request ("},
		"old request":     {label("NEW CERTIFICATE REQUEST"), "a certificate request (", "a certificate request ("},
		"request DER":     {request, "a certificate request (", "a certificate request ("},
		"revocation list": {crl, "a revocation list", "a revocation list"},
		"public key":      {public, "a public key", "a public key"},
		"trusted":         {label("TRUSTED CERTIFICATE"), "openssl x509", "openssl x509"},
		"PKCS#7":          {label("PKCS7"), "openssl pkcs7", "openssl pkcs7"},
		"parameters":      {label("EC PARAMETERS"), "parameters, not a certificate", "parameters, not a private key"},
		"unknown":         {label("SOMETHING"), "something else", "something else"},
		"encrypted":       {label("ENCRYPTED PRIVATE KEY"), "a private key", "decrypt it with openssl"},
		"encrypted PKCS1": {encrypted, "a private key", "decrypt it with openssl"},
		"OpenSSH":         {label("OPENSSH PRIVATE KEY"), "a private key", "an OpenSSH key"},
		"damaged":         {label("PRIVATE KEY"), "a private key", "not a PKCS#8, PKCS#1 or SEC1"},
		"not a cert":      {label("CERTIFICATE"), "certificate 1: x509: malformed certificate", "a certificate"},
		"X25519":          {keyPEM(t, x25519), "a private key", "a key that cannot sign"},
		"P-224":           {keyPEM(t, p224), "a private key", "P-224"},
		"cut chain":       {chain[:len(chain)-40], "1 of 2 PEM blocks can be read", "1 of 2 PEM blocks can be read"},
		"cut key":         {pkcs8[:len(pkcs8)-30], "0 of 1 PEM blocks can be read", "0 of 1 PEM blocks can be read"},
		"indented": {
			bytes.ReplaceAll(chain, []byte("\n"), []byte("\n  ")), "PEM blocks can be read", "PEM blocks can be read",
		},
		"joined without line break": {
			slices.Concat(bytes.TrimSpace(chain), chain), "PEM blocks can be read", "PEM blocks can be read",
		},
		"cut DER": {ca.cert.Raw[:100], "certificate 1: x509: malformed certificate", "not a PKCS#8, PKCS#1 or SEC1"},
	}
}

func TestWrongFiles(t *testing.T) {
	for name, test := range wrongFiles(t) {
		t.Run(name, func(t *testing.T) {
			_, err := parseCertificates(test.data)
			wantError(t, err, test.cert)
			_, err = parsePrivateKey(test.data)
			wantError(t, err, test.key)
		})
	}
}

// wantError checks that an error has the part, or that there is none if part is empty.
func wantError(t testing.TB, err error, part string) {
	t.Helper()
	switch {
	case part == "" && err != nil:
		t.Errorf("error %v, want none", err)
	case part != "" && (err == nil || !strings.Contains(err.Error(), part)):
		t.Errorf("error %v, want one with %q", err, part)
	}
}

// However a key is damaged, the error holds nothing of it.
func TestErrorsHoldNoKey(t *testing.T) {
	for name, k := range encodedKeys(t) {
		t.Run(name, func(t *testing.T) {
			text := pem.EncodeToMemory(&pem.Block{Type: k.label, Bytes: k.der})
			for i := 0; i < len(text); i += 7 {
				damaged := bytes.Clone(text)
				damaged[i] ^= 1
				for _, data := range [][]byte{damaged, text[:i], k.der[:i*len(k.der)/len(text)]} {
					_, err := parsePrivateKey(data)
					wantNothingOf(t, err, k.der)
					_, err = parseCertificates(data)
					wantNothingOf(t, err, k.der)
				}
			}
		})
	}
}

func wantNothingOf(t testing.TB, err error, der []byte) {
	t.Helper()
	if err == nil {
		return
	}
	body := base64.StdEncoding.EncodeToString(der)
	for i := 0; i+8 <= len(body); i++ {
		if strings.Contains(err.Error(), body[i:i+8]) {
			t.Fatalf("error %q holds a part of the key", err)
		}
	}
}

// openssl writes what people have.
func TestOpenSSLFiles(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed")
	}
	dir := t.TempDir()
	run := func(line string) {
		t.Helper()
		command := exec.CommandContext(t.Context(), openssl, strings.Fields(line)...)
		command.Dir = dir
		if out, err := command.CombinedOutput(); err != nil {
			t.Fatalf("openssl %s: %v\n%s", line, err, out)
		}
	}
	run("ecparam -name prime256v1 -genkey -out ec.pem") // with EC PARAMETERS in front
	run("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out rsa.pem")
	run("genpkey -algorithm ed25519 -out ed25519.pem")
	for _, kind := range []string{"ec", "rsa", "ed25519"} {
		run("req -x509 -key " + kind + ".pem -subj /CN=one.example -days 2 -out " + kind + ".crt")
		run("x509 -in " + kind + ".crt -text -out " + kind + ".text.crt")
		run("x509 -in " + kind + ".crt -outform DER -out " + kind + ".der.crt")
		run("pkey -in " + kind + ".pem -text -out " + kind + ".text.pem")
		run("pkey -in " + kind + ".pem -outform DER -out " + kind + ".der.pem")
		run("pkey -in " + kind + ".pem -aes256 -passout pass:secret -out " + kind + ".encrypted.pem")
		run("pkcs8 -topk8 -in " + kind + ".pem -outform DER -passout pass:secret -out " + kind + ".encrypted.der.pem")
		run("pkcs12 -export -inkey " + kind + ".pem -in " + kind + ".crt -passout pass:secret -out " + kind + ".p12")
		run("pkcs12 -in " + kind + ".p12 -passin pass:secret -nodes -out " + kind + ".both.pem")
		run("x509 -in " + kind + ".crt -trustout -addtrust serverAuth -out " + kind + ".trusted.crt")
		run("crl2pkcs7 -nocrl -certfile " + kind + ".crt -outform DER -out " + kind + ".p7b")
	}
	run("rsa -in rsa.pem -traditional -out rsa.pkcs1.pem")
	run("rsa -in rsa.pem -traditional -aes128 -passout pass:secret -out rsa.encrypted1.pem")
	run("rsa -in rsa.pem -traditional -outform DER -out rsa.pkcs1.der")
	run("ec -in ec.pem -outform DER -out ec.sec1.der")
	run("genrsa -out short.pem 768")

	tests := []struct{ cert, key, want string }{
		{"$.crt", "$.pem", ""},
		{"$.text.crt", "$.text.pem", ""},
		{"$.der.crt", "$.der.pem", ""},
		{"$.both.pem", "", ""},
		{"$.crt", "$.encrypted.pem", "the key is encrypted"},
		{"$.crt", "$.encrypted.der.pem", "the key is encrypted"},
		{"$.trusted.crt", "$.pem", "an OpenSSL trusted certificate"},
		{"$.p7b", "$.pem", "a PKCS#7 bundle"},
		{"$.p12", "$.pem", "a PKCS#12 bundle"},
		{"$.crt", "$.p12", "a PKCS#12 bundle"},
		{"rsa.crt", "rsa.pkcs1.pem", ""},
		{"rsa.crt", "rsa.pkcs1.der", ""},
		{"rsa.crt", "rsa.encrypted1.pem", "the key is encrypted"},
		{"ec.crt", "ec.sec1.der", ""},
		{"rsa.crt", "short.pem", "less than 1024 bits"},
		{"rsa.crt", "ec.pem", "the key does not belong to the certificate"},
	}
	for _, test := range tests {
		kinds := []string{""}
		if strings.HasPrefix(test.cert, "$") {
			kinds = []string{"ec", "rsa", "ed25519"}
		}
		for _, kind := range kinds {
			cert := strings.Replace(test.cert, "$", kind, 1)
			key := strings.Replace(test.key, "$", kind, 1)
			t.Run(cert+" "+key, func(t *testing.T) {
				c := &CertificateFiles{Cert: filepath.Join(dir, cert), Log: discard}
				if key != "" {
					c.Key = filepath.Join(dir, key)
				}
				wantError(t, c.Load(), test.want)
			})
		}
	}
}

func FuzzParseCertificate(f *testing.F) {
	for _, file := range wrongFiles(f) {
		f.Add(file.data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		chain, err := parseCertificates(data)
		if (err == nil) != (len(chain) > 0) {
			t.Fatalf("%d certificates and error %v", len(chain), err)
		}
		if err != nil {
			return
		}
		again, err := parseCertificates(certPEM(chain...))
		if err != nil || len(again) != len(chain) || !again[0].Equal(chain[0]) {
			t.Fatalf("written and read again: %d certificates, error %v", len(again), err)
		}
	})
}

func FuzzParseKey(f *testing.F) {
	for _, file := range wrongFiles(f) {
		f.Add(file.data)
	}
	for _, k := range encodedKeys(f) {
		f.Add(k.der)
		f.Add(pem.EncodeToMemory(&pem.Block{Type: k.label, Bytes: k.der}))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		key, err := parsePrivateKey(data)
		if (err == nil) != (key != nil) {
			t.Fatalf("key %T and error %v", key, err)
		}
		if err != nil {
			return
		}
		again, err := parsePrivateKey(keyPEM(t, key))
		if err != nil || !again.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(key.Public()) {
			t.Fatalf("written and read again: another key, error %v", err)
		}
	})
}
