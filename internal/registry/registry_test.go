package registry_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"

	"github.com/imgtrust/imgtrust/internal/registry"
)

// start starts a registry that the test closes.
func start(t *testing.T, o registry.Options) *registry.Server {
	t.Helper()
	s, err := registry.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func push(t *testing.T, ref string) v1.Hash {
	t.Helper()
	image, err := random.Image(4096, 3)
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, image); err != nil {
		t.Fatal(err)
	}
	digest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return digest
}

// pull reads the whole image and returns its digest.
func pull(ref string) (v1.Hash, error) {
	r, err := name.ParseReference(ref)
	if err != nil {
		return v1.Hash{}, err
	}
	image, err := remote.Image(r)
	if err != nil {
		return v1.Hash{}, err
	}
	layers, err := image.Layers()
	if err != nil {
		return v1.Hash{}, err
	}
	for _, layer := range layers {
		rc, err := layer.Compressed()
		if err != nil {
			return v1.Hash{}, err
		}
		_, err = new(bytes.Buffer).ReadFrom(rc) // the reader checks the digest
		if err := errors.Join(err, rc.Close()); err != nil {
			return v1.Hash{}, err
		}
	}
	return image.Digest()
}

func statusOf(err error) int {
	if e, ok := errors.AsType[*transport.Error](err); ok {
		return e.StatusCode
	}
	return 0
}

func TestPushPullDelete(t *testing.T) {
	for _, c := range []struct {
		summary string
		dir     string
	}{
		{"in memory", ""},
		{"on disk", t.TempDir()},
	} {
		t.Run(c.summary, func(t *testing.T) {
			s := start(t, registry.Options{Dir: c.dir})
			repo := s.Addr() + "/team/app"
			digest := push(t, repo+":v1")

			for _, ref := range []string{repo + ":v1", repo + "@" + digest.String()} {
				if got, err := pull(ref); err != nil || got != digest {
					t.Errorf("pull %s = %v, %v; want %v", ref, got, err, digest)
				}
			}

			byDigest, err := name.NewDigest(repo + "@" + digest.String())
			if err != nil {
				t.Fatal(err)
			}
			if err := remote.Delete(byDigest); err != nil {
				t.Fatal(err)
			}
			for _, ref := range []string{repo + ":v1", byDigest.String()} {
				if _, err := pull(ref); statusOf(err) != http.StatusNotFound {
					t.Errorf("pull %s after its deletion: %v, want 404", ref, err)
				}
			}
		})
	}
}

func TestManyClients(t *testing.T) {
	for _, dir := range []string{"", t.TempDir()} {
		s := start(t, registry.Options{Dir: dir})
		image, err := random.Image(300_000, 4)
		if err != nil {
			t.Fatal(err)
		}
		want, err := image.Digest()
		if err != nil {
			t.Fatal(err)
		}
		var g errgroup.Group
		for _, repo := range []string{"a", "b", "c", "d", "e", "f"} {
			g.Go(func() error {
				tag, err := name.NewTag(s.Addr() + "/" + repo + ":latest")
				if err != nil {
					return err
				}
				if err := remote.Write(tag, image); err != nil {
					return err
				}
				got, err := pull(tag.String())
				if err == nil && got != want {
					err = errors.New(repo + " holds another image")
				}
				return err
			})
		}
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	}
}

func TestDiskSurvivesRestart(t *testing.T) {
	dir := t.TempDir()
	first := start(t, registry.Options{Dir: dir})
	digest := push(t, first.Addr()+"/app:v1")
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}

	second := start(t, registry.Options{Dir: dir})
	if got, err := pull(second.Addr() + "/app:v1"); err != nil || got != digest {
		t.Errorf("after the restart: %v, %v; want %v", got, err, digest)
	}
}

