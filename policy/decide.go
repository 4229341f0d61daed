package policy

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/imgtrust/imgtrust/internal/attest"
)

// Decide holds envelopes against the first rule that matches. Publisher and
// verifier alike call it with all that they know; it never allows when p is nil.
//
// A statement counts when a signer of the rule signed it, and when it names the
// repository, the digest (as its subject or as one of its manifests) and the tag
// if there is one. Of each signer only the newest such statement counts, and
// only while it is not expired, not too old, and fulfils the conditions. Of
// several causes of a refusal the first in this order gives the code: denied,
// no-rule, bad-signature, wrong-repository, threshold-not-met,
// statement-expired, too-old, condition-failed.
//
// deny refuses f.Digest, its config and the index that names it, and for an
// index whatever it names, as far as statements signed under the rule tell them.
func (p *Policy) Decide(envelopes []attest.Envelope, f Facts, now time.Time) Verdict {
	index, pattern := p.find(f.Repository)
	votes := p.votes(envelopes, index)
	v := p.judge(votes, index, pattern, len(envelopes), f, now)
	v.Committed = allCommitted(votes, f.Digest)
	return v
}

// judge is Decide for the votes of the rule at index.
func (p *Policy) judge(votes []vote, index int, pattern string, envelopes int, f Facts, now time.Time) Verdict {
	if reason := p.deniedBy(f.Digest, votes); reason != "" {
		return Verdict{Code: Denied, Reasons: []string{reason}}
	}
	if index < 0 {
		return Verdict{Code: NoRule, Reasons: []string{fmt.Sprintf("no rule matches %q", f.Repository)}}
	}
	t := &tally{rule: &p.rules[index], name: ruleName(index), facts: f, now: now}
	v := t.decide(votes, envelopes)
	v.Rule, v.Audit = t.name+" "+pattern, t.rule.audit
	v.NoCache = slices.ContainsFunc(t.rule.conditions, func(c condition) bool { return c.readsNow })
	return v
}

// vote is a payload that one signer has validly signed.
type vote struct {
	signer    *signer
	key       key
	payload   []byte
	subject   string                   // name of the statement's subject; "" when unreadable
	statement *attest.ReleaseStatement // nil when unreadable
	fault     string                   // why there is no statement
}

// votes returns the valid signatures by the signers of a rule, or by any signer
// of the policy where there is no rule or it names none.
func (p *Policy) votes(envelopes []attest.Envelope, index int) []vote {
	if p == nil {
		return nil
	}
	signers := p.signers
	if index >= 0 && p.rules[index].threshold > 0 {
		signers = p.rules[index].from
	}
	var all []vote
	for _, e := range envelopes[:min(len(envelopes), MaxEnvelopes)] {
		for _, s := range signers {
			if k, ok := s.signed(e); ok {
				v := vote{signer: s, key: k, payload: e.Payload}
				v.read(e)
				all = append(all, v)
			}
		}
	}
	return all
}

// read decodes the statement of e, or notes why it is none.
func (v *vote) read(e attest.Envelope) {
	if e.PayloadType != attest.PayloadType {
		v.fault = fmt.Sprintf("signed a payload of type %q, which is no statement", e.PayloadType)
		return
	}
	s, err := attest.DecodeStatement(e.Payload)
	if err != nil {
		v.fault = fmt.Sprintf("signed an unreadable statement: %v", err)
		return
	}
	if s.PredicateType != attest.ReleaseType {
		v.fault = fmt.Sprintf("signed a statement of type %q, which does not count", s.PredicateType)
		return
	}
	v.subject = s.Name
	r, err := attest.DecodeRelease(e.Payload)
	if err != nil {
		v.fault = fmt.Sprintf("signed an unreadable statement: %v", err)
		return
	}
	v.statement = &r
}

// deniedBy returns why deny refuses the digest; "" when it does not.
func (p *Policy) deniedBy(digest string, votes []vote) string {
	if _, ok := p.Denied(digest); ok {
		return fmt.Sprintf("%s is denied", digest)
	}
	for _, v := range votes {
		if v.statement == nil || !about(v.statement, digest) {
			continue
		}
		if d, ok := p.Denied(committed(v.statement, digest)...); ok {
			return fmt.Sprintf("%s is denied, and %s belongs to it", d, digest)
		}
	}
	return ""
}

// about tells whether s is about digest: its subject or one of its manifests.
func about(s *attest.ReleaseStatement, digest string) bool {
	return s.Digest == digest || slices.ContainsFunc(s.Manifests, func(m attest.Manifest) bool { return m.Digest == digest })
}

