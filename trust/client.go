package trust

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/internal/oci"
	"github.com/imgtrust/imgtrust/policy"
)

// ClientOptions say which trust repository to read and where to remember it.
type ClientOptions struct {
	// Repository is the canonical name of the trust repository, HOST/REPO. It
	// says only where the bytes are; which repository they must belong to is
	// decided by Root.
	Repository string
	// Root is the bootstrap root.json, or a Bootstrap document, which must come
	// from configuration and never from the registry that it protects.
	Root []byte
	// State is the directory under which what was seen is kept, in a directory
	// of the repository's ID. Empty keeps nothing: then there is no rollback
	// protection beyond the life of this Client.
	State string
	// Registry reads and writes the repository.
	Registry *oci.Client
	// Offline answers from State alone and opens no connection.
	Offline bool
	// Warn is told, in one sentence, what was mended on the way, as a damaged
	// file of the cache. nil tells nobody.
	Warn func(text string)
	// Now is the clock; nil is time.Now. Only demo and tests set it.
	Now func() time.Time

	// expired loads roles that have expired: the publisher must be able to renew
	// those that it signs, and key holders those that they sign.
	expired bool
	// siblings goes on from another index of the version seen last, which only a
	// collision of publishers makes; adopt from an older one, too. The view then
	// holds the versions that must not come again.
	siblings, adopt bool
}

// Client reads a trust repository. Its methods may be called concurrently.
type Client struct {
	opts   ClientOptions
	id     identity
	floors Bootstrap // its versions are 0 when Root was a root.json
	dir    *stateDir

	mu   sync.Mutex
	view *view // nil before the first successful Refresh
}

// view is one verified state of the repository.
type view struct {
	set       *trustedmetadata.TrustedMetadata // the top-level roles; not changed any more
	bins      *lru.Cache[int, *metadata.Metadata[metadata.TargetsType]]
	raw       saved                    // the bytes it was verified from
	top       map[string]v1.Descriptor // files of the top manifest, by name
	groups    []group
	policy    *policy.Policy
	revoked   []Tombstone
	lost      map[string]int64 // versions by role file of an index that this one does not follow
	bits      int
	id        identity  // of the newest root
	published time.Time // when the timestamp says that it was signed
	until     time.Time // the earliest expiry of root, timestamp, snapshot and targets
}

// Open checks the bootstrap root and opens the state of its repository. It
// makes no request.
func Open(o ClientOptions) (*Client, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Warn == nil {
		o.Warn = func(string) {}
	}
	if len(o.Root) > maxRootBytes {
		return nil, &Error{Code: policy.UntrustedRoot, Err: fmt.Errorf("root.json is larger than %d bytes", maxRootBytes)}
	}
	floors, err := parseBootstrap(o.Root)
	if err != nil {
		return nil, untrusted(fmt.Errorf("the bootstrap root.json: %w", err))
	}
	o.Root = []byte(floors.Root)
	set, err := newSet(o.Root)
	if err != nil {
		return nil, untrusted(fmt.Errorf("the bootstrap root.json: %w", err))
	}
	id, err := rootIdentity(set.Root)
	if err != nil {
		return nil, untrusted(fmt.Errorf("the bootstrap root.json: %w", err))
	}
	return &Client{opts: o, id: id, floors: floors, dir: newStateDir(o.State, id.Repository)}, nil
}

func untrusted(err error) error {
	return &Error{Code: policy.UntrustedRoot, Err: err,
		Advice: "use the root.json that `imgtrust trust init` wrote, handed over by a person or by configuration"}
}

// ID is the repository ID, 32 hex digits.
func (c *Client) ID() string { return c.id.Repository }

// Repository is where the trust repository is read from.
func (c *Client) Repository() string { return c.opts.Repository }

// Inbox is the canonical repository where signers leave statements, as the
// newest verified root names it, or the bootstrap root before any Refresh.
func (c *Client) Inbox() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.view != nil {
		return c.view.id.Inbox
	}
	return c.id.Inbox
}

