// Package layer turns the layers of an image into a directory tree.
//
// The promise, for any bytes that a layer may hold:
//
//   - nothing outside the directory is read or changed: every operation goes
//     through an os.Root, ".." is refused, and a symbolic link in the way is
//     followed inside the tree only, "/" being the tree's top;
//   - a blob is read only after its digest was checked, a layer counts only when
//     its uncompressed bytes have the diff ID that the config gives it;
//   - entries, bytes and path lengths are bounded;
//   - a layer never writes through a hard link or a symbolic link of a lower
//     one: what it replaces is removed first.
//
// Applied are directories, regular files, hard and symbolic links with their
// modes, owners and times, and whiteouts, also opaque ones:
// https://github.com/opencontainers/image-spec/blob/v1.1.1/layer.md
//
// Devices and named pipes are left out and counted, since a runtime brings its
// own /dev. Extended attributes, file capabilities among them, are not set.
package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgtrust/imgtrust/internal/oci"
)

// Bounds of an image when Options do not say otherwise.
const (
	defaultEntries = 1 << 20  // over all layers
	defaultBytes   = 32 << 30 // of uncompressed layers
	maxPath        = 4096     // bytes of a name or link target
	maxLayers      = 1024
	maxConfig      = 4 << 20 // bytes of the image's config
)

// Errors that callers branch on with errors.Is.
var (
	// ErrUnsafe is an entry that no honest layer holds: a path out of the tree,
	// or a link that goes round in circles.
	ErrUnsafe = errors.New("unsafe entry")
	// ErrTooLarge is a layer beyond a bound of Options.
	ErrTooLarge = errors.New("the layers are too large")
	// ErrDiffID is a layer that is not the one that the config names.
	ErrDiffID = errors.New("the layer does not match the config's diff ID")
)

// Options of Unpack and Apply; the zero value is the usual case.
type Options struct {
	MaxEntries int   // entries of all layers; 0: 1,048,576
	MaxBytes   int64 // bytes of all layers, uncompressed; 0: 32 GiB
	// SkipOwners leaves everything to the process's own user: for one who may
	// not change owners. Otherwise an owner that cannot be set is an error.
	SkipOwners bool
}

// Stats counts what was applied.
type Stats struct {
	Layers  int
	Entries int   // without whiteouts
	Bytes   int64 // of the uncompressed layers
	Skipped int   // devices and named pipes
}

// Unpack applies all layers of an image manifest to an empty directory and
// returns the image's config. What src returns is hashed by it before anything
// is read into it; after an error the tree is of no use. An index is an error:
// name one of its manifests.
func Unpack(ctx context.Context, src oci.Source, manifest v1.Hash, root *os.Root, o Options) (*v1.ConfigFile, Stats, error) {
	m, err := readManifest(ctx, src, manifest)
	if err != nil {
		return nil, Stats{}, err
	}
	config, err := readConfig(ctx, src, m)
	if err != nil {
		return nil, Stats{}, err
	}
	u := newUnpacker(ctx, root, o)
	for i, d := range m.Layers {
		if err := u.layer(src, d, config.RootFS.DiffIDs[i]); err != nil {
			return nil, u.stats, fmt.Errorf("layer %d, %s: %w", i+1, d.Digest, err)
		}
	}
	return config, u.stats, nil
}

func readManifest(ctx context.Context, src oci.Source, digest v1.Hash) (*v1.Manifest, error) {
	m, err := src.Manifest(ctx, digest)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", digest, err)
	}
	if !m.MediaType.IsImage() {
		return nil, fmt.Errorf("%s is an index: name one of its manifests", digest)
	}
	image, err := v1.ParseManifest(bytes.NewReader(m.Bytes))
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", digest, err)
	}
	return image, nil
}

// readConfig reads the config and checks that it tells of as many layers as
// the manifest.
func readConfig(ctx context.Context, src oci.Source, m *v1.Manifest) (*v1.ConfigFile, error) {
	if m.Config.Size > maxConfig {
		return nil, fmt.Errorf("config %s: %d bytes: %w", m.Config.Digest, m.Config.Size, ErrTooLarge)
	}
	data, err := readBlob(ctx, src, m.Config)
	if err != nil {
		return nil, fmt.Errorf("config %s: %w", m.Config.Digest, err)
	}
	config, err := v1.ParseConfigFile(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("config %s: %w", m.Config.Digest, err)
	}
	if len(m.Layers) > maxLayers {
		return nil, fmt.Errorf("%d layers: %w", len(m.Layers), ErrTooLarge)
	}
	if len(config.RootFS.DiffIDs) != len(m.Layers) {
		return nil, fmt.Errorf("config %s names %d layers, the manifest %d: %w", m.Config.Digest, len(config.RootFS.DiffIDs), len(m.Layers), ErrDiffID)
	}
	return config, nil
}

func readBlob(ctx context.Context, src oci.Source, d v1.Descriptor) ([]byte, error) {
	r, err := src.Blob(ctx, d)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(r)
	return data, errors.Join(err, r.Close())
}
