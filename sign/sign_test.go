package sign_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/internal/oci"
	"github.com/imgtrust/imgtrust/sign"
)

var ctx = context.Background()

var created = time.Date(2026, 11, 24, 1, 2, 3, 4, time.UTC)

func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// place is a registry of its own, with what was written to it.
type place struct {
	t      testing.TB
	host   string
	client *oci.Client

	mu     sync.Mutex
	writes []string // "PUT /v2/app/manifests/v1"
	refuse string   // writes to a path that holds this are refused
}

func newPlace(t testing.TB, referrers bool) *place {
	t.Helper()
	p := &place{t: t, client: oci.New(oci.Options{})}
	inner := registry.New(registry.WithReferrersSupport(referrers), registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.note(r) {
			http.Error(w, "read-only", http.StatusForbidden)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	p.host = strings.TrimPrefix(server.URL, "http://")
	return p
}

// note remembers writes of manifests and tells whether r is refused.
func (p *place) note(r *http.Request) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	write := r.Method != http.MethodGet && r.Method != http.MethodHead
	if write && strings.Contains(r.URL.Path, "/manifests/") {
		p.writes = append(p.writes, r.Method+" "+r.URL.Path)
	}
	return write && p.refuse != "" && strings.Contains(r.URL.Path, p.refuse)
}

func (p *place) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.writes = nil
}

func (p *place) written() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.writes)
}

// image is one platform with one layer of the given content.
func image(t testing.TB, platform, content string) v1.Image {
	t.Helper()
	img := mutate.MediaType(mutate.ConfigMediaType(empty.Image, types.OCIConfigJSON), types.OCIManifestSchema1)
	img = must[v1.Image](t)(mutate.AppendLayers(img, static.NewLayer([]byte(content), types.OCIUncompressedLayer)))
	config := must[*v1.ConfigFile](t)(img.ConfigFile()).DeepCopy()
	parsed := must[*v1.Platform](t)(v1.ParsePlatform(platform))
	config.OS, config.Architecture, config.Variant = parsed.OS, parsed.Architecture, parsed.Variant
	config.Config.User, config.Config.Entrypoint = "65532", []string{"/app", "--serve"}
	return must[v1.Image](t)(mutate.ConfigFile(img, config))
}

// push writes an image or index and returns REPOSITORY:TAG@DIGEST.
func (p *place) push(repo, tag string, what remote.Taggable) oci.Reference {
	p.t.Helper()
	ref := must[name.Tag](p.t)(name.NewTag(p.host + "/" + repo + ":" + tag))
	if err := remote.Push(ref, what); err != nil {
		p.t.Fatal(err)
	}
	raw := must[[]byte](p.t)(what.RawManifest())
	digest, _, _ := v1.SHA256(bytes.NewReader(raw))
	return oci.Reference{Repository: p.host + "/" + repo, Tag: tag, Digest: digest}
}

func newKey(t testing.TB) *sign.Key {
	t.Helper()
	return must[*sign.Key](t)(sign.GenerateKey(""))
}

func (p *place) options(t testing.TB) sign.Options {
	return sign.Options{Key: newKey(t), Client: p.client, Inbox: p.host + "/trust/inbox", Created: created}
}

// attached reads the bundles attached to an image, by predicate type.
func (p *place) attached(image oci.Reference, key *sign.Key) map[string]attest.Statement {
	p.t.Helper()
	found := map[string]attest.Statement{}
	referrers := must[[]v1.Descriptor](p.t)(p.client.Referrers(ctx, image.Repository, image.Digest, "", 0))
	for _, d := range referrers {
		a := must[oci.Artifact](p.t)(p.client.Artifact(ctx, image.Repository, d.Digest, attest.MaxBundle))
		s := p.open(a, key)
		if _, twice := found[s.PredicateType]; twice {
			p.t.Errorf("%s is attached twice", s.PredicateType)
		}
		found[s.PredicateType] = s
		want := map[string]string{"dev.sigstore.bundle.content": "dsse-envelope", "dev.sigstore.bundle.predicateType": s.PredicateType}
		if !reflect.DeepEqual(a.Annotations, want) {
			p.t.Errorf("annotations %v, want %v", a.Annotations, want)
		}
	}
	return found
}

