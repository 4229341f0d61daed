package trust

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/policy"
)

// fold is one pass of the inbox over a draft.
type fold struct {
	draft  *Draft
	policy *policy.Policy
	now    time.Time
	out    Publication
	listed []inboxEntry // found listed already: an earlier publish did it
	drop   []inboxEntry // refused
}

// subject is what statements are grouped by.
type subject struct {
	repository string
	digest     v1.Hash
}

func (p *Publisher) fold(ctx context.Context, in inbox) (*fold, error) {
	draft, err := p.client.NewDraft(ctx, p.opts.OnlineKey)
	if err != nil {
		return nil, err
	}
	draft.timestampLife = p.timestampLife
	if err := draft.Preload(ctx, in.targets()); err != nil {
		return nil, err
	}
	f := &fold{draft: draft, policy: draft.view.policy, now: p.client.Now()}
	f.out = Publication{Listed: []string{}, Tags: []string{}, Revoked: []RevocationResult{}, Waiting: []InboxResult{}, Refused: []InboxResult{}}
	for _, j := range in.junk {
		f.refuse([]inboxEntry{j.inboxEntry}, j.reason)
	}
	groups := map[subject][]inboxEntry{}
	var order []subject
	if err := f.revocations(ctx, in.revocations); err != nil {
		return nil, err
	}
	for _, s := range in.statements {
		key := subject{s.release.Repository, s.digest}
		if groups[key] == nil {
			order = append(order, key)
		}
		groups[key] = append(groups[key], s)
	}
	for _, key := range order {
		if err := f.subject(ctx, key, groups[key]); err != nil {
			return nil, err
		}
	}
	return f, draft.RenewBins(ctx)
}

// subject folds the statements about one digest: decide as a node would, then
// list the digest, its children and the tags.
func (f *fold) subject(ctx context.Context, s subject, entries []inboxEntry) error {
	listed, _, err := f.draft.Lookup(ctx, DigestTarget(s.repository, s.digest))
	if err != nil {
		return err
	}
	entries, err = f.fresh(ctx, entries, listed)
	if err != nil || len(entries) == 0 {
		return err
	}
	if reason, revoked := f.revoked(entries); revoked {
		f.refuse(entries, reason)
		return nil
	}
	envelopes := f.newestPerSigner(listed.Envelopes, entries)
	verdict := f.policy.Decide(envelopes, policy.Facts{Repository: s.repository, Digest: s.digest.String(), Listed: listed.Listed}, f.now)
	switch verdict.Code {
	case policy.Allowed:
		err := f.list(ctx, s, entries, envelopes, listed, verdict.Statement)
		if errors.Is(err, ErrFull) {
			f.refuse(entries, err.Error())
			return nil
		}
		return err
	case policy.ThresholdNotMet:
		f.wait(entries, firstReason(verdict))
	default:
		f.refuse(entries, fmt.Sprintf("%s: %s", verdict.Code, firstReason(verdict)))
	}
	return nil
}

// fresh sets aside the entries that an earlier publish has settled and refuses
// those that nobody whom the policy knows has signed.
func (f *fold) fresh(ctx context.Context, entries []inboxEntry, listed Listing) ([]inboxEntry, error) {
	var fresh []inboxEntry
	for _, e := range entries {
		signer, known := f.policy.Signer(e.envelope)
		if !known { // the policy has changed since the inbox was read
			f.refuse([]inboxEntry{e}, fmt.Sprintf("%s: it is not signed by a signer of the policy", policy.BadSignature))
			continue
		}
		if e.release.Created.After(f.now.Add(clockSkew)) {
			f.refuse([]inboxEntry{e}, fmt.Sprintf("created %s, more than %s ahead", e.release.Created.Format(time.RFC3339), clockSkew))
			continue
		}
		settled, err := f.settled(ctx, e, signer.Name, listed)
		if err != nil {
			return nil, err
		}
		if settled {
			f.listed = append(f.listed, e)
			continue
		}
		fresh = append(fresh, e)
	}
	return fresh, nil
}

