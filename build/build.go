// Package build turns a Dockerfile into an image through BuildKit, and promises
// that the same inputs give the same manifest digest, whoever builds them:
//
//   - every time stamp is Options.Epoch: by default the time of the git commit,
//     or of the newest file when the context is not under git;
//   - media types are those of OCI, the compatibility version is pinned, no
//     attestation with a time or a random ID is added;
//   - an embedded daemon and a separate one, root and a user namespace, the
//     overlayfs and the native snapshotter give the same bytes.
//
// What it cannot promise: a RUN step that reads the clock, the network or
// random numbers, and base images named by a tag that moves.
//
// Without Options.Builder the BuildKit daemon runs in this process (Linux, root
// or a user namespace; see EnterUserNamespace) and ends with the build.
package build

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/imgtrust/imgtrust/internal/oci"
	"github.com/moby/buildkit/client"
	_ "github.com/moby/buildkit/client/connhelper/dockercontainer" // docker-container://
	_ "github.com/moby/buildkit/client/connhelper/kubepod"         // kube-pod://
	_ "github.com/moby/buildkit/client/connhelper/podmancontainer" // podman-container://
	_ "github.com/moby/buildkit/client/connhelper/ssh"             // ssh://
	"github.com/sirupsen/logrus"
)

// Options of a build. Reference and one of Push and Layout must be set, and
// StateDir when there is no Builder; every other zero value is the usual case.
type Options struct {
	Context     string            // directory; "": the working directory
	Dockerfile  string            // file; "": Dockerfile in Context
	Target      string            // stage; "": the last one
	Platforms   []string          // os/arch[/variant]; none: the builder's own. Two or more make an index
	Args        map[string]string // build arguments; SOURCE_DATE_EPOCH overrides Epoch
	Contexts    map[string]string // named contexts: a directory, oci:DIR[@digest] or an image reference
	Secrets     []string          // id=ID[,src=FILE|env=NAME], as docker build has them
	SSH         []string          // default or ID[=SOCKET|KEY[,KEY...]]
	Labels      map[string]string // of the image's config
	Annotations map[string]string // of each image manifest
	NoCache     bool              // run every step again
	Pull        bool              // ask the registry for base images even when they are known

	// Reference names the image: REPOSITORY[:TAG], no digest. Without a tag
	// Push uploads by digest and moves no tag.
	Reference string
	Push      bool   // push to Reference's registry
	Layout    string // write an OCI layout to this directory; a layout that is there is replaced

	Builder  string        // BuildKit address such as unix:///run/buildkit/buildkitd.sock or docker-container://NAME; "": the embedded daemon
	StateDir string        // of the embedded daemon: cache and locks, one build at a time
	Wait     time.Duration // how long to wait for another build in StateDir; 0: one minute, negative: not at all
	Runc     string        // "": runc from PATH or the sbin directories

	// Epoch is the time of everything in the image; nil: the time of the git
	// commit that Context is checked out at, else of Context's newest file.
	Epoch *time.Time

	// InsecureHTTP allows plain http to the registries of Reference and of
	// named contexts. Loopback registries are always asked by plain http.
	InsecureHTTP bool

	Progress    string       // auto, plain, tty, quiet or rawjson; "": auto
	ProgressOut io.Writer    // nil: no progress
	Notice      func(string) // one line of talk, such as waiting for a lock; nil: none
	DaemonLog   io.Writer    // the log of BuildKit's client and embedded daemon, for their debugging; nil: none
}

// Result is an image that has been pushed or written.
type Result struct {
	Descriptor v1.Descriptor // of the manifest, or of the index for several platforms
	Reference  oci.Reference // Options.Reference at the descriptor's digest
	Epoch      time.Time     // the time that the image carries
	// Metadata is what docker build writes to --metadata-file.
	Metadata map[string]any
}

// Image builds one image. A cancelled context stops the build and its steps
// and leaves no output; the error then is context.Canceled and reads "cancelled".
func Image(ctx context.Context, o Options) (Result, error) {
	p, err := newPlan(ctx, o)
	if err != nil {
		return Result{}, err
	}
	quiet(o.DaemonLog)
	b, err := p.connect(ctx)
	if err != nil {
		return Result{}, plain(ctx, err)
	}
	defer b.close()
	out, err := newOutput(o.Layout)
	if err != nil {
		return Result{}, err
	}
	defer out.discard()
	req, err := p.request(ctx, out)
	if err != nil {
		return Result{}, plain(ctx, err)
	}
	res, err := p.solve(ctx, b, req)
	if err != nil {
		return Result{}, plain(ctx, err)
	}
	r, err := p.result(res)
	if err != nil {
		return Result{}, err
	}
	return r, out.commit()
}

// quiet sends the log of BuildKit's client and daemon to w. They log through the
// process-wide logger of logrus, so it is set for the whole process and stays.
func quiet(w io.Writer) {
	logrus.SetOutput(io.Discard)
	if w != nil {
		logrus.SetOutput(w)
		logrus.SetLevel(logrus.DebugLevel)
	}
}

// builder is a BuildKit daemon in use.
type builder struct {
	client *client.Client
	failed <-chan error // the embedded daemon's end; nil for others
	close  func()
}

// connect starts the embedded daemon or connects to Options.Builder.
func (p *plan) connect(ctx context.Context) (*builder, error) {
	if p.Builder == "" {
		return p.embed(ctx)
	}
	c, err := p.dial(ctx)
	if err != nil {
		err = fmt.Errorf("connecting to builder %s: %w", p.Builder, clean(err))
		return nil, withHint(err, "give --builder or BUILDKIT_HOST the address of a running BuildKit daemon, or neither to use the embedded one")
	}
	return &builder{client: c, close: func() { c.Close() }}, nil
}

// connectTimeout bounds how long a builder may take to answer: it may be
// behind ssh or kubectl.
const connectTimeout = 20 * time.Second

// dial connects to Options.Builder and waits until it answers. Wait goes on
// trying while nobody listens, so a socket is tried by itself first.
func (p *plan) dial(ctx context.Context) (*client.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if path, ok := strings.CutPrefix(p.Builder, "unix://"); ok {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err != nil {
			return nil, err
		}
		conn.Close()
	}
	c, err := client.New(context.WithoutCancel(ctx), p.Builder)
	if err != nil {
		return nil, err
	}
	if err := c.Wait(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// result reads what the exporter answered.
func (p *plan) result(res *client.SolveResponse) (Result, error) {
	raw, err := base64.StdEncoding.DecodeString(res.ExporterResponse["containerimage.descriptor"])
	if err != nil {
		return Result{}, fmt.Errorf("decoding the builder's answer: %w", err)
	}
	r := Result{Epoch: p.epoch, Metadata: metadata(res.ExporterResponse)}
	if err := json.Unmarshal(raw, &r.Descriptor); err != nil {
		return Result{}, fmt.Errorf("decoding the builder's answer: %w", err)
	}
	if r.Descriptor.Digest.Algorithm != "sha256" {
		return Result{}, errors.New("the builder's answer names no sha256 digest")
	}
	r.Reference = p.reference.AtDigest(r.Descriptor.Digest)
	return r, nil
}

// metadata decodes the values that the exporter packs as base64 JSON objects.
func metadata(response map[string]string) map[string]any {
	m := make(map[string]any, len(response))
	for k, v := range response {
		m[k] = v
		raw, err := base64.StdEncoding.DecodeString(v)
		if err == nil && strings.HasPrefix(string(raw), "{") && json.Valid(raw) {
			m[k] = json.RawMessage(raw)
		}
	}
	return m
}
