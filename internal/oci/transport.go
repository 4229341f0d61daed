package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

// defaultTransport is the standard one with a time bound on each step.
func defaultTransport() http.RoundTripper {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DialContext = (&net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	t.MaxIdleConnsPerHost = 16
	t.MaxResponseHeaderBytes = 256 << 10
	return t
}

// bound is what one request may take; it travels in the request's context.
type bound struct {
	max   int64 // bytes of the answer's body
	whole bool  // the timeout covers the whole body, else each stall of it
}

type boundKey struct{}

func withBound(ctx context.Context, max int64, whole bool) context.Context {
	return context.WithValue(ctx, boundKey{}, bound{max, whole})
}

// boundOf is the request's bound. A request of a library that we gave our
// transport to has none; its bodies are streams, of any length but for pings.
func boundOf(req *http.Request) bound {
	if b, ok := req.Context().Value(boundKey{}).(bound); ok {
		return b
	}
	if req.URL.Path == "/v2/" {
		return bound{max: maxAnswer, whole: true}
	}
	return bound{max: 1<<63 - 1}
}

// guard sends one request: over https or to loopback, bounded in time and size.
type guard struct {
	inner    http.RoundTripper
	insecure bool
	timeout  time.Duration
}

func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !g.insecure && !isLoopback(req.URL.Hostname()) {
		closeBody(req.Body)
		return nil, errPlainHTTP
	}
	b := boundOf(req)
	ctx, w := newWatch(req.Context(), g.timeout)
	out := req.WithContext(ctx)
	if out.Body != nil && out.Body != http.NoBody && !b.whole {
		out.Body = &sending{ReadCloser: out.Body, w: w}
	}
	resp, err := g.inner.RoundTrip(out)
	if err != nil {
		err = w.cause(err)
		w.end()
		return nil, err
	}
	if !b.whole {
		w.timer.Stop()
	}
	resp.Body = &receiving{inner: resp.Body, w: w, left: b.max, whole: b.whole}
	return resp, nil
}

func closeBody(c io.Closer) {
	if c != nil {
		c.Close()
	}
}

// watch ends a request whose time is over.
type watch struct {
	why     func() error // what ended the request, nil before its end
	cancel  context.CancelCauseFunc
	timer   *time.Timer
	timeout time.Duration
}

func newWatch(parent context.Context, timeout time.Duration) (context.Context, *watch) {
	ctx, cancel := context.WithCancelCause(parent)
	w := &watch{why: func() error { return context.Cause(ctx) }, cancel: cancel, timeout: timeout}
	w.timer = time.AfterFunc(timeout, func() { cancel(w.stalled()) })
	return ctx, w
}

func (w *watch) stalled() error {
	return fmt.Errorf("%w: gave up after %s", ErrStalled, w.timeout)
}

// cause is err, or why the watch ended the request.
func (w *watch) cause(err error) error {
	if why := w.why(); errors.Is(why, ErrStalled) {
		return why
	}
	return err
}

func (w *watch) end() {
	w.timer.Stop()
	w.cancel(nil)
}

// sending is a streamed request body: each piece taken from it is progress.
type sending struct {
	io.ReadCloser
	w *watch
}

func (s *sending) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	s.w.timer.Reset(s.w.timeout)
	return n, err
}

// receiving is an answer's body within its bounds. Only the time spent waiting
// inside Read counts, so a slow reader is not a stall.
type receiving struct {
	inner  io.ReadCloser
	w      *watch
	left   int64
	whole  bool
	waited time.Duration // since the last minProgress bytes
	got    int64
	closed atomic.Bool
}

func (r *receiving) Read(p []byte) (int, error) {
	n, err := r.read(p)
	r.left -= int64(n)
	if r.left < 0 {
		return 0, fmt.Errorf("the answer: %w", ErrTooLarge)
	}
	if err != nil && err != io.EOF {
		err = r.w.cause(err)
	}
	return n, err
}

