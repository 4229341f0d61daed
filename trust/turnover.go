package trust

import (
	"crypto"
	"crypto/sha256"
	"fmt"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"

	"github.com/imgtrust/imgtrust/policy"
)

// turnover is a change of the offline roles: the exact signed bytes that the
// next version of the repository has instead of the present ones. Nothing in it
// is trusted before view.turn has checked it.
type turnover struct {
	root    []byte // next root.json; nil keeps it
	targets []byte // next targets.json; nil keeps it
	policy  []byte // the policy that targets names; nil keeps it
}

// offline are the offline roles under which a draft is published.
type offline struct {
	root    *metadata.Metadata[metadata.RootType]
	targets *metadata.Metadata[metadata.TargetsType]
	id      identity
	bits    int
	files   []offlineFile // those that the present index does not hold yet
}

// offlineFile is a file of the top manifest with its signed bytes.
type offlineFile struct {
	name   string
	media  types.MediaType
	data   []byte
	inline int
}

// turn checks a change of the offline roles as every reader of this view will
// when it follows: by the rules of TUF 5.3 and 5.6, and by ours.
func (v *view) turn(t turnover, now time.Time) (offline, error) {
	n := offline{root: v.set.Root, targets: v.set.Targets[metadata.TARGETS], id: v.id, bits: v.bits}
	steps := []func(turnover, time.Time) error{n.turnRoot, n.turnTargets, n.turnPolicy}
	for _, step := range steps {
		if err := step(t, now); err != nil {
			return offline{}, err
		}
	}
	return n, nil
}

func (n *offline) turnRoot(t turnover, now time.Time) (err error) {
	if t.root == nil {
		return nil
	}
	defer recovered(metadata.ROOT, &err)
	if err := strictJSON(metadata.ROOT, t.root); err != nil {
		return err
	}
	present := n.id.Repository
	set := trustedmetadata.TrustedMetadata{Root: n.root}
	if n.root, err = set.UpdateRoot(t.root); err != nil {
		return tufError(metadata.ROOT, err)
	}
	if n.id, err = rootIdentity(n.root); err != nil {
		return err
	}
	if n.id.Repository != present {
		return invalid("the new root belongs to another trust repository")
	}
	if n.root.Signed.IsExpired(now) {
		return tufError(metadata.ROOT, &metadata.ErrExpiredMetadata{Msg: "the new one has expired"})
	}
	n.files = append(n.files, offlineFile{versioned(n.root.Signed.Version, metadata.ROOT), metadataType, t.root, notInline})
	return n.id.checkLifetime(metadata.ROOT, metadata.ROOT, n.root.Signed.Expires, now)
}

// turnTargets checks the targets that the next version has, also those that stay:
// the new root may name other keys or shorter lives.
func (n *offline) turnTargets(t turnover, now time.Time) (err error) {
	defer recovered(metadata.TARGETS, &err)
	present := n.targets.Signed.Version
	if t.targets != nil {
		if err := strictJSON(metadata.TARGETS, t.targets); err != nil {
			return err
		}
		if n.targets, err = (&metadata.Metadata[metadata.TargetsType]{}).FromBytes(t.targets); err != nil {
			return tufError(metadata.TARGETS, err)
		}
		if n.targets.Signed.Version != present+1 {
			return invalid("targets: version %d does not follow version %d", n.targets.Signed.Version, present)
		}
		n.files = append(n.files, offlineFile{versioned(present+1, metadata.TARGETS), metadataType, t.targets, maxInline})
	}
	if err := n.root.VerifyDelegate(metadata.TARGETS, n.targets); err != nil {
		return tufError(metadata.TARGETS, fmt.Errorf("under the root of version %d: %w", n.root.Signed.Version, err))
	}
	if n.targets.Signed.IsExpired(now) {
		return tufError(metadata.TARGETS, &metadata.ErrExpiredMetadata{Msg: "it has expired"})
	}
	if _, err := checkRole(n.id, n.targets.Signed.UnrecognizedFields, metadata.TARGETS, metadata.TARGETS, n.targets.Signed.Expires, now); err != nil {
		return err
	}
	n.bits, err = binsOf(n.targets.Signed)
	return err
}

func (n *offline) turnPolicy(t turnover, _ time.Time) error {
	target, err := policyTarget(n.targets.Signed)
	if err != nil || t.policy == nil {
		return err
	}
	if err := target.VerifyLengthHashes(t.policy); err != nil {
		return invalid("%s: %w", policyName, err)
	}
	if _, err := policy.Parse(policyName, t.policy); err != nil {
		return invalid("%w", err)
	}
	n.files = append(n.files, offlineFile{policyFileName(target), targetType, t.policy, maxInlinePolicy})
	return nil
}

// checkOnlineKey refuses a key that is not the one of the online roles, before
// anything is signed with it.
func (n *offline) checkOnlineKey(online crypto.Signer) error {
	_, id, err := tufKey(online.Public())
	if err != nil {
		return fmt.Errorf("the online key: %w", err)
	}
	for _, ids := range [][]string{n.root.Signed.Roles[metadata.TIMESTAMP].KeyIDs, n.root.Signed.Roles[metadata.SNAPSHOT].KeyIDs, n.targets.Signed.Delegations.SuccinctRoles.KeyIDs} {
		if !slices.Contains(ids, id) {
			return &Error{Code: "", Err: fmt.Errorf("key %.16s is not the online key of this trust repository", id),
				Advice: "name the key of timestamp, snapshot and bins, which `imgtrust trust status` shows, as --online-key"}
		}
	}
	return nil
}

// signsBinsAnew tells whether the bins of a view do not hold under these roles:
// another key signs them, there is another number of them, or they may not live
// as long as they do.
func (n *offline) signsBinsAnew(v *view) bool {
	old, next := v.set.Targets[metadata.TARGETS].Signed.Delegations.SuccinctRoles, n.targets.Signed.Delegations.SuccinctRoles
	return n.bits != v.bits || !slices.Equal(old.KeyIDs, next.KeyIDs) || old.Threshold != next.Threshold ||
		n.id.Lifetimes["bins"] < v.id.Lifetimes["bins"]
}

// fileNames are the files that the top manifest holds of the offline roles: all
// roots, for readers that start from the first, one targets and one policy.
func (n *offline) fileNames() map[string]bool {
	policy, _ := policyTarget(n.targets.Signed) // turnPolicy has seen it
	names := map[string]bool{versioned(n.targets.Signed.Version, metadata.TARGETS): true, policyFileName(policy): true}
	for v := int64(1); v <= n.root.Signed.Version; v++ {
		names[versioned(v, metadata.ROOT)] = true
	}
	return names
}

// binsOf reads how targets delegates: by succinct hash bins, 2^bits of them, and
// in no other way that TUF knows.
func binsOf(targets metadata.TargetsType) (bits int, err error) {
	d := targets.Delegations
	if d == nil || d.SuccinctRoles == nil || len(d.Roles) != 0 || d.SuccinctRoles.NamePrefix != binPrefix ||
		d.SuccinctRoles.BitLength < 1 || d.SuccinctRoles.BitLength > maxBinBits {
		return 0, invalid("targets: it must delegate by succinct hash bins %q and nothing else", binPrefix)
	}
	return d.SuccinctRoles.BitLength, nil
}

// policyTarget is the policy's entry in targets.
func policyTarget(targets metadata.TargetsType) (*metadata.TargetFiles, error) {
	t := targets.Targets[policyName]
	if t == nil || len(t.Hashes["sha256"]) != sha256.Size {
		return nil, invalid("targets: it does not list %s", policyName)
	}
	return t, nil
}
