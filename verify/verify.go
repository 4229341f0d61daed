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

	"github.com/imgtrust/imgtrust/internal/attest"
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
	// RollbackProtected is false when no state is kept between runs.
	RollbackProtected bool `json:"rollbackProtected"`
}

// Result is a decision together with the image it is about. Only this package
// makes one: whoever starts containers takes a Result, so that nothing starts
// undecided. The zero Result allows nothing.
type Result struct {
	decision   Decision
	reference  oci.Reference
	descriptor v1.Descriptor
	advice     string
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
	if l.Layout != "" && o.As.Repository == "" {
		return Result{}, errors.New("an OCI layout has no trusted name: say under which it is judged, with --as REPO[:TAG]")
	}
	d := &decider{Options: o, ctx: ctx, location: l, name: l.Reference}
	if l.Layout != "" {
		d.name = o.As
	}
	return d.decide(), nil
}

// decider is the state of one decision.
type decider struct {
	Options
	ctx      context.Context // of this one call
	location oci.Location
	name     oci.Reference // the trusted name
	source   oci.Source    // of a layout
	image    v1.Descriptor
	policy   *policy.Policy
	revoked  []trust.Tombstone
	evidence Evidence
}

// decide runs the steps in the order in which their refusals rank.
func (d *decider) decide() Result {
	steps := []func() *refusal{d.openTrust, d.resolve, d.checkDenied}
	for _, step := range steps {
		if r := step(); r != nil {
			return d.refused(r)
		}
	}
	verdict, r := d.judge()
	if r == nil {
		r = d.checkContent()
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
func (d *decider) openTrust() *refusal {
	d.evidence = Evidence{TrustRepository: d.Trust.Repository(), TrustID: d.Trust.ID(), RollbackProtected: d.Trust.Remembers()}
	var err error
	if d.policy, err = d.Trust.Policy(d.ctx); err != nil {
		return fromTrust(err)
	}
	if d.revoked, err = d.Trust.Revoked(d.ctx); err != nil {
		return fromTrust(err)
	}
	if d.evidence.Roles, err = d.Trust.Chain(d.ctx); err != nil {
		return fromTrust(err)
	}
	if d.evidence.Until, err = d.Trust.Until(d.ctx); err != nil {
		return fromTrust(err)
	}
	return nil
}

// resolve finds the digest to decide on: given, or what the tag points to now,
// or what the layout holds.
func (d *decider) resolve() *refusal {
	var err error
	switch {
	case d.location.Layout != "":
		d.source, d.image, err = d.Registry.Open(d.ctx, d.location)
	case d.name.Digest != v1.Hash{}:
		d.image = v1.Descriptor{Digest: d.name.Digest}
	case d.name.Tag == "":
		return refuse(policy.Unavailable, "%s names neither a tag nor a digest", d.name.Repository)
	default:
		d.image, err = d.Registry.Resolve(d.ctx, d.name)
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
func (d *decider) checkDenied() *refusal {
	digest := d.image.Digest.String()
	if _, denied := d.policy.Denied(digest); denied {
		return refuse(policy.Denied, "the policy denies %s", digest)
	}
	return d.checkRevoked(digest)
}

// checkRevoked looks for tombstones of any of the digests.
func (d *decider) checkRevoked(digests ...string) *refusal {
	for _, t := range d.revoked {
		if t.Digest != "" && slices.Contains(digests, t.Digest) {
			return refuse(policy.Revoked, "%s was revoked on %s: %s", t.Digest, t.Date.Format(time.DateOnly), t.Reason)
		}
	}
	return nil
}

// judge looks the image up and lets the policy decide on its statements: those
// of the tag, else those of the digest, else those of an index that lists it.
func (d *decider) judge() (policy.Verdict, *refusal) {
	if d.name.Tag != "" {
		return d.judgeTag()
	}
	l, err := d.Trust.LookupDigest(d.ctx, d.name.Repository, d.image.Digest)
	if err != nil {
		return policy.Verdict{}, fromTrust(err)
	}
	var best policy.Verdict
	if len(l.Envelopes) > 0 || len(l.Indexes) == 0 {
		best = d.ask(l)
	}
	for _, index := range l.Indexes {
		if best.Code == policy.Allowed {
			break
		}
		parent, err := d.Trust.LookupDigest(d.ctx, d.name.Repository, index)
		if trust.CodeOf(err) == policy.NotListed && err != nil {
			continue
		}
		if err != nil {
			return best, fromTrust(err)
		}
		if v := d.ask(parent); best.Code == "" || v.Code == policy.Allowed {
			best, d.evidence.Index = v, index.String()
		}
	}
	if best.Code == "" {
		return best, refuse(policy.NotListed, "%s is a child of indexes of which none is listed any more", d.image.Digest)
	}
	return best, d.checkRevokedBy(best)
}

// judgeTag decides on the entry of the tag, which carries the statements that
// name it, and refuses a tag that went back.
func (d *decider) judgeTag() (policy.Verdict, *refusal) {
	l, err := d.Trust.LookupTag(d.ctx, d.name.Repository, d.name.Tag)
	if err != nil {
		return policy.Verdict{}, fromTrust(err)
	}
	if l.Digest != d.image.Digest {
		return policy.Verdict{}, refuse(policy.TagMismatch, "the registry's tag %s points to %s, but it is listed for %s", d.name.Tag, d.image.Digest, l.Digest)
	}
	v := d.ask(l)
	d.evidence.Tag, d.evidence.TagTime = d.name.Tag, v.Time
	if v.Code == policy.Allowed {
		if err := d.Trust.RememberTag(d.ctx, d.name.Repository, d.name.Tag, l.Digest, v.Time); err != nil {
			return v, fromTrust(err)
		}
	}
	return v, d.checkRevokedBy(v)
}

// ask lets the policy judge the statements of a listing about the image.
func (d *decider) ask(l trust.Listing) policy.Verdict {
	facts := policy.Facts{Repository: d.name.Repository, Digest: d.image.Digest.String(), Tag: d.name.Tag, Listed: l.Listed}
	v := d.policy.Decide(d.withoutRevokedSigners(l), facts, d.Now())
	d.evidence.Listed = l.Listed
	d.evidence.Roles = append(slices.Clip(d.evidence.Roles), l.Bin)
	return v
}

// withoutRevokedSigners leaves out the statements of signers revoked since a
// time before the listing.
func (d *decider) withoutRevokedSigners(l trust.Listing) []attest.Envelope {
	return slices.DeleteFunc(slices.Clone(l.Envelopes), func(e attest.Envelope) bool {
		signer, known := d.policy.Signer(e)
		return known && slices.ContainsFunc(d.revoked, func(t trust.Tombstone) bool {
			return t.Signer == signer.Name && !l.Listed.Before(t.Since)
		})
	})
}

// checkRevokedBy looks for tombstones of what the counted statement binds to
// the image: the index it is a child of, and configs, which stay the same when
// a manifest is rewritten around them.
func (d *decider) checkRevokedBy(v policy.Verdict) *refusal {
	if v.Statement == nil {
		return nil
	}
	digests := []string{v.Statement.Digest}
	for _, m := range v.Statement.Manifests {
		if m.Digest == d.image.Digest.String() || v.Statement.Digest == d.image.Digest.String() {
			digests = append(digests, m.Digest, m.Config)
		}
	}
	return d.checkRevoked(digests...)
}

// checkContent hashes every byte of a layout: nothing else vouches for a disk.
func (d *decider) checkContent() *refusal {
	if d.source == nil {
		return nil
	}
	if err := Content(d.ctx, d.source, d.image.Digest); err != nil {
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
	return content(ctx, src, digest, 0)
}

func content(ctx context.Context, src oci.Source, digest v1.Hash, depth int) error {
	if depth > 4 {
		return fmt.Errorf("index %s is nested too deeply", digest)
	}
	m, err := src.Manifest(ctx, digest)
	if err != nil {
		return err
	}
	blobs, children, err := parts(m)
	if err != nil {
		return err
	}
	for _, child := range children {
		if err := content(ctx, src, child.Digest, depth+1); err != nil {
			return err
		}
	}
	for _, p := range blobs {
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
	result := Result{
		reference: d.reference(), descriptor: d.image, advice: r.advice,
		decision: Decision{Code: r.code, Image: d.reference().String(), Reasons: []string{r.reason}, Evidence: d.evidence},
	}
	if rule, audits := d.audits(r.code); audits {
		result.decision.Allowed, result.decision.Audit, result.decision.Rule = true, true, rule
	}
	return result
}

// audits tells whether a rule that only audits lets a missing listing pass. It
// overrides nothing that ranks above: no denial, no tombstone, no metadata that
// could not be trusted, and no content that is not what it should be.
func (d *decider) audits(code policy.Code) (rule string, ok bool) {
	if code != policy.NotListed && code != policy.TagMismatch {
		return "", false
	}
	v := d.policy.Decide(nil, policy.Facts{Repository: d.name.Repository, Digest: d.image.Digest.String(), Tag: d.name.Tag}, d.Now())
	return v.Rule, v.Audit
}

// judged makes the result of the policy's verdict.
func (d *decider) judged(v policy.Verdict) Result {
	d.evidence.Signers = v.Signers
	if v.Statement != nil {
		d.evidence.Created = v.Statement.Created
	}
	if !v.Until.IsZero() && v.Until.Before(d.evidence.Until) {
		d.evidence.Until = v.Until
	}
	return Result{
		reference: d.reference(), descriptor: d.image,
		decision: Decision{
			Allowed: v.Code == policy.Allowed || v.Audit, Code: v.Code, Image: d.reference().String(),
			Reasons: v.Reasons, Rule: v.Rule, Audit: v.Audit, Evidence: d.evidence,
		},
	}
}
