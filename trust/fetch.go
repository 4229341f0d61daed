package trust

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgtrust/imgtrust/internal/oci"
	"github.com/imgtrust/imgtrust/policy"
)

// errNoFile says that the top manifest does not hold a file: it ends the walk
// over the roots.
var errNoFile = errors.New("no such file in the trust index")

// remoteIndex is a trust index whose top manifest has been read: a source of
// TUF files by name. Nothing in it is trusted yet.
type remoteIndex struct {
	client *Client
	raw    []byte // the index
	top    map[string]v1.Descriptor
	groups []group
}

// fetch reads the trust index: with one request when it is the one seen last.
func (c *Client) fetch(ctx context.Context, old saved) (*remoteIndex, error) {
	raw, err := c.fetchIndex(ctx, old)
	if err != nil {
		return nil, err
	}
	index, err := decodeManifest(raw, types.OCIImageIndex)
	if err != nil {
		return nil, err
	}
	top, groups, err := index.parts()
	if err != nil {
		return nil, err
	}
	data, err := c.inlineOr(ctx, top, "the top manifest", func() ([]byte, error) { return c.manifest(ctx, top) })
	if err != nil {
		return nil, err
	}
	m, err := decodeManifest(data, types.OCIManifestSchema1)
	if err != nil {
		return nil, err
	}
	files, err := m.layers()
	return &remoteIndex{client: c, raw: raw, top: files, groups: groups}, err
}

// fetchIndex returns the bytes of the index, from the state when the tag still
// points to it.
func (c *Client) fetchIndex(ctx context.Context, old saved) ([]byte, error) {
	ref := oci.Reference{Repository: c.opts.Repository, Tag: Tag}
	if c.opts.Offline {
		if len(old.Index) == 0 {
			return nil, &Error{Code: policy.Unavailable, Err: fmt.Errorf("offline, and the state holds nothing of %s yet", ref),
				Advice: "run once without --offline"}
		}
		return old.Index, nil
	}
	if len(old.Index) > 0 {
		d, err := c.opts.Registry.Resolve(ctx, ref)
		if err != nil {
			return nil, c.indexError(ref, err)
		}
		if d.Digest == describe("", old.Index).Digest {
			return old.Index, nil
		}
		ref = ref.AtDigest(d.Digest)
	}
	m, err := c.opts.Registry.Manifest(ctx, ref, maxIndexBytes)
	if err != nil {
		return nil, c.indexError(ref, err)
	}
	return m.Bytes, nil
}

func (c *Client) indexError(ref oci.Reference, err error) error {
	e := fetchError("reading the trust index "+ref.String(), err)
	var te *Error
	if errors.Is(err, oci.ErrNotFound) && errors.As(e, &te) {
		te.Advice = fmt.Sprintf("make it with `imgtrust trust init %s …`, or check the name given with --trust", ref.Repository)
	}
	return e
}

// read returns the signed bytes of a TUF file of the top manifest.
func (x *remoteIndex) read(ctx context.Context, name string, max int64) ([]byte, error) {
	d, ok := x.top[name]
	if !ok {
		return nil, fmt.Errorf("%s: %w", name, errNoFile)
	}
	return x.client.layer(ctx, d, name, max)
}

// mustRead is read for files that the format requires.
func (x *remoteIndex) mustRead(ctx context.Context, name string, max int64) ([]byte, error) {
	data, err := x.read(ctx, name, max)
	if errors.Is(err, errNoFile) {
		return nil, invalid("%w", err)
	}
	return data, err
}

// layer returns the signed bytes of a layer: inlined, cached or fetched.
func (c *Client) layer(ctx context.Context, d v1.Descriptor, name string, max int64) ([]byte, error) {
	stored, err := c.inlineOr(ctx, d, name, func() ([]byte, error) {
		return c.cached(d, func() ([]byte, error) {
			return c.opts.Registry.Blob(ctx, c.opts.Repository, d, max)
		})
	})
	if err != nil {
		return nil, err
	}
	data, err := open(d.MediaType, stored, max)
	if err != nil {
		return nil, invalid("%s: %w", name, err)
	}
	return data, nil
}

