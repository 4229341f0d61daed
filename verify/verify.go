// Package verify turns a reference into a decision: may this image run?
//
// [Image] asks the trust repository what is listed and under which policy, asks
// the registry at most what a tag points to, and lets the policy judge the
// signed statements of the listing. Two independent proofs must hold: the
// listing (is it still good, is it the newest) and the signatures (who says it
// is good). Everything else is a refusal with a stable code.
//
// A registry digest is decided on alone: no byte of the image is read. A layout
// on disk is read and hashed whole, and must be told under which trusted name it
// is judged.
package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgtrust/imgtrust/internal/oci"
	"github.com/imgtrust/imgtrust/policy"
	"github.com/imgtrust/imgtrust/trust"
)

// Options say whom to ask.
type Options struct {
	Trust    *trust.Client // refreshed by its first use
	Registry *oci.Client   // where images are; asked only about tags
	// As is the trusted name of a layout, with a tag to have it checked. A
	// registry reference has its own name.
	As  oci.Reference
	Now func() time.Time // nil is time.Now; only demo and tests set it
}

// Decision is the answer, as verify --json prints it.
type Decision struct {
	Allowed  bool        `json:"allowed"`
	Code     policy.Code `json:"code"`
	Image    string      `json:"image"` // repo@digest, or what was asked when no digest is known
	Reasons  []string    `json:"reasons"`
	Rule     string      `json:"rule,omitempty"`
	Audit    bool        `json:"audit,omitempty"` // the rule only audits: allowed in spite of Code
	Evidence Evidence    `json:"evidence"`
}

// Evidence is what a decision rests on, from root to the signatures.
type Evidence struct {
	TrustRepository string           `json:"trustRepository"`
	TrustID         string           `json:"trustId"`
	Roles           []trust.RoleInfo `json:"roles,omitempty"`
	Tag             string           `json:"tag,omitempty"`
	TagTime         time.Time        `json:"tagTime,omitzero"`
	Listed          time.Time        `json:"listed,omitzero"`
	Index           string           `json:"index,omitempty"` // the signed index through which a child is allowed
	Signers         []policy.Signer  `json:"signers,omitempty"`
	Created         time.Time        `json:"created,omitzero"`
	// Until is when the decision must be made anew at the latest.
	Until time.Time `json:"until,omitzero"`
	// NoCache: a condition of the rule reads the clock, so that the decision
	// must be made anew each time.
	NoCache bool `json:"noCache,omitempty"`
	// RollbackProtected is false when no state is kept between runs.
	RollbackProtected bool `json:"rollbackProtected"`
}

// Result is a decision together with the image it is about. Only this package
// makes one: whoever starts containers takes a Result, so that nothing starts
// undecided. The zero Result allows nothing.
type Result struct {
	decision  Decision
	reference oci.Reference
	advice    string
}

// Decision returns the answer.
func (r Result) Decision() Decision { return r.decision }

// Allowed tells whether the image may run.
func (r Result) Allowed() bool { return r.decision.Allowed }

// Reference is the canonical repo@digest that was decided on.
func (r Result) Reference() oci.Reference { return r.reference }

// Hint is the remedy for a refusal; it may be empty.
func (r Result) Hint() string { return r.advice }

// Image decides about one image. The error is about the question (a layout
// without a trusted name); every answer, also "could not tell", is a Result.
func Image(ctx context.Context, l oci.Location, o Options) (Result, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if l.Layout != "" && o.As.Digest != (v1.Hash{}) {
		return Result{}, errors.New("the trusted name of a layout has no digest: the layout has one")
	}
	if l.Layout != "" && o.As.Repository == "" {
		return Result{}, errors.New("an OCI layout has no trusted name: say under which it is judged, with --as REPO[:TAG]")
	}
	d := &decider{Options: o, location: l, name: l.Reference}
	if l.Layout != "" {
		d.name = o.As
	}
	return d.decide(ctx), nil
}

// decider is the state of one decision.
type decider struct {
	Options
	location oci.Location
	name     oci.Reference // the trusted name
	source   oci.Source    // of a layout
	image    v1.Descriptor
	policy   *policy.Policy
	revoked  []trust.Tombstone
	evidence Evidence
}

