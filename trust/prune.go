package trust

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgtrust/imgtrust/internal/oci"
)

// prunesNothing tells whether a registry does not delete: what waits to be removed
// then stays, and is passed over.
func prunesNothing(err error) bool {
	return errors.Is(err, oci.ErrUnsupported) || errors.Is(err, oci.ErrUnauthorized)
}

// supersededFor is how long a part that no index names any more is kept, for
// readers that are still walking an older one.
const supersededFor = time.Hour

// superseded are manifests of indexes that were replaced, by digest, with the time.
type superseded struct {
	Format    int                  `json:"format"`
	Manifests map[string]time.Time `json:"manifests"`
}

// pruneSuperseded notes which manifests the last publish has replaced, and deletes
// those that were replaced an hour ago and that the present index does not name.
// Their blobs are left to the registry's garbage collection.
func (p *Publisher) pruneSuperseded(ctx context.Context, old *view) error {
	if p.opts.State == "" {
		return nil
	}
	list, err := p.client.dir.superseded()
	if err != nil {
		return err
	}
	present, now := manifestsOf(p.client.last()), p.client.Now().UTC()
	for digest := range manifestsOf(old) {
		if _, noted := list.Manifests[digest]; !noted && len(list.Manifests) < maxSuperseded {
			list.Manifests[digest] = now
		}
	}
	for digest, since := range list.Manifests {
		switch {
		case present[digest]:
			delete(list.Manifests, digest)
		case now.Sub(since) >= supersededFor:
			err := p.deleteManifest(ctx, digest)
			if prunesNothing(err) {
				return nil
			}
			if err != nil && !errors.Is(err, oci.ErrNotFound) {
				return fmt.Errorf("pruning what was superseded: %w", err)
			}
			delete(list.Manifests, digest)
		}
	}
	return p.client.dir.keepSuperseded(list)
}

func (p *Publisher) deleteManifest(ctx context.Context, digest string) error {
	h, err := v1.NewHash(digest)
	if err != nil {
		return err
	}
	return p.opts.Registry.Delete(ctx, oci.Reference{Repository: p.opts.Repository, Digest: h})
}

// manifestsOf are the digests of an index and of all manifests that it names.
func manifestsOf(v *view) map[string]bool {
	all := map[string]bool{describe("", v.raw.Index).Digest.String(): true}
	var index manifest
	if m, err := decodeManifest(v.raw.Index, types.OCIImageIndex); err == nil {
		index = m
	}
	for _, d := range index.Manifests {
		all[d.Digest.String()] = true
	}
	return all
}

func (d *stateDir) superseded() (superseded, error) {
	s := superseded{Format: 1}
	err := readState(filepath.Join(d.path, "superseded.json"), &s)
	if s.Manifests == nil {
		s.Manifests = map[string]time.Time{}
	}
	return s, err
}

func (d *stateDir) keepSuperseded(s superseded) error {
	return writeState(filepath.Join(d.path, "superseded.json"), s)
}
