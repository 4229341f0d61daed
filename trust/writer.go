package trust

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"github.com/imgtrust/imgtrust/internal/oci"
)

// writer writes one publication: blobs as they come, at most eight at a time,
// then the manifests that refer to them, the tag last. Until the tag is switched
// nobody sees any of it. Its add methods may be called concurrently.
type writer struct {
	registry   *oci.Client
	repository string
	base       v1.Hash // the index that this one follows; zero for a first one
	bytes      atomic.Int64

	uploads errgroup.Group
	failed  atomic.Bool // an upload failed: the others are not tried

	mu        sync.Mutex
	manifests [][]byte
}

func newWriter(registry *oci.Client, repository string, base v1.Hash) *writer {
	w := &writer{registry: registry, repository: repository, base: base}
	w.uploads.SetLimit(8)
	return w
}

// abandon waits for the uploads and returns why nothing came of them.
func (w *writer) abandon(err error) error {
	w.failed.Store(true)
	return errors.Join(err, w.uploads.Wait())
}

// add uploads a file and returns its descriptor, waiting while too many others
// are on their way. Whether the upload succeeds, finish tells.
func (w *writer) add(ctx context.Context, f file, inline int) v1.Descriptor {
	w.bytes.Add(int64(len(f.stored)))
	w.uploads.Go(func() error {
		if w.failed.Load() {
			return nil
		}
		if _, err := w.registry.PutBlob(ctx, w.repository, f.stored, f.media); err != nil {
			w.failed.Store(true)
			return fmt.Errorf("uploading %s to %s: %w", f.name, w.repository, err)
		}
		return nil
	})
	return f.descriptor(inline)
}

// addTop uploads a file of the top manifest.
func (w *writer) addTop(ctx context.Context, top map[string]v1.Descriptor, f offlineFile) error {
	stored, err := newFile(f.name, f.media, f.data)
	if err != nil {
		return err
	}
	top[f.name] = w.add(ctx, stored, f.inline)
	return nil
}

// addGroup takes a bins manifest to upload and returns its descriptor.
func (w *writer) addGroup(layers map[string]v1.Descriptor, bins string) (v1.Descriptor, error) {
	raw, err := encodeManifest(sortedLayers(layers))
	if err != nil {
		return v1.Descriptor{}, err
	}
	w.keep(raw)
	d := describe(types.OCIManifestSchema1, raw)
	d.Annotations = map[string]string{binsKey: bins}
	return d, nil
}

// keep holds a manifest until its blobs are there.
func (w *writer) keep(raw []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.manifests = append(w.manifests, raw)
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
	w.add(ctx, file{"config", emptyType, []byte("{}")}, notInline)
	w.keep(topRaw)
	if err := w.uploads.Wait(); err != nil {
		return v1.Hash{}, err
	}
	if err := w.uploadManifests(ctx); err != nil {
		return v1.Hash{}, err
	}
	if err := w.checkBase(ctx); err != nil {
		return v1.Hash{}, err
	}
	w.bytes.Add(int64(len(index)))
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

func (w *writer) uploadManifests(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for _, raw := range w.manifests {
		w.bytes.Add(int64(len(raw)))
		g.Go(func() error {
			if _, err := w.registry.PutManifest(ctx, w.repository, "", types.OCIManifestSchema1, raw); err != nil {
				return fmt.Errorf("uploading a manifest of the trust index to %s: %w", w.repository, err)
			}
			return nil
		})
	}
	return g.Wait()
}
