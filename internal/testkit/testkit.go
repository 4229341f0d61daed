// Package testkit makes trust for tests: keys, small deterministic images, a
// registry in memory and a trust repository in it. Nothing outside of tests
// imports it.
package testkit

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
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
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/sigstore/sigstore/pkg/signature"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/internal/oci"
	distribution "github.com/imgtrust/imgtrust/internal/registry"
	"github.com/imgtrust/imgtrust/trust"
)

// Registry is a registry in memory on a loopback port that counts requests and
// lets a test answer in its place.
type Registry struct {
	Host   string // 127.0.0.1:PORT
	Client *oci.Client

	mu       sync.Mutex
	requests []string
	// Intercept answers a request itself when it returns true.
	intercept func(http.ResponseWriter, *http.Request) bool
}

// NewRegistry starts a registry with the referrers API for the life of the test.
func NewRegistry(t testing.TB) *Registry {
	t.Helper()
	backend := registry.New(registry.WithReferrersSupport(true), registry.Logger(log.New(io.Discard, "", 0)))
	r := &Registry{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		r.requests = append(r.requests, req.Method+" "+req.URL.Path)
		intercept := r.intercept
		r.mu.Unlock()
		if intercept != nil && intercept(w, req) {
			return
		}
		backend.ServeHTTP(w, req)
	}))
	t.Cleanup(server.Close)
	r.Host = strings.TrimPrefix(server.URL, "http://")
	r.Client = oci.New(oci.Options{Timeout: 10 * time.Second})
	return r
}

// NewDistribution starts the development registry, without the referrers API, for
// the life of the test. It lists any number of tags and counts no requests.
func NewDistribution(t testing.TB) *Registry {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s, err := distribution.Start(ctx, distribution.Options{Addr: "127.0.0.1:0"})
	must(t, err)
	t.Cleanup(func() {
		cancel()
		_ = s.Close()
	})
	return &Registry{Host: s.Addr(), Client: oci.New(oci.Options{Timeout: time.Minute})}
}

// Intercept lets answer see each request first; it returns true when it has
// answered. nil ends that.
func (r *Registry) Intercept(answer func(http.ResponseWriter, *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.intercept = answer
}

// Requests returns the requests since the last call, pings left out.
func (r *Registry) Requests() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var requests []string
	for _, q := range r.requests {
		if !strings.HasSuffix(q, " /v2/") {
			requests = append(requests, q)
		}
	}
	r.requests = nil
	return requests
}

