package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/gofrs/flock"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/cache/contenthash"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/control"
	"github.com/moby/buildkit/executor/oci"
	"github.com/moby/buildkit/frontend"
	dockerfile "github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/gateway"
	"github.com/moby/buildkit/frontend/gateway/forwarder"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/bboltcachestorage"
	"github.com/moby/buildkit/util/db/boltutil"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/moby/buildkit/util/network/netproviders"
	"github.com/moby/buildkit/util/resolver"
	resolverconfig "github.com/moby/buildkit/util/resolver/config"
	"github.com/moby/buildkit/worker"
	"github.com/moby/buildkit/worker/base"
	"github.com/moby/buildkit/worker/runc"
	"github.com/moby/sys/userns"
	"github.com/sirupsen/logrus"
	bolt "go.etcd.io/bbolt"
	"go.opentelemetry.io/otel/metric/noop"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"
)

// The embedded daemon keeps at most cacheMax bytes of cache. Above that it
// drops what was not used for cacheKeep, and then the least recently used.
const (
	cacheMax  = 10e9
	cacheKeep = 7 * 24 * time.Hour
)

// gcPolicy states these bounds to BuildKit, which applies the rules in order;
// the last one takes also what BuildKit keeps for itself, such as frontends.
func gcPolicy() []client.PruneInfo {
	return []client.PruneInfo{
		{KeepDuration: cacheKeep, MaxUsedSpace: cacheMax},
		{MaxUsedSpace: cacheMax},
		{All: true, MaxUsedSpace: cacheMax},
	}
}

// daemon is a BuildKit daemon in this process. It listens on no socket.
type daemon struct {
	state      string
	runc       string // absolute
	lock       *flock.Flock
	snapshots  io.Closer
	worker     *base.Worker
	controller *control.Controller
	stopping   chan struct{} // closed when the daemon ends
	server     *grpc.Server
	listener   *bufconn.Listener
}

// embed starts the daemon and connects to it. The state directory is locked
// first and what an earlier, killed daemon left there is cleaned away.
func (p *plan) embed(ctx context.Context) (_ *builder, err error) {
	if os.Geteuid() != 0 {
		return nil, withHint(errors.New("the embedded builder needs root or a user namespace"), "--builder ADDR uses a BuildKit daemon that runs already")
	}
	d := &daemon{state: p.StateDir, runc: p.runc, stopping: make(chan struct{})}
	if err := d.open(ctx, p); err != nil {
		return nil, err
	}
	failed := make(chan error, 1)
	go func() { failed <- d.server.Serve(d.listener) }()
	c, err := client.New(ctx, "passthrough:///embedded", client.WithContextDialer(
		func(ctx context.Context, _ string) (net.Conn, error) { return d.listener.DialContext(ctx) }))
	if err != nil {
		d.stop()
		return nil, fmt.Errorf("connecting to the embedded builder: %w", err)
	}
	return &builder{client: c, failed: failed, close: func() { c.Close(); d.stop() }}, nil
}

// open takes the lock and puts the daemon together; after an error nothing of
// it is left.
func (d *daemon) open(ctx context.Context, p *plan) (err error) {
	defer func() {
		if err != nil {
			d.stop()
		}
	}()
	if err := d.lockState(ctx, p); err != nil {
		return err
	}
	if err := d.clean(ctx); err != nil {
		return fmt.Errorf("cleaning %s: %w", d.state, err)
	}
	wrapper, err := d.writeWrapper()
	if err != nil {
		return fmt.Errorf("preparing %s: %w", d.state, err)
	}
	if err := d.openWorker(ctx, p, wrapper); err != nil {
		return fmt.Errorf("starting the embedded builder: %w", err)
	}
	if err := d.openController(); err != nil {
		return fmt.Errorf("starting the embedded builder: %w", err)
	}
	d.server = grpc.NewServer(grpc.WaitForHandlers(true),
		grpc.UnaryInterceptor(grpcerrors.UnaryServerInterceptor), grpc.StreamInterceptor(grpcerrors.StreamServerInterceptor))
	d.controller.Register(d.server)
	d.listener = bufconn.Listen(1 << 20)
	return nil
}

