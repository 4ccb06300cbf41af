package edge

import (
	"errors"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"raimon/tunnel"
)

// Metrics counts what a Server does, for Prometheus; Admin shows it. Make it with NewMetrics. Nil counts nothing.
//
// Every label comes from the config or from a fixed set, none from clients: how many series there are
// is up to whoever writes the config.
type Metrics struct {
	registry *prometheus.Registry

	connections    *prometheus.CounterVec   // by listener
	handshakes     *prometheus.HistogramVec // by site
	setups         *prometheus.HistogramVec // by site
	failures       *prometheus.CounterVec   // by reason
	targetFailures *prometheus.CounterVec   // by site, route, reason
	visits         *prometheus.CounterVec   // by site
	ends           *prometheus.CounterVec   // by site, route, reason
	refusals       *prometheus.CounterVec   // by limit
	storageErrors  *prometheus.CounterVec   // by operation
	reloads        *prometheus.CounterVec   // by result
	reloadedWell   prometheus.Gauge
	reloadedAt     prometheus.Gauge
}

// storageOperations are those of a storage.
var storageOperations = []string{"load", "store", "delete", "list", "stat", "exists", "lock", "unlock", "check"}

// NewMetrics makes metrics with a registry of their own, which has those of Go and of the process as well.
func NewMetrics() *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	seconds := func(name, help string, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help,
			Buckets: []float64{.0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}}, labels)
	}
	m := &Metrics{
		registry:       prometheus.NewRegistry(),
		connections:    counter("raimon_connections_total", "Connections that were accepted.", "listener"),
		handshakes:     seconds("raimon_tls_handshake_duration_seconds", "Time that TLS handshakes took which went well.", "site"),
		setups:         seconds("raimon_tunnel_setup_duration_seconds", "Time from accepting a connection to the open tunnel, with handshakes and the dial to the target.", "site"),
		failures:       counter("raimon_handshake_failures_total", "Connections that failed before a target was chosen.", "reason"),
		targetFailures: counter("raimon_target_failures_total", "Tunnels that did not come about because of the target.", "site", "route", "reason"),
		visits:         counter("raimon_visits_total", "HTTP connections that ended without a tunnel.", "site"),
		ends:           counter("raimon_tunnels_ended_total", "Tunnels that have ended.", "site", "route", "reason"),
		refusals:       counter("raimon_refusals_total", "Connections, and requests for tunnels, that were over a limit.", "limit"),
		storageErrors:  counter("raimon_storage_errors_total", "Operations of the storage that went wrong.", "operation"),
		reloads:        counter("raimon_config_reloads_total", "Times the config was loaded, the start included.", "result"),
		reloadedWell: prometheus.NewGauge(prometheus.GaugeOpts{Name: "raimon_config_last_reload_successful",
			Help: "Whether the config was good when it was last loaded; after a bad one the one before stays."}),
		reloadedAt: prometheus.NewGauge(prometheus.GaugeOpts{Name: "raimon_config_last_reload_success_timestamp_seconds",
			Help: "When a good config was last loaded."}),
	}
	m.registry.MustRegister(m.connections, m.handshakes, m.setups, m.failures, m.targetFailures, m.visits, m.ends, m.refusals,
		m.storageErrors, m.reloads, m.reloadedWell, m.reloadedAt,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	// A rate needs a zero to start from.
	for _, err := range []error{ErrFull, ErrPerAddress, ErrRate, ErrRouteFull} {
		m.refusals.WithLabelValues(limitReason(err))
	}
	for _, operation := range storageOperations {
		m.storageErrors.WithLabelValues(operation)
	}
	for _, reason := range []string{"certificate", "unknown_name", "timeout", "eof", "reset", "access", "proxy_header"} {
		m.failures.WithLabelValues(reason)
	}
	return m
}

// Reloaded counts an attempt to load the config, the first included. Err is why it was not taken up; nil: it was.
func (m *Metrics) Reloaded(err error) {
	if m == nil {
		return
	}
	if err != nil {
		m.reloads.WithLabelValues("error").Inc()
		m.reloadedWell.Set(0)
		return
	}
	m.reloads.WithLabelValues("success").Inc()
	m.reloadedWell.Set(1)
	m.reloadedAt.SetToCurrentTime()
}

// StorageFailed counts an operation of the storage that went wrong, such as load or store.
func (m *Metrics) StorageFailed(operation string) {
	if m == nil {
		return
	}
	if !slices.Contains(storageOperations, operation) {
		operation = "other"
	}
	m.storageErrors.WithLabelValues(operation).Inc()
}

// accepted counts a connection that came in on a listener.
func (m *Metrics) accepted(address string) {
	if m != nil {
		m.connections.WithLabelValues(printable(address)).Inc()
	}
}

// refused counts a connection, or a request for a tunnel, that is over a limit.
func (m *Metrics) refused(reason error) {
	if m != nil {
		m.refusals.WithLabelValues(limitReason(reason)).Inc()
	}
}

// shookHands counts a TLS handshake that went well.
func (m *Metrics) shookHands(v *visit) {
	if m != nil {
		m.handshakes.WithLabelValues(v.labels().site).Observe(time.Since(v.begin).Seconds())
	}
}

// opened counts a tunnel that took the given time to come about.
func (m *Metrics) opened(v *visit, took time.Duration) {
	if m != nil {
		m.setups.WithLabelValues(v.labels().site).Observe(took.Seconds())
	}
}

// ended counts a connection that is over, tunnel or not. Err is why; nil where all went well.
func (m *Metrics) ended(v *visit, s *tunnel.Session, err error) {
	if m == nil {
		return
	}
	l := v.labels()
	switch {
	case s.Open():
		m.ends.WithLabelValues(l.site, l.route, tunnel.EndReason(err)).Inc()
	case v.stage == atTarget:
		m.targetFailures.WithLabelValues(l.site, l.route, targetReason(err)).Inc()
	case errors.Is(err, tunnel.ErrNoTunnel):
		m.visits.WithLabelValues(l.site).Inc()
	default:
		if reason := failureReason(v.stage, err); reason != "" {
			m.failures.WithLabelValues(reason).Inc()
		}
	}
}
