package trust

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/policy"
)

// RevocationResult is a revocation that a publish has made or taken back.
type RevocationResult struct {
	Subject string    `json:"subject"` // a digest, or "signer NAME since TIME"
	Undone  bool      `json:"undone,omitempty"`
	Date    time.Time `json:"date"`
	Reason  string    `json:"reason"`
}

// Subject tells what a tombstone is about, for people.
func (t Tombstone) Subject() string {
	if t.Digest != "" {
		return t.Digest
	}
	return fmt.Sprintf("signer %s since %s", t.Signer, t.Since.UTC().Format(time.RFC3339))
}

// revocations folds the revocation statements of the inbox, in the order of what
// they are about and then of their time. Those of one kind about one subject are
// counted together.
func (f *fold) revocations(ctx context.Context, entries []inboxEntry) error {
	groups := map[string][]inboxEntry{}
	for _, e := range entries {
		r := e.revocation
		if r.Trust != f.draft.view.id.Repository {
			f.refuse([]inboxEntry{e}, "it is about another trust repository")
			continue
		}
		key := fmt.Sprint(tombstoneOf(*r).key(), r.Undo)
		groups[key] = append(groups[key], e)
	}
	for _, key := range slices.Sorted(maps.Keys(groups)) { // "… false" before "… true": undone after revoked
		if err := f.revocation(ctx, groups[key]); err != nil {
			return err
		}
	}
	return nil
}

func tombstoneOf(r attest.RevocationStatement) Tombstone {
	return Tombstone{Digest: r.Digest, Signer: r.Signer, Since: r.Since, By: Revokers}
}

// revocation folds the statements of one kind about one subject.
func (f *fold) revocation(ctx context.Context, entries []inboxEntry) error {
	r := entries[0].revocation
	t := tombstoneOf(*r)
	statements := envelopesOf(entries)
	verdict := f.policy.DecideRevocation(statements, t.about(r.Trust, r.Undo), f.now)
	if len(verdict.Signers) == 0 {
		f.refuse(entries, fmt.Sprintf("%s: %s", policy.ThresholdNotMet, verdict.Why))
		return nil
	}
	present, exists := f.draft.present(t)
	if !verdict.Enough {
		f.waitOrSettle(entries, present, exists, verdict.Why)
		return nil
	}
	t.Date, t.Reason = verdict.Time, verdict.Reason
	switch {
	case exists && !present.Date.Before(t.Date):
		f.listed = append(f.listed, entries...) // done by an earlier publish, or overtaken
		return nil
	case r.Undo && (!exists || !present.Active()):
		f.refuse(entries, "nothing is revoked that it could take back")
		return nil
	case exists && present.Active() && !r.Undo:
		f.listed = append(f.listed, entries...) // revoked already
		return nil
	case r.Undo:
		for _, e := range statements[:min(len(statements), maxEnvelopes)] {
			stored, err := storeEnvelope(e)
			if err != nil {
				return err
			}
			t.Undone = append(t.Undone, stored)
		}
	default:
		also, err := f.boundTo(ctx, r.Repository, r.Digest)
		if err != nil {
			return err
		}
		t.Also = also
	}
	f.draft.Revoke(t)
	f.out.Revoked = append(f.out.Revoked, RevocationResult{t.Subject(), r.Undo, t.Date, t.Reason})
	return nil
}

// waitOrSettle keeps statements of too few revokers, unless the matter is older
// than what holds.
func (f *fold) waitOrSettle(entries []inboxEntry, present Tombstone, exists bool, why string) {
	for _, e := range entries {
		if exists && !present.Date.Before(e.created()) {
			f.listed = append(f.listed, e)
			continue
		}
		f.wait([]inboxEntry{e}, why)
	}
}

func envelopesOf(entries []inboxEntry) []attest.Envelope {
	var all []attest.Envelope
	for _, e := range entries {
		all = append(all, e.envelope)
	}
	return all
}

