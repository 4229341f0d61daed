package trust

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/policy"
)

// field is the name of our part in the signed part of every role.
const field = "x-imgtrust"

// identity is what every role says of itself beyond TUF: to which repository
// it belongs and under which name it was signed. TUF binds neither: a bin
// served under another bin's name, or the metadata of another repository that
// shares a key, would otherwise pass.
type identity struct {
	Repository string `json:"repository"` // 128 random bits in hex, made by Init
	Role       string `json:"role"`

	Lifetimes map[string]int64 `json:"lifetimes,omitempty"` // root only: seconds, per role kind
	Inbox     string           `json:"inbox,omitempty"`     // root only: the inbox repository

	Published time.Time `json:"published,omitzero"` // timestamp only: when it was signed

	Revoked *[]Tombstone `json:"revoked,omitempty"` // snapshot only, always present there
}

// Tombstone revokes a content digest (an index, manifest or config, in every
// repository) or all statements of a signer listed since a time. One that was
// undone is kept, so that readers forget theirs and nobody replays the old one.
type Tombstone struct {
	Digest string    `json:"digest,omitempty"`
	Also   []string  `json:"also,omitempty"` // digests that the signed statements bind to Digest
	Signer string    `json:"signer,omitempty"`
	Since  time.Time `json:"since,omitzero"`
	Date   time.Time `json:"date"`
	Reason string    `json:"reason"`
	By     string    `json:"by,omitempty"` // Revokers, or "" for the publisher's operator

	Undone []storedEnvelope `json:"undone,omitempty"` // statements by which revokers took it back
}

// Revokers is the By of a tombstone that the policy's revokers have signed.
const Revokers = "revokers"

// Active tells whether the tombstone still revokes.
func (t Tombstone) Active() bool { return len(t.Undone) == 0 }

// Covers tells whether the tombstone revokes a digest.
func (t Tombstone) Covers(digest string) bool {
	return t.Active() && t.Digest != "" && digest != "" && (t.Digest == digest || slices.Contains(t.Also, digest))
}

// key tells what a tombstone revokes.
func (t Tombstone) key() string {
	return t.Digest + " " + t.Signer + " " + t.Since.UTC().Format(time.RFC3339)
}

// check refuses a tombstone that names nothing, or too much.
func (t Tombstone) check() error {
	if (t.Digest == "") == (t.Signer == "") || len(t.Reason) > maxReason || len(t.Signer) > maxReason {
		return fmt.Errorf("a tombstone names one digest or one signer, and a reason of at most %d bytes", maxReason)
	}
	if len(t.Also) > maxAlso || len(t.Undone) > maxEnvelopes || t.By != "" && t.By != Revokers {
		return fmt.Errorf("a tombstone covers at most %d digests more, has at most %d statements, and is by %q or nobody", maxAlso, maxEnvelopes, Revokers)
	}
	for _, digest := range append(slices.Clone(t.Also), t.Digest) {
		if _, err := v1.NewHash(digest); err != nil && digest != "" {
			return fmt.Errorf("tombstone: %w", err)
		}
	}
	return nil
}

// checkTombstones is the bound that writer and reader keep.
func checkTombstones(list []Tombstone) error {
	if len(list) > maxTombstones {
		return fmt.Errorf("more than %d tombstones", maxTombstones)
	}
	for _, t := range list {
		if err := t.check(); err != nil {
			return err
		}
	}
	return nil
}

// identityOf decodes our part of a role strictly and checks that it is the
// role wanted of the repository wanted.
func identityOf(unrecognized map[string]any, repository, role string) (identity, error) {
	var id identity
	raw, ok := unrecognized[field]
	if !ok {
		return id, invalid("%s: no %s in the signed part", role, field)
	}
	data, err := json.Marshal(raw)
	if err != nil {
		return id, invalid("%s: %s: %w", role, field, err)
	}
	if err := attest.UnmarshalStrict(data, &id, false); err != nil {
		return id, invalid("%s: %s: %w", role, field, err)
	}
	if id.Repository != repository {
		return id, invalid("%s belongs to trust repository %.32s, not to %s", role, id.Repository, repository)
	}
	if id.Role != role {
		return id, invalid("%s carries the name of another role, %.64q", role, id.Role)
	}
	return id, nil
}

// rootIdentity reads the identity of the root that a client starts from: it
// decides which repository this is.
func rootIdentity(root *metadata.Metadata[metadata.RootType]) (identity, error) {
	raw, _ := root.Signed.UnrecognizedFields[field].(map[string]any)
	repository, _ := raw["repository"].(string)
	if b, err := hex.DecodeString(repository); err != nil || len(b) != 16 {
		return identity{}, invalid("root: %s.repository is not 128 bits in hex", field)
	}
	id, err := identityOf(root.Signed.UnrecognizedFields, repository, metadata.ROOT)
	if err != nil {
		return id, err
	}
	for _, kind := range roleKinds() {
		if id.Lifetimes[kind] <= 0 || id.Lifetimes[kind] > int64(100*365*24*time.Hour/time.Second) {
			return id, invalid("root: %s.lifetimes.%s is missing or out of range", field, kind)
		}
	}
	return id, nil
}

// roleKinds are the keys of lifetimes: every bin has the one lifetime "bins".
func roleKinds() []string {
	return []string{metadata.ROOT, metadata.TARGETS, "bins", metadata.SNAPSHOT, metadata.TIMESTAMP}
}

// checkLifetime refuses an expiry that lies further away than root allows: a
// stolen online key must not make metadata that outlives its replacement.
func (id identity) checkLifetime(role, kind string, expires, now time.Time) error {
	longest := time.Duration(id.Lifetimes[kind]) * time.Second
	if expires.After(now.Add(longest + clockSkew)) {
		return invalid("%s expires %s, more than the %s that root allows from now", role, expires.Format(time.RFC3339), longest)
	}
	return nil
}

// tombstones returns the revoked list of a snapshot. A missing or oversized
// list is an error, never "nothing is revoked".
func (id identity) tombstones() ([]Tombstone, error) {
	if id.Revoked == nil {
		return nil, &Error{Code: policy.Unavailable, Err: fmt.Errorf("snapshot: the list of revoked digests is missing")}
	}
	if err := checkTombstones(*id.Revoked); err != nil {
		return nil, &Error{Code: policy.Unavailable, Err: fmt.Errorf("snapshot: %w", err)}
	}
	return *id.Revoked, nil
}

func identityFields(id identity) map[string]any { return map[string]any{field: id} }
