package trust

import (
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/imgtrust/imgtrust/policy"
)

// Proposal says what a change of the offline roles changes. The zero Proposal
// changes nothing, which Propose refuses.
type Proposal struct {
	Root, Targets KeyChange
	// Online replaces the key of snapshot, timestamp and bins; nil keeps it.
	// Every bin is signed anew.
	Online crypto.PublicKey
	// Expires are new lifetimes per role kind, from a minute up; see DefaultLifetimes.
	Expires map[string]time.Duration
	// ExpectedImages chooses the number of bins anew; 0 keeps it.
	ExpectedImages int
	Inbox          string // canonical repository; "" keeps it
	Policy         []byte // nil keeps it
	// RenewRoot and RenewTargets sign a role anew that does not change.
	RenewRoot, RenewTargets bool
}

// KeyChange changes the keys of a role.
type KeyChange struct {
	Add       []crypto.PublicKey
	Remove    []string // key IDs, or beginnings of them of 8 digits and more
	Threshold int      // 0 keeps it
}

func (k KeyChange) empty() bool { return len(k.Add)+len(k.Remove) == 0 && k.Threshold == 0 }

// changesRoot and changesTargets tell which roles a proposal signs anew. A new
// root that names other keys of targets, another online key or shorter lives
// brings targets with it, so that both hold together.
func (p Proposal) changesRoot() bool {
	return p.RenewRoot || !p.Root.empty() || !p.Targets.empty() || p.Online != nil || len(p.Expires) > 0 || p.Inbox != ""
}

func (p Proposal) changesTargets() bool {
	return p.RenewTargets || !p.Targets.empty() || p.Online != nil || len(p.Expires) > 0 || p.ExpectedImages > 0 || p.Policy != nil
}

// Propose prepares a change of the repository as a client with these options
// sees it, without a signature. Offline roles that have expired can be changed:
// that is how they are renewed.
func Propose(ctx context.Context, o ClientOptions, p Proposal) (Change, error) {
	if !p.changesRoot() && !p.changesTargets() {
		return Change{}, errors.New("nothing is changed")
	}
	o.expired = true
	c, err := Open(o)
	if err != nil {
		return Change{}, err
	}
	v, err := c.current(ctx)
	if err != nil {
		return Change{}, err
	}
	change := Change{Format: changeFormat, Repository: c.opts.Repository, Targets: v.raw.Targets, Policy: v.raw.Policy, NextPolicy: string(p.Policy)}
	if change.Roots, err = c.rootChain(ctx, v); err != nil {
		return Change{}, err
	}
	d := &proposal{Proposal: p, now: c.Now(), id: v.id, online: v.set.Targets[metadata.TARGETS].Signed.Delegations.SuccinctRoles.KeyIDs}
	if p.changesRoot() {
		if change.NextRoot, err = d.nextRoot([]byte(change.Roots[len(change.Roots)-1])); err != nil {
			return Change{}, err
		}
	}
	if p.changesTargets() {
		if change.NextTargets, err = d.nextTargets([]byte(v.raw.Targets)); err != nil {
			return Change{}, err
		}
	}
	_, err = change.Check(c.opts.Root)
	return change, err
}

// rootChain are the roots from the first, as far as the index has them, to the
// newest. Those before the bootstrap root are for others, who verify them.
func (c *Client) rootChain(ctx context.Context, v *view) ([]string, error) {
	set, err := newSet(c.opts.Root)
	if err != nil {
		return nil, err
	}
	var chain []string
	for n := int64(1); n < set.Root.Signed.Version; n++ {
		d, ok := v.top[versioned(n, metadata.ROOT)]
		if !ok {
			continue
		}
		data, err := c.layer(ctx, d, versioned(n, metadata.ROOT), maxRootBytes)
		if err != nil {
			return nil, err
		}
		chain = append(chain, string(data))
	}
	chain = append(chain, string(c.opts.Root))
	return append(chain, v.raw.Roots...), nil
}

// proposal is the state of one Propose.
type proposal struct {
	Proposal
	now    time.Time
	id     identity // of the root that is proposed
	online []string // key IDs of the bins
}

func (d *proposal) nextRoot(present []byte) (string, error) {
	m, err := (&metadata.Metadata[metadata.RootType]{}).FromBytes(present)
	if err != nil {
		return "", err
	}
	if err := changeKeys(&m.Signed, metadata.ROOT, d.Root); err != nil {
		return "", err
	}
	if err := changeKeys(&m.Signed, metadata.TARGETS, d.Proposal.Targets); err != nil {
		return "", err
	}
	if err := d.changeOnline(&m.Signed); err != nil {
		return "", err
	}
	if err := d.changeIdentity(); err != nil {
		return "", err
	}
	m.Signed.Version++
	m.Signed.Expires = d.id.expiry(metadata.ROOT, d.now)
	m.Signed.UnrecognizedFields = identityFields(d.id)
	m.ClearSignatures()
	data, err := m.ToBytes(false)
	return string(data), err
}