// Offline tells whether the client answers from its state alone.
func (c *Client) Offline() bool { return c.opts.Offline }

// Remembers tells whether what this client sees is kept for later ones: without
// that there is no rollback protection.
func (c *Client) Remembers() bool { return c.opts.State != "" }

// Refresh brings the client up to date: one request when nothing changed. All
// of the new metadata is checked before any of it is believed or persisted.
// Offline it checks the persisted state instead.
func (c *Client) Refresh(ctx context.Context) error {
	return c.refresh(ctx, func(saved, *view) error { return nil })
}

// refresh is Refresh with a last word by the caller: what accept refuses is
// neither believed nor persisted, so that trying again does not make it good. No
// lock is held while the registry is asked: where another process moves the state
// meanwhile, all is done again on top of that.
func (c *Client) refresh(ctx context.Context, accept func(old saved, v *view) error) error {
	old, err := c.dir.locked(ctx)
	if err != nil {
		return err
	}
	const attempts = 5
	for range attempts {
		v, err := c.look(ctx, old)
		if err != nil {
			return err
		}
		if err := accept(old, v); err != nil {
			return err
		}
		if v.lost != nil { // the state keeps what was lost, until a publish is above it
			c.believe(v)
			return nil
		}
		remember := func(seen []Tombstone) []Tombstone { return v.remember(seen, v.raw.Floor) }
		moved, err := c.dir.commit(ctx, old, v.raw, remember)
		if err != nil {
			return err
		}
		if moved == nil {
			c.believe(v)
			return nil
		}
		old = *moved
	}
	return stateError(c.dir.path, errors.New("other processes keep changing it"))
}

// look reads the repository and verifies it on top of what was seen before.
func (c *Client) look(ctx context.Context, old saved) (*view, error) {
	next, err := c.fetch(ctx, old)
	if err != nil {
		return nil, err
	}
	v, err := c.walk(ctx, old, next)
	if err != nil {
		return nil, err
	}
	v.raw.Floor = c.now(old.Floor).UTC()
	return v, c.floors.check(v)
}

func (c *Client) believe(v *view) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.view = v
}

// current returns the verified view, refreshing first when there is none or
// when a role of it has expired.
func (c *Client) current(ctx context.Context) (*view, error) {
	if v := c.last(); v != nil && (c.opts.expired || c.Now().Before(v.until)) {
		return v, nil
	}
	if err := c.Refresh(ctx); err != nil {
		return nil, err
	}
	return c.last(), nil
}

// last is the view of the last good Refresh, nil before the first.
func (c *Client) last() *view {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.view
}

// Now is the reference time of every decision on this state: the clock, but
// never before the last good refresh.
func (c *Client) Now() time.Time {
	var floor time.Time
	if v := c.last(); v != nil {
		floor = v.raw.Floor
	}
	return c.now(floor)
}

// Version verifies a repository from root.json alone, with no state, also when
// roles of it have expired, and gives the version of its timestamp.
func Version(ctx context.Context, o ClientOptions) (int64, error) {
	o.State, o.expired = "", true
	c, err := Open(o)
	if err != nil {
		return 0, err
	}
	if err := c.Refresh(ctx); err != nil {
		return 0, err
	}
	return c.last().set.Timestamp.Signed.Version, nil
}

// Policy returns the policy that the offline targets keys signed.
func (c *Client) Policy(ctx context.Context) (*policy.Policy, error) {
	v, err := c.current(ctx)
	if err != nil {
		return nil, err
	}
	return v.policy, nil
}

// PolicyFile returns the policy as it was signed, and the role that signed it.
func (c *Client) PolicyFile(ctx context.Context) ([]byte, RoleInfo, error) {
	v, err := c.current(ctx)
	if err != nil {
		return nil, RoleInfo{}, err
	}
	return []byte(v.raw.Policy), v.roleInfo(metadata.TARGETS), nil
}