// lockState makes the state directory and takes its lock, waiting for at most
// Options.Wait.
func (d *daemon) lockState(ctx context.Context, p *plan) (err error) {
	if d.state, err = filepath.Abs(d.state); err != nil {
		return fmt.Errorf("finding the state directory: %w", err)
	}
	if err := os.MkdirAll(d.state, 0o700); err != nil {
		return withHint(fmt.Errorf("making the state directory: %w", err), "--state DIR names another one")
	}
	if d.state, err = filepath.EvalSymlinks(d.state); err != nil {
		return fmt.Errorf("finding the state directory: %w", err)
	}
	lock := flock.New(filepath.Join(d.state, "lock"))
	locked, err := lock.TryLock()
	if err != nil {
		return withHint(fmt.Errorf("locking the state directory: %w", err), "--state DIR names another one")
	}
	if !locked {
		if err := d.awaitLock(ctx, p, lock); err != nil {
			return err
		}
	}
	d.lock = lock
	return nil
}

func (d *daemon) awaitLock(ctx context.Context, p *plan, lock *flock.Flock) error {
	limit := p.Wait
	if limit == 0 {
		limit = time.Minute
	}
	busy := withHint(fmt.Errorf("%w %s", ErrBusy, d.state), "wait for it to end, or name another directory with --state DIR")
	if limit < 0 {
		return busy
	}
	p.notice("waiting up to %s: another build uses %s", limit, d.state)
	wait, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if _, err := lock.TryLockContext(wait, 100*time.Millisecond); err != nil {
		if wait.Err() != nil {
			return busy
		}
		return fmt.Errorf("locking the state directory: %w", err)
	}
	return nil
}

// openWorker makes the part of the daemon that runs steps and keeps layers.
func (d *daemon) openWorker(ctx context.Context, p *plan, wrapper string) error {
	opt, err := runc.NewWorkerOpt(d.state, d.snapshotter(p), userns.RunningInUserNS(), oci.ProcessSandbox,
		nil, nil, netproviders.Opt{Mode: "host"}, nil, wrapper, "", false, nil, "", "", nil)
	if err != nil {
		return err
	}
	opt.GCPolicy = gcPolicy()
	opt.RegistryHosts = resolver.NewRegistryConfig(p.plainHosts())
	d.worker, err = base.NewWorker(ctx, opt)
	if err != nil {
		return errors.Join(err, opt.MetadataStore.Close(), opt.ContentMetadata.Close())
	}
	return nil
}

// snapshotter is overlayfs where the kernel and the state directory's file
// system can, and copies otherwise. Both give the same images.
func (d *daemon) snapshotter(p *plan) runc.SnapshotterFactory {
	keep := func(s snapshots.Snapshotter, err error) (snapshots.Snapshotter, error) {
		d.snapshots = s
		return s, err
	}
	if err := overlayutils.Supported(d.state); err != nil {
		p.notice("overlay mounts do not work in %s (%v): steps are copied, which is slow", d.state, err)
		return runc.SnapshotterFactory{Name: "native", New: func(root string) (snapshots.Snapshotter, error) {
			return keep(native.NewSnapshotter(root))
		}}
	}
	return runc.SnapshotterFactory{Name: "overlayfs", New: func(root string) (snapshots.Snapshotter, error) {
		return keep(overlay.NewSnapshotter(root, overlay.AsynchronousRemove))
	}}
}

// plainHosts are the registries that InsecureHTTP opens; loopback needs none.
func (p *plan) plainHosts() map[string]resolverconfig.RegistryConfig {
	hosts := map[string]resolverconfig.RegistryConfig{}
	if !p.InsecureHTTP {
		return hosts
	}
	yes := true
	for _, host := range p.registryHosts() {
		hosts[host] = resolverconfig.RegistryConfig{PlainHTTP: &yes}
	}
	return hosts
}

