package demo

import (
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"time"
)

// wire lies between the registry and everybody who speaks with it: an honest
// proxy until it is told to flip a bit.
type wire struct {
	listener net.Listener
	server   *http.Server

	mu     sync.Mutex
	target string // end of the path whose answers are changed; "": none
}

// newWire starts a proxy for a registry on a free loopback port.
func newWire(registry string) (*wire, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	w := &wire{listener: listener}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: registry})
			r.Out.Host = r.In.Host // the registry's own redirects lead back here
		},
		ModifyResponse: w.tamper,
		FlushInterval:  -1,
		ErrorLog:       log.New(io.Discard, "", 0),
	}
	w.server = &http.Server{Handler: proxy, ReadHeaderTimeout: 10 * time.Second, ErrorLog: proxy.ErrorLog}
	go func() { _ = w.server.Serve(listener) }() // until close
	return w, nil
}

func (w *wire) addr() string { return w.listener.Addr().String() }

func (w *wire) close() error { return w.server.Close() }

// flip changes one bit of each later answer to GET of what has this digest; ""
// ends that.
func (w *wire) flip(digest string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.target = digest
}

func (w *wire) tamper(r *http.Response) error {
	w.mu.Lock()
	target := w.target
	w.mu.Unlock()
	if target != "" && r.Request.Method == http.MethodGet && r.StatusCode == http.StatusOK && strings.HasSuffix(r.Request.URL.Path, "/"+target) {
		r.Body = &flipped{ReadCloser: r.Body, before: r.ContentLength / 2}
	}
	return nil
}

// flipped is a body with one bit changed.
type flipped struct {
	io.ReadCloser
	before int64 // bytes until the one that is changed; negative when it is past
}

func (f *flipped) Read(p []byte) (int, error) {
	n, err := f.ReadCloser.Read(p)
	if 0 <= f.before && f.before < int64(n) {
		p[f.before] ^= 1
	}
	f.before -= int64(n)
	return n, err
}
