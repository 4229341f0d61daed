package trust

import (
	"bytes"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"
	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/policy"
)

// Change is a proposed change of the offline roles, on its way between the
// holders of their keys: what there is, what there shall be instead, and the
// signatures so far. It is a file that any means may carry: nothing in it is
// believed without the reader's own root.json. The bytes are in docs/formats.md.
//
// The zero Change changes nothing and cannot be signed.
type Change struct {
	Format     int    `json:"format"`     // 1
	Repository string `json:"repository"` // canonical name of the trust repository

	// What there is: every root from the first to the present one, targets and
	// policy. All are empty for a repository that is to be made.
	Roots   []string `json:"roots"`
	Targets string   `json:"targets"`
	Policy  string   `json:"policy"`

	// What there shall be: signed as far as it is. Empty stays as it is.
	NextRoot    string `json:"nextRoot,omitempty"`
	NextTargets string `json:"nextTargets,omitempty"`
	NextPolicy  string `json:"nextPolicy,omitempty"`
}

// changeFormat is the format that this program reads and writes.
const changeFormat = 1

// ParseChange decodes a change file of at most 64 MiB strictly. It checks no
// signature: see Change.Check.
func ParseChange(data []byte) (Change, error) {
	var c Change
	if len(data) > maxChange {
		return c, fmt.Errorf("a change file is at most %d bytes", maxChange)
	}
	if err := attest.UnmarshalStrict(data, &c, false); err != nil {
		return c, err
	}
	if c.Format != changeFormat {
		return c, fmt.Errorf("change file of format %d: this program reads format %d", c.Format, changeFormat)
	}
	if c.NextRoot == "" && c.NextTargets == "" || len(c.Roots) > maxRoots {
		return c, fmt.Errorf("the change file changes nothing, or holds more than %d roots", maxRoots)
	}
	if len(c.Roots) == 0 && (c.NextRoot == "" || c.NextTargets == "" || c.NextPolicy == "") {
		return c, errors.New("the change file neither changes a trust repository nor makes one")
	}
	return c, nil
}

// Encode writes the change as ParseChange reads it.
func (c Change) Encode() ([]byte, error) {
	c.Format = changeFormat
	data, err := json.MarshalIndent(c, "", "  ")
	return append(data, '\n'), err
}

// New tells whether the change makes a repository that is not there yet.
func (c Change) New() bool { return len(c.Roots) == 0 }

// CheckedChange is a Change whose present roles were reached from a root.json
// that does not come with it, and whose next roles make sense. How many of the
// signatures are there is another question: Missing.
type CheckedChange struct {
	Change
	present, next offlinePair
	old, new      *policy.Policy // old is nil for a new repository
}

// offlinePair are root and targets, decoded, and what root says of the repository.
type offlinePair struct {
	root    *metadata.Metadata[metadata.RootType] // nil: there is none
	targets *metadata.Metadata[metadata.TargetsType]
	id      identity
}

// Check verifies what a change says there is, by a chain of signatures from
// root, the reader's own root.json, and decodes what there shall be. Without a
// root only the making of a new repository can be checked. It refuses keys that
// existing clients cannot read and thresholds that nobody could reach.
func (c Change) Check(root []byte) (_ CheckedChange, err error) {
	defer recovered("change file", &err)
	k := CheckedChange{Change: c}
	if !c.New() {
		if k.present, k.old, err = c.checkPresent(root); err != nil {
			return k, fmt.Errorf("what the change file says there is: %w", err)
		}
	}
	if err := k.decodeNext(); err != nil {
		return k, fmt.Errorf("what the change file proposes: %w", err)
	}
	return k, nil
}

