package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// lab is what all tunnels share.
type lab struct {
	effort
	bin     string            // folder of raimons and raimonc
	dir     string            // for files that programs want; it goes away in the end
	secrets map[string]string // PEM files by placeholder: cert, key, both, ca
	target  *process
	bulk    string // address of the target that does as it is told
	greeter string // address of the target that speaks first
	files   uint64 // descriptors that a process may have
}

func openLab(ctx context.Context, bin string, e effort) (*lab, error) {
	l := &lab{effort: e, bin: bin, bulk: freeAddress(), greeter: freeAddress()}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return nil, err
	}
	limit.Cur = limit.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil { // what we start has it too
		return nil, err
	}
	l.files = limit.Max
	var err error
	if l.dir, err = os.MkdirTemp("", "raimon-bench"); err != nil {
		return nil, err
	}
	if err := l.start(ctx); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (l *lab) start(ctx context.Context) error {
	var err error
	if l.secrets, err = writeSecrets(l.dir); err != nil {
		return err
	}
	l.target, err = launchTarget(ctx, l.bulk, l.greeter)
	return err
}

// launchTarget starts a target: bulk is where it does as it is told, greeter where it speaks first.
func launchTarget(ctx context.Context, bulk, greeter string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p, err := launch(ctx, self, []string{"target", bulk, greeter}, nil)
	if err != nil {
		return nil, err
	}
	for _, address := range []string{bulk, greeter} {
		if err := p.awaitListening(address); err != nil {
			p.stop()
			return nil, err
		}
	}
	return p, nil
}

func (l *lab) close() {
	if l.target != nil {
		l.target.stop()
	}
	os.RemoveAll(l.dir)
}

// sideBySide is for how many subjects the idle tunnels may be open at the same time: each takes a
// descriptor of ours and one of the target's.
func (l *lab) sideBySide() int {
	const most, others = 3, 500
	if l.files < others {
		return 1
	}
	return int(min(most, max(1, (l.files-others)/uint64(l.idle))))
}

// find is where a program is: this one, ours, what install.sh compiled, or what the system has.
func (l *lab) find(name string) (string, error) {
	switch {
	case name == "bench":
		return os.Executable()
	case strings.Contains(name, "raimon"):
		return exec.LookPath(filepath.Join(l.bin, name))
	}
	compiled, err := filepath.Glob(filepath.Join(peers(), "*", "bin", name))
	if err != nil {
		return "", err
	}
	slices.Reverse(compiled) // the last version first
	for _, place := range append(compiled, name, filepath.Join("/usr/sbin", name)) {
		if path, err := exec.LookPath(place); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not installed", name)
}

// peers is the folder of what internal/bench/install.sh compiles.
func peers() string {
	if dir := os.Getenv("RAIMON_PEERS"); dir != "" {
		return dir
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(cache, "raimon-interop")
}

// present are the wanted subjects whose programs are there; missing says what is not.
func (l *lab) present(wanted *regexp.Regexp) (present []subject, missing []string) {
	for _, s := range subjects {
		reference := s.name == "loopback" || s.name == "relay"
		if !reference && !wanted.MatchString(s.name) {
			continue
		}
		if err := l.installed(s); err != nil {
			missing = append(missing, fmt.Sprintf("%s: %v", s.name, err))
			continue
		}
		present = append(present, s)
	}
	return present, missing
}

func (l *lab) installed(s subject) error {
	if s.bare() {
		return nil
	}
	for _, p := range []program{s.server, s.client} {
		if _, err := l.find(p.words[0]); err != nil {
			return err
		}
	}
	return nil
}

// writeSecrets makes a CA and a certificate for localhost that both live for a day.
func writeSecrets(dir string) (map[string]string, error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	begin := time.Now().Add(-time.Hour)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "raimon bench CA"}, NotBefore: begin, NotAfter: begin.AddDate(0, 0, 1),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "localhost"}, NotBefore: begin, NotAfter: begin.AddDate(0, 0, 1),
		DNSNames: []string{"localhost"}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	files := map[string]string{}
	for name, data := range map[string][]byte{
		"ca":   pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}),
		"cert": certPEM,
		"key":  keyPEM,
		"both": slices.Concat(certPEM, keyPEM),
	} {
		files[name] = filepath.Join(dir, name+".pem")
		if err := os.WriteFile(files[name], data, 0o600); err != nil {
			return nil, err
		}
	}
	return files, nil
}