// settled tells whether an entry has nothing left to say: its digest is listed
// with this or a newer statement of the signer, and so is each of its tags, or
// the tag has moved on.
func (f *fold) settled(ctx context.Context, e inboxEntry, signer string, listed Listing) (bool, error) {
	if !f.covered(listed.Envelopes, e, signer) {
		return false, nil
	}
	for _, tag := range e.release.Tags {
		current, exists, err := f.draft.Lookup(ctx, TagTarget(e.release.Repository, tag))
		if err != nil || !exists {
			return false, err
		}
		if current.Digest == e.digest {
			if !f.covered(current.Envelopes, e, signer) {
				return false, nil
			}
		} else if f.tagTime(current, e.release.Repository, tag).Before(e.release.Created) {
			return false, nil
		}
	}
	return true, nil
}

// covered tells whether envelopes hold the statement of e or a newer one by its
// signer.
func (f *fold) covered(envelopes []attest.Envelope, e inboxEntry, signer string) bool {
	return slices.ContainsFunc(envelopes, func(l attest.Envelope) bool {
		if string(l.Payload) == string(e.envelope.Payload) {
			return true
		}
		by, known := f.policy.Signer(l)
		r, err := attest.DecodeRelease(l.Payload)
		return known && err == nil && by.Name == signer && laterStatement(r.Created, l.Payload, e.release.Created, e.envelope.Payload)
	})
}

// laterStatement orders the statements of one signer: by time, and those of the
// same second by their bytes.
func laterStatement(at time.Time, payload []byte, than time.Time, other []byte) bool {
	if c := at.Compare(than); c != 0 {
		return c > 0
	}
	return string(payload) > string(other)
}

func firstReason(v policy.Verdict) string {
	if len(v.Reasons) == 0 {
		return "no reason given"
	}
	return v.Reasons[0]
}

// revoked finds a tombstone for what a statement is about.
func (f *fold) revoked(entries []inboxEntry) (string, bool) {
	for _, t := range f.draft.revoked {
		for _, e := range entries {
			for _, m := range e.release.Manifests {
				if t.Covers(m.Digest) || t.Covers(m.Config) {
					return fmt.Sprintf("%s: %s was revoked on %s: %s", policy.Revoked, t.Digest, t.Date.Format(time.DateOnly), t.Reason), true
				}
			}
		}
	}
	return "", false
}

// newestPerSigner merges the listed envelopes with those of the inbox, keeping
// the newest of each signer and at most maxEnvelopes. Envelopes by nobody the
// policy knows are kept out.
func (f *fold) newestPerSigner(listed []attest.Envelope, entries []inboxEntry) []attest.Envelope {
	type signed struct {
		envelope attest.Envelope
		created  time.Time
	}
	newest := map[string]signed{}
	add := func(e attest.Envelope) {
		signer, ok := f.policy.Signer(e)
		r, err := attest.DecodeRelease(e.Payload)
		if !ok || err != nil || r.Created.After(f.now.Add(clockSkew)) {
			return
		}
		old, known := newest[signer.Name]
		if !known || laterStatement(r.Created, e.Payload, old.created, old.envelope.Payload) {
			newest[signer.Name] = signed{e, r.Created}
		}
	}
	for _, e := range listed {
		add(e)
	}
	var arrived []attest.Envelope
	for _, e := range entries {
		arrived = append(arrived, e.envelope)
	}
	for _, e := range WithoutRevoked(f.policy, f.draft.revoked, arrived, time.Time{}) {
		add(e)
	}
	all := make([]signed, 0, len(newest))
	for _, s := range newest {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b signed) int {
		if c := b.created.Compare(a.created); c != 0 {
			return c
		}
		return slices.Compare(a.envelope.Payload, b.envelope.Payload)
	})
	var envelopes []attest.Envelope
	for _, s := range all[:min(len(all), maxEnvelopes)] {
		envelopes = append(envelopes, s.envelope)
	}
	return envelopes
}