// Revoked returns the tombstones that hold: those of the snapshot, and those that
// this state has seen before and revokers have not taken back.
func (c *Client) Revoked(ctx context.Context) ([]Tombstone, error) {
	v, err := c.current(ctx)
	if err != nil {
		return nil, err
	}
	seen, err := c.dir.seen()
	if err != nil {
		return nil, err
	}
	return v.remember(seen.Revoked, c.Now()), nil
}

// LookupDigest finds the entry of a digest of a canonical repository. The error
// has the code not-listed when the bin that would hold it does not.
func (c *Client) LookupDigest(ctx context.Context, repository string, digest v1.Hash) (Listing, error) {
	l, err := c.Lookup(ctx, DigestTarget(repository, digest))
	if err == nil && l.Digest != digest {
		return Listing{}, invalid("target %s has the hash of another manifest, %s", l.Target, l.Digest)
	}
	return l, err
}

// LookupTag finds the entry of a tag of a canonical repository. The caller
// counts the statements of the entry and hands the tag's time to RememberTag.
func (c *Client) LookupTag(ctx context.Context, repository, tag string) (Listing, error) {
	return c.Lookup(ctx, TagTarget(repository, tag))
}

// Lookup finds a target by its name in the one bin responsible for it, fetching
// that bin when it is not cached.
func (c *Client) Lookup(ctx context.Context, target string) (Listing, error) {
	v, err := c.current(ctx)
	if err != nil {
		return Listing{}, err
	}
	bin, err := c.bin(ctx, v, binOf(target, v.bits))
	if err != nil {
		return Listing{}, err
	}
	t, ok := bin.Signed.Targets[target]
	if !ok {
		return Listing{}, &Error{Code: policy.NotListed, Err: fmt.Errorf("%s is not listed", target),
			Advice: "sign it with `imgtrust sign` (with --tag, to have it by that tag), then list it with `imgtrust trust publish`"}
	}
	l, _, err := listing(target, t)
	l.Bin = v.binInfo(bin, binName(binOf(target, v.bits), v.bits))
	return l, err
}

// bin returns one verified bin of the view.
func (c *Client) bin(ctx context.Context, v *view, n int) (*metadata.Metadata[metadata.TargetsType], error) {
	name := binName(n, v.bits)
	bin, known := v.bins.Get(n)
	if !known {
		data, err := c.fetchBin(ctx, v, n)
		if err != nil {
			return nil, err
		}
		if bin, err = c.trustBin(v, name, data); err != nil {
			return nil, err
		}
		v.bins.Add(n, bin)
	}
	if err := c.checkUnexpired(bin.Signed.IsExpired, name); err != nil {
		return nil, err
	}
	return bin, nil
}

// trustBin verifies the bytes of a bin against the view.
func (c *Client) trustBin(v *view, name string, data []byte) (bin *metadata.Metadata[metadata.TargetsType], err error) {
	defer recovered(name, &err)
	if err := strictJSON(name, data); err != nil {
		return nil, err
	}
	set := *v.set // of its own, so that bins are verified beside each other and not kept
	set.Targets = map[string]*metadata.Metadata[metadata.TargetsType]{metadata.TARGETS: v.set.Targets[metadata.TARGETS]}
	bin, err = set.UpdateDelegatedTargets(data, name, metadata.TARGETS)
	if err != nil {
		return nil, tufError(name, err)
	}
	_, err = checkRole(v.id, bin.Signed.UnrecognizedFields, name, "bins", bin.Signed.Expires, c.now(v.raw.Floor))
	return bin, err
}

// checkRole checks what TUF does not: that a role belongs to this repository,
// carries its own name and does not outlive what root allows.
func checkRole(root identity, fields map[string]any, role, kind string, expires, now time.Time) (identity, error) {
	id, err := identityOf(fields, root.Repository, role)
	if err != nil {
		return id, err
	}
	return id, root.checkLifetime(role, kind, expires, now)
}

// now is the reference time: the clock, but never before the last good refresh.
func (c *Client) now(floor time.Time) time.Time {
	if t := c.opts.Now(); t.After(floor) {
		return t
	}
	return floor
}