// committed are the subject and the manifests and configs that digest covers.
func committed(s *attest.ReleaseStatement, digest string) []string {
	all := []string{s.Digest}
	for _, m := range s.Manifests {
		if digest == s.Digest || digest == m.Digest {
			all = append(all, m.Digest, m.Config)
		}
	}
	return all
}

// allCommitted are the digests that the statements about digest commit it to,
// sorted.
func allCommitted(votes []vote, digest string) []string {
	var all []string
	for _, v := range votes {
		if v.statement != nil && about(v.statement, digest) {
			all = append(all, committed(v.statement, digest)...)
		}
	}
	slices.Sort(all)
	return slices.DeleteFunc(slices.Compact(all), func(d string) bool { return d == "" })
}

// tally counts votes for one rule and collects why others do not count.
type tally struct {
	rule  *rule
	name  string
	facts Facts
	now   time.Time

	drops []drop
	until time.Time
}

// drop is a vote that does not count.
type drop struct {
	signer *signer
	code   Code
	reason string
}

// decide narrows the votes step by step; the first step after which too few are
// left gives the code.
func (t *tally) decide(votes []vote, envelopes int) Verdict {
	if t.rule.threshold == 0 {
		return t.refuse(ThresholdNotMet, nil, "the rule names no signers")
	}
	if len(votes) == 0 {
		return t.unsigned(envelopes)
	}
	newest := t.newest(t.eligible(votes))
	if len(newest) < t.rule.threshold {
		return t.tooFew(newest)
	}
	left := newest
	for _, step := range []struct {
		code Code
		keep func(vote) string
	}{
		{StatementExpired, t.unexpired},
		{TooOld, t.fresh},
		{ConditionFailed, t.fulfilled},
	} {
		if left = t.keep(left, step.code, step.keep); len(left) < t.rule.threshold {
			return t.timed(t.refuse(step.code, left, ""), newest)
		}
	}
	v := t.verdict(Allowed, left)
	v.Reasons = []string{fmt.Sprintf("signed by %s; %s needs %d", join(left), t.name, t.rule.threshold)}
	return t.timed(v, newest)
}

// unsigned refuses for want of any valid signature.
func (t *tally) unsigned(envelopes int) Verdict {
	if envelopes == 0 {
		return t.refuse(ThresholdNotMet, nil, "no statement about the image is there")
	}
	return t.refuse(BadSignature, nil, fmt.Sprintf("none of the envelopes (%d, of which up to %d are read) is validly signed by %s",
		envelopes, MaxEnvelopes, strings.Join(names(t.rule.from), " or ")))
}

// eligible keeps the statements about this repository, digest and tag.
func (t *tally) eligible(votes []vote) []vote {
	votes = t.keep(votes, WrongRepository, t.aboutRepository)
	votes = t.keep(votes, ThresholdNotMet, func(v vote) string { return v.fault })
	votes = t.keep(votes, WrongRepository, t.aboutDigest)
	votes = t.keep(votes, ThresholdNotMet, t.namesTag)
	votes = t.keep(votes, ThresholdNotMet, t.keyCounts)
	return t.keep(votes, ThresholdNotMet, t.created)
}

// keep returns the votes for which reason is "" and notes why the others drop.
func (t *tally) keep(votes []vote, code Code, reason func(vote) string) []vote {
	var kept []vote
	for _, v := range votes {
		if r := reason(v); r != "" {
			t.drops = append(t.drops, drop{v.signer, code, v.signer.name + ": " + r})
		} else {
			kept = append(kept, v)
		}
	}
	return kept
}

func (t *tally) aboutRepository(v vote) string {
	if v.subject == "" || v.subject == t.facts.Repository {
		return ""
	}
	return fmt.Sprintf("the statement is about repository %q, not %q", v.subject, t.facts.Repository)
}

func (t *tally) aboutDigest(v vote) string {
	if !about(v.statement, t.facts.Digest) {
		return fmt.Sprintf("the statement is about %s, not %s", v.statement.Digest, t.facts.Digest)
	}
	return ""
}

func (t *tally) namesTag(v vote) string {
	if t.facts.Tag == "" || slices.Contains(v.statement.Tags, t.facts.Tag) {
		return ""
	}
	return fmt.Sprintf("the statement does not name the tag %q", t.facts.Tag)
}

// keyCounts refuses a key that was replaced before the image was listed.
func (t *tally) keyCounts(v vote) string {
	limit, listed := v.key.listedBefore, t.facts.Listed
	if limit.IsZero() {
		return ""
	}
	if listed.IsZero() {
		listed = t.now
		t.changes(limit)
	}
	if listed.Before(limit) {
		return ""
	}
	return fmt.Sprintf("key %s counts only for images listed before %s", v.key.id, stamp(limit))
}