// decide runs the steps in the order in which their refusals rank.
func (d *decider) decide(ctx context.Context) Result {
	steps := []func(context.Context) *refusal{d.openTrust, d.resolve, d.checkDenied}
	for _, step := range steps {
		if r := step(ctx); r != nil {
			return d.refused(r)
		}
	}
	verdict, r := d.judge(ctx)
	if r != nil && d.audits(r.code) {
		return d.audited(ctx, r)
	}
	if r == nil {
		r = d.checkContent(ctx)
	}
	if r != nil {
		return d.refused(r)
	}
	return d.judged(verdict)
}

// refusal is a decision "no" before or instead of the policy's verdict.
type refusal struct {
	code   policy.Code
	reason string
	advice string
}

func refuse(code policy.Code, format string, args ...any) *refusal {
	return &refusal{code: code, reason: fmt.Sprintf(format, args...)}
}

// fromTrust turns an error of the trust repository into its refusal.
func fromTrust(err error) *refusal {
	r := &refusal{code: trust.CodeOf(err), reason: err.Error()}
	var hinted interface{ Hint() string }
	if errors.As(err, &hinted) {
		r.advice = hinted.Hint()
	}
	return r
}

// openTrust brings the trust repository up to date and reads the policy.
func (d *decider) openTrust(ctx context.Context) *refusal {
	d.evidence = Evidence{TrustRepository: d.Trust.Repository(), TrustID: d.Trust.ID(), RollbackProtected: d.Trust.Remembers()}
	var err error
	if d.policy, err = d.Trust.Policy(ctx); err != nil {
		return fromTrust(err)
	}
	if d.revoked, err = d.Trust.Revoked(ctx); err != nil {
		return fromTrust(err)
	}
	if d.evidence.Roles, err = d.Trust.Chain(ctx); err != nil {
		return fromTrust(err)
	}
	if d.evidence.Until, err = d.Trust.Until(ctx); err != nil {
		return fromTrust(err)
	}
	return nil
}

// resolve finds the digest to decide on: given, or what the tag points to now,
// or what the layout holds.
func (d *decider) resolve(ctx context.Context) *refusal {
	var err error
	switch {
	case d.location.Layout != "":
		d.source, d.image, err = d.Registry.Open(ctx, d.location)
	case d.name.Digest != v1.Hash{}:
		d.image = v1.Descriptor{Digest: d.name.Digest}
	case d.name.Tag == "":
		return refuse(policy.Unavailable, "%s names neither a tag nor a digest", d.name.Repository)
	case d.Trust.Offline():
		r := refuse(policy.Unavailable, "offline, what the tag %s points to cannot be asked", d.name.Tag)
		r.advice = "give the digest"
		return r
	default:
		d.image, err = d.Registry.Resolve(ctx, d.name)
	}
	if err != nil {
		r := fromTrust(err)
		if errors.Is(err, oci.ErrContentMismatch) {
			r.code = policy.ContentMismatch
		}
		return r
	}
	return nil
}

// checkDenied refuses digests that the policy or a tombstone names, before
// anything else is asked about them.
func (d *decider) checkDenied(context.Context) *refusal {
	digest := d.image.Digest.String()
	if _, denied := d.policy.Denied(digest); denied {
		return refuse(policy.Denied, "the policy denies %s", digest)
	}
	return d.checkRevoked(digest)
}

// checkRevoked looks for tombstones of any of the digests.
func (d *decider) checkRevoked(digests ...string) *refusal {
	for _, t := range d.revoked {
		if slices.ContainsFunc(digests, t.Covers) {
			return refuse(policy.Revoked, "%s was revoked on %s: %s", t.Digest, t.Date.Format(time.DateOnly), t.Reason)
		}
	}
	return nil
}

// judge looks the image up and lets the policy decide on its statements: those
// of the tag, else those of the digest, else those of an index that lists it.
func (d *decider) judge(ctx context.Context) (policy.Verdict, *refusal) {
	if d.name.Tag != "" {
		return d.judgeTag(ctx)
	}
	l, err := d.Trust.LookupDigest(ctx, d.name.Repository, d.image.Digest)
	if err != nil {
		return policy.Verdict{}, fromTrust(err)
	}
	var best policy.Verdict
	if len(l.Envelopes) > 0 || len(l.Indexes) == 0 {
		best = d.ask(l)
	}
	if r := d.checkRevokedBy(best, l.Indexes); r != nil {
		return best, r
	}
	for _, index := range l.Indexes {
		if best.Code == policy.Allowed || best.Code == policy.Denied {
			break
		}
		parent, err := d.Trust.LookupDigest(ctx, d.name.Repository, index)
		if err != nil && trust.CodeOf(err) == policy.NotListed {
			continue
		}
		if err != nil {
			return best, fromTrust(err)
		}
		v := d.ask(parent)
		if r := d.checkRevokedBy(v, nil); r != nil {
			return v, r
		}
		if best.Code == "" || v.Code == policy.Allowed || v.Code == policy.Denied {
			best, d.evidence.Index = v, index.String()
		}
	}
	if best.Code == "" {
		return best, refuse(policy.NotListed, "%s is a child of indexes of which none is listed any more", d.image.Digest)
	}
	return best, nil
}

