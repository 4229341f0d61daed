package trust

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/imgtrust/imgtrust/internal/oci"
	"github.com/imgtrust/imgtrust/policy"
)

// InitOptions say what a new trust repository is.
type InitOptions struct {
	Repository string // canonical, HOST/REPO; must not hold a trust index yet
	Registry   *oci.Client

	RootKeys         []crypto.Signer // offline; all of them sign
	RootThreshold    int             // 1..len(RootKeys); 0 is all of them
	TargetsKeys      []crypto.Signer // offline; all of them sign
	TargetsThreshold int             // 1..len(TargetsKeys); 0 is all of them
	OnlineKey        crypto.Signer   // the publisher's: snapshot, timestamp and bins

	Policy         []byte                   // policy.yaml, checked strictly
	ExpectedImages int                      // chooses the number of bins; 0 is up to 5,000
	Inbox          string                   // canonical repository; "" is Repository/inbox
	Expires        map[string]time.Duration // per role kind; see DefaultLifetimes
	Now            func() time.Time         // nil is time.Now
}

// DefaultLifetimes is how long the roles live when InitOptions.Expires does not
// say otherwise: root 1 year, targets 90 days, bins 1 year, snapshot and
// timestamp 7 days. Root allows each role twice its lifetime.
func DefaultLifetimes() map[string]time.Duration {
	const day = 24 * time.Hour
	return map[string]time.Duration{
		metadata.ROOT: 365 * day, metadata.TARGETS: 90 * day, "bins": 365 * day,
		metadata.SNAPSHOT: 7 * day, metadata.TIMESTAMP: 7 * day,
	}
}

// Initialized says what Init made.
type Initialized struct {
	ID    string     // the repository ID
	Root  []byte     // root.json, which every reader must be given
	Bins  int        // number of hash bins
	Roles []RoleInfo // root, targets, snapshot, timestamp
	Bytes int64      // uploaded
}

// Init makes a new trust repository: root and targets signed by the offline
// keys, every bin empty, and the tag switched last.
func Init(ctx context.Context, o InitOptions) (Initialized, error) {
	c, err := newCeremony(o)
	if err != nil {
		return Initialized{}, err
	}
	if err := c.refuseExisting(ctx); err != nil {
		return Initialized{}, err
	}
	top := map[string]v1.Descriptor{}
	root, err := c.writeRoot(ctx, top)
	if err != nil {
		return Initialized{}, c.writer.abandon(err)
	}
	if err := c.writeTargets(ctx, top); err != nil {
		return Initialized{}, c.writer.abandon(err)
	}
	groups, err := c.writeBins(ctx)
	if err != nil {
		return Initialized{}, c.writer.abandon(err)
	}
	if err := c.writeOnline(ctx, top); err != nil {
		return Initialized{}, c.writer.abandon(err)
	}
	if _, err := c.writer.finish(ctx, top, groups); err != nil {
		return Initialized{}, err
	}
	return c.result(ctx, root)
}

// ceremony is the state of one Init.
type ceremony struct {
	InitOptions
	id     identity
	now    time.Time
	bits   int
	meta   map[string]*metadata.MetaFiles
	writer *writer
}

func newCeremony(o InitOptions) (*ceremony, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Inbox == "" {
		o.Inbox = o.Repository + "/inbox"
	}
	lifetimes := DefaultLifetimes()
	for kind := range o.Expires {
		if lifetimes[kind] == 0 || o.Expires[kind] < time.Minute {
			return nil, fmt.Errorf("lifetime of %q: unknown role, or below one minute", kind)
		}
	}
	maps.Copy(lifetimes, o.Expires)
	if err := threshold("root", &o.RootThreshold, o.RootKeys); err != nil {
		return nil, err
	}
	if err := threshold("targets", &o.TargetsThreshold, o.TargetsKeys); err != nil {
		return nil, err
	}
	if err := checkOnlineApart(o); err != nil {
		return nil, err
	}
	if _, err := policy.Parse(policyName, o.Policy); err != nil {
		return nil, err
	}
	var random [16]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, err
	}
	id := identity{Repository: hex.EncodeToString(random[:]), Role: metadata.ROOT, Inbox: o.Inbox, Lifetimes: map[string]int64{}}
	for kind, d := range lifetimes {
		id.Lifetimes[kind] = int64(2 * d / time.Second)
	}
	return &ceremony{
		InitOptions: o, id: id, now: o.Now().UTC().Truncate(time.Second), bits: binBits(o.ExpectedImages),
		meta:   map[string]*metadata.MetaFiles{"targets.json": metadata.MetaFile(1)},
		writer: newWriter(o.Registry, o.Repository, v1.Hash{}),
	}, nil
}

