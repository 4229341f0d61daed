package layer

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"

	"github.com/imgtrust/imgtrust/internal/oci"
)

// maxWindow bounds the memory of the zstd decoder, in bytes.
const maxWindow = 128 << 20

// Apply applies one layer, a tar that may be compressed with gzip or zstd, on
// top of what root holds. It checks no digest.
func Apply(ctx context.Context, root *os.Root, layer io.Reader, o Options) (Stats, error) {
	u := newUnpacker(ctx, root, o)
	_, err := u.apply(layer)
	return u.stats, err
}

// unpacker is the state of one Unpack. The context is of that one call.
type unpacker struct {
	ctx     context.Context
	root    *os.Root
	options Options
	stats   Stats
	entries int   // that may still come
	bytes   int64 // of the stream that may still come
	content int64 // of files that may still come: a sparse file is larger than its part of the stream
}

func newUnpacker(ctx context.Context, root *os.Root, o Options) *unpacker {
	if o.MaxEntries <= 0 {
		o.MaxEntries = defaultEntries
	}
	if o.MaxBytes <= 0 {
		o.MaxBytes = defaultBytes
	}
	return &unpacker{ctx: ctx, root: root, options: o, entries: o.MaxEntries, bytes: o.MaxBytes, content: o.MaxBytes}
}

// layer reads a blob to its end once, to have its digest checked, before it is
// read again to be applied; a source on disk hashes it that second time, too.
func (u *unpacker) layer(src oci.Source, d v1.Descriptor, diffID v1.Hash) error {
	if err := check(u.ctx, src, d); err != nil {
		return err
	}
	r, err := src.Blob(u.ctx, d)
	if err != nil {
		return err
	}
	is, err := u.apply(r)
	if err == nil {
		_, err = io.Copy(io.Discard, r) // to the digest's check
	}
	if err = errors.Join(err, r.Close()); err != nil {
		return err
	}
	if is != diffID {
		return fmt.Errorf("%w: %s instead of %s", ErrDiffID, is, diffID)
	}
	return nil
}

func check(ctx context.Context, src oci.Source, d v1.Descriptor) error {
	r, err := src.Blob(ctx, d)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, r)
	return errors.Join(err, r.Close())
}

// apply applies one layer and returns the digest of its uncompressed bytes.
func (u *unpacker) apply(r io.Reader) (v1.Hash, error) {
	plain, err := decompress(r)
	if err != nil {
		return v1.Hash{}, err
	}
	defer plain.Close()
	sum := sha256.New()
	stream := io.TeeReader(&bounded{plain, u}, sum)
	l := &applied{unpacker: u, touched: map[string]bool{}, whited: map[string]bool{}, times: map[string]time.Time{}}
	if err := l.entries(tar.NewReader(stream)); err != nil {
		return v1.Hash{}, err
	}
	if _, err := io.Copy(io.Discard, stream); err != nil { // the padding belongs to the digest
		return v1.Hash{}, err
	}
	u.stats.Layers++
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum.Sum(nil))}, nil
}

// bounded reads the uncompressed bytes of all layers, until they are too many
// or the context ends.
type bounded struct {
	r io.Reader
	u *unpacker
}

func (b *bounded) Read(p []byte) (int, error) {
	if err := b.u.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := b.r.Read(p)
	b.u.stats.Bytes += int64(n)
	if b.u.bytes -= int64(n); b.u.bytes < 0 {
		return 0, fmt.Errorf("more than %d bytes: %w", b.u.options.MaxBytes, ErrTooLarge)
	}
	return n, err
}

// decompress tells the compression by the first bytes, as the media type of a
// layer is only what somebody wrote.
func decompress(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	magic, err := b.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case len(magic) >= 2 && magic[0] == 0x1f && magic[1] == 0x8b:
		return gzip.NewReader(b)
	case string(magic) == "\x28\xb5\x2f\xfd":
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(b), nil
}