// inlineOr returns the data inlined in a descriptor, which must be the content
// it describes, or else what get returns.
func (c *Client) inlineOr(_ context.Context, d v1.Descriptor, name string, get func() ([]byte, error)) ([]byte, error) {
	if len(d.Data) == 0 {
		data, err := get()
		if err != nil {
			return nil, c.partError(name, err)
		}
		return data, nil
	}
	if is := describe(d.MediaType, d.Data); is.Digest != d.Digest || is.Size != d.Size {
		return nil, invalid("%s: the data inlined in its descriptor does not match its digest", name)
	}
	return d.Data, nil
}

// partError recognises a copy that was made without its parts.
func (c *Client) partError(name string, err error) error {
	e := fetchError(fmt.Sprintf("reading %s of %s", name, c.opts.Repository), err)
	var te *Error
	if errors.Is(err, oci.ErrNotFound) && errors.As(e, &te) {
		te.Err = fmt.Errorf("the trust index in %s lacks its parts: %s is missing", c.opts.Repository, name)
		te.Advice = copyAdvice
	}
	return e
}

// manifest returns a manifest of the index by its descriptor, cached or fetched.
func (c *Client) manifest(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	return c.cached(d, func() ([]byte, error) {
		m, err := c.opts.Registry.Manifest(ctx, oci.Reference{Repository: c.opts.Repository, Digest: d.Digest}, maxManifestBytes)
		return m.Bytes, err
	})
}

// fetchBin returns the signed bytes of a bin: its manifest, then its layer.
func (c *Client) fetchBin(ctx context.Context, v *view, n int) ([]byte, error) {
	name := binName(n, v.bits)
	meta := v.set.Snapshot.Signed.Meta[name+".json"]
	if meta == nil {
		return nil, invalid("snapshot: it does not name %s", name)
	}
	layers, err := c.groupLayers(ctx, v, n)
	if err != nil {
		return nil, err
	}
	d, ok := layers[versioned(meta.Version, name)]
	if !ok {
		return nil, invalid("the trust index does not hold version %d of %s that the snapshot names", meta.Version, name)
	}
	return c.layer(ctx, d, name, maxBin)
}

// groupLayers reads the manifest of the group that holds a bin.
func (c *Client) groupLayers(ctx context.Context, v *view, n int) (map[string]v1.Descriptor, error) {
	g, err := groupOf(v.groups, n)
	if err != nil {
		return nil, err
	}
	data, err := c.manifest(ctx, g.descriptor)
	if err != nil {
		return nil, c.partError("bins manifest "+g.descriptor.Digest.String(), err)
	}
	m, err := decodeManifest(data, types.OCIManifestSchema1)
	if err != nil {
		return nil, err
	}
	return m.layers()
}

// cached returns content by its digest from the cache, or gets it and keeps it.
// Cached bytes are hashed again: a damaged file is fetched anew.
func (c *Client) cached(d v1.Descriptor, get func() ([]byte, error)) ([]byte, error) {
	data, kept := c.dir.blob(d.Digest)
	if kept && describe("", data).Digest == d.Digest {
		return data, nil
	}
	if kept && c.opts.Offline {
		return nil, fmt.Errorf("offline, and the cached %s in the state %s is damaged", d.Digest, c.dir.path)
	}
	if kept {
		c.opts.Warn(fmt.Sprintf("the cached %s in the state %s is damaged: it is fetched anew", d.Digest, c.dir.path))
	}
	if c.opts.Offline {
		return nil, fmt.Errorf("offline, and %s is not in the state", d.Digest)
	}
	data, err := get()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal([]byte(describe("", data).Digest.Hex), []byte(d.Digest.Hex)) {
		return nil, oci.ErrContentMismatch
	}
	c.dir.keepBlob(d.Digest, data)
	return data, nil
}
