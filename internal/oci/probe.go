package oci

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Answer is what a probe found: Yes, No, or Unknown.
type Answer string

// The answers of a probe.
const (
	Yes     Answer = "yes"
	No      Answer = "no"
	Unknown Answer = "unknown"
)

// Finding is one thing that a registry does or does not.
type Finding struct {
	Name   string `json:"name"`
	Answer Answer `json:"answer"`
	Detail string `json:"detail"` // what was seen
}

// The names of the findings of Probe, in their order.
const (
	ProbeWrite       = "write"             // manifests with an artifact type and inlined data are taken
	ProbeReadBack    = "read after write"  // a tag is there at once
	ProbeMissing     = "404 when missing"  // a missing tag is not found, rather than forbidden
	ProbeMove        = "tags move"         // a tag may be pointed to other content
	ProbeReferrers   = "referrers API"     // referrers are listed
	ProbeFallback    = "fallback tag free" // the tag sha256-HEX is an ordinary tag
	ProbePages       = "tag pages"         // tags are listed in pages that lead to each other
	ProbeSize        = "4 MiB manifests"   // a manifest of 4 MiB less some bytes is taken
	ProbeConditional = "If-Match"          // a PUT with a wrong If-Match is refused
	ProbeDelete      = "deletion"          // a manifest is deleted by its digest
)

// Probe tries what a registry really does, in a repository of its own below
// prefix, HOST[/PREFIX], which it empties again where the registry deletes. It
// touches no other repository and makes some thirty requests.
func (c *Client) Probe(ctx context.Context, prefix string) ([]Finding, error) {
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, err
	}
	p := &prober{c: c, repo: prefix + "/imgtrust-doctor-" + hex.EncodeToString(random[:])}
	if err := parseRepository(p.repo); err != nil {
		return nil, err
	}
	for _, step := range []func(context.Context) error{p.write, p.readBack, p.missing, p.move, p.referrers, p.fallback, p.pages, p.size, p.conditional} {
		if err := step(ctx); err != nil {
			return p.found, err
		}
	}
	p.delete(ctx)
	return p.found, nil
}

// prober is the state of one Probe.
type prober struct {
	c       *Client
	repo    string
	subject v1.Descriptor
	wrote   []v1.Hash
	found   []Finding
}

func (p *prober) add(name string, answer Answer, format string, args ...any) {
	p.found = append(p.found, Finding{name, answer, fmt.Sprintf(format, args...)})
}

// answered notes yes without an error, no for the errors that say so, and
// otherwise that it could not be told.
func (p *prober) answered(name string, err error, yes string, no ...error) {
	switch {
	case err == nil:
		p.add(name, Yes, "%s", yes)
	case slices.ContainsFunc(no, func(n error) bool { return errors.Is(err, n) }):
		p.add(name, No, "%v", err)
	default:
		p.add(name, Unknown, "%v", err)
	}
}

// put writes an artifact with inlined data under a tag, or by digest.
func (p *prober) put(ctx context.Context, tag, text string, padding int) (v1.Descriptor, error) {
	raw, err := p.manifest(ctx, text, padding)
	if err != nil {
		return v1.Descriptor{}, err
	}
	h, err := p.c.PutManifest(ctx, p.repo, tag, types.OCIManifestSchema1, raw)
	if err == nil && !slices.Contains(p.wrote, h) {
		p.wrote = append(p.wrote, h)
	}
	return v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: h, Size: int64(len(raw))}, err
}

func (p *prober) manifest(ctx context.Context, text string, padding int) ([]byte, error) {
	layer, err := p.c.PutBlob(ctx, p.repo, []byte(text), "application/vnd.imgtrust.probe")
	if err != nil {
		return nil, err
	}
	layer.Data = []byte(text)
	config, err := p.c.putEmptyConfig(ctx, p.repo)
	if err != nil {
		return nil, err
	}
	return json.Marshal(v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: "application/vnd.imgtrust.probe",
		Config: config, Layers: []v1.Descriptor{layer}, Annotations: map[string]string{"padding": strings.Repeat("x", padding)}})
}

// write is the one probe without which the others make no sense.
func (p *prober) write(ctx context.Context) error {
	var err error
	if p.subject, err = p.put(ctx, "one", "one", 0); err != nil {
		return fmt.Errorf("nothing can be written to %s: %w", p.repo, err)
	}
	p.add(ProbeWrite, Yes, "a manifest with an artifact type and inlined data was taken")
	return nil
}

func (p *prober) readBack(ctx context.Context) error {
	m, err := p.c.Manifest(ctx, Reference{Repository: p.repo, Tag: "one"}, 0)
	if err == nil && m.Digest != p.subject.Digest {
		err = fmt.Errorf("%w: the tag points to %s", ErrContentMismatch, m.Digest)
	}
	p.answered(ProbeReadBack, err, "the tag was there at once", ErrNotFound, ErrContentMismatch)
	return nil
}

func (p *prober) missing(ctx context.Context) error {
	_, err := p.c.Resolve(ctx, Reference{Repository: p.repo, Tag: "missing"})
	switch {
	case errors.Is(err, ErrNotFound):
		p.add(ProbeMissing, Yes, "a missing tag is not found")
	case errors.Is(err, ErrUnauthorized):
		p.add(ProbeMissing, No, "a missing tag is answered like a forbidden one: %v", err)
	default:
		p.add(ProbeMissing, Unknown, "%v", err)
	}
	return nil
}

