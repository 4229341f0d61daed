package trust

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"

	"github.com/imgtrust/imgtrust/policy"
)

// walk verifies a fetched index on top of what was seen before, in the order
// of the TUF client workflow: root, timestamp, snapshot, targets, then the
// policy. Nothing of it is believed unless all of it holds.
func (c *Client) walk(ctx context.Context, old saved, next *remoteIndex) (*view, error) {
	v, err := c.follow(ctx, old, next)
	var refused *Error
	again := errors.As(err, &refused) && (c.opts.siblings && errors.Is(err, errSibling) || c.opts.adopt && refused.Code == policy.RolledBack)
	if !again {
		return v, err
	}
	lost, err := lostVersions(old)
	if err != nil {
		return nil, err
	}
	old.Timestamp, old.Snapshot = "", ""
	if v, err = c.follow(ctx, old, next); err == nil {
		v.lost = lost
	}
	return v, err
}

// errSibling says that an index has the version of the one seen last, and is
// another one.
var errSibling = errors.New("two publishers have collided")

// lostVersions are the versions of an index that was seen and is not followed.
func lostVersions(old saved) (map[string]int64, error) {
	timestamp, err1 := (&metadata.Metadata[metadata.TimestampType]{}).FromBytes([]byte(old.Timestamp))
	snapshot, err2 := (&metadata.Metadata[metadata.SnapshotType]{}).FromBytes([]byte(old.Snapshot))
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("persisted state: %w", err)
	}
	lost := map[string]int64{"timestamp.json": timestamp.Signed.Version, "snapshot.json": snapshot.Signed.Version}
	for name, meta := range snapshot.Signed.Meta {
		lost[name] = meta.Version
	}
	return lost, nil
}

// follow is walk on top of exactly what was seen before.
func (c *Client) follow(ctx context.Context, old saved, next *remoteIndex) (v *view, err error) {
	defer recovered("metadata", &err)
	w := &walk{client: c, old: old, next: next, id: c.id}
	w.raw.Index = next.raw
	steps := []func(context.Context) error{w.roots, w.timestamp, w.snapshot, w.targets, w.policyFile}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return w.view()
}

// walk is the state of one walk.
type walk struct {
	client *Client
	old    saved
	next   *remoteIndex

	set     *trustedmetadata.TrustedMetadata
	raw     saved
	revoked []Tombstone
	policy  *policy.Policy
	id      identity // of the newest root
	signed  time.Time
}

func (w *walk) view() (*view, error) {
	bins, err := lru.New[int, *metadata.Metadata[metadata.TargetsType]](maxDecoded)
	succinct := w.set.Targets[metadata.TARGETS].Signed.Delegations.SuccinctRoles
	return &view{set: w.set, bins: bins, raw: w.raw, top: w.next.top, groups: w.next.groups, policy: w.policy, revoked: w.revoked, bits: succinct.BitLength, id: w.id, until: w.until(), published: w.signed}, err
}

// until is the earliest expiry of the top-level roles.
func (w *walk) until() time.Time {
	until := w.set.Root.Signed.Expires
	for _, t := range []time.Time{w.set.Timestamp.Signed.Expires, w.set.Snapshot.Signed.Expires, w.set.Targets[metadata.TARGETS].Signed.Expires} {
		if t.Before(until) {
			until = t
		}
	}
	return until
}

// now is the reference time of this walk.
func (w *walk) now() time.Time { return w.client.now(w.old.Floor) }

// check checks the identity and lifetime of a top-level role.
func (w *walk) check(fields map[string]any, role string, expires time.Time) error {
	id, err := checkRole(w.id, fields, role, role, expires, w.now())
	if role == metadata.TIMESTAMP {
		w.signed = id.Published
	}
	return err
}

// roots walks from the bootstrap root over the roots seen before to the newest
// in the index, version by version (TUF 5.3).
func (w *walk) roots(ctx context.Context) error {
	set, err := newSet(w.client.opts.Root)
	if err != nil {
		return untrusted(err)
	}
	w.set = set
	w.set.RefTime = w.now()
	for _, root := range w.old.Roots {
		if err := w.nextRoot([]byte(root)); err != nil {
			return fmt.Errorf("persisted state: %w", err)
		}
	}
	for range maxRoots {
		name := versioned(w.set.Root.Signed.Version+1, metadata.ROOT)
		data, err := w.next.read(ctx, name, maxRootBytes)
		if errors.Is(err, errNoFile) {
			return w.finalRoot()
		}
		if err != nil {
			return err
		}
		if err := w.nextRoot(data); err != nil {
			return err
		}
	}
	return untrusted(fmt.Errorf("more than %d new roots", maxRoots))
}