// checkPresent follows the roots and checks targets and policy under the last.
func (c Change) checkPresent(bootstrap []byte) (p offlinePair, old *policy.Policy, err error) {
	b, err := parseBootstrap(bootstrap)
	if err != nil {
		return p, nil, untrusted(fmt.Errorf("root.json: %w", err))
	}
	set, err := newSet([]byte(b.Root))
	if err != nil {
		return p, nil, untrusted(fmt.Errorf("root.json: %w", err))
	}
	if p.id, err = rootIdentity(set.Root); err != nil {
		return p, nil, untrusted(err)
	}
	for _, text := range c.Roots {
		if err := followRoot(set, p.id.Repository, []byte(text)); err != nil {
			return p, nil, err
		}
	}
	p.root = set.Root
	if p.id, err = rootIdentity(p.root); err != nil {
		return p, nil, err
	}
	if p.targets, err = decodeTargets([]byte(c.Targets), p); err != nil {
		return p, nil, err
	}
	if err := p.root.VerifyDelegate(metadata.TARGETS, p.targets); err != nil {
		return p, nil, tufError(metadata.TARGETS, err)
	}
	old, err = checkedPolicy(p.targets, []byte(c.Policy))
	return p, old, err
}

// followRoot takes the next root of a chain; one that is not newer than the
// trusted one is passed over.
func followRoot(set *trustedmetadata.TrustedMetadata, repository string, data []byte) error {
	if err := strictJSON(metadata.ROOT, data); err != nil {
		return err
	}
	m, err := (&metadata.Metadata[metadata.RootType]{}).FromBytes(data)
	if err != nil {
		return tufError(metadata.ROOT, err)
	}
	id, err := rootIdentity(m)
	if err != nil {
		return err
	}
	if id.Repository != repository {
		return untrusted(errors.New("the change is about another trust repository than root.json"))
	}
	if m.Signed.Version <= set.Root.Signed.Version {
		return nil
	}
	if _, err := set.UpdateRoot(data); err != nil {
		return tufError(metadata.ROOT, err)
	}
	return nil
}

// decodeTargets decodes targets of the repository of p.
func decodeTargets(data []byte, p offlinePair) (*metadata.Metadata[metadata.TargetsType], error) {
	if err := strictJSON(metadata.TARGETS, data); err != nil {
		return nil, err
	}
	m, err := (&metadata.Metadata[metadata.TargetsType]{}).FromBytes(data)
	if err != nil {
		return nil, tufError(metadata.TARGETS, err)
	}
	if _, err := identityOf(m.Signed.UnrecognizedFields, p.id.Repository, metadata.TARGETS); err != nil {
		return nil, err
	}
	_, err = binsOf(m.Signed)
	return m, err
}

func checkedPolicy(targets *metadata.Metadata[metadata.TargetsType], data []byte) (*policy.Policy, error) {
	t, err := policyTarget(targets.Signed)
	if err != nil {
		return nil, err
	}
	if err := t.VerifyLengthHashes(data); err != nil {
		return nil, invalid("%s: %w", policyName, err)
	}
	return policy.Parse(policyName, data)
}

// decodeNext decodes the proposed roles; what is not proposed stays.
func (k *CheckedChange) decodeNext() (err error) {
	k.next, k.new = k.present, k.old
	if k.NextRoot != "" {
		if err := k.decodeNextRoot(); err != nil {
			return err
		}
	}
	if k.NextTargets == "" {
		return nil
	}
	present := int64(0)
	if k.present.targets != nil {
		present = k.present.targets.Signed.Version
	}
	if k.next.targets, err = decodeTargets([]byte(k.NextTargets), k.next); err != nil {
		return err
	}
	if v := k.next.targets.Signed.Version; v != present+1 {
		return invalid("targets: version %d does not follow version %d", v, present)
	}
	text := k.Policy
	if k.NextPolicy != "" {
		text = k.NextPolicy
	}
	k.new, err = checkedPolicy(k.next.targets, []byte(text))
	return err
}

func (k *CheckedChange) decodeNextRoot() (err error) {
	if err := strictJSON(metadata.ROOT, []byte(k.NextRoot)); err != nil {
		return err
	}
	if k.next.root, err = (&metadata.Metadata[metadata.RootType]{}).FromBytes([]byte(k.NextRoot)); err != nil {
		return tufError(metadata.ROOT, err)
	}
	if k.next.id, err = rootIdentity(k.next.root); err != nil {
		return err
	}
	present := int64(0)
	if k.present.root != nil {
		present = k.present.root.Signed.Version
		if k.next.id.Repository != k.present.id.Repository {
			return invalid("root: it belongs to another trust repository")
		}
	}
	if v := k.next.root.Signed.Version; v != present+1 {
		return invalid("root: version %d does not follow version %d", v, present)
	}
	return checkRoles(k.next.root.Signed)
}

