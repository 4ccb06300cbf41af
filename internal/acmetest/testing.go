package acmetest

import "testing"

// New starts a CA that is closed with the test.
func New(t testing.TB, config Config) *CA {
	t.Helper()
	ca, err := Start(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ca.Close(); err != nil {
			t.Errorf("close the CA: %v", err)
		}
	})
	return ca
}
