package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"

	"github.com/imgtrust/imgtrust/internal/oci"
	"github.com/imgtrust/imgtrust/verify"
)

// fetch copies an allowed image from the registry to an OCI layout. Every byte
// is hashed on the way: bytes that are not what was decided on are
// oci.ErrContentMismatch.
func (w *world) fetch(ctx context.Context, allowed verify.Result, dir string) error {
	ref := allowed.Reference()
	if !allowed.Allowed() {
		return fmt.Errorf("%s is not allowed", ref)
	}
	src := w.client.Source(ref.Repository)
	m, err := src.Manifest(ctx, ref.Digest)
	if err != nil {
		return fmt.Errorf("fetching manifest %s: %w", ref.Digest, err)
	}
	image, err := v1.ParseManifest(bytes.NewReader(m.Bytes))
	if err != nil {
		return fmt.Errorf("manifest %s: %w", ref.Digest, err)
	}
	to, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	for _, d := range append([]v1.Descriptor{image.Config}, image.Layers...) {
		if err := fetchBlob(ctx, src, d, to); err != nil {
			return fmt.Errorf("fetching %s: %w", d.Digest, err)
		}
	}
	if err := to.WriteBlob(m.Digest, io.NopCloser(bytes.NewReader(m.Bytes))); err != nil {
		return err
	}
	return to.AppendDescriptor(m.Descriptor())
}

// fetchBlob gives the blob its name only after it was hashed.
func fetchBlob(ctx context.Context, src oci.Source, d v1.Descriptor, to layout.Path) error {
	temp, err := os.CreateTemp(string(to), "fetch-")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	r, err := src.Blob(ctx, d)
	if err != nil {
		return errors.Join(err, temp.Close())
	}
	_, err = io.Copy(temp, r)
	if err = errors.Join(err, r.Close(), temp.Close()); err != nil {
		return err
	}
	at := filepath.Join(string(to), "blobs", d.Digest.Algorithm)
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	return os.Rename(temp.Name(), filepath.Join(at, d.Digest.Hex))
}