// list writes an allowed digest with its children and tags. What it says of the
// manifests comes from a statement that counted.
func (f *fold) list(ctx context.Context, s subject, entries []inboxEntry, envelopes []attest.Envelope, listed Listing, counted *attest.ReleaseStatement) error {
	size := counted.Manifests[0].Size
	if !samePayloads(listed.Envelopes, envelopes) {
		if err := f.draft.ListDigest(ctx, s.repository, s.digest, size, envelopes); err != nil {
			return err
		}
		f.out.Listed = append(f.out.Listed, s.repository+"@"+s.digest.String())
	}
	for _, child := range counted.Manifests[1:] {
		h, err := v1.NewHash(child.Digest)
		if err != nil {
			return err
		}
		if err := f.draft.ListChild(ctx, s.repository, h, child.Size, s.digest); err != nil {
			return err
		}
	}
	for _, tag := range tagsOf(entries) {
		if err := f.tag(ctx, s, tag, size, entries, listed.Listed); err != nil {
			return err
		}
	}
	return nil
}

func tagsOf(entries []inboxEntry) []string {
	var tags []string
	for _, e := range entries {
		tags = append(tags, e.release.Tags...)
	}
	slices.Sort(tags)
	return slices.Compact(tags)
}

// tag moves a tag to a digest when the statements that name it allow it and
// are newer than those of the digest it points to now.
func (f *fold) tag(ctx context.Context, s subject, tag string, size int64, entries []inboxEntry, listed time.Time) error {
	name := TagTarget(s.repository, tag)
	current, exists, err := f.draft.Lookup(ctx, name)
	if err != nil {
		return err
	}
	naming := slices.DeleteFunc(slices.Clone(entries), func(e inboxEntry) bool { return !slices.Contains(e.release.Tags, tag) })
	var old []attest.Envelope
	if exists && current.Digest == s.digest {
		old = current.Envelopes
	}
	envelopes := f.newestPerSigner(old, naming)
	verdict := f.policy.Decide(envelopes, policy.Facts{Repository: s.repository, Digest: s.digest.String(), Tag: tag, Listed: listed}, f.now)
	if verdict.Code != policy.Allowed {
		f.wait(naming, fmt.Sprintf("the digest is listed, but not under the tag %s: %s", tag, firstReason(verdict)))
		return nil
	}
	if exists && current.Digest != s.digest && !f.newer(verdict.Time, s, current, tag) {
		f.wait(naming, fmt.Sprintf("the digest is listed, but the tag %s belongs to a newer release", tag))
		return nil
	}
	if samePayloads(old, envelopes) {
		return nil
	}
	f.out.Tags = append(f.out.Tags, name)
	return f.draft.ListTag(ctx, s.repository, tag, s.digest, size, envelopes)
}

// newer compares the times of a tag for a digest and for the one it points to
// now; ties go to the larger digest.
func (f *fold) newer(t time.Time, s subject, current Listing, tag string) bool {
	if c := t.Compare(f.tagTime(current, s.repository, tag)); c != 0 {
		return c > 0
	}
	return s.digest.String() > current.Digest.String()
}

// tagTime is the time of a listed tag: zero when the policy has since stopped
// allowing it.
func (f *fold) tagTime(l Listing, repository, tag string) time.Time {
	facts := policy.Facts{Repository: repository, Digest: l.Digest.String(), Tag: tag, Listed: l.Listed}
	return f.policy.Decide(l.Envelopes, facts, f.now).Time
}

func samePayloads(a, b []attest.Envelope) bool {
	return slices.EqualFunc(a, b, func(x, y attest.Envelope) bool { return string(x.Payload) == string(y.Payload) })
}

// wait keeps entries in the inbox, but not for ever.
func (f *fold) wait(entries []inboxEntry, reason string) {
	for _, e := range entries {
		if f.now.Sub(e.created()) > inboxTTL {
			f.refuse([]inboxEntry{e}, fmt.Sprintf("waited longer than %s: %s", inboxTTL, reason))
			continue
		}
		f.out.Waiting = append(f.out.Waiting, InboxResult{e.tag, e.image(), reason})
	}
}

func (f *fold) refuse(entries []inboxEntry, reason string) {
	for _, e := range entries {
		f.out.Refused = append(f.out.Refused, InboxResult{e.tag, e.image(), reason})
		f.drop = append(f.drop, e)
	}
}
