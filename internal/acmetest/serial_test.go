package acmetest_test

import (
	"testing"

	"raimon/internal/acmetest"
)

// Pebble alone would not find what has a serial number with a zero byte in front of it in DER.
func TestEverySerialNumberCanBeReplaced(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{RejectNonces: -1})
	r := newRenewer(t, ca)
	certificate := r.obtain(t, nil)
	for tries := 0; certificate.SerialNumber.BitLen()%8 != 0; tries++ {
		if tries == 1000 {
			t.Skip("no such serial number this time") // of 50 times once
		}
		certificate = r.obtain(t, nil)
	}
	r.obtain(t, certificate)
}