func (r *receiving) read(p []byte) (int, error) {
	if r.whole {
		return r.inner.Read(p)
	}
	if r.waited >= r.w.timeout {
		return 0, r.w.stalled()
	}
	start := time.Now()
	r.w.timer.Reset(r.w.timeout - r.waited)
	n, err := r.inner.Read(p)
	r.w.timer.Stop()
	r.waited += time.Since(start)
	if r.got += int64(n); r.got >= minProgress {
		r.got, r.waited = 0, 0
	}
	return n, err
}

func (r *receiving) Close() error {
	if r.closed.Swap(true) {
		return nil
	}
	err := r.inner.Close()
	r.w.end()
	return err
}

// retrier sends a request again when the failure looks temporary. All requests
// of this package may be repeated.
type retrier struct {
	inner http.RoundTripper
	delay time.Duration
}

func (r *retrier) RoundTrip(req *http.Request) (*http.Response, error) {
	delay := r.delay
	for attempt := 1; ; attempt++ {
		resp, err := r.inner.RoundTrip(req)
		wait, again := retryAfter(resp, err, delay)
		next, ok := rewound(req)
		if !again || !ok || attempt == maxAttempts {
			return resp, err
		}
		if resp != nil {
			drain(resp.Body)
		}
		if err := sleep(req.Context(), wait); err != nil {
			return nil, err
		}
		req, delay = next, 3*delay
	}
}

// retryAfter decides whether to try again, and when.
func retryAfter(resp *http.Response, err error, delay time.Duration) (time.Duration, bool) {
	if err != nil {
		broken := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
			errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
		return delay, broken
	}
	switch resp.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
	default:
		return 0, false
	}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s >= 0 {
		asked := time.Duration(min(s, 1<<20)) * time.Second
		return max(asked, delay), asked <= maxRetryAfter
	}
	return delay, true
}

// rewound is the request with its body at the start again.
func rewound(req *http.Request) (*http.Request, bool) {
	if req.Body == nil || req.Body == http.NoBody {
		return req, true
	}
	if req.GetBody == nil {
		return nil, false
	}
	body, err := req.GetBody()
	if err != nil {
		return nil, false
	}
	next := req.Clone(req.Context())
	next.Body = body
	return next, true
}

// drain lets the connection be used again where little is left of a body.
func drain(body io.ReadCloser) {
	io.CopyN(io.Discard, body, maxErrorBody)
	body.Close()
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// sameScheme keeps requests to the registry on the scheme that its ping used:
// a registry behind a proxy that ends TLS may send http locations.
type sameScheme struct {
	inner        http.RoundTripper
	scheme, host string
}

func (s *sameScheme) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Host == s.host && req.URL.Scheme != s.scheme {
		req = req.Clone(req.Context())
		req.URL.Scheme = s.scheme
	}
	return s.inner.RoundTrip(req)
}

// private gives the transport below a copy of the request: the credentials that
// it adds must not be in the headers that a redirect carries on.
type private struct{ inner http.RoundTripper }

func (p private) RoundTrip(req *http.Request) (*http.Response, error) {
	return p.inner.RoundTrip(req.Clone(req.Context()))
}

// checkRedirect bounds redirects and keeps them out of private networks. That
// none leads to plain http is the guard's part.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("stopped after %d redirects", maxRedirects)
	}
	return checkTarget(via[0].URL.Hostname(), req.URL.Hostname())
}

// checkTarget refuses to be sent from a public host to a private address.
func checkTarget(from, to string) error {
	if from != to && isPrivate(to) && !isPrivate(from) {
		return fmt.Errorf("%s sent us to the private address %s: refused", from, to)
	}
	return nil
}

func isPrivate(host string) bool {
	ip := net.ParseIP(host)
	return isLoopback(host) || ip != nil && (ip.IsPrivate() || ip.IsLinkLocalUnicast() || ip.IsUnspecified())
}
