package edge

import (
	"cmp"
	"runtime"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
)

// maxCertificateSeries bounds how many certificates have metrics of their own: names that are obtained on
// demand are chosen by clients. Those in the greatest need are kept.
const maxCertificateSeries = 1000

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// liveDescs are the metrics that are looked up when they are asked for.
type liveDescs struct {
	build, connections, limit, open, opened, bytes   *prometheus.Desc
	notAfter, renewal, failing, staple, certificates *prometheus.Desc
}

func newLiveDescs() *liveDescs {
	return &liveDescs{
		build:        describe("raimon_build_info", "Which raimons this is; always 1.", "version", "go_version"),
		connections:  describe("raimon_connections_open", "Connections that are open, tunnels or not."),
		limit:        describe("raimon_connections_limit", "How many connections may be open; 0 is no limit."),
		open:         describe("raimon_tunnels_open", "Tunnels that are open.", "site", "route"),
		opened:       describe("raimon_tunnels_opened_total", "Tunnels that came about.", "site", "route"),
		bytes:        describe("raimon_tunnel_bytes_total", "Bytes that tunnels have carried, open ones too: sent by clients, received by them.", "site", "route", "direction"),
		notAfter:     describe("raimon_certificate_not_after_timestamp_seconds", "When the certificate expires.", "name"),
		renewal:      describe("raimon_certificate_next_renewal_timestamp_seconds", "When the next attempt to renew is planned.", "name"),
		failing:      describe("raimon_certificate_failing", "Whether the last attempt to obtain the certificate went wrong.", "name"),
		staple:       describe("raimon_certificate_staple_until_timestamp_seconds", "Until when the OCSP staple is good; absent without one.", "name"),
		certificates: describe("raimon_certificates", "Names for which certificates are obtained."),
	}
}

// liveCollector looks them up. It implements prometheus.Collector.
type liveCollector struct {
	admin *Admin
	*liveDescs
}

func (c *liveCollector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.build, c.connections, c.limit, c.open, c.opened, c.bytes,
		c.notAfter, c.renewal, c.failing, c.staple, c.certificates} {
		to <- d
	}
}

func (c *liveCollector) Collect(to chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	counter := func(d *prometheus.Desc, value int64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value), labels...)
	}
	a := c.admin
	gauge(c.build, 1, printable(a.Version), runtime.Version())
	gauge(c.connections, float64(a.Server.room.count()))
	if config := a.Server.Config(); config != nil {
		gauge(c.limit, float64(config.Limits.Connections))
	}
	for _, t := range a.Server.Traffic() {
		gauge(c.open, float64(t.Open), t.Site, t.Route)
		counter(c.opened, t.Opened, t.Site, t.Route)
		counter(c.bytes, t.Sent, t.Site, t.Route, "sent")
		counter(c.bytes, t.Received, t.Site, t.Route, "received")
	}
	all := a.certificates()
	gauge(c.certificates, float64(len(all)))
	for _, s := range neediest(all) {
		name := printable(s.Name)
		failing := 0.0
		if s.LastError != "" {
			failing = 1
		}
		gauge(c.failing, failing, name)
		if !s.NotAfter.IsZero() {
			gauge(c.notAfter, float64(s.NotAfter.Unix()), name)
		}
		if !s.NextRenewal.IsZero() {
			gauge(c.renewal, float64(s.NextRenewal.Unix()), name)
		}
		if !s.StapleUntil.IsZero() {
			gauge(c.staple, float64(s.StapleUntil.Unix()), name)
		}
	}
}

// neediest are those that expire first, or were never obtained, one a name.
func neediest(all []CertificateStatus) []CertificateStatus {
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b CertificateStatus) int { return cmp.Compare(printable(a.Name), printable(b.Name)) })
	all = slices.CompactFunc(all, func(a, b CertificateStatus) bool { return printable(a.Name) == printable(b.Name) })
	slices.SortStableFunc(all, func(a, b CertificateStatus) int { return a.NotAfter.Compare(b.NotAfter) })
	return all[:min(len(all), maxCertificateSeries)]
}