// checkOnlineApart refuses an online key that is an offline one as well: a theft
// of the publisher would then be a theft of everything.
func checkOnlineApart(o InitOptions) error {
	if o.OnlineKey == nil {
		return errors.New("no online key")
	}
	_, online, err := tufKey(o.OnlineKey.Public())
	if err != nil {
		return fmt.Errorf("online key: %w", err)
	}
	for _, k := range slices.Concat(o.RootKeys, o.TargetsKeys) {
		if _, id, err := tufKey(k.Public()); err == nil && id == online {
			return errors.New("the online key is a root or targets key as well: whoever takes the publisher would have everything")
		}
	}
	return nil
}

// threshold checks a threshold against distinct keys.
func threshold(role string, n *int, keys []crypto.Signer) error {
	distinct := map[string]bool{}
	for _, k := range keys {
		_, id, err := tufKey(k.Public())
		if err != nil {
			return fmt.Errorf("%s key: %w", role, err)
		}
		if distinct[id] {
			return fmt.Errorf("the same %s key is given twice", role)
		}
		distinct[id] = true
	}
	if *n == 0 {
		*n = len(keys)
	}
	if *n < 1 || *n > len(keys) {
		return fmt.Errorf("%s threshold %d with %d keys: it must be from 1 to the number of keys", role, *n, len(keys))
	}
	return nil
}

// refuseExisting keeps Init from replacing a repository that clients trust.
func (c *ceremony) refuseExisting(ctx context.Context) error {
	ref := oci.Reference{Repository: c.Repository, Tag: Tag}
	_, err := c.Registry.Resolve(ctx, ref)
	if errors.Is(err, oci.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking for an existing trust index: %w", err)
	}
	return &Error{Err: fmt.Errorf("%s exists already", ref), Advice: "use another repository name; an existing one changes by `imgtrust trust publish`"}
}

func (c *ceremony) writeRoot(ctx context.Context, top map[string]v1.Descriptor) ([]byte, error) {
	m := metadata.Root(c.now.Add(c.id.lifetime(metadata.ROOT)))
	m.Signed.ConsistentSnapshot = true
	m.Signed.UnrecognizedFields = identityFields(c.id)
	roles := []struct {
		name      string
		keys      []crypto.Signer
		threshold int
	}{
		{metadata.ROOT, c.RootKeys, c.RootThreshold},
		{metadata.TARGETS, c.TargetsKeys, c.TargetsThreshold},
		{metadata.SNAPSHOT, []crypto.Signer{c.OnlineKey}, 1},
		{metadata.TIMESTAMP, []crypto.Signer{c.OnlineKey}, 1},
	}
	for _, r := range roles {
		for _, k := range r.keys {
			if err := addRootKey(&m.Signed, k, r.name); err != nil {
				return nil, fmt.Errorf("%s key: %w", r.name, err)
			}
		}
		m.Signed.Roles[r.name].Threshold = r.threshold
	}
	if err := signRole(m, c.RootKeys...); err != nil {
		return nil, err
	}
	data, err := m.ToBytes(false)
	if err != nil {
		return nil, err
	}
	// A reader begins with a root: it asks for those that came after, once.
	return data, c.addTop(ctx, top, versioned(1, metadata.ROOT), metadataType, data, notInline)
}

func addRootKey(root *metadata.RootType, k crypto.Signer, role string) error {
	key, _, err := tufKey(k.Public())
	if err != nil {
		return err
	}
	return root.AddKey(key, role)
}