func (p *place) open(a oci.Artifact, key *sign.Key) attest.Statement {
	p.t.Helper()
	b := must[attest.Bundle](p.t)(attest.DecodeBundle(a.Data))
	if err := b.Envelope.Verify(key.Public()); err != nil {
		p.t.Fatal(err)
	}
	return must[attest.Statement](p.t)(attest.DecodeStatement(b.Envelope.Payload))
}

// inbox reads the release under a tag of the inbox.
func (p *place) inbox(tag string, key *sign.Key) attest.ReleaseStatement {
	p.t.Helper()
	inbox := oci.Reference{Repository: p.host + "/trust/inbox", Tag: tag}
	m := must[oci.Manifest](p.t)(p.client.Manifest(ctx, inbox, 0))
	a := must[oci.Artifact](p.t)(p.client.Artifact(ctx, inbox.Repository, m.Digest, attest.MaxBundle))
	p.open(a, key)
	return must[attest.ReleaseStatement](p.t)(attest.DecodeRelease(must[attest.Bundle](p.t)(attest.DecodeBundle(a.Data)).Envelope.Payload))
}

func TestSignsAnImage(t *testing.T) {
	for summary, referrers := range map[string]bool{"with the referrers API": true, "with the fallback tag": false} {
		t.Run(summary, func(t *testing.T) {
			p := newPlace(t, referrers)
			img := image(t, "linux/arm/v7", "hello")
			ref := p.push("team/app", "v1", img)
			p.forget()
			o := p.options(t)
			o.Annotations = map[string]string{"git": "0123"}
			o.Expires = created.Add(24 * time.Hour)
			results := must[[]sign.Result](t)(sign.Images(ctx, []oci.Reference{ref}, o))

			if len(results) != 1 || results[0].Image != ref.AtDigest(ref.Digest) || len(results[0].Bundles) != 2 {
				t.Fatalf("results %+v", results)
			}
			statements := p.attached(ref, o.Key)
			if s := statements[attest.CosignSignType]; len(statements) != 2 || s.Digest != ref.Digest.String() || s.Name != "" {
				t.Errorf("attached %+v", statements)
			}
			manifest := must[*v1.Manifest](t)(img.Manifest())
			want := attest.ReleaseStatement{Digest: ref.Digest.String(), Release: attest.Release{
				Repository:  p.host + "/team/app",
				Tags:        []string{"v1"},
				Created:     created.Truncate(time.Second),
				Expires:     created.Truncate(time.Second).Add(24 * time.Hour),
				Annotations: map[string]string{"git": "0123"},
				Manifests: []attest.Manifest{{
					MediaType: "application/vnd.oci.image.manifest.v1+json", Digest: ref.Digest.String(), Size: must[int64](t)(img.Size()),
					Platform: "linux/arm/v7", Config: manifest.Config.Digest.String(),
				}},
				Config: &attest.Config{User: "65532", Entrypoint: []string{"/app", "--serve"}, ImageSize: manifest.Config.Size + 5, Layers: 1},
			}}
			if got := p.inbox(results[0].InboxTag, o.Key); !reflect.DeepEqual(got, want) {
				t.Errorf("release\n%+v\nwant\n%+v", got, want)
			}
			if !reflect.DeepEqual(results[0].Release, want) {
				t.Errorf("result %+v", results[0].Release)
			}
			if "s-"+strings.TrimPrefix(results[0].Bundles[0], "sha256:") != results[0].InboxTag {
				t.Errorf("inbox tag %s, bundle %s", results[0].InboxTag, results[0].Bundles[0])
			}
			p.onlyAppended(ref)
		})
	}
}

// onlyAppended checks that no tag was written but the fallback tag and the inbox's.
func (p *place) onlyAppended(ref oci.Reference) {
	p.t.Helper()
	for _, w := range p.written() {
		byDigest := strings.Contains(w, "/manifests/sha256:")
		fallback := strings.HasSuffix(w, "/manifests/sha256-"+ref.Digest.Hex)
		inbox := strings.Contains(w, "/trust/inbox/manifests/s-")
		if !byDigest && !fallback && !inbox {
			p.t.Errorf("wrote %s", w)
		}
	}
}

