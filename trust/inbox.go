package trust

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/internal/oci"
	"github.com/imgtrust/imgtrust/policy"
)

// inboxTag is the tag of an inbox entry: s- and the SHA-256 of the bundle.
const inboxTag = `^s-[0-9a-f]{64}$`

// inboxEntry is a decoded statement of the inbox. Its signature has not been
// checked.
type inboxEntry struct {
	tag      string
	manifest v1.Hash
	digest   v1.Hash // the subject
	envelope attest.Envelope
	release  attest.ReleaseStatement

	revocation *attest.RevocationStatement // instead of a release
}

// created is when the signer says that it made the statement.
func (e inboxEntry) created() time.Time {
	if e.revocation != nil {
		return e.revocation.Created
	}
	return e.release.Created
}

// image is what the statement is about.
func (e inboxEntry) image() string {
	if r := e.revocation; r != nil && r.Signer != "" {
		return "signer " + r.Signer
	}
	if e.revocation != nil {
		return e.revocation.Repository + "@" + e.revocation.Digest
	}
	if e.release.Repository == "" {
		return ""
	}
	return e.release.Repository + "@" + e.digest.String()
}

// inbox is what was read from the inbox.
type inbox struct {
	statements  []inboxEntry // releases, signed by a signer of the policy
	revocations []inboxEntry // the same for revocations
	junk        []junkEntry  // to be refused and removed
}

// targets are the names that the statements list: each bin is then read once.
func (in inbox) targets() []string {
	var names []string
	for _, e := range in.statements {
		r := e.release
		for _, m := range r.Manifests {
			names = append(names, r.Repository+"@"+m.Digest)
		}
		for _, tag := range r.Tags {
			names = append(names, TagTarget(r.Repository, tag))
		}
	}
	return names
}

// junkEntry is an entry that cannot count.
type junkEntry struct {
	inboxEntry
	reason string
}

// readInbox reads the statements that wait, in the order of their tags. What is
// no statement by a signer of the policy is kept apart at once: anyone with the
// right to push may write here.
func (p *Publisher) readInbox(ctx context.Context) (inbox, error) {
	tags, err := p.inboxTags(ctx)
	if err != nil {
		return inbox{}, err
	}
	entries := make([]inboxEntry, len(tags))
	reasons := make([]error, len(tags))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i, tag := range tags {
		g.Go(func() error {
			entries[i], reasons[i] = p.readEntry(gctx, tag)
			return gctx.Err()
		})
	}
	if err := g.Wait(); err != nil {
		return inbox{}, err
	}
	return sortOut(entries, reasons)
}

// sortOut parts the statements from the junk. An entry that the registry fails
// to serve is neither: it is an error, beside what could be read.
func sortOut(entries []inboxEntry, reasons []error) (inbox, error) {
	var in inbox
	var failed error
	for i, reason := range reasons {
		var malformed *malformedEntry
		switch {
		case reason == nil && entries[i].revocation != nil:
			in.revocations = append(in.revocations, entries[i])
		case reason == nil:
			in.statements = append(in.statements, entries[i])
		case errors.Is(reason, oci.ErrNotFound) && !errors.As(reason, &malformed): // pruned in between
		case errors.As(reason, &malformed):
			in.junk = append(in.junk, junkEntry{entries[i], reason.Error()})
		case failed == nil:
			failed = fmt.Errorf("reading inbox entry %s: %w", entries[i].tag, reason)
		}
	}
	return in, failed
}

// malformedEntry is an entry that is not what an inbox holds.
type malformedEntry struct{ error }

func (e *malformedEntry) Unwrap() error { return e.error }

func (p *Publisher) inboxTags(ctx context.Context) ([]string, error) {
	all, err := p.opts.Registry.Tags(ctx, p.client.Inbox(), maxInboxEntries)
	switch {
	case errors.Is(err, oci.ErrNotFound):
		return nil, nil // nothing was ever signed
	case errors.Is(err, oci.ErrTooLarge) && len(all) > 0:
		// A flooded inbox is worked off a part at a time.
	case err != nil:
		return nil, fmt.Errorf("listing the inbox %s: %w", p.client.Inbox(), err)
	}
	ours := regexp.MustCompile(inboxTag)
	tags := slices.DeleteFunc(all, func(t string) bool { return !ours.MatchString(t) })
	slices.Sort(tags)
	return tags, nil
}

// readEntry reads and decodes one entry, which must hold the bundle that its
// tag names.
func (p *Publisher) readEntry(ctx context.Context, tag string) (inboxEntry, error) {
	e := inboxEntry{tag: tag}
	ref := oci.Reference{Repository: p.client.Inbox(), Tag: tag}
	raw, err := p.opts.Registry.Manifest(ctx, ref, maxInboxEntry)
	if err != nil {
		return e, wrongIsMalformed(err)
	}
	e.manifest = raw.Digest
	m, err := v1.ParseManifest(bytes.NewReader(raw.Bytes))
	if err != nil || len(m.Layers) != 1 || "s-"+m.Layers[0].Digest.Hex != tag {
		return e, &malformedEntry{fmt.Errorf("it does not hold the one bundle that its tag names")}
	}
	data, err := p.opts.Registry.Blob(ctx, ref.Repository, m.Layers[0], maxInboxEntry)
	if errors.Is(err, oci.ErrNotFound) {
		return e, &malformedEntry{fmt.Errorf("its bundle is missing: %w", err)}
	}
	if err != nil {
		return e, wrongIsMalformed(err)
	}
	if e, err = e.decode(data); err != nil {
		return e, err
	}
	if _, known := p.client.last().policy.Signer(e.envelope); !known {
		e.envelope = attest.Envelope{}
		return e, &malformedEntry{fmt.Errorf("%s: it is not signed by a signer of the policy", policy.BadSignature)}
	}
	return e, nil
}

func (e inboxEntry) decode(data []byte) (inboxEntry, error) {
	bundle, err := attest.DecodeBundle(data)
	if err != nil {
		return e, &malformedEntry{err}
	}
	e.envelope = bundle.Envelope
	if s, err := attest.DecodeStatement(bundle.Envelope.Payload); err == nil && s.PredicateType == attest.RevocationType {
		return e.decodeRevocation()
	}
	if e.release, err = attest.DecodeRelease(bundle.Envelope.Payload); err != nil {
		return e, &malformedEntry{err}
	}
	if e.digest, err = v1.NewHash(e.release.Digest); err != nil {
		return e, &malformedEntry{err}
	}
	return e, nil
}

func (e inboxEntry) decodeRevocation() (inboxEntry, error) {
	r, err := attest.DecodeRevocation(e.envelope.Payload)
	if err != nil {
		return e, &malformedEntry{err}
	}
	e.revocation = &r
	return e, nil
}

func wrongIsMalformed(err error) error {
	if errors.Is(err, oci.ErrTooLarge) || errors.Is(err, oci.ErrContentMismatch) || errors.Is(err, oci.ErrMalformed) {
		return &malformedEntry{err}
	}
	return err
}