// openController makes the part of the daemon that solves and answers.
func (d *daemon) openController() error {
	workers := &worker.Controller{}
	if err := workers.Add(d.worker); err != nil {
		return err
	}
	sessions, err := session.NewManager()
	if err != nil {
		return err
	}
	remote, err := gateway.NewGatewayFrontend(workers.Infos(), nil)
	if err != nil {
		return err
	}
	results, err := bboltcachestorage.NewStore(filepath.Join(d.state, "cache.db"))
	if err != nil {
		return err
	}
	history, err := boltutil.SafeOpen(filepath.Join(d.state, "history.db"), 0o600, &bolt.Options{NoFreelistSync: true})
	if err != nil {
		return errors.Join(err, results.Close())
	}
	entries := int64(1)
	d.controller, err = control.NewController(control.Opt{
		SessionManager:   sessions,
		WorkerController: workers,
		Frontends: map[string]frontend.Frontend{
			"dockerfile.v0": forwarder.NewGatewayForwarder(workers.Infos(), dockerfile.Build),
			"gateway.v0":    remote, // of a Dockerfile that begins with "# syntax="
		},
		CacheManager:   solver.NewCacheManager(context.Background(), "local", results, worker.NewCacheResultStorage(workers)),
		CacheStore:     results,
		HistoryDB:      history,
		HistoryConfig:  &config.HistoryConfig{MaxEntries: &entries},
		LeaseManager:   d.worker.LeaseManager(),
		ContentStore:   d.worker.ContentStore(),
		GarbageCollect: d.worker.GarbageCollect,
		GracefulStop:   d.stopping,
		MeterProvider:  noop.NewMeterProvider(),
	})
	if err != nil {
		return errors.Join(err, history.Close(), results.Close())
	}
	return nil
}

// stop ends the steps that still run, applies the bounds of the cache, closes
// every database and gives the lock back. It works on a half-opened daemon.
func (d *daemon) stop() {
	close(d.stopping)
	log := logrus.WithField("component", "embedded builder")
	if d.server != nil {
		d.drain()
	}
	if d.controller != nil {
		d.prune(log)
		d.forget(log)
		// The controller closes the worker.
		if err := d.controller.Close(); err != nil {
			log.WithError(err).Debug("closing")
		}
	} else if d.worker != nil {
		d.worker.Close()
	}
	if d.snapshots != nil {
		d.snapshots.Close()
	}
	if d.lock != nil {
		d.lock.Close()
	}
}

// stopTimeout bounds each part of an orderly end.
const stopTimeout = 15 * time.Second

// drain waits until no request and no step runs any more; steps that outlive
// their request are killed.
func (d *daemon) drain() {
	done := make(chan struct{})
	go func() { d.server.Stop(); close(done) }()
	select {
	case <-done:
	case <-time.After(stopTimeout):
	}
	deadline := time.Now().Add(stopTimeout)
	for d.busy() && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if d.busy() {
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		if err := d.clean(ctx); err != nil {
			logrus.WithError(err).Debug("cleaning")
		}
	}
}

// forget drops this daemon's records from a cache that BuildKit keeps for the
// whole process: the next daemon here would read them through a closed database.
func (d *daemon) forget(log *logrus.Entry) {
	records, err := d.worker.MetadataStore.All()
	if err != nil {
		log.WithError(err).Debug("listing the cache")
	}
	for _, r := range records {
		contenthash.ClearCacheContext(record{id: r.ID()})
	}
}

// record is a cache record of which only the ID is asked.
type record struct {
	cache.RefMetadata
	id string
}

func (r record) ID() string { return r.id }

// prune applies gcPolicy: the daemon rarely lives until its own timer does.
func (d *daemon) prune(log *logrus.Entry) {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	freed := make(chan client.UsageInfo)
	go func() {
		for range freed {
		}
	}()
	defer close(freed)
	if err := d.worker.Prune(ctx, freed, gcPolicy()...); err != nil {
		log.WithError(err).Debug("pruning the cache")
	}
}