// judgeTag decides on the entry of the tag, which carries the statements that
// name it, and refuses a tag that went back.
func (d *decider) judgeTag(ctx context.Context) (policy.Verdict, *refusal) {
	l, err := d.Trust.LookupTag(ctx, d.name.Repository, d.name.Tag)
	if err != nil {
		return policy.Verdict{}, fromTrust(err)
	}
	if l.Digest != d.image.Digest {
		return policy.Verdict{}, refuse(policy.TagMismatch, "the registry's tag %s points to %s, but it is listed for %s", d.name.Tag, d.image.Digest, l.Digest)
	}
	v := d.ask(l)
	if r := d.checkRevokedBy(v, l.Indexes); r != nil {
		return v, r
	}
	d.evidence.Tag, d.evidence.TagTime = d.name.Tag, v.Time
	if v.Code == policy.Allowed {
		if err := d.Trust.RememberTag(ctx, d.name.Repository, d.name.Tag, l.Digest, v.Time); err != nil {
			return v, fromTrust(err)
		}
	}
	return v, nil
}

// ask lets the policy judge the statements of a listing about the image.
func (d *decider) ask(l trust.Listing) policy.Verdict {
	facts := policy.Facts{Repository: d.name.Repository, Digest: d.image.Digest.String(), Tag: d.name.Tag, Listed: l.Listed}
	statements := trust.WithoutRevoked(d.policy, d.revoked, l.Envelopes, l.Listed)
	v := d.policy.Decide(statements, facts, d.now())
	if dropped := len(l.Envelopes) - len(statements); dropped > 0 {
		v.Reasons = append(v.Reasons, fmt.Sprintf("%d statements are by a signer who was revoked", dropped))
	}
	d.evidence.Listed = l.Listed
	if l.Bin.Expires.Before(d.evidence.Until) {
		d.evidence.Until = l.Bin.Expires
	}
	d.evidence.Roles = append(slices.Clip(d.evidence.Roles), l.Bin)
	return v
}

// now is the clock, but never before the last good refresh.
func (d *decider) now() time.Time {
	if now, floor := d.Now(), d.Trust.Now(); !now.Before(floor) {
		return now
	}
	return d.Trust.Now()
}

// checkRevokedBy looks for tombstones of what statements bind to the image: the
// index it is a child of, and configs, which stay the same when a manifest is
// rewritten around them. Statements that did not count are believed here, too.
func (d *decider) checkRevokedBy(v policy.Verdict, indexes []v1.Hash) *refusal {
	digests := slices.Clone(v.Committed)
	for _, i := range indexes {
		digests = append(digests, i.String())
	}
	return d.checkRevoked(digests...)
}

// checkContent hashes every byte of a layout: nothing else vouches for a disk.
func (d *decider) checkContent(ctx context.Context) *refusal {
	if d.source == nil {
		return nil
	}
	if err := Content(ctx, d.source, d.image.Digest); err != nil {
		r := fromTrust(fmt.Errorf("reading %s: %w", d.location, err))
		if errors.Is(err, oci.ErrContentMismatch) || errors.Is(err, oci.ErrNotFound) {
			r.code = policy.ContentMismatch
		}
		return r
	}
	return nil
}

// Content reads an image or index whole, children included, and checks every
// byte against its digest: manifests, configs and layers. It returns
// oci.ErrContentMismatch for bytes that are not what they should be.
func Content(ctx context.Context, src oci.Source, digest v1.Hash) error {
	return content(ctx, src, digest, 0, map[v1.Hash]bool{})
}