// index is what BuildKit makes: two platforms, each with attestations.
func index(t testing.TB) (v1.ImageIndex, []v1.Image) {
	t.Helper()
	amd, arm := image(t, "linux/amd64", "one"), image(t, "linux/arm64/v8", "two")
	add := func(img v1.Image, platform string, annotations map[string]string) mutate.IndexAddendum {
		p := must[*v1.Platform](t)(v1.ParsePlatform(platform))
		return mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: p, Annotations: annotations}}
	}
	about := func(img v1.Image, layers ...mutate.Addendum) mutate.IndexAddendum {
		attestation := must[v1.Image](t)(mutate.Append(mutate.MediaType(empty.Image, types.OCIManifestSchema1), layers...))
		return add(attestation, "unknown/unknown", map[string]string{
			"vnd.docker.reference.type":   "attestation-manifest",
			"vnd.docker.reference.digest": must[v1.Hash](t)(img.Digest()).String(),
		})
	}
	statement := func(content, kind string) mutate.Addendum {
		return mutate.Addendum{
			Layer:       static.NewLayer([]byte(content), "application/vnd.in-toto+json"),
			Annotations: map[string]string{"in-toto.io/predicate-type": kind},
		}
	}
	return mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex),
		about(arm, statement("arm provenance", "https://slsa.dev/provenance/v1")),
		add(amd, "linux/amd64", nil),
		add(arm, "linux/arm64/v8", nil),
		about(amd, statement("sbom", "https://spdx.dev/Document"), statement("provenance", "https://slsa.dev/provenance/v1")),
	), []v1.Image{amd, arm}
}

func digestOf(content string) string {
	h, _, _ := v1.SHA256(strings.NewReader(content))
	return h.String()
}

func TestSignsAnIndex(t *testing.T) {
	p := newPlace(t, true)
	idx, platforms := index(t)
	ref := p.push("team/app", "v1", idx)
	o := p.options(t)
	got := must[[]sign.Result](t)(sign.Images(ctx, []oci.Reference{ref}, o))[0].Release
	want := []attest.Manifest{{MediaType: "application/vnd.oci.image.index.v1+json", Digest: ref.Digest.String(), Size: must[int64](t)(idx.Size())}}
	for i, platform := range []string{"linux/amd64", "linux/arm64/v8"} {
		want = append(want, attest.Manifest{
			MediaType: "application/vnd.oci.image.manifest.v1+json",
			Digest:    must[v1.Hash](t)(platforms[i].Digest()).String(),
			Size:      must[int64](t)(platforms[i].Size()),
			Platform:  platform,
			Config:    must[v1.Hash](t)(platforms[i].ConfigName()).String(),
		})
	}
	if !reflect.DeepEqual(got.Manifests, want) {
		t.Errorf("manifests\n%+v\nwant\n%+v", got.Manifests, want)
	}
	if got.Provenance != digestOf("provenance") || got.SBOM != digestOf("sbom") {
		t.Errorf("provenance %s, SBOM %s: not those of the first platform", got.Provenance, got.SBOM)
	}
	o.Provenance = digestOf("given")
	got = must[[]sign.Result](t)(sign.Images(ctx, []oci.Reference{ref}, o))[0].Release
	if got.Provenance != digestOf("given") || got.SBOM != digestOf("sbom") {
		t.Errorf("provenance %s, SBOM %s: not as given", got.Provenance, got.SBOM)
	}
}

func TestTagsOfTheStatement(t *testing.T) {
	p := newPlace(t, true)
	ref := p.push("app", "v1", image(t, "linux/amd64", "x"))
	rows := []struct {
		summary string
		image   oci.Reference
		tags    []string
		want    []string
	}{
		{"the tag given with the digest", ref, nil, []string{"v1"}},
		{"no tag given", ref.AtDigest(ref.Digest), nil, nil},
		{"tags by option", ref, []string{"v2", "latest"}, []string{"v2", "latest"}},
	}
	for _, row := range rows {
		o := p.options(t)
		o.Tags = row.tags
		got := must[[]sign.Result](t)(sign.Images(ctx, []oci.Reference{row.image}, o))[0].Release.Tags
		if !reflect.DeepEqual(got, row.want) {
			t.Errorf("%s: %v, want %v", row.summary, got, row.want)
		}
	}
}

