package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"
)

// Copied counts what a copy carried, what was there already included.
type Copied struct {
	Manifests int   `json:"manifests"` // indexes and artifacts among them
	Blobs     int   `json:"blobs"`
	Bytes     int64 `json:"bytes"` // of both
	Referrers int   `json:"referrers"`
	Legacy    int   `json:"legacy"` // tags DIGEST.sig, .att and .sbom
}

// Copy copies an image or index to another repository or layout, under the same
// digest: every platform and blob, then everything that refers to any of its
// manifests, at most 5 levels and 10,000 manifests, and the tags in which cosign
// once kept signatures. What is there already is not sent again. The tag, if dst
// has one, is set last, after the destination was asked for all of it: a part that
// was left behind is an error that names it.
func (c *Client) Copy(ctx context.Context, src, dst Location) (Copied, v1.Descriptor, error) {
	from, d, err := c.Open(ctx, src)
	if err != nil {
		return Copied{}, d, err
	}
	if dst.Reference.Digest != (v1.Hash{}) && dst.Reference.Digest != d.Digest {
		return Copied{}, d, fmt.Errorf("copying to %s: %w: the image is %s", dst, ErrContentMismatch, d.Digest)
	}
	k := &copier{client: c, src: src, from: from, seen: map[v1.Hash]bool{}, blobs: map[v1.Hash]bool{}}
	if k.to, err = c.sink(dst); err != nil {
		return Copied{}, d, err
	}
	for _, step := range []func(context.Context, v1.Descriptor) error{k.image, k.referrers, k.legacy, k.compare, k.finish(dst)} {
		if err := step(ctx, d); err != nil {
			return k.Copied, d, fmt.Errorf("copying %s to %s: %w", src, dst, err)
		}
	}
	return k.Copied, d, nil
}

const (
	maxCopyDepth     = 5      // levels of indexes, and of referrers of referrers
	maxCopyManifests = 10_000 // manifests of one copy
	copiesAtATime    = 8      // blobs of a manifest
)

// sink takes the content of a copy.
type sink interface {
	blob(ctx context.Context, from Source, d v1.Descriptor) error
	manifest(ctx context.Context, m Manifest) error
	// attach takes a manifest that refers to another one, and has it found.
	attach(ctx context.Context, subject v1.Hash, m Manifest) error
	// has asks whether a manifest is there; attached, whether it is found by its subject.
	has(ctx context.Context, h v1.Hash) error
	attached(ctx context.Context, subject v1.Hash) ([]v1.Descriptor, error)
	tag(ctx context.Context, d v1.Descriptor, tag string) error
}

func (c *Client) sink(l Location) (sink, error) {
	if l.Layout != "" {
		return newLayoutSink(l.Layout)
	}
	return repoSink{c, l.Reference.Repository}, nil
}

// copier is the state of one Copy.
type copier struct {
	Copied
	client *Client
	src    Location
	from   Source
	to     sink
	seen   map[v1.Hash]bool // manifests that were copied
	order  []v1.Hash
	blobs  map[v1.Hash]bool
	links  []link
}

// link is a manifest that refers to another one.
type link struct{ subject, referrer v1.Hash }

// image copies a manifest with all that it consists of.
func (k *copier) image(ctx context.Context, d v1.Descriptor) error {
	m, err := k.tree(ctx, d, 0)
	if err != nil || m == nil {
		return err
	}
	return k.to.manifest(ctx, *m)
}

// tree copies what a manifest consists of and returns the manifest, which the
// caller puts; nil when it was copied before.
func (k *copier) tree(ctx context.Context, d v1.Descriptor, depth int) (*Manifest, error) {
	if k.seen[d.Digest] {
		return nil, nil
	}
	if depth > maxCopyDepth || len(k.seen) >= maxCopyManifests {
		return nil, fmt.Errorf("%w: more than %d levels or %d manifests", ErrTooLarge, maxCopyDepth, maxCopyManifests)
	}
	k.seen[d.Digest] = true
	m, err := k.from.Manifest(ctx, d.Digest)
	if err != nil {
		return nil, err
	}
	k.order = append(k.order, d.Digest)
	k.Manifests++
	k.Bytes += int64(len(m.Bytes))
	if !m.MediaType.IsIndex() {
		return &m, k.layers(ctx, m)
	}
	index, err := decodeIndex(m)
	if err != nil {
		return nil, err
	}
	for _, child := range index.Manifests {
		part, err := k.tree(ctx, child, depth+1)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", child.Digest, err)
		}
		if part == nil {
			continue
		}
		if err := k.to.manifest(ctx, *part); err != nil {
			return nil, err
		}
	}
	return &m, nil
}

