package trust

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgtrust/imgtrust/internal/oci"
	"github.com/imgtrust/imgtrust/policy"
)

// Publisher is the one writer of the online roles: it folds the statements of
// the inbox into the bins. It never decides differently from a node: both call
// policy.Decide.
type Publisher struct {
	client *Client
	opts   PublisherOptions

	timestampLife time.Duration // the longest that it signs a timestamp for; 0 is what root says
	dealtWith     []string      // inbox entries that the last publish has seen
}

// PublisherOptions configure a Publisher. State should be set: it is what makes
// the publisher refuse to build on an index older than the last it saw.
type PublisherOptions struct {
	ClientOptions
	OnlineKey crypto.Signer
	// ExpectVersion, when not zero, is the timestamp version that must be
	// current: the protection of a one-shot publisher without state.
	ExpectVersion int64
	// Adopt goes on from an index that is older than the last that this
	// publisher saw, with versions above both. Whoever says so must know that the
	// registry was put back by its owner, not by an attacker.
	Adopt bool
}

// Publication is what one Publish did.
type Publication struct {
	Published
	Listed  []string           `json:"listed"`  // repo@digest, newly listed or listed with new statements
	Tags    []string           `json:"tags"`    // repo:tag, moved to a new digest or time
	Revoked []RevocationResult `json:"revoked"` // made or taken back on the word of revokers
	Waiting []InboxResult      `json:"waiting"` // kept in the inbox: more signers are needed
	Refused []InboxResult      `json:"refused"` // dropped from the inbox
	// Repaired tells that the index before was another one than this publisher
	// remembers: another publisher's, or an older one that was adopted.
	Repaired bool `json:"repaired,omitempty"`
	Pruned   int  `json:"pruned"` // entries removed: listed by an earlier publish, or refused
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
	o.expired, o.siblings, o.adopt = true, true, o.Adopt
	c, err := Open(o.ClientOptions)
	return &Publisher{client: c, opts: o}, err
}

// Publish reads the inbox, lists what the policy allows, renews snapshot,
// timestamp and bins that are getting old, and switches the tag. An inbox that
// cannot be read does not keep the online roles from being renewed: it is
// reported after that. A collision with another publisher is repaired by folding
// again on top of what that one wrote.
func (p *Publisher) Publish(ctx context.Context) (Publication, error) {
	unlock, err := p.lock(ctx)
	if err != nil {
		return Publication{}, err
	}
	defer unlock()
	if err := p.client.refresh(ctx, p.accept); err != nil {
		return Publication{}, err
	}
	in, inboxErr := p.readInbox(ctx)
	if ctx.Err() != nil {
		return Publication{}, context.Cause(ctx)
	}
	before := p.client.last()
	f, done, err := p.foldAndSwitch(ctx, in)
	if err != nil {
		return Publication{}, err
	}
	f.out.Published = done
	f.out.Repaired = before.lost != nil
	return f.out, errors.Join(inboxErr, p.prune(ctx, f), p.pruneSuperseded(ctx, before))
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

// accept refuses to build on an index of which neither this publisher's state nor
// its caller says that it is the newest, or whose offline roles have expired.
func (p *Publisher) accept(old saved, v *view) error {
	if err := v.offlineExpired(p.client.now(old.Floor)); err != nil {
		return err
	}
	return p.acceptExpired(old, v)
}

// acceptExpired is accept for a change of the offline roles, which may renew them.
func (p *Publisher) acceptExpired(old saved, v *view) error {
	version := v.set.Timestamp.Signed.Version
	if old.Timestamp == "" && p.opts.ExpectVersion == 0 && !p.client.now(old.Floor).Before(v.until) {
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

// prune removes from the inbox what was refused and what an earlier publish
// listed: never what this one did, which another publisher may still undo.
func (p *Publisher) prune(ctx context.Context, f *fold) error {
	for _, e := range append(f.listed, f.drop...) {
		err := p.remove(ctx, e)
		switch {
		case err == nil:
			f.out.Pruned++
		case prunesNothing(err):
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
