//go:build interop

package interop

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// The metrics tell of certificates as the CA has issued or refused them, and of a storage that has gone.
func TestMetrics(t *testing.T) {
	t.Parallel()
	g := newTarget(t)
	e := newPublicEdge(t, "1h", fmt.Sprintf("[[site]]\nnames = [\"a.test\"]\n[[site.route]]\npath = \"/tunnel\"\ntarget = %q\n[[site]]\nnames = [\"blocked.test\"]\n", g.address),
		"-ocsp", "-block", "blocked.test")
	e.awaitCertificates(t, "a.test")
	leaf, err := e.shakeHands("a.test", e.ca.IssuingRoot)
	if err != nil {
		t.Fatal(err)
	}
	_, client := startRaimonc(t, e.address, "ws;host=a.test;path=/tunnel;tls;sni=a.test;ca="+e.ca.IssuingRoot)
	if err := tryEcho(t, client, megabyte); err != nil {
		t.Fatal(err)
	}

	var all map[string]float64
	eventually(t, 2*patience, "a failure and a staple in the metrics", func() bool {
		all = e.metrics(t)
		return all[`raimon_certificate_failing{name="blocked.test"}`] == 1 && all[`raimon_certificate_staple_until_timestamp_seconds{name="a.test"}`] > 0
	})
	now, until := float64(time.Now().Unix()), float64(leaf.NotAfter.Unix())
	for series, within := range map[string][2]float64{
		`raimon_certificate_not_after_timestamp_seconds{name="a.test"}`:                 {until, until},
		`raimon_certificate_next_renewal_timestamp_seconds{name="a.test"}`:              {now, until},
		`raimon_certificate_staple_until_timestamp_seconds{name="a.test"}`:              {now, now + 2*time.Hour.Seconds()},
		`raimon_certificate_failing{name="a.test"}`:                                     {0, 0},
		`raimon_tunnels_opened_total{route="/tunnel",site="a.test"}`:                    {1, 100},
		`raimon_tunnel_bytes_total{direction="sent",route="/tunnel",site="a.test"}`:     {megabyte, 2 * megabyte},
		`raimon_tunnel_bytes_total{direction="received",route="/tunnel",site="a.test"}`: {megabyte, 2 * megabyte},
		`raimon_tls_handshake_duration_seconds_count{site="a.test"}`:                    {1, 10_000},
	} {
		if got, found := all[series]; !found || got < within[0] || got > within[1] {
			t.Errorf("%s is %f (%v), want %f", series, got, found, within)
		}
	}
	if _, found := all[`raimon_certificate_not_after_timestamp_seconds{name="blocked.test"}`]; found {
		t.Error("a certificate that was refused has a date")
	}
	if status := e.askAdmin(t, "/status.json"); !strings.Contains(status, "blocked.test is a forbidden domain") {
		t.Errorf("the status does not say why the CA refuses: %s", trim(status, 2000))
	}

	if err := os.Rename(e.storage, e.storage+".away"); err != nil {
		t.Fatal(err)
	}
	replace(t, e.storage, []byte("no folder"))
	eventually(t, 2*patience, "errors of the storage in the metrics", func() bool {
		ready := e.askAdmin(t, "/readyz")
		return strings.Contains(ready, "storage: ") && e.metrics(t)[`raimon_storage_errors_total{operation="check"}`] > 0
	})
}
