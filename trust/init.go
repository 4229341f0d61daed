package trust

import (
	"context"
	"crypto"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/imgtrust/imgtrust/internal/oci"
	"github.com/imgtrust/imgtrust/policy"
)

// InitOptions say what a new trust repository is.
type InitOptions struct {
	Repository string // canonical, HOST/REPO; must not hold a trust index yet
	Registry   *oci.Client

	RootKeys         []crypto.Signer    // offline; those at hand, which sign
	RootPublic       []crypto.PublicKey // offline; those whose holders sign elsewhere
	RootThreshold    int                // 1..number of root keys; 0 is all of them
	TargetsKeys      []crypto.Signer    // offline; those at hand, which sign
	TargetsPublic    []crypto.PublicKey // offline; those whose holders sign elsewhere
	TargetsThreshold int                // 1..number of targets keys; 0 is all of them
	OnlineKey        crypto.Signer      // the publisher's: snapshot, timestamp and bins
	OnlinePublic     crypto.PublicKey   // in place of OnlineKey, where NewChange is called without it

	Policy         []byte                   // policy.yaml, checked strictly
	ExpectedImages int                      // chooses the number of bins; 0 is up to 5,000
	Inbox          string                   // canonical repository; "" is Repository/inbox
	Expires        map[string]time.Duration // per role kind; see DefaultLifetimes
	Now            func() time.Time         // nil is time.Now

	bits int // the number of bins is 2^bits; 0 leaves it to ExpectedImages
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

// Init makes a new trust repository with all keys at hand: NewChange, signed, and
// Create.
func Init(ctx context.Context, o InitOptions) (Initialized, error) {
	change, err := NewChange(o)
	if err != nil {
		return Initialized{}, err
	}
	return Create(ctx, change, CreateOptions{Registry: o.Registry, OnlineKey: o.OnlineKey, Now: o.Now})
}

// NewChange proposes a new trust repository, signed by the keys at hand. The
// holders of the others sign it with CheckedChange.Sign.
func NewChange(o InitOptions) (Change, error) {
	c, err := newCeremony(o)
	if err != nil {
		return Change{}, err
	}
	root, err := c.root()
	if err != nil {
		return Change{}, err
	}
	targets, err := c.targets()
	if err != nil {
		return Change{}, err
	}
	change := Change{Format: changeFormat, Repository: o.Repository, Roots: []string{}, NextRoot: root, NextTargets: targets, NextPolicy: string(o.Policy)}
	for _, key := range slices.Concat(o.RootKeys, o.TargetsKeys) {
		checked, err := change.Check(nil)
		if err != nil {
			return Change{}, err
		}
		if change, err = checked.Sign(key); err != nil {
			return Change{}, err
		}
	}
	return change, nil
}

// ceremony is the state of one NewChange.
type ceremony struct {
	InitOptions
	id   identity
	now  time.Time
	keys struct {
		root, targets []crypto.PublicKey
		online        crypto.PublicKey
	}
}

func newCeremony(o InitOptions) (*ceremony, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Inbox == "" {
		o.Inbox = o.Repository + "/inbox"
	}
	if o.bits == 0 {
		o.bits = binBits(o.ExpectedImages)
	}
	c := &ceremony{InitOptions: o, now: o.Now().UTC().Truncate(time.Second)}
	c.keys.root = append(publicKeys(o.RootKeys), o.RootPublic...)
	c.keys.targets = append(publicKeys(o.TargetsKeys), o.TargetsPublic...)
	c.keys.online = o.OnlinePublic
	if o.OnlineKey != nil {
		c.keys.online = o.OnlineKey.Public()
	}
	for _, check := range []func() error{c.thresholds, c.onlineApart, c.identify} {
		if err := check(); err != nil {
			return nil, err
		}
	}
	_, err := policy.Parse(policyName, o.Policy)
	return c, err
}

func publicKeys(signers []crypto.Signer) []crypto.PublicKey {
	var keys []crypto.PublicKey
	for _, k := range signers {
		keys = append(keys, k.Public())
	}
	return keys
}

// identify chooses the repository's ID and the lives of its roles.
func (c *ceremony) identify() error {
	lifetimes := DefaultLifetimes()
	for kind := range c.Expires {
		if lifetimes[kind] == 0 || c.Expires[kind] < time.Minute {
			return fmt.Errorf("lifetime of %q: unknown role, or below one minute", kind)
		}
	}
	maps.Copy(lifetimes, c.Expires)
	var random [16]byte
	if _, err := rand.Read(random[:]); err != nil {
		return err
	}
	c.id = identity{Repository: hex.EncodeToString(random[:]), Role: metadata.ROOT, Inbox: c.Inbox, Lifetimes: map[string]int64{}}
	for kind, d := range lifetimes {
		c.id.Lifetimes[kind] = int64(2 * d / time.Second)
	}
	return nil
}

func (c *ceremony) thresholds() error {
	if err := threshold("root", &c.RootThreshold, c.keys.root); err != nil {
		return err
	}
	return threshold("targets", &c.TargetsThreshold, c.keys.targets)
}

// onlineApart refuses an online key that is an offline one as well.
func (c *ceremony) onlineApart() error {
	if c.keys.online == nil {
		return errors.New("no online key")
	}
	_, online, err := tufKey(c.keys.online)
	if err != nil {
		return fmt.Errorf("online key: %w", err)
	}
	for _, k := range slices.Concat(c.keys.root, c.keys.targets) {
		if _, id, err := tufKey(k); err == nil && id == online {
			return errSameKey
		}
	}
	return nil
}

// threshold checks a threshold against distinct keys.
func threshold(role string, n *int, keys []crypto.PublicKey) error {
	distinct := map[string]bool{}
	for _, k := range keys {
		_, id, err := tufKey(k)
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

// root is root.json, not signed yet.
func (c *ceremony) root() (string, error) {
	m := metadata.Root(c.id.expiry(metadata.ROOT, c.now))
	m.Signed.ConsistentSnapshot = true
	m.Signed.UnrecognizedFields = identityFields(c.id)
	roles := []struct {
		name      string
		keys      []crypto.PublicKey
		threshold int
	}{
		{metadata.ROOT, c.keys.root, c.RootThreshold},
		{metadata.TARGETS, c.keys.targets, c.TargetsThreshold},
		{metadata.SNAPSHOT, []crypto.PublicKey{c.keys.online}, 1},
		{metadata.TIMESTAMP, []crypto.PublicKey{c.keys.online}, 1},
	}
	for _, r := range roles {
		if err := changeKeys(&m.Signed, r.name, KeyChange{Add: r.keys, Threshold: r.threshold}); err != nil {
			return "", err
		}
	}
	data, err := m.ToBytes(false)
	return string(data), err
}

// targets is targets.json, not signed yet.
func (c *ceremony) targets() (string, error) {
	key, id, err := tufKey(c.keys.online)
	if err != nil {
		return "", err
	}
	m := metadata.Targets(c.id.expiry(metadata.TARGETS, c.now))
	m.Signed.UnrecognizedFields = identityFields(c.id.named(metadata.TARGETS))
	m.Signed.Targets[policyName] = policyEntry(c.Policy)
	m.Signed.Delegations = &metadata.Delegations{
		Keys:          map[string]*metadata.Key{id: key},
		SuccinctRoles: &metadata.SuccinctRoles{KeyIDs: []string{id}, Threshold: 1, BitLength: c.bits, NamePrefix: binPrefix},
	}
	data, err := m.ToBytes(false)
	return string(data), err
}