// nextRoot verifies one root version and keeps its bytes. A root at or below
// the trusted version (the bootstrap was replaced by a newer one) is passed over.
func (w *walk) nextRoot(data []byte) error {
	if err := strictJSON(metadata.ROOT, data); err != nil {
		return err
	}
	if m, err := (&metadata.Metadata[metadata.RootType]{}).FromBytes(data); err == nil && m.Signed.Version <= w.set.Root.Signed.Version {
		return nil
	}
	root, err := w.set.UpdateRoot(data)
	if err != nil {
		return tufError(metadata.ROOT, err)
	}
	id, err := rootIdentity(root)
	if err != nil {
		return err
	}
	if id.Repository != w.id.Repository {
		return invalid("root version %d belongs to another trust repository", root.Signed.Version)
	}
	w.id = id
	w.raw.Roots = append(w.raw.Roots, string(data))
	return nil
}

// finalRoot checks the newest root: that it is not older than one seen before,
// whatever the bootstrap was then, and that it does not outlive what it allows.
func (w *walk) finalRoot() error {
	root := &w.set.Root.Signed
	if root.Version < w.old.RootVersion {
		return &Error{Code: policy.RolledBack, Err: fmt.Errorf("root: version %d, but version %d was seen", root.Version, w.old.RootVersion),
			Advice: "the registry withholds a newer root"}
	}
	w.raw.RootVersion = root.Version
	if err := w.check(root.UnrecognizedFields, metadata.ROOT, root.Expires); err != nil {
		return err
	}
	w.forgetOnRotation()
	if w.client.opts.expired {
		w.set.RefTime = time.Time{} // what has expired is loaded: see offlineExpired
	}
	return nil
}

// forgetOnRotation drops the old timestamp and snapshot when the keys of their
// roles have changed since: TUF 5.3.11, recovery from a fast-forward attack.
func (w *walk) forgetOnRotation() {
	roles := w.set.Root.Signed.Roles
	w.raw.OnlineKeys = slices.Concat(roles[metadata.TIMESTAMP].KeyIDs, roles[metadata.SNAPSHOT].KeyIDs)
	if !slices.Equal(w.raw.OnlineKeys, w.old.OnlineKeys) {
		w.old.Timestamp, w.old.Snapshot = "", ""
	}
}

// timestamp verifies timestamp.json and refuses one older than the last seen
// (TUF 5.4).
func (w *walk) timestamp(ctx context.Context) error {
	if w.old.Timestamp != "" {
		if _, err := w.set.UpdateTimestamp([]byte(w.old.Timestamp)); err != nil && !isExpired(err) {
			return fmt.Errorf("persisted state: %w", tufError(metadata.TIMESTAMP, err))
		}
	}
	data, err := w.next.mustRead(ctx, "timestamp.json", maxTimestamp)
	if err != nil {
		return err
	}
	m, err := w.set.UpdateTimestamp(data)
	var equal *metadata.ErrEqualVersionNumber
	if errors.As(err, &equal) && bytes.Equal(data, []byte(w.old.Timestamp)) {
		m, err = w.set.Timestamp, nil
	} else if equal != nil {
		return w.equivocation()
	}
	if err != nil {
		return tufError(metadata.TIMESTAMP, err)
	}
	if len(m.Signed.Meta) != 1 || m.Signed.Meta["snapshot.json"] == nil {
		return invalid("timestamp: it must name snapshot.json and nothing else")
	}
	w.raw.Timestamp = string(data)
	return w.check(m.Signed.UnrecognizedFields, metadata.TIMESTAMP, m.Signed.Expires)
}

// equivocation is the error for two timestamps of one version: two publishers
// have collided, and a reader cannot tell which was first.
func (w *walk) equivocation() error {
	return &Error{Code: policy.MetadataInvalid, Advice: "the next publish repairs it",
		Err: fmt.Errorf("timestamp: another one of version %d was seen before: %w", w.set.Timestamp.Signed.Version, errSibling)}
}

