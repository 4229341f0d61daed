package trust

import (
	"slices"
	"strings"
	"time"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/policy"
)

// remember merges the tombstones that a reader has seen with those of a verified
// snapshot: what was seen stays, whatever the online key signs, until the
// policy's revokers have taken it back. The result has active tombstones only.
func (v *view) remember(seen []Tombstone, now time.Time) []Tombstone {
	listed := map[string]Tombstone{}
	var all []Tombstone
	for _, t := range v.revoked {
		listed[t.key()] = t
		if t.Active() {
			all = append(all, t)
		}
	}
	for _, s := range seen {
		t, ok := listed[s.key()]
		if !ok || !t.Active() && !v.undone(t, s.Date, now) {
			all = append(all, s)
		}
	}
	return all
}

// undone tells whether revokers have signed that a revocation of a date is taken
// back.
func (v *view) undone(t Tombstone, date, now time.Time) bool {
	var statements []attest.Envelope
	for _, s := range t.Undone {
		statements = append(statements, s.envelope())
	}
	verdict := v.policy.DecideRevocation(statements, t.about(v.id.Repository, true), now)
	return verdict.Enough && verdict.Time.After(date)
}

// about are the statements that make or undo a tombstone.
func (t Tombstone) about(repository string, undo bool) policy.Revocations {
	return policy.Revocations{Trust: repository, Digest: t.Digest, Signer: t.Signer, Since: t.Since, Undo: undo}
}

// sortTombstones puts them in the order of the format.
func sortTombstones(list []Tombstone) {
	slices.SortFunc(list, func(a, b Tombstone) int { return strings.Compare(a.key(), b.key()) })
}
