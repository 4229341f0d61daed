package trust

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/internal/oci"
)

// ErrCollision says that another publisher switched the tag in between. What
// it wrote stands; fold again on top of it.
var ErrCollision = errors.New("another publisher wrote at the same time")

// ErrFull says that a target or a bin has no room for more statements.
var ErrFull = errors.New("too many bytes of statements")

// Draft is the next version of a trust repository, prepared in memory on top of
// a verified one. It makes no policy check: whoever holds the online key can
// list anything, which is why readers check the signatures of what is listed. Use a
// [Publisher], which checks first. A Draft is not safe for concurrent use.
type Draft struct {
	client *Client
	view   *view
	online crypto.Signer
	now    time.Time

	bins    map[int]*metadata.Metadata[metadata.TargetsType] // loaded or changed
	sizes   map[int]int                                      // bytes of the entries of a loaded bin
	changed map[int]bool
	revoked []Tombstone
}

// NewDraft starts from what the client verified last, refreshing when needed.
func (c *Client) NewDraft(ctx context.Context, online crypto.Signer) (*Draft, error) {
	v, err := c.current(ctx)
	if err != nil {
		return nil, err
	}
	if err := checkOnlineKey(v, online); err != nil {
		return nil, err
	}
	return &Draft{
		client: c, view: v, online: online, now: c.Now().UTC().Truncate(time.Second),
		bins: map[int]*metadata.Metadata[metadata.TargetsType]{}, sizes: map[int]int{}, changed: map[int]bool{},
		revoked: slices.Clone(v.revoked),
	}, nil
}

// checkOnlineKey refuses a key that root does not name, before anything is
// signed with it.
func checkOnlineKey(v *view, online crypto.Signer) error {
	_, id, err := tufKey(online.Public())
	if err != nil {
		return fmt.Errorf("the online key: %w", err)
	}
	if !slices.Contains(v.set.Root.Signed.Roles[metadata.TIMESTAMP].KeyIDs, id) {
		return &Error{Code: "", Err: fmt.Errorf("key %.16s is not the online key of this trust repository", id),
			Advice: "name the key given to `imgtrust trust init` as --online-key"}
	}
	return nil
}

// ListDigest lists a digest of a canonical repository with its statements,
// replacing those listed before and keeping when it was first listed.
func (d *Draft) ListDigest(ctx context.Context, repository string, digest v1.Hash, size int64, statements []attest.Envelope) error {
	return d.edit(ctx, DigestTarget(repository, digest), digest, size, func(e *entry) error {
		return e.setEnvelopes(statements)
	})
}

// ListTag points a tag to a digest, with the statements that name the tag for
// it. The entry carries the time at which the digest was listed, so that
// publisher and reader judge it by the same.
func (d *Draft) ListTag(ctx context.Context, repository, tag string, digest v1.Hash, size int64, statements []attest.Envelope) error {
	listed, exists, err := d.Lookup(ctx, DigestTarget(repository, digest))
	if err != nil {
		return err
	}
	return d.edit(ctx, TagTarget(repository, tag), digest, size, func(e *entry) error {
		if exists {
			e.Listed = listed.Listed
		}
		return e.setEnvelopes(statements)
	})
}

// ListChild notes that an index lists a child manifest, so that a look-up of
// the child finds the index. It proves nothing: membership is proven by the
// signed statement of the index alone.
func (d *Draft) ListChild(ctx context.Context, repository string, child v1.Hash, size int64, index v1.Hash) error {
	return d.edit(ctx, DigestTarget(repository, child), child, size, func(e *entry) error {
		e.addIndex(index.String())
		return nil
	})
}

func (e *entry) setEnvelopes(statements []attest.Envelope) error {
	if len(statements) > maxEnvelopes {
		return fmt.Errorf("%d statements, at most %d are listed", len(statements), maxEnvelopes)
	}
	e.Envelopes = nil
	bytes := 0
	for _, s := range statements {
		if bytes += len(s.Payload); bytes > maxEntry {
			return fmt.Errorf("%w: a target takes %d", ErrFull, maxEntry)
		}
		stored, err := storeEnvelope(s)
		if err != nil {
			return err
		}
		e.Envelopes = append(e.Envelopes, stored)
	}
	return nil
}

