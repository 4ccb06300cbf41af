package tunnel

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"testing"
	"time"
)

// The number of large buffers in use is bounded, so none may be lost where a connection ends badly.
func TestLargeBuffersComeBack(t *testing.T) {
	layer := &TLS{
		ClientConfig: &tls.Config{InsecureSkipVerify: true},
		ServerConfig: &tls.Config{Certificates: []tls.Certificate{selfSigned(t)}},
	}
	for name, end := range map[string]func(t *testing.T, visitor, accepted *net.TCPConn){
		"not TLS": func(t *testing.T, visitor, accepted *net.TCPConn) {
			go io.WriteString(visitor, "GET / HTTP/1.1\r\nCookie: "+string(make([]byte, 60_000))+"\r\n\r\n")
			if c, err := layer.Server(t.Context(), accepted, &Info{}); err == nil {
				t.Fatalf("%v is TLS", c)
			}
		},
		"reset in a download": func(t *testing.T, visitor, accepted *net.TCPConn) {
			go func() {
				c, err := layer.Client(t.Context(), visitor)
				if err != nil {
					t.Error(err)
					return
				}
				io.CopyN(io.Discard, c, 1<<20)
				visitor.SetLinger(0)
				visitor.Close()
			}()
			c, err := layer.Server(t.Context(), accepted, &Info{})
			if err != nil {
				t.Fatal(err)
			}
			b, far := socketPair(t)
			go io.Copy(struct{ io.Writer }{far}, noise(1))
			if _, _, err := Relay(t.Context(), c, b, 0); err == nil {
				t.Error("no error of a download that was cut")
			}
		},
		"context ends": func(t *testing.T, visitor, accepted *net.TCPConn) {
			go func() {
				c, err := layer.Client(t.Context(), visitor)
				if err != nil {
					t.Error(err)
					return
				}
				io.Copy(c, noise(1))
				release(c)
			}()
			c, err := layer.Server(t.Context(), accepted, &Info{})
			if err != nil {
				t.Fatal(err)
			}
			b, far := socketPair(t)
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				io.CopyN(io.Discard, far, 1<<20)
				cancel()
			}()
			if _, _, err := Relay(ctx, c, b, 0); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want %v", err, context.Canceled)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			before := largeBuffers.lent.Load()
			for range 10 {
				visitor, accepted := socketPair(t)
				end(t, visitor, accepted)
				visitor.Close()
				accepted.Close()
			}
			for deadline := time.Now().Add(10 * time.Second); largeBuffers.lent.Load() > before; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("%d large buffers are lost", largeBuffers.lent.Load()-before)
				}
			}
		})
	}
}

// A peer that reads nothing and asks for many answers of crypto/tls fills a buffer beyond what a Write may bring.
func TestAnswersPileUp(t *testing.T) {
	near, far := socketPair(t)
	r := &records{Conn: asSocket(near)}
	r.establish()
	answer := make([]byte, 27) // a KeyUpdate
	for sent := 0; sent < probeSize+tailroom/2; sent += len(answer) {
		if _, err := r.Write(answer); err != nil {
			t.Fatal(err)
		}
	}
	if n := r.reserve(100); n > 0 {
		t.Errorf("%d bytes are to be had in a full buffer", n)
	}
	go io.Copy(io.Discard, far)
	if err := r.flush(); err != nil {
		t.Fatal(err)
	}
	if n := r.reserve(100); n != 100 {
		t.Errorf("%d bytes are to be had in a new buffer, want 100", n)
	}
	r.release()
}

// selfSigned is a certificate for a test in which nobody looks at it.
func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
