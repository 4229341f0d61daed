package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/internal/oci"
	"github.com/imgtrust/imgtrust/policy"
	"github.com/imgtrust/imgtrust/trust"
)

// attempt is one way to get an image past the verifier. Its act prepares the
// attack and returns the code that the verifier, or the fetch, then gives:
// policy.Allowed when it got through.
type attempt struct {
	name  string
	tries string
	want  policy.Code
	act   func(*scene, context.Context) (policy.Code, error)
}

// attempts lists them all.
func attempts() []attempt {
	return []attempt{
		{"unsigned image", "pushes an image that nobody has signed", policy.NotListed, (*scene).unsigned},
		{"moved tag", "moves the signed tag to other content", policy.TagMismatch, (*scene).movedTag},
		{"flipped manifest byte", "changes one bit of the manifest on its way to the fetch", policy.ContentMismatch, (*scene).flippedManifest},
		{"flipped layer byte", "changes one bit of a layer on its way to the fetch", policy.ContentMismatch, (*scene).flippedLayer},
		{"foreign key", "lists an image signed by a key that the policy does not name, with the stolen online key", policy.BadSignature, (*scene).foreignKey},
		{"copied statement", "lists the statement of one repository under another, with the stolen online key", policy.WrongRepository, (*scene).copiedStatement},
		{"one of two signatures", "lists an image with one signature where two are required, with the stolen online key", policy.ThresholdNotMet, (*scene).oneOfTwo},
		{"rollback", "puts an older trust index back", policy.RolledBack, (*scene).rollback},
		{"freeze", "serves a trust index that is no longer refreshed", policy.MetadataExpired, (*scene).freeze},
		{"older bin", "serves a bin of an older trust index in the newest one", policy.MetadataInvalid, (*scene).olderBin},
		{"renamed bin", "serves one bin under the name of another", policy.MetadataInvalid, (*scene).renamedBin},
		{"revoked image", "asks for a signed and listed image after its revocation", policy.Revoked, (*scene).revoked},
	}
}

// attack makes the attempts one after the other, and puts the honest state back
// after each. All are made, also when one gets through.
func (w *world) attack(ctx context.Context, list []attempt) ([]Outcome, error) {
	var outcomes []Outcome
	for _, a := range list {
		code, err := w.play(ctx, a)
		if err != nil {
			return outcomes, fmt.Errorf("attempt %q: %w", a.name, err)
		}
		o := Outcome{Name: a.name, Code: code, Refused: code != policy.Allowed, Tries: a.tries, Want: a.want}
		outcomes = append(outcomes, o)
		w.say("attempt: %s: %s", a.name, code)
	}
	return outcomes, through(outcomes)
}

// scene is one attempt, with a reader that remembers what the honest one does.
type scene struct {
	*world
	state string // of the reader
}

// play makes the attempt and restores the honest state.
func (w *world) play(ctx context.Context, a attempt) (policy.Code, error) {
	dir, err := os.MkdirTemp(w.dir, "attempt-")
	if err != nil {
		return "", err
	}
	s := &scene{world: w, state: filepath.Join(dir, "state")}
	if err := os.CopyFS(s.state, os.DirFS(s.readerState())); err != nil {
		return "", err
	}
	code, err := a.act(s, ctx)
	if err != nil {
		return "", err
	}
	if err := s.restore(ctx); err != nil {
		return "", fmt.Errorf("restoring the honest state: %w", err)
	}
	return code, nil
}

// restore undoes what an attempt did, and checks that it is undone.
func (s *scene) restore(ctx context.Context) error {
	s.wire.flip("")
	s.skew = 0
	if err := s.putTrustIndex(ctx, s.honest); err != nil {
		return err
	}
	m, err := s.client.Manifest(ctx, s.image.AtDigest(s.image.Digest), 0)
	if err != nil {
		return err
	}
	if _, err := s.client.PutManifest(ctx, s.image.Repository, s.image.Tag, m.MediaType, m.Bytes); err != nil {
		return err
	}
	_, err = s.mustAllow(ctx, s.tagged())
	return err
}