// edit changes the entry of one target in its bin.
func (d *Draft) edit(ctx context.Context, name string, digest v1.Hash, size int64, change func(*entry) error) error {
	n := binOf(name, d.view.bits)
	bin, err := d.bin(ctx, n)
	if err != nil {
		return err
	}
	e := entry{Listed: d.now}
	if t := bin.Signed.Targets[name]; t != nil {
		l, old, err := listing(name, t)
		if err != nil {
			return err
		}
		if l.Digest == digest {
			e = old
		}
	}
	if err := change(&e); err != nil {
		return fmt.Errorf("listing %s: %w", name, err)
	}
	t, err := e.target(digest, size)
	if err != nil {
		return fmt.Errorf("listing %s: %w", name, err)
	}
	after := d.sizes[n] - entrySize(name, bin.Signed.Targets[name]) + entrySize(name, t)
	if after > maxBinEntries {
		return fmt.Errorf("listing %s: %w: its bin takes %d", name, ErrFull, maxBinEntries)
	}
	bin.Signed.Targets[name], d.sizes[n], d.changed[n] = t, after, true
	return nil
}

// entrySize is about what a target adds to the bytes of its bin.
func entrySize(name string, t *metadata.TargetFiles) int {
	if t == nil || t.Custom == nil {
		return 0
	}
	return len(name) + len(*t.Custom)
}

// RenewBins signs bins anew that have lived half of their time. It looks at a
// slice of them, another one for each version: 64 publishes look at 4,096 bins.
func (d *Draft) RenewBins(ctx context.Context) error {
	total := 1 << d.view.bits
	first := int(d.view.set.Timestamp.Signed.Version % int64(total) * renewSlice % int64(total))
	for i := range min(renewSlice, total) {
		n := (first + i) % total
		bin, err := d.bin(ctx, n)
		if err != nil {
			return err
		}
		if bin.Signed.Expires.Before(d.now.Add(d.view.id.lifetime("bins") / 2)) {
			d.changed[n] = true
		}
	}
	return nil
}

// Lookup finds a target in the draft: what is listed so far.
func (d *Draft) Lookup(ctx context.Context, target string) (Listing, bool, error) {
	bin, err := d.bin(ctx, binOf(target, d.view.bits))
	if err != nil {
		return Listing{}, false, err
	}
	t, ok := bin.Signed.Targets[target]
	if !ok {
		return Listing{}, false, nil
	}
	l, _, err := listing(target, t)
	return l, err == nil, err
}

// Revoke adds tombstones.
func (d *Draft) Revoke(tombstones ...Tombstone) {
	d.revoked = mergeTombstones(d.revoked, tombstones)
	slices.SortFunc(d.revoked, func(a, b Tombstone) int {
		return strings.Compare(a.Digest+a.Signer+a.Since.Format(time.RFC3339), b.Digest+b.Signer+b.Since.Format(time.RFC3339))
	})
}

// bin returns a copy of a bin that may be changed.
func (d *Draft) bin(ctx context.Context, n int) (*metadata.Metadata[metadata.TargetsType], error) {
	if bin := d.bins[n]; bin != nil {
		return bin, nil
	}
	trusted, err := d.client.bin(ctx, d.view, n)
	if err != nil {
		return nil, err
	}
	bin := *trusted
	bin.Signed.Targets = maps.Clone(trusted.Signed.Targets)
	if bin.Signed.Targets == nil {
		bin.Signed.Targets = map[string]*metadata.TargetFiles{}
	}
	for name, t := range bin.Signed.Targets {
		d.sizes[n] += entrySize(name, t)
	}
	d.bins[n] = &bin
	return &bin, nil
}

// Published says what a publication wrote.
type Published struct {
	Version int64     `json:"version"` // of the timestamp
	Index   v1.Hash   `json:"index"`
	Expires time.Time `json:"expires"` // of the timestamp
	Bytes   int64     `json:"bytes"`   // uploaded
}

// Publish signs the changed bins, one new snapshot and one new timestamp,
// uploads what is new, switches the tag with one request, and reads it back as
// a client would. When another publisher was faster it returns ErrCollision.
func (d *Draft) Publish(ctx context.Context) (Published, error) {
	if err := checkTombstones(d.revoked); err != nil {
		return Published{}, err
	}
	w := &writer{registry: d.client.opts.Registry, repository: d.client.opts.Repository, base: describe("", d.view.raw.Index).Digest}
	groups, versions, err := d.writeBins(ctx, w)
	if err != nil {
		return Published{}, err
	}
	top := d.keptFiles()
	timestamp, err := d.writeOnline(w, top, versions)
	if err != nil {
		return Published{}, err
	}
	index, err := w.finish(ctx, top, groups)
	if err != nil {
		return Published{}, err
	}
	p := Published{Version: timestamp.Version, Index: index, Expires: timestamp.Expires, Bytes: w.bytes}
	return p, d.readBack(ctx, index)
}

// writeBins signs the changed bins and writes their manifests.
func (d *Draft) writeBins(ctx context.Context, w *writer) (groups []v1.Descriptor, versions map[string]int64, err error) {
	versions = map[string]int64{}
	for _, g := range d.view.groups {
		descriptor, err := d.writeGroup(ctx, w, g, versions)
		if err != nil {
			return nil, nil, err
		}
		groups = append(groups, descriptor)
	}
	return groups, versions, nil
}