func TestRefusesTags(t *testing.T) {
	p := newPlace(t, true)
	ref := p.push("app", "v1", image(t, "linux/amd64", "x"))
	p.forget()
	rows := []struct{ summary, image, want, hint string }{
		{"a tag that exists", p.host + "/app:v1", "has no digest", "sign " + ref.String() + " if that"},
		{"a tag that does not exist", p.host + "/app:v2", "has no digest", "with the digest that the build printed"},
		{"neither tag nor digest", p.host + "/app", "has no digest", "with the digest that the build printed"},
	}
	for _, row := range rows {
		image := must[oci.Reference](t)(oci.ParseReference(row.image))
		results, err := sign.Images(ctx, []oci.Reference{ref, image}, p.options(t))
		refused, ok := err.(*sign.DigestError)
		if !ok || results != nil || !strings.Contains(err.Error(), row.want) || !strings.Contains(refused.Hint(), row.hint) {
			t.Errorf("%s: %v, %v", row.summary, results, err)
		}
	}
	if w := p.written(); len(w) != 0 {
		t.Errorf("wrote %v although an image was refused", w)
	}
}

func TestOneFailureDoesNotLoseTheOthers(t *testing.T) {
	p := newPlace(t, false)
	var images []oci.Reference
	for i := range 12 {
		images = append(images, p.push(fmt.Sprintf("app%d", i%3), fmt.Sprintf("v%d", i), image(t, "linux/amd64", fmt.Sprint(i))))
	}
	missing := images[5]
	missing.Digest.Hex = strings.Repeat("0", 64)
	images[5] = missing
	o := p.options(t)
	results, err := sign.Images(ctx, images, o)
	if err == nil || !strings.Contains(err.Error(), "signing "+missing.String()) || strings.Count(err.Error(), "signing ") != 1 {
		t.Errorf("error %v", err)
	}
	if len(results) != 11 {
		t.Fatalf("%d results", len(results))
	}
	tags := map[string]bool{}
	for i, r := range results {
		want := images[i]
		if i >= 5 {
			want = images[i+1]
		}
		if r.Image != want.AtDigest(want.Digest) || len(p.attached(want, o.Key)) != 2 {
			t.Errorf("result %d is %s, want %s", i, r.Image, want)
		}
		p.inbox(r.InboxTag, o.Key)
		tags[r.InboxTag] = true
	}
	if len(tags) != 11 {
		t.Errorf("%d inbox tags", len(tags))
	}
}

func TestTwoSignersAppend(t *testing.T) {
	p := newPlace(t, false)
	ref := p.push("app", "v1", image(t, "linux/amd64", "x"))
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			if _, err := sign.Images(ctx, []oci.Reference{ref}, p.options(t)); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	referrers := must[[]v1.Descriptor](t)(p.client.Referrers(ctx, ref.Repository, ref.Digest, "", 0))
	tags := must[[]string](t)(p.client.Tags(ctx, p.host+"/trust/inbox", 0))
	if len(referrers) != 8 || len(tags) != 4 {
		t.Errorf("%d referrers and %d inbox tags, want 8 and 4", len(referrers), len(tags))
	}
}