// changeKeys adds and removes keys of one role.
func changeKeys(root *metadata.RootType, role string, k KeyChange) error {
	for _, begin := range k.Remove {
		id, err := findKey(root.Roles[role].KeyIDs, begin)
		if err != nil {
			return fmt.Errorf("%s: %w", role, err)
		}
		if err := root.RevokeKey(id, role); err != nil {
			return err
		}
	}
	for _, public := range k.Add {
		key, id, err := tufKey(public)
		if err != nil {
			return fmt.Errorf("%s key: %w", role, err)
		}
		if slices.Contains(root.Roles[role].KeyIDs, id) {
			return fmt.Errorf("key %.16s is a %s key already", id, role)
		}
		if err := root.AddKey(key, role); err != nil {
			return err
		}
	}
	if k.Threshold != 0 {
		root.Roles[role].Threshold = k.Threshold
	}
	if r := root.Roles[role]; r.Threshold < 1 || r.Threshold > len(r.KeyIDs) {
		return &Error{Err: fmt.Errorf("%s would need %d signatures of %d keys: nobody could sign it again", role, r.Threshold, len(r.KeyIDs)),
			Advice: "change the threshold in the same ceremony, or add a key"}
	}
	return nil
}

// findKey finds the one key ID that begins as said.
func findKey(ids []string, begin string) (string, error) {
	begin = strings.ToLower(begin)
	match := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return !strings.HasPrefix(id, begin) })
	if len(begin) < 8 || len(match) != 1 {
		return "", fmt.Errorf("%q is not the beginning, of 8 digits and more, of one of its key IDs: %s", begin, strings.Join(ids, ", "))
	}
	return match[0], nil
}

// changeOnline replaces the key of the roles that the publisher signs.
func (d *proposal) changeOnline(root *metadata.RootType) error {
	if d.Online == nil {
		return nil
	}
	_, id, err := tufKey(d.Online)
	if err != nil {
		return fmt.Errorf("online key: %w", err)
	}
	if slices.Contains(root.Roles[metadata.ROOT].KeyIDs, id) || slices.Contains(root.Roles[metadata.TARGETS].KeyIDs, id) {
		return errSameKey
	}
	for _, role := range []string{metadata.SNAPSHOT, metadata.TIMESTAMP} {
		if err := changeKeys(root, role, KeyChange{Add: []crypto.PublicKey{d.Online}, Remove: root.Roles[role].KeyIDs}); err != nil {
			return err
		}
	}
	return nil
}

// changeIdentity changes what root says of the repository beyond TUF.
func (d *proposal) changeIdentity() error {
	for kind, life := range d.Expires {
		if DefaultLifetimes()[kind] == 0 || life < time.Minute {
			return fmt.Errorf("lifetime of %q: unknown role, or below one minute", kind)
		}
	}
	d.id.Lifetimes = maps.Clone(d.id.Lifetimes)
	for kind, life := range d.Expires {
		d.id.Lifetimes[kind] = int64(2 * life / time.Second)
	}
	if d.Inbox != "" {
		d.id.Inbox = d.Inbox
	}
	return nil
}

func (d *proposal) nextTargets(present []byte) (string, error) {
	m, err := (&metadata.Metadata[metadata.TargetsType]{}).FromBytes(present)
	if err != nil {
		return "", err
	}
	if d.Proposal.Policy != nil {
		if _, err := policy.Parse(policyName, d.Proposal.Policy); err != nil {
			return "", err
		}
		m.Signed.Targets[policyName] = policyEntry(d.Proposal.Policy)
	}
	if d.Online != nil {
		key, id, err := tufKey(d.Online)
		if err != nil {
			return "", err
		}
		m.Signed.Delegations.Keys = map[string]*metadata.Key{id: key}
		m.Signed.Delegations.SuccinctRoles.KeyIDs = []string{id}
	}
	if d.ExpectedImages > 0 {
		m.Signed.Delegations.SuccinctRoles.BitLength = binBits(d.ExpectedImages)
	}
	m.Signed.Version++
	m.Signed.Expires = d.id.expiry(metadata.TARGETS, d.now)
	m.ClearSignatures()
	data, err := m.ToBytes(false)
	return string(data), err
}

// policyEntry is the entry of the policy in targets.
func policyEntry(data []byte) *metadata.TargetFiles {
	sum := sha256.Sum256(data)
	return &metadata.TargetFiles{Length: int64(len(data)), Hashes: metadata.Hashes{"sha256": sum[:]}}
}