// content is Content below an index; what was read once is not read again.
func content(ctx context.Context, src oci.Source, digest v1.Hash, depth int, read map[v1.Hash]bool) error {
	if depth > 4 {
		return fmt.Errorf("index %s is nested too deeply", digest)
	}
	if read[digest] {
		return nil
	}
	read[digest] = true
	m, err := src.Manifest(ctx, digest)
	if err != nil {
		return err
	}
	blobs, children, err := parts(m)
	if err != nil {
		return err
	}
	for _, child := range children {
		if err := content(ctx, src, child.Digest, depth+1, read); err != nil {
			return err
		}
	}
	for _, p := range blobs {
		if read[p.Digest] {
			continue
		}
		read[p.Digest] = true
		if err := drain(ctx, src, p); err != nil {
			return fmt.Errorf("blob %s: %w", p.Digest, err)
		}
	}
	return nil
}

// parts lists what a manifest refers to: the config and layers of an image, the
// children of an index.
func parts(m oci.Manifest) (blobs, children []v1.Descriptor, err error) {
	if m.MediaType.IsIndex() {
		index, err := v1.ParseIndexManifest(bytes.NewReader(m.Bytes))
		if err != nil {
			return nil, nil, err
		}
		return nil, index.Manifests, nil
	}
	image, err := v1.ParseManifest(bytes.NewReader(m.Bytes))
	if err != nil {
		return nil, nil, err
	}
	return append([]v1.Descriptor{image.Config}, image.Layers...), nil, nil
}

func drain(ctx context.Context, src oci.Source, d v1.Descriptor) error {
	r, err := src.Blob(ctx, d)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, r)
	return errors.Join(err, r.Close())
}

func (d *decider) reference() oci.Reference {
	ref := oci.Reference{Repository: d.name.Repository, Digest: d.image.Digest}
	if ref.Digest == (v1.Hash{}) { // nothing was resolved: what was asked
		ref.Tag, ref.Digest = d.name.Tag, d.name.Digest
	}
	return ref
}

func (d *decider) refused(r *refusal) Result {
	return Result{
		reference: d.reference(), advice: r.advice,
		decision: Decision{Code: r.code, Image: d.reference().String(), Reasons: []string{r.reason}, Evidence: d.evidence},
	}
}

// audits tells whether a rule that only audits lets a missing listing pass. It
// overrides nothing that ranks above: no denial, no tombstone and no metadata
// that could not be trusted.
func (d *decider) audits(code policy.Code) bool {
	return (code == policy.NotListed || code == policy.TagMismatch) && d.asUnsigned().Audit
}

// asUnsigned is the verdict on the image as if nobody had signed it.
func (d *decider) asUnsigned() policy.Verdict {
	return d.policy.Decide(nil, policy.Facts{Repository: d.name.Repository, Digest: d.image.Digest.String(), Tag: d.name.Tag}, d.now())
}

// audited lets an image pass that an audit rule allows in spite of r, unless what
// is listed of its digest denies or revokes it, or its bytes are wrong.
func (d *decider) audited(ctx context.Context, r *refusal) Result {
	l, err := d.Trust.LookupDigest(ctx, d.name.Repository, d.image.Digest)
	if err != nil && trust.CodeOf(err) != policy.NotListed {
		return d.refused(fromTrust(err))
	}
	if err == nil {
		v := d.ask(l)
		if v.Code == policy.Denied {
			return d.refused(refuse(policy.Denied, "%s", v.Reasons[0]))
		}
		if revoked := d.checkRevokedBy(v, l.Indexes); revoked != nil {
			return d.refused(revoked)
		}
	}
	if wrong := d.checkContent(ctx); wrong != nil {
		return d.refused(wrong)
	}
	result := d.refused(r)
	result.decision.Allowed, result.decision.Audit, result.decision.Rule = true, true, d.asUnsigned().Rule
	return result
}

// judged makes the result of the policy's verdict.
func (d *decider) judged(v policy.Verdict) Result {
	d.evidence.Signers, d.evidence.NoCache = v.Signers, v.NoCache
	if v.Statement != nil {
		d.evidence.Created = v.Statement.Created
	}
	if !v.Until.IsZero() && v.Until.Before(d.evidence.Until) {
		d.evidence.Until = v.Until
	}
	return Result{
		reference: d.reference(),
		decision: Decision{
			Allowed: v.Code == policy.Allowed || v.Audit, Code: v.Code, Image: d.reference().String(),
			Reasons: v.Reasons, Rule: v.Rule, Audit: v.Audit, Evidence: d.evidence,
		},
	}
}
