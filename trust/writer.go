package trust

import (
	"context"
	"fmt"
	"maps"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"github.com/imgtrust/imgtrust/internal/oci"
)

// writer collects the blobs and manifests of one publication and uploads them:
// parts before what refers to them, the tag last.
type writer struct {
	registry   *oci.Client
	repository string
	base       v1.Hash // the index that this one follows; zero for a first one
	blobs      []file
	manifests  [][]byte
	bytes      int64
}

// add takes a file to upload and returns its descriptor.
func (w *writer) add(f file, inline int) v1.Descriptor {
	w.blobs = append(w.blobs, f)
	return f.descriptor(inline)
}

// addGroup takes a bins manifest to upload and returns its descriptor.
func (w *writer) addGroup(layers map[string]v1.Descriptor, bins string) (v1.Descriptor, error) {
	raw, err := encodeManifest(sortedLayers(layers))
	if err != nil {
		return v1.Descriptor{}, err
	}
	w.manifests = append(w.manifests, raw)
	d := describe(types.OCIManifestSchema1, raw)
	d.Annotations = map[string]string{binsKey: bins}
	return d, nil
}

func sortedLayers(layers map[string]v1.Descriptor) []v1.Descriptor {
	var sorted []v1.Descriptor
	for _, name := range slices.Sorted(maps.Keys(layers)) {
		sorted = append(sorted, layers[name])
	}
	return sorted
}

// finish uploads everything and switches the tag.
func (w *writer) finish(ctx context.Context, top map[string]v1.Descriptor, groups []v1.Descriptor) (v1.Hash, error) {
	topRaw, err := encodeManifest(sortedLayers(top))
	if err != nil {
		return v1.Hash{}, err
	}
	index, err := encodeIndex(topRaw, groups)
	if err != nil {
		return v1.Hash{}, err
	}
	w.blobs = append(w.blobs, file{"config", emptyType, []byte("{}")})
	w.manifests = append(w.manifests, topRaw)
	if err := w.uploadBlobs(ctx); err != nil {
		return v1.Hash{}, err
	}
	if err := w.uploadManifests(ctx); err != nil {
		return v1.Hash{}, err
	}
	if err := w.checkBase(ctx); err != nil {
		return v1.Hash{}, err
	}
	w.bytes += int64(len(index))
	h, err := w.registry.PutManifest(ctx, w.repository, Tag, types.OCIImageIndex, index)
	if err != nil {
		return h, fmt.Errorf("switching the tag %s of %s: %w", Tag, w.repository, err)
	}
	return h, nil
}

// checkBase looks once more, right before the switch, whether the tag still
// points to the index that this one follows.
func (w *writer) checkBase(ctx context.Context) error {
	if w.base == (v1.Hash{}) {
		return nil
	}
	d, err := w.registry.Resolve(ctx, oci.Reference{Repository: w.repository, Tag: Tag})
	if err != nil {
		return fmt.Errorf("looking at the trust index before switching it: %w", err)
	}
	if d.Digest != w.base {
		return fmt.Errorf("%w: the tag points to %s, this follows %s", ErrCollision, d.Digest, w.base)
	}
	return nil
}

func (w *writer) uploadBlobs(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for _, f := range w.blobs {
		w.bytes += int64(len(f.stored))
		g.Go(func() error {
			if _, err := w.registry.PutBlob(ctx, w.repository, f.stored, f.media); err != nil {
				return fmt.Errorf("uploading %s to %s: %w", f.name, w.repository, err)
			}
			return nil
		})
	}
	return g.Wait()
}

func (w *writer) uploadManifests(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for _, raw := range w.manifests {
		w.bytes += int64(len(raw))
		g.Go(func() error {
			if _, err := w.registry.PutManifest(ctx, w.repository, "", types.OCIManifestSchema1, raw); err != nil {
				return fmt.Errorf("uploading a manifest of the trust index to %s: %w", w.repository, err)
			}
			return nil
		})
	}
	return g.Wait()
}
