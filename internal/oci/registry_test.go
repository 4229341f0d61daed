package oci

import (
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// serve runs a handler and returns its repository "HOST/team/app" and a client
// with quick retries.
func serve(t *testing.T, h http.Handler, o Options) (string, *Client) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	c := New(o)
	c.retry.delay = time.Millisecond
	return strings.TrimPrefix(s.URL, "http://") + "/team/app", c
}

func memory(referrers bool) http.Handler {
	return registry.New(registry.WithReferrersSupport(referrers), registry.Logger(log.New(io.Discard, "", 0)))
}

// counter counts requests by method, without the ping.
type counter struct {
	mu    sync.Mutex
	seen  []string
	pings int
}

func (c *counter) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := http.DefaultTransport.RoundTrip(req)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err != nil: // the attempt at https
	case req.URL.Path == "/v2/":
		c.pings++
	default:
		c.seen = append(c.seen, req.Method)
	}
	return resp, err
}

func (c *counter) take() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := strings.Join(c.seen, " ")
	c.seen = nil
	return s
}

func must[T any](t *testing.T, what string) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		return v
	}
}

var note = Artifact{Type: "application/vnd.test.note", Data: []byte("hello"), Annotations: map[string]string{"a": "b"}}

// subjectOf pushes something to attach to.
func subjectOf(t *testing.T, c *Client, repo string) v1.Descriptor {
	t.Helper()
	return must[v1.Descriptor](t, "subject")(c.PutArtifact(context.Background(), repo, "v1",
		Artifact{Type: "application/vnd.test.subject", Data: []byte("subject")}))
}

func TestReadsAndWrites(t *testing.T) {
	ctx := context.Background()
	count := &counter{}
	repo, c := serve(t, memory(true), Options{Transport: count})
	at := Reference{Repository: repo, Tag: "v1"}

	d := subjectOf(t, c, repo)
	if got := count.take(); got != "HEAD POST PUT HEAD POST PUT PUT" {
		t.Errorf("requests of a push: %s", got)
	}
	if again := subjectOf(t, c, repo); again.Digest != d.Digest {
		t.Errorf("not deterministic: %s then %s", d.Digest, again.Digest)
	}
	if got := count.take(); got != "HEAD PUT" {
		t.Errorf("requests of a second push: %s", got)
	}
	m := must[Manifest](t, "manifest")(c.Manifest(ctx, at, 0))
	if got := count.take(); got != "GET" {
		t.Errorf("requests of Manifest: %s", got)
	}
	if m.Digest != d.Digest || m.MediaType != types.OCIManifestSchema1 || m.Descriptor().Size != d.Size {
		t.Errorf("manifest %+v, want %+v", m.Descriptor(), d)
	}
	r := must[v1.Descriptor](t, "resolve")(c.Resolve(ctx, at))
	if got := count.take(); got != "HEAD" || r.Digest != d.Digest || r.Size != d.Size {
		t.Errorf("resolve: %s gave %+v", got, r)
	}
	_, layer, err := parseArtifact(m)
	if err != nil {
		t.Fatal(err)
	}
	b := must[[]byte](t, "blob")(c.Blob(ctx, repo, layer, 0))
	if got := count.take(); got != "GET" || string(b) != "subject" {
		t.Errorf("blob: %s gave %q", got, b)
	}
	a := must[Artifact](t, "artifact")(c.Artifact(ctx, repo, d.Digest, 100))
	if string(a.Data) != "subject" || a.Type != "application/vnd.test.subject" {
		t.Errorf("artifact %+v", a)
	}
	if count.pings != 1 {
		t.Errorf("%d pings for one client", count.pings)
	}
	if err := c.Delete(ctx, at); err != nil {
		t.Error(err)
	}
	if _, err := c.Resolve(ctx, at); !errors.Is(err, ErrNotFound) {
		t.Errorf("after deletion: %v", err)
	}
}