func (p *prober) move(ctx context.Context) error {
	second, err := p.put(ctx, "one", "two", 0)
	if err == nil {
		var now v1.Descriptor
		if now, err = p.c.Resolve(ctx, Reference{Repository: p.repo, Tag: "one"}); err == nil && now.Digest != second.Digest {
			err = fmt.Errorf("%w: the PUT was answered as done, and the tag did not move", ErrUnsupported)
		}
	}
	var refused *statusError
	if err != nil && errors.As(err, &refused) && refused.status >= 400 && refused.status < 500 {
		p.add(ProbeMove, No, "tags are immutable: %v", err)
		return nil
	}
	p.answered(ProbeMove, err, "a tag was pointed to other content", ErrUnsupported)
	return nil
}

func (p *prober) referrers(ctx context.Context) error {
	_, err := p.c.referrersAPI(ctx, p.repo, p.subject.Digest, "", defaultReferrers)
	p.answered(ProbeReferrers, err, "referrers are listed", errNoReferrersAPI)
	return nil
}

func (p *prober) fallback(ctx context.Context) error {
	m, err := p.c.manifest(ctx, Reference{Repository: p.repo, Tag: fallbackTag(p.subject.Digest)}, 0)
	switch {
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrUnauthorized):
		p.add(ProbeFallback, Yes, "the tag sha256-HEX is not taken")
	case err == nil && m.Digest == p.subject.Digest:
		p.add(ProbeFallback, No, "the tag sha256-HEX is the manifest itself: a list of referrers cannot be kept there")
	default:
		p.add(ProbeFallback, Unknown, "%v", err)
	}
	return nil
}

func (p *prober) pages(ctx context.Context) error {
	for _, tag := range []string{"b", "a"} {
		if _, err := p.put(ctx, tag, "two", 0); err != nil {
			return fmt.Errorf("writing a second tag: %w", err)
		}
	}
	s, err := p.c.session(ctx, p.repo, transport.PullScope)
	if err != nil {
		return err
	}
	page, next, err := s.tagsPage(ctx, request{method: http.MethodGet, path: "tags/list", query: map[string][]string{"n": {"1"}}, ok: []int{http.StatusOK}})
	switch {
	case err != nil:
		p.add(ProbePages, Unknown, "%v", err)
	case len(page) == 1 && next != nil:
		p.add(ProbePages, Yes, "one tag a page, and a link to the next")
	case len(page) == 3:
		p.add(ProbePages, No, "all tags come at once")
	default:
		p.add(ProbePages, No, "%d tags of 3 came, and no link to the next: a long inbox is not listed whole", len(page))
	}
	return nil
}

func (p *prober) size(ctx context.Context) error {
	_, err := p.put(ctx, "", "large", maxManifest-4096)
	var refused *statusError
	if errors.As(err, &refused) && refused.status >= 400 && refused.status < 500 {
		p.add(ProbeSize, No, "%v", err)
		return nil
	}
	p.answered(ProbeSize, err, "a manifest of almost 4 MiB was taken", ErrTooLarge)
	return nil
}

// conditional tries a PUT that a registry with preconditions must refuse.
func (p *prober) conditional(ctx context.Context) error {
	raw, err := p.manifest(ctx, "three", 0)
	if err != nil {
		return err
	}
	s, err := p.c.session(ctx, p.repo, transport.PushScope)
	if err != nil {
		return err
	}
	_, _, err = s.whole(ctx, request{method: http.MethodPut, path: "manifests/one", body: raw, ok: []int{http.StatusCreated, http.StatusOK},
		header: map[string]string{"Content-Type": string(types.OCIManifestSchema1), "If-Match": `"sha256:0000"`}})
	var refused *statusError
	switch {
	case err == nil:
		p.add(ProbeConditional, No, "a PUT with a wrong If-Match was taken")
	case errors.As(err, &refused) && refused.status == http.StatusPreconditionFailed:
		p.add(ProbeConditional, Yes, "a PUT with a wrong If-Match was refused")
	default:
		p.add(ProbeConditional, Unknown, "%v", err)
	}
	if d, err := describe(raw, types.OCIManifestSchema1); err == nil {
		p.wrote = append(p.wrote, d.Digest)
	}
	return nil
}

// delete empties the repository again, as far as the registry lets it.
func (p *prober) delete(ctx context.Context) {
	var failed error
	for _, h := range p.wrote {
		if err := p.c.Delete(ctx, Reference{Repository: p.repo, Digest: h}); err != nil && !errors.Is(err, ErrNotFound) {
			failed = err
		}
	}
	if failed == nil {
		if _, err := p.c.Resolve(ctx, Reference{Repository: p.repo, Digest: p.subject.Digest}); err == nil {
			failed = fmt.Errorf("%w: it was answered as done, and the manifest is still there", ErrUnsupported)
		}
	}
	p.answered(ProbeDelete, failed, "what was written is gone again", ErrUnsupported, ErrUnauthorized)
	if failed != nil {
		p.found[len(p.found)-1].Detail += "; the repository " + p.repo + " is left there"
	}
}
