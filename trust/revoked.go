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
	kept := map[string]Tombstone{}
	for _, s := range seen {
		kept[s.key()] = s
	}
	var all []Tombstone
	for _, t := range v.revoked {
		s, known := kept[t.key()]
		delete(kept, t.key())
		switch {
		case t.Active() && known:
			all = append(all, t.with(s))
		case t.Active():
			all = append(all, t)
		case known && !v.undone(t, s.Date, now):
			all = append(all, s)
		}
	}
	for _, s := range seen {
		if _, unlisted := kept[s.key()]; unlisted {
			all = append(all, s)
		}
	}
	return all
}

// with is a tombstone that revokes all that an older form of it did: the snapshot
// may have been written anew to cover less, or to be undone by older statements.
func (t Tombstone) with(seen Tombstone) Tombstone {
	t.Also = append(slices.Clone(seen.Also), t.Also...)
	slices.Sort(t.Also)
	t.Also = slices.Compact(t.Also)
	if seen.Date.After(t.Date) {
		t.Date = seen.Date
	}
	return t
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
