package trust

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/theupdateframework/go-tuf/v2/metadata"
	"golang.org/x/sync/errgroup"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/internal/oci"
)

// ErrCollision says that another publisher switched the tag in between. What
// it wrote stands; fold again on top of it.
var ErrCollision = errors.New("another publisher wrote at the same time")

// ErrFull says that a target or a bin has no room for more statements.
var ErrFull = errors.New("too many bytes of statements")

// Draft is the next version of a trust repository, prepared on top of a verified
// one: what changes is kept in memory, the bins are read when they are written. It
// makes no policy check: whoever holds the online key can list anything, which is
// why readers check the signatures of what is listed. Use a [Publisher], which
// checks first. A Draft is not safe for concurrent use.
type Draft struct {
	client *Client
	view   *view   // what it follows
	next   offline // the offline roles that it is published under
	online crypto.Signer
	now    time.Time

	known         map[string]*metadata.TargetFiles         // listed targets read by Preload; nil: not listed
	edits         map[int]map[string]*metadata.TargetFiles // changed targets, by bin
	sizes         map[int]int                              // bytes of the entries of an edited or preloaded bin
	renewed       map[int]bool                             // bins to be signed anew
	timestampLife time.Duration                            // 0 is what root says
	floor         map[string]int64                         // versions to be above, by role: of an index that a collision lost
	revoked       []Tombstone
}

// NewDraft starts from what the client verified last, refreshing when needed.
func (c *Client) NewDraft(ctx context.Context, online crypto.Signer) (*Draft, error) {
	return c.newDraft(ctx, online, turnover{})
}

