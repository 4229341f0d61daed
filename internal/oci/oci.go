// Package oci reads and writes registries and OCI image layouts, and believes
// neither: every byte that it returns was hashed against the digest that was
// asked for (or, for a tag, against nothing but itself: a tag is the
// registry's word), and everything foreign is bounded in size and time (see
// limits.go).
//
// Names are canonical everywhere, in the form that containerd uses:
//
//	nginx                                docker.io/library/nginx
//	Registry.Example.com:443/team/app:1  registry.example.com/team/app:1
//	registry-1.docker.io/grafana/loki    docker.io/grafana/loki
//
// An image keeps that name wherever it is copied; Options.Mirrors changes only
// the address that is asked.
//
// Plain http is spoken with loopback addresses only, unless
// Options.InsecureHTTP allows more.
package oci

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Errors that callers branch on with errors.Is.
var (
	// ErrNotFound is a manifest, blob, tag or repository that is not there.
	ErrNotFound = errors.New("not found")
	// ErrUnauthorized is a registry that wants other credentials. Some
	// registries answer so for what does not exist.
	ErrUnauthorized = errors.New("not authorised")
	// ErrTooLarge is content or a listing beyond its bound.
	ErrTooLarge = errors.New("too large")
	// ErrContentMismatch is content whose digest or size is not the one asked for.
	ErrContentMismatch = errors.New("content does not match its digest")
	// ErrUnsupported is a request that the registry does not offer, such as deletion.
	ErrUnsupported = errors.New("not supported by the registry")
	// ErrMalformed is content under its right digest that is not what it should be.
	ErrMalformed = errors.New("malformed")
	// ErrStalled is a body that stopped arriving, or arrives too slowly to wait for.
	ErrStalled = errors.New("the transfer stalled")
)

// Options of a Client; the zero value is the safe usual case.
type Options struct {
	// Keychain finds credentials for the address that is asked; nil: anonymous.
	Keychain authn.Keychain
	// InsecureHTTP allows plain http beyond loopback.
	InsecureHTTP bool
	// Mirrors maps canonical HOST or HOST/PREFIX to HOST or HOST/PREFIX; the
	// longest prefix on a path boundary wins.
	Mirrors map[string]string
	// Layouts maps canonical repositories to directories of OCI image layouts,
	// from which Resolve, Manifest and Blob read them with no connection at all.
	Layouts map[string]string
	// Timeout bounds one request until its body is read; 0: 60 s. Blob
	// streams may take longer, but not stand still for so long.
	Timeout time.Duration
	// Transport carries the requests; nil: a default one. Tests inject faults
	// and counters here.
	Transport http.RoundTripper
}

// Client reads and writes registries. It asks each registry once how it wants
// to be spoken with, keeps one token per repository and right, and may be used
// concurrently.
type Client struct {
	guard     http.RoundTripper // bounds each request; under everything
	retry     *retrier          // over guard, for our own requests
	keychain  authn.Keychain
	insecure  bool
	mirrors   map[string]string
	layouts   map[string]string
	pings     cells[string, ping]
	sessions  cells[sessionKey, *session]
	listing   sync.Map                // hosts whose referrers API has answered
	empty     sync.Map                // repositories that hold the empty config
	attaching cells[string, struct{}] // one read-modify-write of a fallback tag at a time
}

// New returns a client with the given options.
func New(o Options) *Client {
	if o.Keychain == nil {
		o.Keychain = anonymous{}
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	if o.Transport == nil {
		o.Transport = defaultTransport()
	}
	g := &guard{inner: o.Transport, insecure: o.InsecureHTTP, timeout: o.Timeout}
	return &Client{
		guard:    g,
		retry:    &retrier{inner: g, delay: retryDelay},
		keychain: o.Keychain,
		insecure: o.InsecureHTTP,
		mirrors:  maps.Clone(o.Mirrors),
		layouts:  maps.Clone(o.Layouts),
	}
}

// anonymous is the keychain without credentials.
type anonymous struct{}

func (anonymous) Resolve(authn.Resource) (authn.Authenticator, error) { return authn.Anonymous, nil }

// Manifest is manifest bytes whose digest has been checked.
type Manifest struct {
	Digest v1.Hash
	// MediaType is what the bytes say, not what a header claims.
	MediaType types.MediaType
	Bytes     []byte
}

// Descriptor describes the manifest.
func (m Manifest) Descriptor() v1.Descriptor {
	return v1.Descriptor{MediaType: m.MediaType, Digest: m.Digest, Size: int64(len(m.Bytes))}
}

// Source reads the content of one repository or layout by digest; everything
// returned was hashed. It may be used concurrently.
type Source interface {
	// Manifest reads a manifest of at most 4 MiB.
	Manifest(ctx context.Context, h v1.Hash) (Manifest, error)
	// Blob streams a blob of d.Size bytes; reading it to the end returns
	// ErrContentMismatch when size or digest differ.
	Blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error)
}

// Artifact is a one-layer OCI artifact; its config is the empty descriptor.
// https://github.com/opencontainers/image-spec/blob/v1.1.1/manifest.md#guidelines-for-artifact-usage
type Artifact struct {
	Type        string // artifactType and layer media type
	Data        []byte
	Annotations map[string]string // of the manifest
}

// cells holds one lazily made value per key. Callers for one key wait for each
// other; a value is kept when it was made without error.
type cells[K comparable, V any] struct {
	m sync.Map // K -> *cell[V]
}

type cell[V any] struct {
	turn  chan struct{} // holds one token
	made  bool
	value V
}

// get returns the value of key, making it when there is none.
func (c *cells[K, V]) get(ctx context.Context, key K, build func() (V, error)) (V, error) {
	own, unlock, err := c.lock(ctx, key)
	if err != nil {
		var zero V
		return zero, err
	}
	defer unlock()
	if own.made {
		return own.value, nil
	}
	v, err := build()
	if err == nil {
		own.value, own.made = v, true
	}
	return v, err
}

// lock waits for the turn on key.
func (c *cells[K, V]) lock(ctx context.Context, key K) (*cell[V], func(), error) {
	fresh := &cell[V]{turn: make(chan struct{}, 1)}
	fresh.turn <- struct{}{}
	v, _ := c.m.LoadOrStore(key, fresh)
	own := v.(*cell[V])
	select {
	case <-own.turn:
		return own, func() { own.turn <- struct{}{} }, nil
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	}
}
