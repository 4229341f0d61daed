package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/imgtrust/imgtrust/internal/attest"
)

// Revocations are the statements that DecideRevocation counts: of one trust
// repository, about one digest or one signer since one time, and all of them
// revoking it, or all of them taking that back.
type Revocations struct {
	Trust  string // ID of the trust repository
	Digest string // "sha256:…"; "" for a signer
	Signer string
	Since  time.Time
	Undo   bool
}

// of tells whether a statement is one of them.
func (r Revocations) of(s attest.RevocationStatement) bool {
	return s.Trust == r.Trust && s.Digest == r.Digest && s.Signer == r.Signer && s.Since.Equal(r.Since) && s.Undo == r.Undo
}

// RevocationVerdict is the answer of DecideRevocation. The zero verdict revokes
// nothing.
type RevocationVerdict struct {
	Enough  bool      // as many revokers as the policy asks for
	Time    time.Time // the k-th newest Created among the revokers, k the threshold; zero when not Enough
	Reason  string    // of the newest statement that counted
	Signers []string  // who counted, in order of name
	Why     string    // one sentence: who signed, and how many must
}

// DecideRevocation counts revocation statements by the revokers of the policy,
// each signer once with the newest. Statements about anything else than r, by
// others, or created more than five minutes ahead of now do not count.
func (p *Policy) DecideRevocation(envelopes []attest.Envelope, r Revocations, now time.Time) RevocationVerdict {
	if p == nil || p.revokers.threshold == 0 {
		return RevocationVerdict{Why: "the policy names no revokers"}
	}
	newest := map[string]attest.RevocationStatement{}
	for _, e := range envelopes {
		s, err := attest.DecodeRevocation(e.Payload)
		if err != nil || !r.of(s) || s.Created.After(now.Add(MaxSkew)) {
			continue
		}
		for _, by := range p.revokers.from {
			if _, ok := by.signed(e); ok && newest[by.name].Created.Before(s.Created) {
				newest[by.name] = s
			}
		}
	}
	return p.revokers.verdict(newest)
}

func (q quorum) verdict(newest map[string]attest.RevocationStatement) RevocationVerdict {
	var v RevocationVerdict
	var created []time.Time
	var last time.Time
	for name, s := range newest {
		v.Signers = append(v.Signers, name)
		created = append(created, s.Created)
		if s.Created.After(last) {
			last, v.Reason = s.Created, s.Reason
		}
	}
	slices.Sort(v.Signers)
	by := "nobody"
	if len(v.Signers) > 0 {
		by = strings.Join(v.Signers, ", ")
	}
	v.Why = fmt.Sprintf("signed by %s; %d of %s must", by, q.threshold, strings.Join(names(q.from), ", "))
	if len(created) < q.threshold {
		return v
	}
	slices.SortFunc(created, func(a, b time.Time) int { return b.Compare(a) })
	v.Enough, v.Time = true, created[q.threshold-1]
	return v
}

// Revokers names those who may revoke, and how many of them must; 0 when the
// policy names none.
func (p *Policy) Revokers() (threshold int, from []string) {
	if p == nil {
		return 0, nil
	}
	return p.revokers.threshold, names(p.revokers.from)
}