func (c *ceremony) writeTargets(ctx context.Context, top map[string]v1.Descriptor) error {
	key, id, err := tufKey(c.OnlineKey.Public())
	if err != nil {
		return fmt.Errorf("online key: %w", err)
	}
	m := metadata.Targets(c.now.Add(c.id.lifetime(metadata.TARGETS)))
	m.Signed.UnrecognizedFields = identityFields(c.id.named(metadata.TARGETS))
	sum := sha256.Sum256(c.Policy)
	m.Signed.Targets[policyName] = &metadata.TargetFiles{Length: int64(len(c.Policy)), Hashes: metadata.Hashes{"sha256": sum[:]}}
	m.Signed.Delegations = &metadata.Delegations{
		Keys:          map[string]*metadata.Key{id: key},
		SuccinctRoles: &metadata.SuccinctRoles{KeyIDs: []string{id}, Threshold: 1, BitLength: c.bits, NamePrefix: binPrefix},
	}
	if err := signRole(m, c.TargetsKeys...); err != nil {
		return err
	}
	data, err := m.ToBytes(false)
	if err != nil {
		return err
	}
	name := hex.EncodeToString(sum[:]) + "." + policyName
	if err := c.addTop(ctx, top, name, targetType, c.Policy, maxInlinePolicy); err != nil {
		return err
	}
	return c.addTop(ctx, top, versioned(1, metadata.TARGETS), metadataType, data, maxInline)
}

// writeBins signs every bin empty: none is ever added later.
func (c *ceremony) writeBins(ctx context.Context) ([]v1.Descriptor, error) {
	var groups []v1.Descriptor
	size := groupSize(c.bits)
	for first := 0; first < 1<<c.bits; first += size {
		layers := map[string]v1.Descriptor{}
		for n := first; n < first+size; n++ {
			name := binName(n, c.bits)
			f, err := signBin(metadata.Targets(c.now), c.id, name, 1, c.now, c.OnlineKey)
			if err != nil {
				return nil, err
			}
			layers[f.name] = c.writer.add(ctx, f, notInline)
			c.meta[name+".json"] = metadata.MetaFile(1)
		}
		d, err := c.writer.addGroup(layers, rangeText(first, first+size-1, c.bits))
		if err != nil {
			return nil, err
		}
		groups = append(groups, d)
	}
	return groups, nil
}

func (c *ceremony) writeOnline(ctx context.Context, top map[string]v1.Descriptor) error {
	_, snapshot, err := signSnapshot(c.id, 1, c.meta, nil, c.now, c.OnlineKey)
	if err != nil {
		return err
	}
	_, timestamp, err := signTimestamp(c.id, 1, 1, snapshot, c.now, c.OnlineKey)
	if err != nil {
		return err
	}
	if err := c.addTop(ctx, top, versioned(1, metadata.SNAPSHOT), metadataType, snapshot, maxInline); err != nil {
		return err
	}
	return c.addTop(ctx, top, "timestamp.json", metadataType, timestamp, maxInline)
}

func (c *ceremony) addTop(ctx context.Context, top map[string]v1.Descriptor, name string, media types.MediaType, data []byte, inline int) error {
	f, err := newFile(name, media, data)
	if err != nil {
		return err
	}
	top[name] = c.writer.add(ctx, f, inline)
	return nil
}

// result reads the new repository as a client would and describes it.
func (c *ceremony) result(ctx context.Context, root []byte) (Initialized, error) {
	client, err := Open(ClientOptions{Repository: c.Repository, Root: root, Registry: c.Registry, Now: c.Now})
	if err != nil {
		return Initialized{}, err
	}
	roles, err := client.Chain(ctx)
	if err != nil {
		return Initialized{}, fmt.Errorf("verifying the new trust repository: %w", err)
	}
	return Initialized{ID: c.id.Repository, Root: root, Bins: 1 << c.bits, Roles: roles, Bytes: c.writer.bytes.Load()}, nil
}