func (s *scene) putTrustIndex(ctx context.Context, m oci.Manifest) error {
	_, err := s.client.PutManifest(ctx, s.trustRepository(), trust.Tag, m.MediaType, m.Bytes)
	return err
}

// tagged is the honest image by its tag alone, as people ask for it.
func (s *scene) tagged() oci.Reference {
	return oci.Reference{Repository: s.image.Repository, Tag: s.image.Tag}
}

// ask is the verifier's code for an image.
func (s *scene) ask(ctx context.Context, image oci.Reference) (policy.Code, error) {
	r, err := s.decide(ctx, image, s.state)
	if err != nil {
		return "", err
	}
	return r.Decision().Code, nil
}

// pull verifies the honest image and fetches it, as is done before a run.
func (s *scene) pull(ctx context.Context) (policy.Code, error) {
	r, err := s.decide(ctx, s.image.AtDigest(s.image.Digest), s.state)
	if err != nil || !r.Allowed() {
		return r.Decision().Code, err
	}
	err = s.fetch(ctx, r, s.state+"-fetched")
	if errors.Is(err, oci.ErrContentMismatch) {
		return policy.ContentMismatch, nil
	}
	return policy.Allowed, err
}

func (s *scene) unsigned(ctx context.Context) (policy.Code, error) {
	image, err := s.variant(ctx, s.image, "unsigned")
	if err != nil {
		return "", err
	}
	return s.ask(ctx, image)
}

func (s *scene) movedTag(ctx context.Context) (policy.Code, error) {
	if _, err := s.variant(ctx, s.image, s.image.Tag); err != nil {
		return "", err
	}
	return s.ask(ctx, s.tagged())
}

func (s *scene) flippedManifest(ctx context.Context) (policy.Code, error) {
	s.wire.flip(s.image.Digest.String())
	return s.pull(ctx)
}

func (s *scene) flippedLayer(ctx context.Context) (policy.Code, error) {
	m, err := s.manifest(ctx, s.image)
	if err != nil {
		return "", err
	}
	s.wire.flip(m.Layers[len(m.Layers)-1].Digest.String())
	return s.pull(ctx)
}

func (s *scene) foreignKey(ctx context.Context) (policy.Code, error) {
	image, err := s.variant(ctx, s.image, "mallory")
	if err != nil {
		return "", err
	}
	signed, err := s.sign(ctx, "mallory", image)
	if err != nil {
		return "", err
	}
	p, err := s.publish(ctx)
	if err != nil {
		return "", err
	}
	if len(p.Refused) != 1 || len(p.Listed) != 0 {
		return "", fmt.Errorf("the honest publisher refused %d statements and listed %v", len(p.Refused), p.Listed)
	}
	s.say("the honest publisher drops it: %s", p.Refused[0].Reason)
	return s.askListed(ctx, image, "mallory", signed.Release)
}

func (s *scene) oneOfTwo(ctx context.Context) (policy.Code, error) {
	image, err := s.variant(ctx, s.both, "half")
	if err != nil {
		return "", err
	}
	signed, err := s.sign(ctx, "ci", image)
	if err != nil {
		return "", err
	}
	p, err := s.publish(ctx)
	if err != nil {
		return "", err
	}
	if len(p.Waiting) != 1 || len(p.Listed) != 0 {
		return "", fmt.Errorf("the honest publisher keeps %d statements waiting and listed %v", len(p.Waiting), p.Listed)
	}
	s.say("the honest publisher keeps it waiting: %s", p.Waiting[0].Reason)
	return s.askListed(ctx, image, "ci", signed.Release)
}