// checkRoles refuses a root under which a role could never be signed again, or
// whose keys a client cannot read.
func checkRoles(root metadata.RootType) error {
	for _, name := range []string{metadata.ROOT, metadata.TARGETS, metadata.SNAPSHOT, metadata.TIMESTAMP} {
		role := root.Roles[name]
		if role == nil {
			return invalid("root: it has no role %s", name)
		}
		distinct := map[string]bool{}
		for _, id := range role.KeyIDs {
			if err := readableKey(root.Keys[id], id); err != nil {
				return invalid("root: key %.16s of role %s: existing clients cannot read it: %w", id, name, err)
			}
			distinct[id] = true
		}
		if role.Threshold < 1 || role.Threshold > len(distinct) {
			return invalid("root: role %s needs %d signatures of %d keys: nobody could sign it again", name, role.Threshold, len(distinct))
		}
	}
	return nil
}

// readableKey refuses a key that is not in the one form in which we write keys.
func readableKey(k *metadata.Key, id string) error {
	if k == nil {
		return errors.New("it is not there")
	}
	public, err := k.ToPublicKey()
	if err != nil {
		return err
	}
	ours, is, err := tufKey(public)
	if err != nil {
		return err
	}
	if is != id || ours.Scheme != k.Scheme || ours.Type != k.Type {
		return fmt.Errorf("it is named as type %.40q, scheme %.40q", k.Type, k.Scheme)
	}
	return nil
}

// Need is what one role of a change must be signed by.
type Need struct {
	Role      string   `json:"role"`
	Of        string   `json:"of"` // whose keys: "the present root" or "the new root"
	Threshold int      `json:"threshold"`
	Signed    []string `json:"signed"` // key IDs whose signature is there and valid
	Open      []string `json:"open"`   // key IDs that may still sign
}

// Missing is how many signatures are still needed.
func (n Need) Missing() int { return max(n.Threshold-len(n.Signed), 0) }

// Needs lists what must be signed: a new root by the keys of the present root
// and by its own, targets by the keys that the root beside it names.
func (k CheckedChange) Needs() []Need {
	var all []Need
	if k.NextRoot != "" {
		if k.present.root != nil {
			all = append(all, need(k.present.root, metadata.ROOT, "the present root", k.next.root))
		}
		all = append(all, need(k.next.root, metadata.ROOT, "the new root", k.next.root))
	}
	if k.NextTargets != "" {
		of := "the present root"
		if k.NextRoot != "" {
			of = "the new root"
		}
		all = append(all, need(k.next.root, metadata.TARGETS, of, k.next.targets))
	}
	return all
}

// Complete tells whether all needed signatures are there.
func (k CheckedChange) Complete() bool {
	return !slices.ContainsFunc(k.Needs(), func(n Need) bool { return n.Missing() > 0 })
}

func need(root *metadata.Metadata[metadata.RootType], role, of string, signed any) Need {
	r := root.Signed.Roles[role]
	n := Need{Role: role, Of: of, Threshold: r.Threshold, Signed: []string{}, Open: []string{}}
	for _, id := range r.KeyIDs {
		if signedBy(root.Signed, role, id, signed) {
			n.Signed = append(n.Signed, id)
		} else {
			n.Open = append(n.Open, id)
		}
	}
	return n
}

// signedBy tells whether one key of a role has validly signed.
func signedBy(root metadata.RootType, role, id string, signed any) bool {
	one := metadata.Root()
	one.Signed.Keys = root.Keys
	one.Signed.Roles = map[string]*metadata.Role{role: {KeyIDs: []string{id}, Threshold: 1}}
	return one.VerifyDelegate(role, signed) == nil
}

