package trust

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"time"

	"github.com/gofrs/flock"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/internal/oci"
	"github.com/imgtrust/imgtrust/policy"
)

// Publisher is the one writer of the online roles: it folds the statements of
// the inbox into the bins. It never decides differently from a node: both call
// policy.Decide.
type Publisher struct {
	client *Client
	opts   PublisherOptions
}

// PublisherOptions configure a Publisher. State should be set: it is what makes
// the publisher refuse to build on an index older than the last it saw.
type PublisherOptions struct {
	ClientOptions
	OnlineKey crypto.Signer
	// ExpectVersion, when not zero, is the timestamp version that must be
	// current: the protection of a one-shot publisher without state.
	ExpectVersion int64
}

// Publication is what one Publish did.
type Publication struct {
	Published
	Listed  []string      `json:"listed"`  // repo@digest, newly listed or listed with new statements
	Tags    []string      `json:"tags"`    // repo:tag, moved to a new digest or time
	Waiting []InboxResult `json:"waiting"` // kept in the inbox: more signers are needed
	Refused []InboxResult `json:"refused"` // dropped from the inbox
	Pruned  int           `json:"pruned"`  // entries removed: listed by an earlier publish, or refused
}

// InboxResult says what became of a statement and why.
type InboxResult struct {
	Entry  string `json:"entry"`           // its tag in the inbox
	Image  string `json:"image,omitempty"` // repo@digest it is about, when that could be read
	Reason string `json:"reason"`
}

// OpenPublisher checks the options as Open does.
func OpenPublisher(o PublisherOptions) (*Publisher, error) {
	if o.OnlineKey == nil {
		return nil, errors.New("a publisher needs the online key")
	}
	o.expiredOnline = true
	c, err := Open(o.ClientOptions)
	return &Publisher{client: c, opts: o}, err
}

// Publish reads the inbox, lists what the policy allows, renews snapshot,
// timestamp and bins that are getting old, and switches the tag. An inbox that cannot be read does not keep
// the online roles from being renewed: it is reported after that. A collision with another publisher is
// repaired by folding again on top of what that one wrote.
func (p *Publisher) Publish(ctx context.Context) (Publication, error) {
	unlock, err := p.lock(ctx)
	if err != nil {
		return Publication{}, err
	}
	defer unlock()
	if err := p.refresh(ctx); err != nil {
		return Publication{}, err
	}
	in, inboxErr := p.readInbox(ctx)
	if ctx.Err() != nil {
		return Publication{}, context.Cause(ctx)
	}
	f, done, err := p.foldAndSwitch(ctx, in)
	if err != nil {
		return Publication{}, err
	}
	f.out.Published = done
	err = p.prune(ctx, f)
	return f.out, errors.Join(inboxErr, err)
}

// lock keeps a second publisher with the same state out.
func (p *Publisher) lock(ctx context.Context) (func(), error) {
	if p.opts.State == "" {
		return func() {}, nil
	}
	unlock, err := p.client.dir.lock(ctx) // makes the directory
	if err != nil {
		return nil, err
	}
	unlock()
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	l := flock.New(filepath.Join(p.client.dir.path, "publisher.lock"))
	if ok, err := l.TryLockContext(ctx, 50*time.Millisecond); !ok {
		return nil, &Error{Code: policy.Unavailable, Err: fmt.Errorf("another publisher is running: %w", err),
			Advice: "one publisher at a time writes a trust repository"}
	}
	return func() { _ = l.Unlock() }, nil
}

func (p *Publisher) refresh(ctx context.Context) error {
	old, err := p.client.dir.load()
	if err != nil {
		return err
	}
	if err := p.client.Refresh(ctx); err != nil {
		return err
	}
	version := p.client.view.set.Timestamp.Signed.Version
	if old.Timestamp == "" && p.opts.ExpectVersion == 0 && !p.client.Now().Before(p.client.view.until) {
		return &Error{Code: policy.MetadataExpired, Err: fmt.Errorf("the trust index, version %d, has expired, and this publisher has no state that says it is the newest", version),
			Advice: fmt.Sprintf("when it is known to be the newest, say so with --expect-version %d", version)}
	}
	if want := p.opts.ExpectVersion; want != 0 && want != version {
		return &Error{Code: policy.RolledBack, Err: fmt.Errorf("the trust index has version %d, expected %d", version, want),
			Advice: "another publisher ran, or an old index was put back: look at `imgtrust trust status`"}
	}
	return nil
}

// foldAndSwitch folds the statements and publishes, again on each collision.
func (p *Publisher) foldAndSwitch(ctx context.Context, in inbox) (*fold, Published, error) {
	const attempts = 5
	for attempt := 1; ; attempt++ {
		f, err := p.fold(ctx, in)
		if err != nil {
			return nil, Published{}, err
		}
		done, err := f.draft.Publish(ctx)
		if !errors.Is(err, ErrCollision) || attempt == attempts {
			return f, done, err
		}
		select {
		case <-time.After(rand.N(time.Duration(attempt) * 200 * time.Millisecond)):
		case <-ctx.Done():
			return nil, Published{}, context.Cause(ctx)
		}
		if err := p.client.Refresh(ctx); err != nil {
			return nil, Published{}, err
		}
	}
}

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
	f := &fold{draft: draft, policy: draft.view.policy, now: p.client.Now()}
	f.out = Publication{Listed: []string{}, Tags: []string{}, Waiting: []InboxResult{}, Refused: []InboxResult{}}
	for _, j := range in.junk {
		f.refuse([]inboxEntry{j.inboxEntry}, j.reason)
	}
	groups := map[subject][]inboxEntry{}
	var order []subject
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
				if t.Digest != "" && (t.Digest == m.Digest || t.Digest == m.Config) {
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
		if f.now.Sub(e.release.Created) > inboxTTL {
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

// prune removes from the inbox what was refused and what an earlier publish
// listed: never what this one did, which another publisher may still undo.
func (p *Publisher) prune(ctx context.Context, f *fold) error {
	for _, e := range append(f.listed, f.drop...) {
		err := p.remove(ctx, e)
		switch {
		case err == nil:
			f.out.Pruned++
		case errors.Is(err, oci.ErrUnsupported), errors.Is(err, oci.ErrUnauthorized):
			return nil // the registry keeps them: they are read and passed over each time
		case !errors.Is(err, oci.ErrNotFound):
			return fmt.Errorf("pruning the inbox: %w", err)
		}
	}
	return nil
}

// remove deletes an entry by its manifest, then by its tag, which some
// registries leave behind.
func (p *Publisher) remove(ctx context.Context, e inboxEntry) error {
	tag := oci.Reference{Repository: p.client.Inbox(), Tag: e.tag}
	if e.manifest == (v1.Hash{}) { // too large to be read
		return p.opts.Registry.Delete(ctx, tag)
	}
	if err := p.opts.Registry.Delete(ctx, tag.AtDigest(e.manifest)); err != nil {
		return err
	}
	err := p.opts.Registry.Delete(ctx, tag)
	if errors.Is(err, oci.ErrNotFound) || errors.Is(err, oci.ErrUnsupported) {
		return nil
	}
	return err
}
