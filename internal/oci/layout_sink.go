package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Annotations of the entries of a layout's index.json.
const (
	refNameKey  = "org.opencontainers.image.ref.name" // the tag
	referrerKey = "dev.imgtrust.referrer"             // the digest that the manifest refers to
)

// layoutSink writes an OCI image layout: blobs as they come, each whole or not at
// all, index.json anew with each name. A layout that is there is added to.
type layoutSink struct {
	dir     string
	entries []v1.Descriptor
}

func newLayoutSink(dir string) (*layoutSink, error) {
	s := &layoutSink{dir: dir}
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return nil, err
	}
	index, err := layoutSource{dir: dir}.index()
	if err == nil {
		s.entries = index.Manifests
		return s, nil
	}
	if !errors.Is(err, ErrNotFound) {
		return nil, fmt.Errorf("layout %s: %w", dir, err)
	}
	return s, s.write("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
}

// write replaces a file of the layout as a whole.
func (s *layoutSink) write(path string, data []byte) error {
	return s.place(path, func(f *os.File) error {
		_, err := f.Write(data)
		return err
	})
}

// place makes a file under a temporary name and then gives it its own.
func (s *layoutSink) place(path string, fill func(*os.File) error) (err error) {
	f, err := os.CreateTemp(s.dir, ".copy-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	err = errors.Join(fill(f), f.Chmod(0o644), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(s.dir, filepath.FromSlash(path)))
}

func (s *layoutSink) blob(ctx context.Context, from Source, d v1.Descriptor) error {
	path, err := blobPath(d.Digest)
	if err != nil {
		return err
	}
	if info, err := os.Lstat(filepath.Join(s.dir, filepath.FromSlash(path))); err == nil && info.Mode().IsRegular() && info.Size() == d.Size {
		return nil
	}
	r, err := from.Blob(ctx, d)
	if err != nil {
		return err
	}
	defer r.Close()
	return s.place(path, func(f *os.File) error {
		_, err := io.Copy(f, r)
		return err
	})
}

func (s *layoutSink) manifest(_ context.Context, m Manifest) error {
	path, err := blobPath(m.Digest)
	if err != nil {
		return err
	}
	return s.write(path, m.Bytes)
}

func (s *layoutSink) attach(ctx context.Context, subject v1.Hash, m Manifest) error {
	if err := s.manifest(ctx, m); err != nil {
		return err
	}
	d := m.Descriptor()
	d.Annotations = map[string]string{referrerKey: subject.String()}
	return s.name(d, func(e v1.Descriptor) bool { return e.Digest == d.Digest && e.Annotations[referrerKey] != "" })
}

func (s *layoutSink) has(_ context.Context, h v1.Hash) error {
	_, err := layoutSource{dir: s.dir}.manifest(h)
	return err
}

func (s *layoutSink) attached(_ context.Context, subject v1.Hash) ([]v1.Descriptor, error) {
	return layoutSource{dir: s.dir}.referrers(subject)
}

func (s *layoutSink) tag(_ context.Context, d v1.Descriptor, tag string) error {
	d = v1.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
	same := func(e v1.Descriptor) bool {
		return e.Digest == d.Digest && e.Annotations[refNameKey] == "" && e.Annotations[referrerKey] == ""
	}
	if tag != "" {
		d.Annotations = map[string]string{refNameKey: tag}
		same = func(e v1.Descriptor) bool { return e.Annotations[refNameKey] == tag }
	}
	return s.name(d, same)
}

// name puts an entry into index.json in place of those that are the same.
func (s *layoutSink) name(d v1.Descriptor, same func(v1.Descriptor) bool) error {
	s.entries = append(slices.DeleteFunc(s.entries, same), d)
	data, err := marshalIndex(s.entries)
	if err != nil {
		return err
	}
	return s.write("index.json", data)
}

// referrers are the manifests of a layout that refer to another one.
func (s layoutSource) referrers(subject v1.Hash) ([]v1.Descriptor, error) {
	index, err := s.index()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(index.Manifests, func(d v1.Descriptor) bool { return d.Annotations[referrerKey] != subject.String() }), nil
}

// tagged is the manifest of a layout with a name.
func (s layoutSource) tagged(tag string) (v1.Descriptor, error) {
	index, err := s.index()
	if errors.Is(err, fs.ErrNotExist) {
		return v1.Descriptor{}, fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	if err != nil {
		return v1.Descriptor{}, err
	}
	i := slices.IndexFunc(index.Manifests, func(d v1.Descriptor) bool { return d.Annotations[refNameKey] == tag })
	if i < 0 {
		return v1.Descriptor{}, fmt.Errorf("oci:%s: tag %s: %w", s.dir, tag, ErrNotFound)
	}
	return index.Manifests[i], nil
}

// images are the entries of a layout's index that are nobody's referrer or legacy
// signature.
func images(entries []v1.Descriptor) []v1.Descriptor {
	return slices.DeleteFunc(slices.Clone(entries), func(d v1.Descriptor) bool {
		return d.Annotations[referrerKey] != "" || slices.ContainsFunc(entries, func(e v1.Descriptor) bool {
			return slices.Contains(legacyTags(e.Digest), d.Annotations[refNameKey])
		})
	})
}

// resolve, fetch and small read a layout as a repository: the head of a reference,
// its manifest of at most max bytes, and a blob of at most max bytes.
func (s layoutSource) resolve(ref Reference) (v1.Descriptor, error) {
	if ref.Digest == (v1.Hash{}) {
		return s.tagged(ref.Tag)
	}
	m, err := s.manifest(ref.Digest)
	return m.Descriptor(), err
}

func (s layoutSource) fetch(ref Reference, max int64) (Manifest, error) {
	d, err := s.resolve(ref)
	if err != nil {
		return Manifest{}, err
	}
	if d.Size > max {
		return Manifest{}, fmt.Errorf("%w: %d bytes, at most %d are read", ErrTooLarge, d.Size, max)
	}
	return s.manifest(d.Digest)
}

func (s layoutSource) small(d v1.Descriptor, max int64) ([]byte, error) {
	path, err := blobPath(d.Digest)
	if err != nil {
		return nil, err
	}
	raw, err := s.readFile(path, max)
	if err != nil {
		return nil, err
	}
	d.Size = int64(len(raw))
	return raw, checkContent(raw, d)
}
