// Package registry is the development registry: the registry of the CNCF
// distribution project, in this process, on loopback.
//
//	s, err := registry.Start(ctx, registry.Options{Dir: "./images"})
//	fmt.Println(s.Addr()) // 127.0.0.1:40123
//	err = s.Wait()        // until ctx is done
//
// It keeps images in memory or in a directory, allows deletion, asks for no
// credentials and speaks plain HTTP, so it refuses to listen beyond loopback
// unless told to. A directory survives restarts whole, uploads in progress
// included.
//
// It has no referrers API (distribution v3 has none): a client that attaches
// signatures uses the fallback tags of the OCI distribution spec,
// https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#unavailable-referrers-api
package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
)

const (
	headerTimeout = 10 * time.Second // a request's header, from its first byte
	bodyTimeout   = time.Minute      // a request's body without a byte
	idleTimeout   = 2 * time.Minute  // a connection between two requests
	drainTimeout  = 5 * time.Second  // requests in progress when the server stops
)

// ErrNotLoopback is returned for an address that other machines can reach.
var ErrNotLoopback = errors.New("not a loopback address")

// Options of a Server. The zero value serves from memory on a free port of
// 127.0.0.1.
type Options struct {
	// Addr is HOST:PORT; "" is 127.0.0.1:0, and port 0 is a free one.
	Addr string
	// Dir holds the images, and is made when it is missing; "" keeps them in
	// memory. One server at a time uses a directory.
	Dir string
	// Log receives the registry's own log, all of it at debug; nil drops it.
	Log *slog.Logger
	// InsecureListen allows an Addr beyond loopback. Everybody who reaches it
	// may then read, replace and delete every image.
	InsecureListen bool
}

// Server is a running registry. Its methods may be called concurrently.
type Server struct {
	addr    string
	http    *http.Server
	app     *handlers.App
	storage *storage

	stop    sync.Once
	stopErr error
	served  chan struct{} // closed when Serve has returned
	failure error         // why, when not by Close; read it after served
}

// Start opens the storage, listens, and serves until ctx is done or Close is
// called. The server accepts connections when Start returns.
//
// It returns an error that is ErrNotLoopback for an address beyond loopback,
// ErrInUse for a directory that another server uses, and the system's own for
// a port that is taken.
func Start(ctx context.Context, o Options) (*Server, error) {
	listener, err := listen(ctx, o)
	if err != nil {
		return nil, err
	}
	store, err := openStorage(o.Dir)
	if err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	registerMemory()
	quiet := withLog(context.WithoutCancel(ctx), o.Log)
	app := handlers.NewApp(quiet, store.configuration())
	s := &Server{
		addr:    listener.Addr().String(),
		app:     app,
		storage: store,
		http:    newHTTPServer(quiet, app, o.Log),
		served:  make(chan struct{}),
	}
	go s.serve(listener)
	go s.closeAfter(ctx)
	return s, nil
}

// listen resolves the address before it binds it, so that a name is not
// loopback when it is checked and another address when it is used.
func listen(ctx context.Context, o Options) (*net.TCPListener, error) {
	text := o.Addr
	if text == "" {
		text = "127.0.0.1:0"
	}
	addr, err := net.ResolveTCPAddr("tcp", text)
	if err != nil {
		return nil, fmt.Errorf("registry address %q: %w", text, err)
	}
	if !addr.IP.IsLoopback() && !o.InsecureListen {
		return nil, fmt.Errorf("registry address %q: %w", text, ErrNotLoopback)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	listener, err := net.ListenTCP("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("starting the registry: %w", err)
	}
	return listener, nil
}

// newHTTPServer bounds what a client may leave open. Whole requests have no
// deadline, since a layer may take any time; a body that stands still has one.
func newHTTPServer(base context.Context, app http.Handler, log *slog.Logger) *http.Server {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	server := &http.Server{
		Handler:           boundBody(app, bodyTimeout),
		BaseContext:       func(net.Listener) context.Context { return base },
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	closeUnused(server)
	return server
}

// closeUnused makes Shutdown close the connections that have sent nothing yet,
// as clients open some in advance; by itself it waits five seconds for them.
func closeUnused(server *http.Server) {
	var unused sync.Map // of net.Conn
	server.ConnState = func(c net.Conn, state http.ConnState) {
		if state == http.StateNew {
			unused.Store(c, nil)
		} else {
			unused.Delete(c)
		}
	}
	server.RegisterOnShutdown(func() {
		for c := range unused.Range {
			_ = c.(net.Conn).Close()
		}
	})
}

func (s *Server) serve(l net.Listener) {
	defer close(s.served)
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		s.failure = fmt.Errorf("serving the registry: %w", err)
	}
}

func (s *Server) closeAfter(ctx context.Context) {
	select {
	case <-ctx.Done():
		_ = s.Close() // Wait returns its result, too
	case <-s.served:
	}
}

// Addr is the address that the server listens on, as HOST:PORT with the
// actual port.
func (s *Server) Addr() string { return s.addr }

// Wait returns when the server has stopped: nil after Close or the end of
// Start's context, otherwise why it failed. The storage is closed then.
func (s *Server) Wait() error {
	<-s.served
	return errors.Join(s.failure, s.Close())
}

// Close stops the server: it takes no more requests, gives those in progress
// five seconds, then cuts them off, and closes the storage. An upload that was
// cut off goes on, after a restart on the same Dir, from the offset that the
// registry then names. Further calls return the first one's result.
func (s *Server) Close() error {
	s.stop.Do(func() {
		err := s.drain()
		<-s.served
		s.stopErr = errors.Join(err, s.app.Shutdown(), s.storage.close())
	})
	return s.stopErr
}

func (s *Server) drain() error {
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return s.http.Close()
	}
	return err
}

// configuration is everything that is set of distribution's own settings. No
// file and no environment variable adds to it. Uploads that nobody finishes
// are not purged, since the purge logs to stderr: they stay in Dir.
func (s *storage) configuration() *configuration.Configuration {
	c := &configuration.Configuration{
		Storage: configuration.Storage{
			memoryDriver:  nil,
			"delete":      configuration.Parameters{"enabled": true},
			"maintenance": configuration.Parameters{"uploadpurging": map[any]any{"enabled": false}},
		},
	}
	c.HTTP.Secret = s.secret
	if s.dir != "" {
		delete(c.Storage, memoryDriver)
		c.Storage["filesystem"] = configuration.Parameters{"rootdirectory": s.dir}
	}
	return c
}