func (s *scene) copiedStatement(ctx context.Context) (policy.Code, error) {
	image, err := s.copyTo(ctx, s.image, s.host+"/shop/admin")
	if err != nil {
		return "", err
	}
	signed, err := s.sign(ctx, "ci", s.image)
	if err != nil {
		return "", err
	}
	p, err := s.publish(ctx)
	if err != nil {
		return "", err
	}
	if strings.Contains(strings.Join(p.Listed, " "), image.Repository) {
		return "", fmt.Errorf("the honest publisher listed %v", p.Listed)
	}
	s.say("the honest publisher lists it only under the repository that the statement names, %s", signed.Release.Release.Repository)
	return s.askListed(ctx, image, "ci", signed.Release)
}

// askListed lists an image with the stolen online key and asks for it.
func (s *scene) askListed(ctx context.Context, image oci.Reference, signer string, release attest.ReleaseStatement) (policy.Code, error) {
	payload, err := attest.EncodeRelease(release)
	if err != nil {
		return "", err
	}
	envelope, err := attest.Sign(ctx, payload, s.keys[signer].Signer())
	if err != nil {
		return "", err
	}
	statements := []attest.Envelope{envelope}
	err = s.edit(ctx, "", func(d *trust.Draft) error {
		size := release.Release.Manifests[0].Size
		return errors.Join(
			d.ListDigest(ctx, image.Repository, image.Digest, size, statements),
			d.ListTag(ctx, image.Repository, image.Tag, image.Digest, size, statements))
	})
	if err != nil {
		return "", fmt.Errorf("listing with the stolen key: %w", err)
	}
	return s.ask(ctx, image)
}

// edit publishes a change that nobody checks, with the online key and what is
// remembered in state ("": nothing).
func (s *scene) edit(ctx context.Context, state string, change func(*trust.Draft) error) error {
	c, err := trust.Open(s.clientOptions(state))
	if err != nil {
		return err
	}
	d, err := c.NewDraft(ctx, s.keys["online"].Private())
	if err != nil {
		return err
	}
	if err := change(d); err != nil {
		return err
	}
	_, err = d.Publish(ctx)
	return err
}

func (s *scene) rollback(ctx context.Context) (policy.Code, error) {
	if err := s.putTrustIndex(ctx, s.first); err != nil {
		return "", err
	}
	return s.ask(ctx, s.tagged())
}

func (s *scene) freeze(ctx context.Context) (policy.Code, error) {
	s.skew = trust.DefaultLifetimes()["timestamp"] + 24*time.Hour
	return s.ask(ctx, s.tagged())
}

func (s *scene) olderBin(ctx context.Context) (policy.Code, error) {
	if err := s.swapBin(ctx, s.first, sameRole); err != nil {
		return "", err
	}
	return s.ask(ctx, s.tagged())
}

func (s *scene) renamedBin(ctx context.Context) (policy.Code, error) {
	err := s.swapBin(ctx, s.honest, otherRoleSameVersion)
	if errors.Is(err, errNoFile) {
		err = s.swapBin(ctx, s.honest, otherRole)
	}
	if err != nil {
		return "", err
	}
	return s.ask(ctx, s.tagged())
}

func (s *scene) revoked(ctx context.Context) (policy.Code, error) {
	image, err := s.variant(ctx, s.image, "v2")
	if err != nil {
		return "", err
	}
	if _, err := s.sign(ctx, "ci", image); err != nil {
		return "", err
	}
	if _, err := s.publish(ctx); err != nil {
		return "", err
	}
	if _, err := s.mustAllow(ctx, image); err != nil {
		return "", err
	}
	err = s.edit(ctx, s.publisherState(), func(d *trust.Draft) error {
		d.Revoke(trust.Tombstone{Digest: image.Digest.String(), Date: time.Now().UTC().Truncate(time.Second), Reason: "found to be broken"})
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("revoking: %w", err)
	}
	if s.honest, err = s.trustIndex(ctx); err != nil {
		return "", err
	}
	return s.ask(ctx, image)
}