func (c *Client) checkUnexpired(expired func(time.Time) bool, role string) error {
	if c.opts.expired || !expired(c.Now()) {
		return nil
	}
	return &Error{Code: policy.MetadataExpired, Err: fmt.Errorf("%s has expired", role), Advice: expiryAdvice(role)}
}

// Chain lists the verified roles from root down, and the bins looked up so far
// are not among them: a Listing names its own.
func (c *Client) Chain(ctx context.Context) ([]RoleInfo, error) {
	v, err := c.current(ctx)
	if err != nil {
		return nil, err
	}
	var chain []RoleInfo
	for _, role := range []string{metadata.ROOT, metadata.TIMESTAMP, metadata.SNAPSHOT, metadata.TARGETS} {
		chain = append(chain, v.roleInfo(role))
	}
	return chain, nil
}

// binInfo is what a verified bin says of itself.
func (v *view) binInfo(bin *metadata.Metadata[metadata.TargetsType], name string) RoleInfo {
	by := v.set.Targets[metadata.TARGETS].Signed.Delegations.SuccinctRoles
	return RoleInfo{Role: name, Version: bin.Signed.Version, Expires: bin.Signed.Expires, KeyIDs: by.KeyIDs, Threshold: by.Threshold}
}

// roleInfo is what a top-level role says of itself.
func (v *view) roleInfo(role string) RoleInfo {
	r := v.set.Root.Signed.Roles[role]
	info := RoleInfo{Role: role, KeyIDs: r.KeyIDs, Threshold: r.Threshold}
	switch role {
	case metadata.ROOT:
		info.Version, info.Expires = v.set.Root.Signed.Version, v.set.Root.Signed.Expires
	case metadata.TIMESTAMP:
		info.Version, info.Expires = v.set.Timestamp.Signed.Version, v.set.Timestamp.Signed.Expires
	case metadata.SNAPSHOT:
		info.Version, info.Expires = v.set.Snapshot.Signed.Version, v.set.Snapshot.Signed.Expires
	case metadata.TARGETS:
		t := v.set.Targets[role]
		info.Version, info.Expires = t.Signed.Version, t.Signed.Expires
	}
	return info
}

// Until is the earliest expiry among the top-level roles: no answer of this
// view may be believed after it.
func (c *Client) Until(ctx context.Context) (time.Time, error) {
	v, err := c.current(ctx)
	if err != nil {
		return time.Time{}, err
	}
	return v.until, nil
}

// RememberTag records the time of a tag and refuses to go back: a smaller time
// than the one seen before, or the same time with a smaller digest, is the code
// rolled-back.
func (c *Client) RememberTag(ctx context.Context, repository, tag string, digest v1.Hash, t time.Time) error {
	unlock, err := c.dir.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return c.dir.rememberTag(TagTarget(repository, tag), tagSeen{Time: t, Digest: digest.String()})
}

// strictJSON refuses what go-tuf's decoder would let pass: duplicate keys and
// trailing data.
func strictJSON(role string, data []byte) error {
	var ignored struct{}
	if err := attest.UnmarshalStrict(data, &ignored, true); err != nil {
		return invalid("%s: %w", role, err)
	}
	return nil
}

// newSet guards go-tuf's decoder against a panic on hostile metadata.
func newSet(root []byte) (set *trustedmetadata.TrustedMetadata, err error) {
	defer recovered(metadata.ROOT, &err)
	if err := strictJSON(metadata.ROOT, root); err != nil {
		return nil, err
	}
	return trustedmetadata.New(root)
}

// recovered turns a panic of the metadata library into an error: a malformed
// role must refuse an image, not stop a node.
func recovered(role string, err *error) {
	if p := recover(); p != nil {
		*err = invalid("%s: malformed metadata: %v", role, p)
	}
}

// isExpired tells go-tuf's expiry error from others: it leaves the role loaded.
func isExpired(err error) bool {
	var expired *metadata.ErrExpiredMetadata
	return errors.As(err, &expired)
}
