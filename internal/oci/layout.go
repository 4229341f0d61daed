package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// openLayout reads the index of an OCI image layout and finds the image in it.
// https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md
func openLayout(l Location) (Source, v1.Descriptor, error) {
	s := layoutSource{dir: l.Layout}
	d, err := s.find(l.Reference.Digest)
	if err != nil {
		return nil, v1.Descriptor{}, fmt.Errorf("opening %s: %w", l, err)
	}
	return s, d, nil
}

// layoutSource reads a layout's blobs. It holds no file open between calls.
type layoutSource struct{ dir string }

func (s layoutSource) find(h v1.Hash) (v1.Descriptor, error) {
	index, err := s.index()
	if err != nil {
		return v1.Descriptor{}, err
	}
	if h.Hex == "" {
		all := images(index.Manifests)
		if len(all) != 1 {
			return v1.Descriptor{}, fmt.Errorf("holds %d manifests: say which with @sha256:HEX", len(all))
		}
		return all[0], nil
	}
	if _, err := parseDigest(h.String()); err != nil {
		return v1.Descriptor{}, err
	}
	return s.search(index.Manifests, h)
}

// index reads index.json, after oci-layout has said that this is a layout.
func (s layoutSource) index() (v1.IndexManifest, error) {
	marker, err := s.readFile("oci-layout", maxErrorBody)
	if err != nil {
		return v1.IndexManifest{}, err
	}
	var version struct {
		Version string `json:"imageLayoutVersion"`
	}
	if err := json.Unmarshal(marker, &version); err != nil || version.Version != "1.0.0" {
		return v1.IndexManifest{}, errors.New("oci-layout: imageLayoutVersion is not 1.0.0")
	}
	raw, err := s.readFile("index.json", maxManifest)
	if err != nil {
		return v1.IndexManifest{}, err
	}
	m, err := newManifest(raw)
	if err != nil {
		return v1.IndexManifest{}, fmt.Errorf("index.json: %w", err)
	}
	return decodeIndex(m)
}

// search looks for h level by level.
func (s layoutSource) search(level []v1.Descriptor, h v1.Hash) (v1.Descriptor, error) {
	visited := map[v1.Hash]bool{}
	for range maxLayoutDepth + 1 {
		var next []v1.Descriptor
		for _, d := range level {
			if d.Digest == h {
				return d, nil
			}
			if visited[d.Digest] {
				continue
			}
			if visited[d.Digest] = true; len(visited) > maxLayoutManifests {
				return v1.Descriptor{}, fmt.Errorf("%w: more than %d manifests", ErrTooLarge, maxLayoutManifests)
			}
			children, err := s.children(d)
			if err != nil {
				return v1.Descriptor{}, err
			}
			next = append(next, children...)
		}
		level = next
	}
	return v1.Descriptor{}, fmt.Errorf("%s: %w in its indexes", h, ErrNotFound)
}

// children lists an index; a manifest that is not one has none, and neither
// has an index that the layout leaves out.
func (s layoutSource) children(d v1.Descriptor) ([]v1.Descriptor, error) {
	if !d.MediaType.IsIndex() {
		return nil, nil
	}
	m, err := s.manifest(d.Digest)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	index, err := decodeIndex(m)
	return index.Manifests, err
}

func (s layoutSource) Manifest(_ context.Context, h v1.Hash) (Manifest, error) {
	m, err := s.manifest(h)
	if err != nil {
		return Manifest{}, fmt.Errorf("reading manifest oci:%s@%s: %w", s.dir, h, err)
	}
	return m, nil
}

func (s layoutSource) manifest(h v1.Hash) (Manifest, error) {
	path, err := blobPath(h)
	if err != nil {
		return Manifest{}, err
	}
	raw, err := s.readFile(path, maxManifest)
	if err != nil {
		return Manifest{}, err
	}
	return checkManifest(raw, h)
}

func (s layoutSource) Blob(_ context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	b, err := s.blob(d)
	if err != nil {
		return nil, fmt.Errorf("reading blob oci:%s@%s: %w", s.dir, d.Digest, err)
	}
	return b, nil
}

func (s layoutSource) blob(d v1.Descriptor) (io.ReadCloser, error) {
	path, err := blobPath(d.Digest)
	if err != nil {
		return nil, err
	}
	f, info, err := s.open(path)
	if err != nil {
		return nil, err
	}
	if info.Size() != d.Size {
		f.Close()
		return nil, fmt.Errorf("%w: %d bytes of %d", ErrContentMismatch, info.Size(), d.Size)
	}
	return verifying(f, d), nil
}

func blobPath(h v1.Hash) (string, error) {
	_, err := parseDigest(h.String())
	return "blobs/sha256/" + h.Hex, err
}

// readFile reads a regular file of at most max bytes.
func (s layoutSource) readFile(path string, max int64) ([]byte, error) {
	f, info, err := s.open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info.Size() > max {
		return nil, fmt.Errorf("%s: %d bytes: %w, at most %d are read", path, info.Size(), ErrTooLarge, max)
	}
	b, err := io.ReadAll(io.LimitReader(f, max+1))
	if err == nil && int64(len(b)) > max {
		err = fmt.Errorf("%s: %w, at most %d bytes are read", path, ErrTooLarge, max)
	}
	return b, err
}

// open opens a regular file of the layout: no symbolic link, no device, and
// nothing outside the directory.
func (s layoutSource) open(path string) (*os.File, fs.FileInfo, error) {
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return nil, nil, notFound(err)
	}
	defer root.Close()
	found, err := root.Lstat(path)
	if err != nil {
		return nil, nil, notFound(err)
	}
	if !found.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s: not a regular file", path)
	}
	f, err := root.Open(path)
	if err != nil {
		return nil, nil, notFound(err)
	}
	info, err := f.Stat()
	if err != nil || !os.SameFile(found, info) {
		f.Close()
		return nil, nil, fmt.Errorf("%s: changed while it was opened", path)
	}
	return f, info, nil
}

// notFound adds ErrNotFound to what the system says so of.
func notFound(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return err
}
