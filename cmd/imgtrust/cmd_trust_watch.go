package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/imgtrust/imgtrust/trust"
)

// watchFlags are the flags of trust publish --watch.
type watchFlags struct {
	watch       bool
	interval    time.Duration
	metricsAddr string
}

// trustWatch publishes until it is interrupted.
func (a *app) trustWatch(ctx context.Context, f publishFlags) error {
	p, options, err := a.openPublisher(ctx, f)
	if err != nil {
		return err
	}
	m := newPublisherMetrics()
	stop, err := a.serveMetrics(ctx, f.metricsAddr, m)
	if err != nil {
		return err
	}
	defer stop()
	a.progress("watching the inbox of %s", options.Repository)
	var written error
	err = p.Watch(ctx, trust.WatchOptions{Interval: f.interval, Report: func(t trust.Turn) {
		m.observe(t)
		if t.Published && t.Publication.Version != 0 {
			a.sayPublication(options.Repository, t.Publication)
			written = errors.Join(written, a.printPublication(t.Publication, f.json))
		}
		if t.Err != nil {
			a.progress("could not publish: %v", t.Err)
		}
	}})
	return errors.Join(err, written)
}

// serveMetrics listens on a loopback address for /healthz and /metrics; with no
// address it does nothing.
func (a *app) serveMetrics(ctx context.Context, address string, m *publisherMetrics) (stop func(), err error) {
	if address == "" {
		return func() {}, nil
	}
	at, err := netip.ParseAddrPort(address)
	if err != nil || !at.Addr().IsLoopback() {
		return nil, usageError{fmt.Errorf("--metrics-addr %q: want a loopback address and port, as 127.0.0.1:9464", address)}
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, listenError(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", m.health)
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	server := &http.Server{Handler: mux, ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	go func() { _ = server.Serve(l) }()
	a.progress("metrics on http://%s/metrics", l.Addr())
	return func() { _ = server.Close() }, nil
}

// publisherMetrics are what a watching publisher tells of itself.
type publisherMetrics struct {
	registry  *prometheus.Registry
	turns     *prometheus.CounterVec // by outcome: idle, published, failed
	failures  *prometheus.CounterVec // by code
	folded    *prometheus.CounterVec // statements by outcome: listed, revoked, refused, pruned
	waiting   prometheus.Gauge
	inbox     prometheus.Gauge
	published prometheus.Gauge
	repaired  prometheus.Counter
	expires   *prometheus.GaugeVec // by role

	mu   sync.Mutex
	good time.Time // of the last turn that did not fail
	err  error     // of the last turn
	dies time.Time // when the first of the top-level roles expires
}

func newPublisherMetrics() *publisherMetrics {
	name := func(n string) string { return "imgtrust_publisher_" + n }
	counter := func(n, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name(n), Help: help}, []string{label})
	}
	gauge := func(n, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name(n), Help: help})
	}
	m := &publisherMetrics{
		registry:  prometheus.NewRegistry(),
		turns:     counter("turns_total", "Looks at the inbox, by outcome.", "outcome"),
		failures:  counter("failures_total", "Turns that failed, by decision code.", "code"),
		folded:    counter("statements_total", "Statements dealt with, by outcome.", "outcome"),
		waiting:   gauge("statements_waiting", "Statements that the last publish kept: more signers are needed."),
		inbox:     gauge("inbox_entries", "Entries of the inbox at the last look."),
		published: gauge("last_publish_timestamp_seconds", "When the last publish ended."),
		repaired:  prometheus.NewCounter(prometheus.CounterOpts{Name: name("repaired_total"), Help: "Collisions with another publisher that were repaired."}),
		expires:   prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name("role_expiry_timestamp_seconds"), Help: "When a role expires."}, []string{"role"}),
	}
	m.registry.MustRegister(m.turns, m.failures, m.folded, m.waiting, m.inbox, m.published, m.repaired, m.expires)
	return m
}

func (m *publisherMetrics) observe(t trust.Turn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inbox.Set(float64(t.Inbox))
	m.dies = time.Time{}
	for _, r := range t.Roles {
		m.expires.WithLabelValues(r.Role).Set(float64(r.Expires.Unix()))
		if m.dies.IsZero() || r.Expires.Before(m.dies) {
			m.dies = r.Expires
		}
	}
	m.err = t.Err
	switch {
	case t.Err != nil:
		m.turns.WithLabelValues("failed").Inc()
		m.failures.WithLabelValues(string(trust.CodeOf(t.Err))).Inc()
		return
	case t.Published:
		m.turns.WithLabelValues("published").Inc()
		m.observePublication(t.Publication)
	default:
		m.turns.WithLabelValues("idle").Inc()
	}
	m.good = time.Now()
}

func (m *publisherMetrics) observePublication(p trust.Publication) {
	m.folded.WithLabelValues("listed").Add(float64(len(p.Listed)))
	m.folded.WithLabelValues("revoked").Add(float64(len(p.Revoked)))
	m.folded.WithLabelValues("refused").Add(float64(len(p.Refused)))
	m.folded.WithLabelValues("pruned").Add(float64(p.Pruned))
	m.waiting.Set(float64(len(p.Waiting)))
	m.published.Set(float64(time.Now().Unix()))
	if p.Repaired {
		m.repaired.Inc()
	}
}

// healthyFor is how old the last good turn may be: some turns that fail are no
// reason to be restarted.
const healthyFor = 15 * time.Minute

// health answers 200 while turns succeed and nothing has expired, else 503 and why.
func (m *publisherMetrics) health(w http.ResponseWriter, _ *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	reason := ""
	switch {
	case m.good.IsZero() && m.err == nil:
		reason = "no turn has ended yet"
	case time.Since(m.good) > healthyFor:
		reason = fmt.Sprintf("no turn has succeeded for %s: %v", healthyFor, m.err)
	case !m.dies.IsZero() && time.Now().After(m.dies):
		reason = "a role of the trust repository has expired"
	}
	if reason != "" {
		http.Error(w, reason, http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}