// newDraft is NewDraft with a change of the offline roles; the online key is
// that of the roles after it.
func (c *Client) newDraft(ctx context.Context, online crypto.Signer, t turnover) (*Draft, error) {
	v, err := c.current(ctx)
	if err != nil {
		return nil, err
	}
	now := c.Now().UTC().Truncate(time.Second)
	next, err := v.turn(t, now)
	if err != nil {
		return nil, err
	}
	if err := next.checkOnlineKey(online); err != nil {
		return nil, err
	}
	d := &Draft{
		client: c, view: v, next: next, online: online, now: now,
		known: map[string]*metadata.TargetFiles{}, edits: map[int]map[string]*metadata.TargetFiles{},
		sizes: map[int]int{}, renewed: map[int]bool{}, floor: v.lost, revoked: slices.Clone(v.revoked),
	}
	if err := d.restoreTombstones(); err != nil {
		return nil, err
	}
	if next.signsBinsAnew(v) {
		for n := range 1 << next.bits {
			d.renewed[n] = true
		}
	}
	return d, nil
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
	n := binOf(name, d.next.bits)
	present, err := d.target(ctx, name)
	if err != nil {
		return err
	}
	e := entry{Listed: d.now}
	if present != nil {
		l, old, err := listing(name, present)
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
	after := d.sizes[n] - entrySize(name, present) + entrySize(name, t)
	if after > maxBinEntries {
		return fmt.Errorf("listing %s: %w: its bin takes %d", name, ErrFull, maxBinEntries)
	}
	if d.edits[n] == nil {
		d.edits[n] = map[string]*metadata.TargetFiles{}
	}
	d.edits[n][name], d.sizes[n] = t, after
	return nil
}

// target is what the draft lists under a name, nil when nothing.
func (d *Draft) target(ctx context.Context, name string) (*metadata.TargetFiles, error) {
	n := binOf(name, d.next.bits)
	if t, ok := d.edits[n][name]; ok {
		return t, nil
	}
	if t, ok := d.known[name]; ok {
		return t, nil
	}
	if err := d.read(ctx, n, []string{name}); err != nil {
		return nil, err
	}
	return d.known[name], nil
}

// Preload reads the bins of many targets, each bin once, so that looking them up
// and listing them reads nothing more.
func (d *Draft) Preload(ctx context.Context, names []string) error {
	byBin := map[int][]string{}
	for _, name := range names {
		n := binOf(name, d.next.bits)
		byBin[n] = append(byBin[n], name)
	}
	for _, n := range slices.Sorted(maps.Keys(byBin)) {
		if err := d.read(ctx, n, byBin[n]); err != nil {
			return err
		}
	}
	return nil
}

// read notes what one bin lists under names, and how full it is.
func (d *Draft) read(ctx context.Context, n int, names []string) error {
	targets, err := d.listedIn(ctx, n)
	if err != nil {
		return err
	}
	for _, name := range names {
		d.known[name] = targets[name]
	}
	if _, sized := d.sizes[n]; sized {
		return nil
	}
	d.sizes[n] = 0
	for name, t := range targets {
		d.sizes[n] += entrySize(name, t)
	}
	return nil
}

// listedIn are the targets of a bin before the draft: of the one bin of the view
// that has its number, or, when the number of bins changes, of those that its
// share of the hashes is taken from. The map is not to be changed.
func (d *Draft) listedIn(ctx context.Context, n int) (map[string]*metadata.TargetFiles, error) {
	if d.next.bits == d.view.bits {
		bin, err := d.client.bin(ctx, d.view, n)
		if err != nil {
			return nil, err
		}
		return bin.Signed.Targets, nil
	}
	targets := map[string]*metadata.TargetFiles{}
	first, last := sameHashes(n, d.next.bits, d.view.bits)
	for old := first; old <= last; old++ {
		bin, err := d.client.bin(ctx, d.view, old)
		if err != nil {
			return nil, err
		}
		for name, t := range bin.Signed.Targets {
			if binOf(name, d.next.bits) == n {
				targets[name] = t
			}
		}
	}
	return targets, nil
}

// sameHashes gives the bins, of 2^to, that hold the hashes of bin n of 2^from.
func sameHashes(n, from, to int) (first, last int) {
	if to <= from {
		return n >> (from - to), n >> (from - to)
	}
	return n << (to - from), (n+1)<<(to-from) - 1
}

// entrySize is about what a target adds to the bytes of its bin.
func entrySize(name string, t *metadata.TargetFiles) int {
	if t == nil || t.Custom == nil {
		return 0
	}
	return len(name) + len(*t.Custom)
}

// RenewBins signs bins anew that have lived half of their time. It looks at a
// slice of them, the next one for each version: at least renewSlice, and a 32nd of
// all, so that 32 publishes look at every bin.
func (d *Draft) RenewBins(ctx context.Context) error {
	total := 1 << d.view.bits
	if d.next.bits != d.view.bits {
		return nil // every bin is signed anew
	}
	slice := min(max(renewSlice, total/32), total)
	first := int(d.view.set.Timestamp.Signed.Version % int64(total) * int64(slice) % int64(total))
	for i := range slice {
		n := (first + i) % total
		bin, err := d.client.bin(ctx, d.view, n)
		if err != nil {
			return err
		}
		if bin.Signed.Expires.Before(d.now.Add(d.next.id.lifetime("bins") / 2)) {
			d.renewed[n] = true
		}
	}
	return nil
}

// Lookup finds a target in the draft: what is listed so far.
func (d *Draft) Lookup(ctx context.Context, target string) (Listing, bool, error) {
	t, err := d.target(ctx, target)
	if err != nil || t == nil {
		return Listing{}, false, err
	}
	l, _, err := listing(target, t)
	return l, err == nil, err
}

// Revoke adds tombstones; one that was undone before a new one's date revokes
// again. It makes no check: the thief of the online key could call it.
func (d *Draft) Revoke(tombstones ...Tombstone) {
	for _, t := range tombstones {
		i := slices.IndexFunc(d.revoked, func(old Tombstone) bool { return old.key() == t.key() })
		switch {
		case i < 0:
			d.revoked = append(d.revoked, t)
		case d.revoked[i].Date.Before(t.Date) && (!d.revoked[i].Active() || !t.Active()):
			d.revoked[i] = t
		}
	}
	sortTombstones(d.revoked)
}

// restoreTombstones puts back what this publisher has seen revoked and the
// snapshot no longer says: somebody took it out with the online key.
func (d *Draft) restoreTombstones() error {
	seen, err := d.client.dir.seen()
	if err != nil {
		return err
	}
	for _, t := range d.view.remember(seen.Revoked, d.now) {
		if _, listed := d.present(t); !listed {
			d.Revoke(t)
		}
	}
	return nil
}

// present is the tombstone with the key of t, if there is one.
func (d *Draft) present(t Tombstone) (Tombstone, bool) {
	i := slices.IndexFunc(d.revoked, func(old Tombstone) bool { return old.key() == t.key() })
	if i < 0 {
		return Tombstone{}, false
	}
	return d.revoked[i], true
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
	w := newWriter(d.client.opts.Registry, d.client.opts.Repository, describe("", d.view.raw.Index).Digest)
	groups, versions, err := d.writeBins(ctx, w)
	if err != nil {
		return Published{}, w.abandon(err)
	}
	top, err := d.writeOffline(ctx, w)
	if err != nil {
		return Published{}, w.abandon(err)
	}
	timestamp, err := d.writeOnline(ctx, w, top, versions)
	if err != nil {
		return Published{}, w.abandon(err)
	}
	index, err := w.finish(ctx, top, groups)
	if err != nil {
		return Published{}, err
	}
	p := Published{Version: timestamp.Version, Index: index, Expires: timestamp.Expires, Bytes: w.bytes.Load()}
	return p, d.readBack(ctx, index)
}

// writeBins signs the changed bins and writes their manifests, two groups at a
// time: no more of the bins than that is in memory.
func (d *Draft) writeBins(ctx context.Context, w *writer) ([]v1.Descriptor, map[string]int64, error) {
	groups := d.groups()
	written := make([]v1.Descriptor, len(groups))
	versions := make([]map[string]int64, len(groups))
	var g errgroup.Group // without a context of its own, which uploads would outlive
	g.SetLimit(2)
	for i, old := range groups {
		g.Go(func() (err error) {
			if w.failed.Load() {
				return nil // finish tells why
			}
			written[i], versions[i], err = d.writeGroup(ctx, w, old)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	all := map[string]int64{}
	for _, v := range versions {
		maps.Copy(all, v)
	}
	return written, all, nil
}

// groups are the groups of the view, or new ones when the number of bins changes.
func (d *Draft) groups() []group {
	if d.next.bits == d.view.bits {
		return d.view.groups
	}
	var groups []group
	size := groupSize(d.next.bits)
	for first := 0; first < 1<<d.next.bits; first += size {
		groups = append(groups, group{first: first, last: first + size - 1})
	}
	return groups
}

// writeGroup writes a group anew if any of its bins changes; the others are kept
// as they are. It returns the versions of the bins that it signed.
func (d *Draft) writeGroup(ctx context.Context, w *writer, g group) (v1.Descriptor, map[string]int64, error) {
	versions := map[string]int64{}
	changed := d.changedIn(g)
	if len(changed) == 0 {
		return g.descriptor, versions, nil
	}
	layers, err := d.keptBins(ctx, g)
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	for _, n := range changed {
		name := binName(n, d.next.bits)
		present := d.binVersion(name)
		delete(layers, versioned(present, name))
		versions[name] = max(present, d.floor[name+".json"]) + 1
		f, err := d.signBin(ctx, n, versions[name])
		if err != nil {
			return v1.Descriptor{}, nil, err
		}
		layers[f.name] = w.add(ctx, f, notInline)
	}
	written, err := w.addGroup(layers, rangeText(g.first, g.last, d.next.bits))
	return written, versions, err
}

// changedIn are the bins of a group that are signed anew: edited, renewed, or
// named in a higher version by an index that a collision lost.
func (d *Draft) changedIn(g group) []int {
	var changed []int
	for n := g.first; n <= g.last; n++ {
		name := binName(n, d.next.bits)
		if d.renewed[n] || len(d.edits[n]) > 0 || d.floor[name+".json"] > d.binVersion(name) {
			changed = append(changed, n)
		}
	}
	return changed
}

// binVersion is the version of a bin in the snapshot of the view, 0 when it has
// none: there were fewer bins.
func (d *Draft) binVersion(name string) int64 {
	if meta := d.view.set.Snapshot.Signed.Meta[name+".json"]; meta != nil {
		return meta.Version
	}
	return 0
}

// signBin signs a bin with its edits.
func (d *Draft) signBin(ctx context.Context, n int, version int64) (file, error) {
	listed, err := d.listedIn(ctx, n)
	if err != nil {
		return file{}, err
	}
	bin := metadata.Targets(d.now)
	bin.Signed.Targets = maps.Clone(listed)
	if bin.Signed.Targets == nil {
		bin.Signed.Targets = map[string]*metadata.TargetFiles{}
	}
	maps.Copy(bin.Signed.Targets, d.edits[n])
	return signBin(bin, d.next.id, binName(n, d.next.bits), version, d.now, d.online)
}

// keptBins are the layers of a group that the snapshot names: each bin in its
// version, and nothing else. A group that lacks one is not built on.
func (d *Draft) keptBins(ctx context.Context, g group) (map[string]v1.Descriptor, error) {
	kept := map[string]v1.Descriptor{}
	if d.next.bits != d.view.bits {
		return kept, nil // every bin is signed anew
	}
	layers, err := d.client.groupLayers(ctx, d.view, g.first)
	if err != nil {
		return nil, err
	}
	for n := g.first; n <= g.last; n++ {
		name := binName(n, d.view.bits)
		version := d.binVersion(name)
		if version == 0 {
			return nil, invalid("snapshot: it does not name %s", name)
		}
		layer, ok := layers[versioned(version, name)]
		if !ok {
			return nil, invalid("the trust index does not hold version %d of %s that the snapshot names", version, name)
		}
		kept[versioned(version, name)] = layer
	}
	return kept, nil
}

// writeOffline returns the files of the next top manifest beside those of the
// online roles: every root, the targets and the policy. What else stands there
// is not carried on.
func (d *Draft) writeOffline(ctx context.Context, w *writer) (map[string]v1.Descriptor, error) {
	keep := d.next.fileNames()
	top := maps.Clone(d.view.top)
	maps.DeleteFunc(top, func(name string, _ v1.Descriptor) bool { return !keep[name] })
	for _, f := range d.next.files {
		if err := w.addTop(ctx, top, f); err != nil {
			return nil, err
		}
	}
	return top, nil
}

// writeOnline signs the snapshot and the timestamp into the top manifest.
func (d *Draft) writeOnline(ctx context.Context, w *writer, top map[string]v1.Descriptor, versions map[string]int64) (*metadata.TimestampType, error) {
	old := d.view.set
	meta := make(map[string]*metadata.MetaFiles, len(old.Snapshot.Signed.Meta))
	for name, m := range old.Snapshot.Signed.Meta {
		meta[name] = metadata.MetaFile(m.Version) // a role never disappears (TUF 5.5.5)
	}
	for role, version := range versions {
		meta[role+".json"] = metadata.MetaFile(version)
	}
	meta[metadata.TARGETS+".json"] = metadata.MetaFile(d.next.targets.Signed.Version)
	above := func(role string, present int64) int64 { return max(present, d.floor[role+".json"]) + 1 }
	snapshot, data, err := signSnapshot(d.next.id, above(metadata.SNAPSHOT, old.Snapshot.Signed.Version), meta, d.revoked, d.now, d.online)
	if err != nil {
		return nil, err
	}
	timestamp, signed, err := signTimestamp(d.next.id, d.timestampLife, above(metadata.TIMESTAMP, old.Timestamp.Signed.Version), snapshot.Version, data, d.now, d.online)
	if err != nil {
		return nil, err
	}
	for name, data := range map[string][]byte{versioned(snapshot.Version, metadata.SNAPSHOT): data, "timestamp.json": signed} {
		if err := w.addTop(ctx, top, offlineFile{name, metadataType, data, maxInline}); err != nil {
			return nil, err
		}
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