// Sign adds the signatures of a key to all that it may sign and returns the
// change with them. A key that has no part in the change is an error.
func (k CheckedChange) Sign(key crypto.Signer) (Change, error) {
	_, id, err := tufKey(key.Public())
	if err != nil {
		return k.Change, err
	}
	c, signed := k.Change, false
	for _, n := range k.Needs() {
		if !slices.Contains(append(n.Open, n.Signed...), id) {
			continue
		}
		signed = true
		if n.Role == metadata.ROOT {
			c.NextRoot, err = addSignature[metadata.RootType](c.NextRoot, id, key)
		} else {
			c.NextTargets, err = addSignature[metadata.TargetsType](c.NextTargets, id, key)
		}
		if err != nil {
			return k.Change, err
		}
	}
	if !signed {
		return k.Change, &Error{Err: fmt.Errorf("key %.16s has no part in this change", id), Advice: "the key IDs that may sign are listed above"}
	}
	return c, nil
}

// addSignature replaces the signature of one key of a signed role.
func addSignature[T metadata.Roles](text, id string, key crypto.Signer) (string, error) {
	m, err := (&metadata.Metadata[T]{}).FromBytes([]byte(text))
	if err != nil {
		return text, err
	}
	payload, err := cjson.EncodeCanonical(m.Signed)
	if err != nil {
		return text, err
	}
	sig, _, err := signTUF(key, payload)
	if err != nil {
		return text, fmt.Errorf("signing: %w", err)
	}
	m.Signatures = slices.DeleteFunc(m.Signatures, func(s metadata.Signature) bool { return s.KeyID == id })
	m.Signatures = append(m.Signatures, metadata.Signature{KeyID: id, Signature: sig})
	data, err := m.ToBytes(false)
	return string(data), err
}

// Merge adds the signatures of another copy of the same change.
func (c Change) Merge(other Change) (Change, error) {
	same := c.Repository == other.Repository && slices.Equal(c.Roots, other.Roots) && c.Targets == other.Targets && c.NextPolicy == other.NextPolicy
	if !same {
		return c, errors.New("the files are not copies of one change")
	}
	var err error
	if c.NextRoot, err = mergeSignatures[metadata.RootType](c.NextRoot, other.NextRoot); err != nil {
		return c, err
	}
	c.NextTargets, err = mergeSignatures[metadata.TargetsType](c.NextTargets, other.NextTargets)
	return c, err
}

func mergeSignatures[T metadata.Roles](a, b string) (string, error) {
	if a == b {
		return a, nil
	}
	ma, err1 := (&metadata.Metadata[T]{}).FromBytes([]byte(a))
	mb, err2 := (&metadata.Metadata[T]{}).FromBytes([]byte(b))
	if err := errors.Join(err1, err2); err != nil {
		return a, fmt.Errorf("the files are not copies of one change: %w", err)
	}
	pa, err1 := cjson.EncodeCanonical(ma.Signed)
	pb, err2 := cjson.EncodeCanonical(mb.Signed)
	if errors.Join(err1, err2) != nil || !bytes.Equal(pa, pb) {
		return a, errors.New("the files are not copies of one change")
	}
	for _, s := range mb.Signatures {
		if !slices.ContainsFunc(ma.Signatures, func(x metadata.Signature) bool { return x.KeyID == s.KeyID }) {
			ma.Signatures = append(ma.Signatures, s)
		}
	}
	data, err := ma.ToBytes(false)
	return string(data), err
}

// turnover is the change as a draft takes it.
func (k CheckedChange) turnover() turnover {
	t := turnover{}
	if k.NextRoot != "" {
		t.root = []byte(k.NextRoot)
	}
	if k.NextTargets != "" {
		t.targets = []byte(k.NextTargets)
	}
	if k.NextPolicy != "" {
		t.policy = []byte(k.NextPolicy)
	}
	return t
}

// expiry is when a role ends that is signed now.
func (id identity) expiry(kind string, now time.Time) time.Time {
	return now.UTC().Truncate(time.Second).Add(id.lifetime(kind))
}