// boundTo are the digests that the listed statements bind to a digest: of an
// index its manifests and their configs, of a manifest its config. A manifest
// rewritten around the same config, or a child under another index, is the same
// content.
func (f *fold) boundTo(ctx context.Context, repository, digest string) ([]string, error) {
	if digest == "" {
		return nil, nil
	}
	return f.draft.boundTo(ctx, repository, digest)
}

func (d *Draft) boundTo(ctx context.Context, repository, digest string) ([]string, error) {
	h, err := v1.NewHash(digest)
	if err != nil {
		return nil, err
	}
	l, exists, err := d.Lookup(ctx, DigestTarget(repository, h))
	if err != nil || !exists {
		return nil, err
	}
	var all []string
	for _, e := range l.Envelopes {
		r, err := attest.DecodeRelease(e.Payload)
		if err != nil {
			continue
		}
		for _, m := range r.Manifests {
			all = append(all, m.Digest, m.Config)
		}
	}
	slices.Sort(all)
	all = slices.DeleteFunc(slices.Compact(all), func(s string) bool { return s == "" || s == digest })
	return all[:min(len(all), maxAlso)], nil
}

// OperatorRevocation is what the publisher's operator revokes, or takes back.
type OperatorRevocation struct {
	Repository string // canonical, where the digest is listed; "" for a signer
	Tombstone         // Digest, or Signer and Since; and Reason
	Undo       bool
}

// Revoke publishes tombstones on the operator's word, or takes back what the
// operator revoked. What revokers have signed only revokers take back.
func (p *Publisher) Revoke(ctx context.Context, revocations []OperatorRevocation) (Published, error) {
	unlock, err := p.lock(ctx)
	if err != nil {
		return Published{}, err
	}
	defer unlock()
	if err := p.client.refresh(ctx, p.accept); err != nil {
		return Published{}, err
	}
	const attempts = 5
	for attempt := 1; ; attempt++ {
		d, err := p.client.NewDraft(ctx, p.opts.OnlineKey)
		if err != nil {
			return Published{}, err
		}
		for _, r := range revocations {
			if err := d.operate(ctx, r); err != nil {
				return Published{}, err
			}
		}
		done, err := d.Publish(ctx)
		if err == nil {
			return done, p.forgetUndone(ctx, revocations)
		}
		if !errors.Is(err, ErrCollision) || attempt == attempts {
			return done, err
		}
		if err := p.client.Refresh(ctx); err != nil {
			return Published{}, err
		}
	}
}

// forgetUndone drops what the operator took back from the publisher's own
// memory, from which it would be put back.
func (p *Publisher) forgetUndone(ctx context.Context, revocations []OperatorRevocation) error {
	var keys []string
	for _, r := range revocations {
		if r.Undo {
			keys = append(keys, r.key())
		}
	}
	if len(keys) == 0 {
		return nil
	}
	unlock, err := p.client.dir.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return p.client.dir.forget(keys)
}

// operate makes or takes back one tombstone.
func (d *Draft) operate(ctx context.Context, r OperatorRevocation) error {
	t := r.Tombstone
	t.By, t.Date = "", d.now
	if err := t.check(); err != nil || strings.TrimSpace(t.Reason) == "" {
		return errors.Join(err, errors.New("a revocation needs a reason"))
	}
	present, exists := d.present(t)
	if !r.Undo {
		if exists && present.Active() {
			return nil
		}
		if t.Digest != "" {
			var err error
			if t.Also, err = d.boundTo(ctx, r.Repository, t.Digest); err != nil {
				return err
			}
		}
		d.Revoke(t)
		return nil
	}
	switch {
	case !exists || !present.Active():
		return fmt.Errorf("%s is not revoked", t.Subject())
	case present.By == Revokers:
		return &Error{Code: policy.ThresholdNotMet, Err: fmt.Errorf("%s was revoked by the policy's revokers", t.Subject()),
			Advice: "taking it back takes the same authority: --key of the revokers instead of --online-key"}
	}
	d.revoked = slices.DeleteFunc(d.revoked, func(old Tombstone) bool { return old.key() == t.key() })
	return nil
}