func TestStartRefuses(t *testing.T) {
	taken := start(t, registry.Options{Dir: t.TempDir()})
	busyDir := t.TempDir()
	start(t, registry.Options{Dir: busyDir})

	for _, c := range []struct {
		summary string
		options registry.Options
		want    error // nil: any error of the system
	}{
		{"a port that another server has", registry.Options{Addr: taken.Addr()}, nil},
		{"a directory that another server has", registry.Options{Dir: busyDir}, registry.ErrInUse},
		{"a directory under a file", registry.Options{Dir: "registry_test.go/sub"}, nil},
		{"all addresses", registry.Options{Addr: "0.0.0.0:0"}, registry.ErrNotLoopback},
		{"all addresses, by leaving the host out", registry.Options{Addr: ":0"}, registry.ErrNotLoopback},
		{"all IPv6 addresses", registry.Options{Addr: "[::]:0"}, registry.ErrNotLoopback},
		{"another machine's address", registry.Options{Addr: "192.0.2.1:0"}, registry.ErrNotLoopback},
		{"no port", registry.Options{Addr: "127.0.0.1"}, nil},
		{"a port that is none", registry.Options{Addr: "127.0.0.1:70000"}, nil},
	} {
		t.Run(c.summary, func(t *testing.T) {
			s, err := registry.Start(t.Context(), c.options)
			if err == nil {
				t.Fatalf("started on %s", errors.Join(s.Close()))
			}
			if c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("%v; want %v", err, c.want)
			}
		})
	}
}

func TestInsecureListenIsAChoice(t *testing.T) {
	s := start(t, registry.Options{Addr: "0.0.0.0:0", InsecureListen: true})
	_, port, err := net.SplitHostPort(s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	push(t, net.JoinHostPort("127.0.0.1", port)+"/app:v1")
}

func TestContextStopsTheServer(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	dir := t.TempDir()
	s, err := registry.Start(ctx, registry.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := s.Wait(); err != nil {
		t.Error(err)
	}
	if conn, err := net.Dial("tcp", s.Addr()); err == nil {
		conn.Close()
		t.Error("the stopped server still accepts connections")
	}
	start(t, registry.Options{Addr: s.Addr(), Dir: dir}) // port and directory are free again
}

func TestCancelledContextStartsNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := registry.Start(ctx, registry.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v; want %v", err, context.Canceled)
	}
}

// The package comment promises the fallback scheme to clients.
func TestNoReferrersAPI(t *testing.T) {
	s := start(t, registry.Options{})
	digest := push(t, s.Addr()+"/app:v1")
	resp, err := http.Get("http://" + s.Addr() + "/v2/app/referrers/" + digest.String())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("status %d, want 404", resp.StatusCode)
	}
}

// records keeps what is logged.
type records struct {
	mu     sync.Mutex
	slog   []slog.Record
	logrus []string
}

func (r *records) Enabled(context.Context, slog.Level) bool { return true }
func (r *records) WithAttrs([]slog.Attr) slog.Handler       { return r }
func (r *records) WithGroup(string) slog.Handler            { return r }
func (r *records) Handle(_ context.Context, rec slog.Record) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.slog = append(r.slog, rec)
	return nil
}

func (r *records) Levels() []logrus.Level { return logrus.AllLevels }
func (r *records) Fire(e *logrus.Entry) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.logrus = append(r.logrus, e.Message)
	return nil
}

func TestLogGoesToTheCallerOnly(t *testing.T) {
	var global, own records
	logrus.AddHook(&global)
	defer logrus.StandardLogger().ReplaceHooks(make(logrus.LevelHooks))

	for _, log := range []*slog.Logger{nil, slog.New(&own)} {
		s := start(t, registry.Options{Log: log})
		push(t, s.Addr()+"/app:v1")
		if _, err := pull(s.Addr() + "/app:missing"); statusOf(err) != http.StatusNotFound {
			t.Fatalf("pull of a missing tag: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}

	if len(global.logrus) != 0 {
		t.Errorf("the global logger got %q", global.logrus)
	}
	if len(own.slog) == 0 {
		t.Error("the caller's logger got nothing")
	}
	for _, r := range own.slog {
		if r.Level != slog.LevelDebug {
			t.Errorf("%q is logged at %v, want debug", r.Message, r.Level)
		}
	}
}