func TestFailures(t *testing.T) {
	raw := func(mt types.MediaType, body string) func(*place) oci.Reference {
		return func(p *place) oci.Reference {
			h := must[v1.Hash](t)(p.client.PutManifest(ctx, p.host+"/app", "raw", mt, []byte(body)))
			return oci.Reference{Repository: p.host + "/app", Digest: h}
		}
	}
	nested := func(p *place) oci.Reference {
		idx, _ := index(t)
		return p.push("app", "v1", mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: idx}))
	}
	orphaned := func(p *place) oci.Reference {
		idx, platforms := index(t)
		ref := p.push("app", "v1", idx)
		if err := p.client.Delete(ctx, ref.AtDigest(must[v1.Hash](t)(platforms[1].Digest()))); err != nil {
			t.Fatal(err)
		}
		return ref
	}
	good := func(p *place) oci.Reference { return p.push("app", "v1", image(t, "linux/amd64", "x")) }
	rows := []struct {
		summary string
		image   func(*place) oci.Reference
		change  func(*place, *sign.Options)
		want    string
	}{
		{"the inbox cannot be written", good, func(p *place, _ *sign.Options) { p.refuse = "/trust/inbox/" }, "writing to the inbox"},
		{"the image's repository cannot be written", good, func(p *place, _ *sign.Options) { p.refuse = "/v2/app/" }, "attaching the bundle of https://imgtrust.dev/release/v1"},
		{"a bad tag", good, func(_ *place, o *sign.Options) { o.Tags = []string{"a b"} }, "tags[0]"},
		{"expires in the past", good, func(_ *place, o *sign.Options) { o.Expires = created.Add(-time.Hour) }, "expires: not after created"},
		{"annotations beyond the bound", good, func(_ *place, o *sign.Options) {
			o.Annotations = map[string]string{"k": strings.Repeat("x", attest.MaxAnnotationBytes)}
		}, "annotations: more than"},
		{"no key", good, func(_ *place, o *sign.Options) { o.Key = nil }, "no key"},
		{"no inbox", good, func(_ *place, o *sign.Options) { o.Inbox = "" }, "no inbox"},
		{"an index without platforms", raw(types.OCIImageIndex, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`), nil, "has no platform"},
		{"an index in an index", nested, nil, "is not an image"},
		{"an index whose child is missing", orphaned, nil, "not found"},
		{"an image whose config is missing", raw(types.OCIManifestSchema1, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":2,"digest":"`+digestOf("{}")+`"},"layers":[]}`), nil, "config " + digestOf("{}")},
	}
	for _, row := range rows {
		t.Run(row.summary, func(t *testing.T) {
			p := newPlace(t, true)
			ref, o := row.image(p), p.options(t)
			if row.change != nil {
				row.change(p, &o)
			}
			results, err := sign.Images(ctx, []oci.Reference{ref}, o)
			if err == nil || !strings.Contains(err.Error(), row.want) || len(results) != 0 {
				t.Errorf("%v, error %v, want %q", results, err, row.want)
			}
		})
	}
}

func TestArtifactsWithoutImageConfigAreSigned(t *testing.T) {
	p := newPlace(t, true)
	d := must[v1.Descriptor](t)(p.client.PutArtifact(ctx, p.host+"/chart", "v1", oci.Artifact{Type: "application/x-chart", Data: []byte("x")}))
	ref := oci.Reference{Repository: p.host + "/chart", Digest: d.Digest}
	got := must[[]sign.Result](t)(sign.Images(ctx, []oci.Reference{ref}, p.options(t)))[0].Release
	if got.Config != nil || got.Manifests[0].Platform != "" || got.Manifests[0].Config != digestOf("{}") {
		t.Errorf("%+v", got)
	}
}

func TestCanceled(t *testing.T) {
	p := newPlace(t, true)
	ref := p.push("app", "v1", image(t, "linux/amd64", "x"))
	p.forget()
	done, cancel := context.WithCancel(ctx)
	cancel()
	results, err := sign.Images(done, []oci.Reference{ref}, p.options(t))
	if err == nil || len(results) != 0 || len(p.written()) != 0 {
		t.Errorf("%v, %v, wrote %v", results, err, p.written())
	}
}

// A statement is compact: what follows from the manifest is not repeated.
func TestSizeOfARelease(t *testing.T) {
	p := newPlace(t, true)
	ref := p.push("app", "v1", image(t, "linux/amd64", "x"))
	r := must[[]sign.Result](t)(sign.Images(ctx, []oci.Reference{ref}, p.options(t)))[0]
	payload := must[[]byte](t)(attest.EncodeRelease(r.Release))
	if len(payload) > 900 || !json.Valid(payload) {
		t.Errorf("%d bytes: %s", len(payload), payload)
	}
}