func (t *tally) created(v vote) string {
	counts := v.statement.Created.Add(-MaxSkew)
	if !t.now.Before(counts) {
		return ""
	}
	t.changes(counts)
	return fmt.Sprintf("the statement is of the future: created %s", stamp(v.statement.Created))
}

func (t *tally) unexpired(v vote) string {
	if end := v.statement.Expires; !end.IsZero() && !t.now.Before(end) {
		return fmt.Sprintf("the statement expired at %s", stamp(end))
	}
	return ""
}

func (t *tally) fresh(v vote) string {
	if t.rule.maxAge > 0 && !t.now.Before(v.statement.Created.Add(t.rule.maxAge)) {
		return fmt.Sprintf("the statement of %s is older than %s", stamp(v.statement.Created), age(t.rule.maxAge))
	}
	return ""
}

func (t *tally) fulfilled(v vote) string {
	if len(t.rule.conditions) == 0 {
		return ""
	}
	known := variables(t.facts, v.statement, t.now)
	for _, c := range t.rule.conditions {
		if reason := c.holds(known); reason != "" {
			return reason
		}
	}
	return ""
}

// newest keeps the newest vote of each signer, in order of the signers' names.
// Of equally old ones it is that with the larger payload, whatever their order.
func (t *tally) newest(votes []vote) []vote {
	slices.SortFunc(votes, func(a, b vote) int {
		if c := byName(a.signer, b.signer); c != 0 {
			return c
		}
		if c := b.statement.Created.Compare(a.statement.Created); c != 0 {
			return c
		}
		if c := bytes.Compare(b.payload, a.payload); c != 0 {
			return c
		}
		return strings.Compare(a.key.id, b.key.id)
	})
	return slices.CompactFunc(votes, func(a, b vote) bool { return a.signer == b.signer })
}

// tooFew refuses when there are statements about the image by too few signers.
func (t *tally) tooFew(counted []vote) Verdict {
	elsewhere := func(d drop) bool {
		return d.code == WrongRepository && !slices.ContainsFunc(counted, func(v vote) bool { return v.signer == d.signer })
	}
	if slices.ContainsFunc(t.drops, elsewhere) {
		return t.refuse(WrongRepository, counted, "")
	}
	return t.refuse(ThresholdNotMet, counted, fmt.Sprintf("signed by %s; %s needs %d of %s",
		join(counted), t.name, t.rule.threshold, strings.Join(names(t.rule.from), ", ")))
}

// refuse lists cause, then the drops that gave the code, then the other drops.
func (t *tally) refuse(code Code, counted []vote, cause string) Verdict {
	v := t.verdict(code, counted)
	if cause != "" {
		v.Reasons = append(v.Reasons, cause)
	}
	slices.SortStableFunc(t.drops, func(a, b drop) int { return order(a.code, code) - order(b.code, code) })
	for _, d := range t.drops {
		v.Reasons = append(v.Reasons, d.reason)
	}
	return v
}

func order(code, first Code) int {
	if code == first {
		return 0
	}
	return 1
}

// verdict tells who counted.
func (t *tally) verdict(code Code, counted []vote) Verdict {
	v := Verdict{Code: code, Until: t.until}
	for _, c := range counted {
		v.Signers = append(v.Signers, Signer{c.signer.name, c.key.id, c.statement.Created})
		if v.Statement == nil || c.statement.Created.After(v.Statement.Created) {
			v.Statement = c.statement
		}
	}
	return v
}

// timed adds Time and Until: newest has one vote of each signer, and enough.
func (t *tally) timed(v Verdict, newest []vote) Verdict {
	var created []time.Time
	for _, n := range newest {
		created = append(created, n.statement.Created)
		t.changes(n.statement.Expires)
		if t.rule.maxAge > 0 {
			t.changes(n.statement.Created.Add(t.rule.maxAge))
		}
	}
	slices.SortFunc(created, func(a, b time.Time) int { return b.Compare(a) })
	v.Time, v.Until = created[t.rule.threshold-1], t.until
	return v
}

// changes notes an instant at which the verdict may change, if it is to come.
func (t *tally) changes(at time.Time) {
	if at.After(t.now) && (t.until.IsZero() || at.Before(t.until)) {
		t.until = at
	}
}

func join(votes []vote) string {
	if len(votes) == 0 {
		return "nobody"
	}
	var all []string
	for _, v := range votes {
		all = append(all, v.signer.name)
	}
	return strings.Join(all, ", ")
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// age writes a maxAge as a policy has it.
func age(d time.Duration) string {
	switch {
	case d%(24*time.Hour) == 0:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	case d%time.Hour == 0:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dm", d/time.Minute)
}
