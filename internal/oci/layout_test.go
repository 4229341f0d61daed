package oci

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
)

// newLayout writes a layout with an index of two images in it.
func newLayout(t *testing.T) (dir string, index v1.ImageIndex, child v1.Image) {
	t.Helper()
	dir = t.TempDir()
	child = must[v1.Image](t, "image")(random.Image(100, 1))
	other := must[v1.Image](t, "image")(random.Image(100, 1))
	index = mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: child}, mutate.IndexAddendum{Add: other})
	p := must[layout.Path](t, "layout")(layout.Write(dir, empty.Index))
	if err := p.AppendIndex(index); err != nil {
		t.Fatal(err)
	}
	return dir, index, child
}

func TestLayout(t *testing.T) {
	ctx := context.Background()
	dir, index, child := newLayout(t)
	want := must[v1.Hash](t, "digest")(index.Digest())
	_, d, err := New(Options{}).Open(ctx, Location{Layout: dir})
	if err != nil || d.Digest != want {
		t.Fatalf("%v, %v", d.Digest, err)
	}
	h := must[v1.Hash](t, "digest")(child.Digest())
	src, d, err := New(Options{}).Open(ctx, Location{Layout: dir, Reference: Reference{Digest: h}})
	if err != nil || d.Digest != h {
		t.Fatalf("child: %v, %v", d.Digest, err)
	}
	m := must[Manifest](t, "manifest")(src.Manifest(ctx, h))
	image, err := decodeImage(m)
	if err != nil {
		t.Fatal(err)
	}
	b := must[io.ReadCloser](t, "blob")(src.Blob(ctx, image.Config))
	defer b.Close()
	if got := must[[]byte](t, "read")(io.ReadAll(b)); int64(len(got)) != image.Config.Size {
		t.Errorf("%d bytes", len(got))
	}
	_, _, err = New(Options{}).Open(ctx, Location{Layout: dir, Reference: Reference{Digest: image.Config.Digest}})
	if !errors.Is(err, ErrNotFound) {
		t.Errorf("a blob that is no manifest: %v", err)
	}
}

func TestHostileLayouts(t *testing.T) {
	for _, row := range []struct {
		summary string
		spoil   func(dir, config string) error
		is      error
		text    string
	}{
		{"other bytes of the same length", func(_, config string) error {
			b, err := os.ReadFile(config)
			b[0] ^= 1
			return errors.Join(err, os.WriteFile(config, b, 0o644))
		}, ErrContentMismatch, ""},
		{"longer", func(_, config string) error { return os.Truncate(config, 1<<30) }, ErrContentMismatch, ""},
		{"shorter", func(_, config string) error { return os.Truncate(config, 3) }, ErrContentMismatch, ""},
		{"missing", func(_, config string) error { return os.Remove(config) }, ErrNotFound, ""},
		{"a symbolic link to the same bytes", func(_, config string) error {
			return errors.Join(os.Rename(config, config+".moved"), os.Symlink(filepath.Base(config)+".moved", config))
		}, nil, "not a regular file"},
		{"blobs outside the directory", func(dir, _ string) error {
			return errors.Join(os.Rename(filepath.Join(dir, "blobs"), dir+"-blobs"), os.Symlink(dir+"-blobs", filepath.Join(dir, "blobs")))
		}, nil, "escapes"},
		{"no marker", func(dir, _ string) error { return os.Remove(filepath.Join(dir, "oci-layout")) }, ErrNotFound, "oci-layout"},
		{"another version", func(dir, _ string) error {
			return os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"2.0.0"}`), 0o644)
		}, nil, "1.0.0"},
		{"an oversized index", func(dir, _ string) error { return os.Truncate(filepath.Join(dir, "index.json"), 5<<20) }, ErrTooLarge, "index.json"},
		{"several manifests", func(dir, _ string) error {
			p, err := layout.FromPath(dir)
			return errors.Join(err, p.AppendIndex(empty.Index))
		}, nil, "@sha256:HEX"},
	} {
		t.Run(row.summary, func(t *testing.T) {
			dir, _, child := newLayout(t)
			config := must[v1.Hash](t, "config")(child.ConfigName())
			size := int64(len(must[[]byte](t, "config")(child.RawConfigFile())))
			if err := row.spoil(dir, filepath.Join(dir, "blobs", "sha256", config.Hex)); err != nil {
				t.Fatal(err)
			}
			err := readLayout(dir, v1.Descriptor{Digest: config, Size: size})
			if err == nil || (row.is != nil && !errors.Is(err, row.is)) || !strings.Contains(err.Error(), row.text) {
				t.Errorf("%v", err)
			}
		})
	}
}

func readLayout(dir string, blob v1.Descriptor) error {
	ctx := context.Background()
	src, _, err := New(Options{}).Open(ctx, Location{Layout: dir})
	if err != nil {
		return err
	}
	b, err := src.Blob(ctx, blob)
	if err != nil {
		return err
	}
	defer b.Close()
	_, err = io.ReadAll(b)
	return err
}