func (k *copier) layers(ctx context.Context, m Manifest) error {
	image, err := decodeImage(m)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(copiesAtATime)
	for _, d := range append([]v1.Descriptor{image.Config}, image.Layers...) {
		if k.blobs[d.Digest] {
			continue
		}
		k.blobs[d.Digest] = true
		k.Blobs++
		k.Bytes += d.Size
		g.Go(func() error {
			if err := k.to.blob(ctx, k.from, d); err != nil {
				return fmt.Errorf("blob %s: %w", d.Digest, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// referrers copies what refers to any manifest of the copy, and what refers to
// that.
func (k *copier) referrers(ctx context.Context, _ v1.Descriptor) error {
	for level, begin := 0, 0; begin < len(k.order); level++ {
		if level > maxCopyDepth {
			return fmt.Errorf("%w: referrers of referrers on more than %d levels", ErrTooLarge, maxCopyDepth)
		}
		subjects := slices.Clone(k.order[begin:])
		begin = len(k.order)
		for _, subject := range subjects {
			if err := k.referrersOf(ctx, subject); err != nil {
				return err
			}
		}
	}
	return nil
}

func (k *copier) referrersOf(ctx context.Context, subject v1.Hash) error {
	list, err := k.client.referrersAt(ctx, k.src, subject)
	if err != nil {
		return err
	}
	for _, d := range list {
		m, err := k.tree(ctx, d, 0)
		if err != nil {
			return fmt.Errorf("referrer %s of %s: %w", d.Digest, subject, err)
		}
		if m == nil {
			continue
		}
		if err := k.to.attach(ctx, subject, *m); err != nil {
			return err
		}
		k.Referrers++
		k.links = append(k.links, link{subject, d.Digest})
	}
	return nil
}

// referrersAt lists the referrers of a manifest where an image is.
func (c *Client) referrersAt(ctx context.Context, l Location, subject v1.Hash) ([]v1.Descriptor, error) {
	if l.Layout != "" {
		return layoutSource{dir: l.Layout}.referrers(subject)
	}
	return c.Referrers(ctx, l.Reference.Repository, subject, "", 0)
}

// legacyTags are the tags in which cosign keeps what belongs to a manifest, beside
// the list of its referrers.
func legacyTags(h v1.Hash) []string {
	base := fallbackTag(h)
	return []string{base + ".sig", base + ".att", base + ".sbom"}
}

// legacy copies cosign's tags of every manifest of the copy.
func (k *copier) legacy(ctx context.Context, _ v1.Descriptor) error {
	for _, h := range slices.Clone(k.order) {
		for _, tag := range legacyTags(h) {
			d, err := k.tagged(ctx, tag)
			if errors.Is(err, ErrNotFound) {
				continue
			}
			if err != nil {
				return fmt.Errorf("tag %s: %w", tag, err)
			}
			if err := k.image(ctx, d); err != nil {
				return fmt.Errorf("tag %s: %w", tag, err)
			}
			if err := k.to.tag(ctx, d, tag); err != nil {
				return err
			}
			k.Legacy++
		}
	}
	return nil
}

// tagged finds what a tag of the source points to.
func (k *copier) tagged(ctx context.Context, tag string) (v1.Descriptor, error) {
	if k.src.Layout != "" {
		return layoutSource{dir: k.src.Layout}.tagged(tag)
	}
	return k.client.Resolve(ctx, Reference{Repository: k.src.Reference.Repository, Tag: tag})
}

// compare asks the destination for everything that was copied.
func (k *copier) compare(ctx context.Context, _ v1.Descriptor) error {
	for _, h := range k.order {
		if err := k.to.has(ctx, h); err != nil {
			return fmt.Errorf("left behind: %s: %w", h, err)
		}
	}
	lists := map[v1.Hash][]v1.Descriptor{}
	for _, l := range k.links {
		if _, asked := lists[l.subject]; !asked {
			found, err := k.to.attached(ctx, l.subject)
			if err != nil {
				return err
			}
			lists[l.subject] = found
		}
		if !slices.ContainsFunc(lists[l.subject], func(d v1.Descriptor) bool { return d.Digest == l.referrer }) {
			return fmt.Errorf("left behind: %s does not find its referrer %s", l.subject, l.referrer)
		}
	}
	return nil
}

// finish names the image at the destination.
func (k *copier) finish(dst Location) func(context.Context, v1.Descriptor) error {
	return func(ctx context.Context, d v1.Descriptor) error { return k.to.tag(ctx, d, dst.Reference.Tag) }
}

// repoSink writes to a repository.
type repoSink struct {
	c    *Client
	repo string
}

func (s repoSink) blob(ctx context.Context, from Source, d v1.Descriptor) error {
	ref, opts, err := s.c.Remote(Reference{Repository: s.repo, Digest: d.Digest})
	if err != nil {
		return err
	}
	return remote.WriteLayer(ref.Context(), sourceLayer{ctx: func() context.Context { return ctx }, from: from, d: d}, append(opts, remote.WithContext(ctx))...)
}

func (s repoSink) manifest(ctx context.Context, m Manifest) error {
	_, err := s.c.PutManifest(ctx, s.repo, "", m.MediaType, m.Bytes)
	return err
}

func (s repoSink) attach(ctx context.Context, subject v1.Hash, m Manifest) error {
	_, header, err := s.c.putManifest(ctx, s.repo, "", m.MediaType, m.Bytes)
	if err != nil {
		return err
	}
	d, err := s.c.typed(ctx, s.repo, m.Descriptor())
	if err != nil {
		return err
	}
	return s.c.list(ctx, s.repo, subject, d, header)
}

func (s repoSink) has(ctx context.Context, h v1.Hash) error {
	_, err := s.c.Resolve(ctx, Reference{Repository: s.repo, Digest: h})
	return err
}

func (s repoSink) attached(ctx context.Context, subject v1.Hash) ([]v1.Descriptor, error) {
	return s.c.Referrers(ctx, s.repo, subject, "", 0)
}

func (s repoSink) tag(ctx context.Context, d v1.Descriptor, tag string) error {
	if tag == "" {
		return nil
	}
	m, err := s.c.Manifest(ctx, Reference{Repository: s.repo, Digest: d.Digest}, 0)
	if err != nil {
		return err
	}
	_, err = s.c.PutManifest(ctx, s.repo, tag, m.MediaType, m.Bytes)
	return err
}

// sourceLayer is a blob as ggcr uploads it; nothing of it is decompressed.
type sourceLayer struct {
	ctx  func() context.Context
	from Source
	d    v1.Descriptor
}

func (l sourceLayer) Digest() (v1.Hash, error)             { return l.d.Digest, nil }
func (l sourceLayer) DiffID() (v1.Hash, error)             { return v1.Hash{}, ErrUnsupported }
func (l sourceLayer) Size() (int64, error)                 { return l.d.Size, nil }
func (l sourceLayer) MediaType() (types.MediaType, error)  { return l.d.MediaType, nil }
func (l sourceLayer) Uncompressed() (io.ReadCloser, error) { return nil, ErrUnsupported }
func (l sourceLayer) Compressed() (io.ReadCloser, error) {
	if bytes.Equal(l.d.Data, []byte("{}")) && l.d.Size == 2 {
		return verifying(io.NopCloser(bytes.NewReader(l.d.Data)), l.d), nil
	}
	return l.from.Blob(l.ctx(), l.d)
}

// marshalIndex writes the index of a layout.
func marshalIndex(entries []v1.Descriptor) ([]byte, error) {
	return json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: entries})
}