// snapshot verifies the snapshot that the timestamp names and refuses one in
// which any role went back (TUF 5.5), then reads the tombstones.
func (w *walk) snapshot(ctx context.Context) error {
	name := versioned(w.set.Timestamp.Signed.Meta["snapshot.json"].Version, metadata.SNAPSHOT)
	data, err := w.next.mustRead(ctx, name, maxSnapshot)
	if err != nil {
		return err
	}
	if err := w.oldSnapshot(data); err != nil {
		return err
	}
	m, err := w.set.UpdateSnapshot(data, false)
	if err != nil {
		return tufError(metadata.SNAPSHOT, err)
	}
	id, err := checkRole(w.id, m.Signed.UnrecognizedFields, metadata.SNAPSHOT, metadata.SNAPSHOT, m.Signed.Expires, w.now())
	if err != nil {
		return err
	}
	for name, meta := range m.Signed.Meta {
		if meta == nil || meta.Version < 1 {
			return invalid("snapshot: %.80q has no version", name)
		}
	}
	w.raw.Snapshot = string(data)
	if w.revoked, err = id.tombstones(); err != nil {
		return err
	}
	for _, t := range w.revoked {
		if t.Date.After(w.now().Add(clockSkew)) {
			return invalid("snapshot: the tombstone of %.100s is of the future: %s", t.Subject(), t.Date.Format(time.RFC3339))
		}
	}
	return nil
}

// oldSnapshot loads the snapshot seen last, as the floor for the versions of
// the next one. It may have expired, or be of another version than the
// timestamp's. The same bytes again are no older: decoding a large snapshot
// twice is most of what a look-up costs when nothing has changed.
func (w *walk) oldSnapshot(next []byte) error {
	if w.old.Snapshot == "" || w.old.Snapshot == string(next) {
		return nil
	}
	if _, err := w.set.UpdateSnapshot([]byte(w.old.Snapshot), true); err != nil && w.set.Snapshot == nil {
		return fmt.Errorf("persisted state: %w", tufError(metadata.SNAPSHOT, err))
	}
	return nil
}

// targets verifies targets.json (TUF 5.6) and that it delegates to bins in the
// one way that this format knows.
func (w *walk) targets(ctx context.Context) error {
	meta := w.set.Snapshot.Signed.Meta["targets.json"]
	if meta == nil {
		return invalid("snapshot: it does not name targets.json")
	}
	data, err := w.next.mustRead(ctx, versioned(meta.Version, metadata.TARGETS), maxTargets)
	if err != nil {
		return err
	}
	m, err := w.set.UpdateTargets(data)
	if err != nil {
		return tufError(metadata.TARGETS, err)
	}
	bits, err := binsOf(m.Signed)
	if err != nil {
		return err
	}
	if err := checkGroups(w.next.groups, bits); err != nil {
		return err
	}
	w.raw.Targets = string(data)
	return w.check(m.Signed.UnrecognizedFields, metadata.TARGETS, m.Signed.Expires)
}

// policyFile reads the policy, a target that the offline targets keys signed.
func (w *walk) policyFile(ctx context.Context) error {
	t, err := policyTarget(w.set.Targets[metadata.TARGETS].Signed)
	if err != nil {
		return err
	}
	data, err := w.next.mustRead(ctx, policyFileName(t), maxPolicy)
	if err != nil {
		return err
	}
	if err := t.VerifyLengthHashes(data); err != nil {
		return invalid("%s: %w", policyName, err)
	}
	w.raw.Policy = string(data)
	if w.policy, err = policy.Parse(policyName, data); err != nil {
		return invalid("%w", err)
	}
	return nil
}

// policyFileName is the name of the policy's file: consistent snapshots put the
// hash of a target before its name.
func policyFileName(t *metadata.TargetFiles) string {
	return hex.EncodeToString(t.Hashes["sha256"]) + "." + policyName
}

// offlineExpired checks the roles that a publisher cannot renew itself. For a
// reader go-tuf has refused every expired role on the way.
func (v *view) offlineExpired(now time.Time) error {
	if v.set.Root.Signed.IsExpired(now) {
		return tufError(metadata.ROOT, &metadata.ErrExpiredMetadata{Msg: "it has expired"})
	}
	if v.set.Targets[metadata.TARGETS].Signed.IsExpired(now) {
		return tufError(metadata.TARGETS, &metadata.ErrExpiredMetadata{Msg: "it has expired"})
	}
	return nil
}