func (d *Draft) writeGroup(ctx context.Context, w *writer, g group, versions map[string]int64) (v1.Descriptor, error) {
	var layers map[string]v1.Descriptor
	for n := g.first; n <= g.last; n++ {
		if !d.changed[n] {
			continue
		}
		if layers == nil {
			old, err := d.client.groupLayers(ctx, d.view, n)
			if err != nil {
				return v1.Descriptor{}, err
			}
			if layers, err = d.keptBins(g, old); err != nil {
				return v1.Descriptor{}, err
			}
		}
		name, bin := binName(n, d.view.bits), d.bins[n]
		delete(layers, versioned(bin.Signed.Version, name))
		f, err := signBin(bin, d.view.id, name, bin.Signed.Version+1, d.now, d.online)
		if err != nil {
			return v1.Descriptor{}, err
		}
		layers[f.name] = w.add(f, notInline)
		versions[name] = bin.Signed.Version
	}
	if layers == nil {
		return g.descriptor, nil
	}
	return w.addGroup(layers, rangeText(g.first, g.last, d.view.bits))
}

// keptBins are the layers of a group that the snapshot names: each bin in its
// version, and nothing else. A group that lacks one is not built on.
func (d *Draft) keptBins(g group, layers map[string]v1.Descriptor) (map[string]v1.Descriptor, error) {
	kept := map[string]v1.Descriptor{}
	for n := g.first; n <= g.last; n++ {
		name := binName(n, d.view.bits)
		meta := d.view.set.Snapshot.Signed.Meta[name+".json"]
		if meta == nil {
			return nil, invalid("snapshot: it does not name %s", name)
		}
		layer, ok := layers[versioned(meta.Version, name)]
		if !ok {
			return nil, invalid("the trust index does not hold version %d of %s that the snapshot names", meta.Version, name)
		}
		kept[versioned(meta.Version, name)] = layer
	}
	return kept, nil
}

// keptFiles are the files of the top manifest that the next one keeps: the
// roots, the targets and the policy. What else stands there is not carried on.
func (d *Draft) keptFiles() map[string]v1.Descriptor {
	targets := d.view.set.Targets[metadata.TARGETS].Signed
	keep := map[string]bool{
		versioned(targets.Version, metadata.TARGETS): true, policyFileName(targets.Targets[policyName]): true,
	}
	for v := int64(1); v <= d.view.set.Root.Signed.Version; v++ {
		keep[versioned(v, metadata.ROOT)] = true
	}
	top := maps.Clone(d.view.top)
	maps.DeleteFunc(top, func(name string, _ v1.Descriptor) bool { return !keep[name] })
	return top
}

// writeOnline signs the snapshot and the timestamp into the top manifest.
func (d *Draft) writeOnline(w *writer, top map[string]v1.Descriptor, versions map[string]int64) (*metadata.TimestampType, error) {
	old := d.view.set
	meta := make(map[string]*metadata.MetaFiles, len(old.Snapshot.Signed.Meta))
	for name, m := range old.Snapshot.Signed.Meta {
		meta[name] = metadata.MetaFile(m.Version)
	}
	for role, version := range versions {
		meta[role+".json"] = metadata.MetaFile(version)
	}
	snapshot, data, err := signSnapshot(d.view.id, old.Snapshot.Signed.Version+1, meta, d.revoked, d.now, d.online)
	if err != nil {
		return nil, err
	}
	timestamp, signed, err := signTimestamp(d.view.id, old.Timestamp.Signed.Version+1, snapshot.Version, data, d.now, d.online)
	if err != nil {
		return nil, err
	}
	for name, data := range map[string][]byte{versioned(snapshot.Version, metadata.SNAPSHOT): data, "timestamp.json": signed} {
		f, err := newFile(name, metadataType, data)
		if err != nil {
			return nil, err
		}
		top[name] = w.add(f, maxInline)
	}
	return timestamp, nil
}

// readBack verifies what the registry now serves, as any client would.
func (d *Draft) readBack(ctx context.Context, wrote v1.Hash) error {
	ref := oci.Reference{Repository: d.client.opts.Repository, Tag: Tag}
	m, err := d.client.opts.Registry.Manifest(ctx, ref, maxIndexBytes)
	if err != nil {
		return fmt.Errorf("reading the new trust index back: %w", err)
	}
	if m.Digest != wrote {
		return fmt.Errorf("%w: the tag points to %s instead of %s", ErrCollision, m.Digest, wrote)
	}
	if err := d.client.Refresh(ctx); err != nil {
		return fmt.Errorf("verifying the new trust index: %w", err)
	}
	return nil
}