// Key makes an ECDSA P-256 key.
func Key(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// PEM is the public half of a key, indented to stand in a policy.
func PEM(t testing.TB, k crypto.Signer, indent string) string {
	t.Helper()
	text, err := attest.MarshalPublicKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	return indent + strings.ReplaceAll(strings.TrimSpace(string(text)), "\n", "\n"+indent) + "\n"
}

// Image is a small deterministic image that holds content.
func Image(t testing.TB, content string) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1), static.NewLayer([]byte(content), types.OCILayer))
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// Push pushes manifest bytes of an image with its blobs, and a tag for it when
// tag is not empty. It returns the digest.
func Push(t testing.TB, c *oci.Client, repo, tag string, img v1.Image) v1.Descriptor {
	t.Helper()
	ctx := context.Background()
	config, err := img.RawConfigFile()
	must(t, err)
	_, err = c.PutBlob(ctx, repo, config, types.OCIConfigJSON)
	must(t, err)
	layers, err := img.Layers()
	must(t, err)
	for _, l := range layers {
		r, err := l.Compressed()
		must(t, err)
		data, err := io.ReadAll(r)
		must(t, err)
		_, err = c.PutBlob(ctx, repo, data, types.OCILayer)
		must(t, err)
	}
	raw, err := img.RawManifest()
	must(t, err)
	media, err := img.MediaType()
	must(t, err)
	h, err := c.PutManifest(ctx, repo, tag, media, raw)
	must(t, err)
	return v1.Descriptor{MediaType: media, Size: int64(len(raw)), Digest: h}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Clock is a clock that a test sets.
type Clock struct {
	mu  sync.Mutex
	now time.Time
}

// Now is the time of the clock.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Add moves the clock.
func (c *Clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// VirtualTrust is a trust repository in a registry in memory, with all its keys.
type VirtualTrust struct {
	*Registry
	T          testing.TB
	Clock      *Clock
	Repository string // the trust repository
	RootJSON   []byte
	Root       []*ecdsa.PrivateKey // threshold: all
	Targets    []*ecdsa.PrivateKey
	Online     *ecdsa.PrivateKey
	Signers    map[string]*ecdsa.PrivateKey // "ci", "security"; and "mallory", whom no policy names
	State      string                       // of the publisher
	Inbox      string                       // where Submit leaves statements
}

// Policy is the policy of a VirtualTrust: app/** by ci, two/** by both signers.
func Policy(t testing.TB, host string, signers map[string]*ecdsa.PrivateKey) string {
	return fmt.Sprintf(`apiVersion: imgtrust.dev/v1
kind: Policy
signers:
  ci:
    key: |
%s  security:
    key: |
%srules:
  - images: [%q]
    signatures: {threshold: 1, from: [ci]}
  - images: [%q]
    signatures: {threshold: 2, from: [ci, security]}
  - images: [%q]
    audit: true
    signatures: {threshold: 1, from: [ci]}
`, PEM(t, signers["ci"], "      "), PEM(t, signers["security"], "      "), host+"/app/**", host+"/two/**", host+"/legacy/**")
}

// NewVirtualTrust makes a trust repository with two root keys, one targets key
// and one online key, empty of listings.
func NewVirtualTrust(t testing.TB, change ...func(*trust.InitOptions)) *VirtualTrust {
	t.Helper()
	return NewVirtualTrustIn(t, NewRegistry(t), change...)
}

// NewVirtualTrustIn is NewVirtualTrust in a registry that is there.
func NewVirtualTrustIn(t testing.TB, registry *Registry, change ...func(*trust.InitOptions)) *VirtualTrust {
	t.Helper()
	v := &VirtualTrust{
		Registry: registry, T: t,
		Clock:   &Clock{now: time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)},
		Root:    []*ecdsa.PrivateKey{Key(t), Key(t)},
		Targets: []*ecdsa.PrivateKey{Key(t)}, Online: Key(t),
		Signers: map[string]*ecdsa.PrivateKey{"ci": Key(t), "security": Key(t), "mallory": Key(t)},
		State:   t.TempDir(),
	}
	v.Repository = v.Host + "/trust"
	v.Inbox = v.Repository + "/inbox"
	o := trust.InitOptions{
		Repository: v.Repository, Registry: v.Client,
		RootKeys: []crypto.Signer{v.Root[0], v.Root[1]}, TargetsKeys: []crypto.Signer{v.Targets[0]},
		OnlineKey: v.Online, Policy: []byte(Policy(t, v.Host, v.Signers)), Now: v.Clock.Now,
	}
	for _, c := range change {
		c(&o)
	}
	made, err := trust.Init(context.Background(), o)
	must(t, err)
	v.RootJSON = made.Root
	return v
}

// ClientOptions are those of a reader with a state directory.
func (v *VirtualTrust) ClientOptions(state string) trust.ClientOptions {
	return trust.ClientOptions{Repository: v.Repository, Root: v.RootJSON, State: state, Registry: v.Client, Now: v.Clock.Now}
}

// Reader opens a client with a state directory ("" for none).
func (v *VirtualTrust) Reader(state string) *trust.Client {
	v.T.Helper()
	c, err := trust.Open(v.ClientOptions(state))
	must(v.T, err)
	return c
}

// Publish runs the publisher once.
func (v *VirtualTrust) Publish() trust.Publication {
	v.T.Helper()
	p, err := trust.OpenPublisher(trust.PublisherOptions{ClientOptions: v.ClientOptions(v.State), OnlineKey: v.Online})
	must(v.T, err)
	out, err := p.Publish(context.Background())
	must(v.T, err)
	return out
}

// Release is a statement about a single manifest, created now.
func (v *VirtualTrust) Release(repo string, d v1.Descriptor, tags ...string) attest.ReleaseStatement {
	return attest.ReleaseStatement{Digest: d.Digest.String(), Release: attest.Release{
		Repository: repo, Tags: tags, Created: v.Clock.Now().UTC().Truncate(time.Second),
		Manifests: []attest.Manifest{{MediaType: string(d.MediaType), Digest: d.Digest.String(), Size: d.Size, Platform: "linux/amd64"}},
	}}
}

// Sign makes the envelope of a statement by a signer.
func (v *VirtualTrust) Sign(signer string, s attest.ReleaseStatement) attest.Envelope {
	v.T.Helper()
	payload, err := attest.EncodeRelease(s)
	must(v.T, err)
	return v.envelope(signer, payload)
}

// Revocation is a statement that revokes a digest, created now.
func (v *VirtualTrust) Revocation(repo string, digest v1.Hash) attest.RevocationStatement {
	return attest.RevocationStatement{Repository: repo, Digest: digest.String(), Revocation: attest.Revocation{
		Trust: v.Reader("").ID(), Created: v.Clock.Now().UTC().Truncate(time.Second), Reason: "a test",
	}}
}

// SignRevocation makes the envelope of a revocation.
func (v *VirtualTrust) SignRevocation(signer string, s attest.RevocationStatement) attest.Envelope {
	v.T.Helper()
	payload, err := attest.EncodeRevocation(s)
	must(v.T, err)
	return v.envelope(signer, payload)
}

func (v *VirtualTrust) envelope(signer string, payload []byte) attest.Envelope {
	v.T.Helper()
	key, err := signature.LoadECDSASigner(v.Signers[signer], crypto.SHA256)
	must(v.T, err)
	e, err := attest.Sign(context.Background(), payload, key)
	must(v.T, err)
	return e
}

// Submit leaves a statement in the inbox, as sign does.
func (v *VirtualTrust) Submit(signer string, s attest.ReleaseStatement) {
	v.T.Helper()
	v.Deliver(signer, v.Sign(signer, s))
}

// Deliver leaves an envelope in the inbox.
func (v *VirtualTrust) Deliver(signer string, e attest.Envelope) {
	v.T.Helper()
	bundle, err := attest.EncodeBundle(e, v.Signers[signer].Public())
	must(v.T, err)
	h, _, err := v1.SHA256(strings.NewReader(string(bundle)))
	must(v.T, err)
	_, err = v.Client.PutArtifact(context.Background(), v.Inbox, "s-"+h.Hex, oci.Artifact{Type: attest.BundleMediaType, Data: bundle})
	must(v.T, err)
}

// List pushes an image and lists it under a tag, signed by the signers.
func (v *VirtualTrust) List(repo, tag, content string, signers ...string) v1.Descriptor {
	v.T.Helper()
	d := Push(v.T, v.Client, repo, tag, Image(v.T, content))
	for _, s := range signers {
		v.Submit(s, v.Release(repo, d, tag))
	}
	v.Publish()
	return d
}

// Force lists statements with the online key and no check, as its thief would.
func (v *VirtualTrust) Force(edit func(context.Context, *trust.Draft)) {
	v.T.Helper()
	ctx := context.Background()
	d, err := v.Reader("").NewDraft(ctx, v.Online)
	must(v.T, err)
	edit(ctx, d)
	_, err = d.Publish(ctx)
	must(v.T, err)
}
