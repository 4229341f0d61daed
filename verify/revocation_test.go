package verify_test

import (
	"context"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/internal/oci"
	"github.com/imgtrust/imgtrust/internal/testkit"
	"github.com/imgtrust/imgtrust/policy"
	"github.com/imgtrust/imgtrust/trust"
	"github.com/imgtrust/imgtrust/verify"
)

// scene is a listed image, a reader that has seen it, and one that is cold.
type scene struct {
	*testkit.VirtualTrust
	t     *testing.T
	repo  string
	image v1.Descriptor
	known *trust.Client
}

// newScene lists an image under a policy with these revokers.
func newScene(t *testing.T, revokers string) *scene {
	v := testkit.NewVirtualTrust(t, func(o *trust.InitOptions) {
		o.Policy = append(o.Policy, "revokers: "+revokers+"\n"...)
	})
	s := &scene{VirtualTrust: v, t: t, repo: v.Host + "/app/web", known: v.Reader(t.TempDir())}
	s.image = v.List(s.repo, "v1", "one", "ci")
	s.requires(s.known, policy.Allowed)
	return s
}

func (s *scene) requires(c *trust.Client, want policy.Code) {
	s.t.Helper()
	ctx := context.Background()
	if err := c.Refresh(ctx); err != nil {
		s.t.Fatal(err)
	}
	r, err := verify.Image(ctx, oci.Location{Reference: oci.Reference{Repository: s.repo, Digest: s.image.Digest}}, verify.Options{Trust: c, Registry: s.Client, Now: s.Clock.Now})
	if err != nil {
		s.t.Fatal(err)
	}
	if got := r.Decision(); got.Code != want {
		s.t.Fatalf("decided %s (%q), want %s", got.Code, got.Reasons, want)
	}
}

// revoke leaves a revocation by each signer, and publishes.
func (s *scene) revoke(undo bool, signers ...string) []attest.Envelope {
	s.t.Helper()
	var all []attest.Envelope
	s.Clock.Add(time.Minute)
	for _, by := range signers {
		r := s.Revocation(s.repo, s.image.Digest)
		r.Undo = undo
		e := s.SignRevocation(by, r)
		s.Deliver(by, e)
		all = append(all, e)
	}
	s.Publish()
	return all
}

func TestRevocation(t *testing.T) {
	const one, two = "{threshold: 1, from: [security]}", "{threshold: 2, from: [ci, security]}"
	tests := []struct {
		summary  string
		revokers string
		act      func(s *scene)
		known    policy.Code // of a reader that has followed
		cold     policy.Code // of a reader without state
	}{
		{"a revoker revokes", one, func(s *scene) { s.revoke(false, "security") }, policy.Revoked, policy.Revoked},
		{"a signer who is no revoker", one, func(s *scene) { s.revoke(false, "ci") }, policy.Allowed, policy.Allowed},
		{"a stranger", one, func(s *scene) { s.revoke(false, "mallory") }, policy.Allowed, policy.Allowed},
		{"one revoker of two", two, func(s *scene) { s.revoke(false, "security") }, policy.Allowed, policy.Allowed},
		{"two revokers, one after the other", two, func(s *scene) {
			s.revoke(false, "security")
			s.revoke(false, "ci")
		}, policy.Revoked, policy.Revoked},
		{"one revoker twice", two, func(s *scene) {
			s.revoke(false, "security")
			s.revoke(false, "security")
		}, policy.Allowed, policy.Allowed},
		{"a statement for another trust repository", one, func(s *scene) {
			r := s.Revocation(s.repo, s.image.Digest)
			r.Trust = testkit.NewVirtualTrust(s.t).Reader("").ID()
			s.Deliver("security", s.SignRevocation("security", r))
			s.Publish()
		}, policy.Allowed, policy.Allowed},
		{"signing it again does not bring it back", one, func(s *scene) {
			s.revoke(false, "security")
			s.Submit("ci", s.Release(s.repo, s.image, "v2"))
			s.Publish()
		}, policy.Revoked, policy.Revoked},
		{"revokers take it back", one, func(s *scene) {
			s.revoke(false, "security")
			s.requires(s.known, policy.Revoked)
			s.revoke(true, "security")
		}, policy.Allowed, policy.Allowed},
		{"one of two revokers does not take it back", two, func(s *scene) {
			s.revoke(false, "security", "ci")
			s.revoke(true, "security")
		}, policy.Revoked, policy.Revoked},
		{"a replayed revocation after it was taken back", one, func(s *scene) {
			old := s.revoke(false, "security")
			s.revoke(true, "security")
			s.Deliver("security", old[0])
			s.Publish()
		}, policy.Allowed, policy.Allowed},
		{"a replayed undo after it was revoked again", one, func(s *scene) {
			s.revoke(false, "security")
			undo := s.revoke(true, "security")
			s.revoke(false, "security")
			s.requires(s.known, policy.Revoked)
			s.Deliver("security", undo[0])
			s.Publish()
		}, policy.Revoked, policy.Revoked},
		{"the thief of the online key takes the tombstone out", one, func(s *scene) {
			s.Force(func(_ context.Context, d *trust.Draft) { d.Revoke(tombstone(s, "")) })
			s.requires(s.known, policy.Revoked)
			s.State = s.t.TempDir()
			s.publisher(func(p *trust.Publisher) error {
				_, err := p.Revoke(context.Background(), []trust.OperatorRevocation{{Repository: s.repo, Tombstone: tombstone(s, "oops"), Undo: true}})
				return err
			})
		}, policy.Revoked, policy.Allowed},
		{"the operator revokes", one, func(s *scene) {
			s.operator(false)
		}, policy.Revoked, policy.Revoked},
		{"the operator takes it back, for those who have not seen it", one, func(s *scene) {
			s.operator(false)
			s.requires(s.known, policy.Revoked)
			s.operator(true)
			s.Publish()
		}, policy.Revoked, policy.Allowed},
		{"revokers take back what the operator revoked", one, func(s *scene) {
			s.operator(false)
			s.requires(s.known, policy.Revoked)
			s.revoke(true, "security")
		}, policy.Allowed, policy.Allowed},
		{"a signer, since before the listing", one, func(s *scene) { s.signer(-time.Hour) }, policy.ThresholdNotMet, policy.ThresholdNotMet},
		{"a signer, since after the listing", one, func(s *scene) { s.signer(time.Hour) }, policy.Allowed, policy.Allowed},
	}
	for _, test := range tests {
		t.Run(test.summary, func(t *testing.T) {
			s := newScene(t, test.revokers)
			test.act(s)
			s.requires(s.known, test.known)
			s.requires(s.Reader(""), test.cold)
		})
	}
}

func tombstone(s *scene, reason string) trust.Tombstone {
	return trust.Tombstone{Digest: s.image.Digest.String(), Date: s.Clock.Now(), Reason: reason}
}

func (s *scene) publisher(act func(p *trust.Publisher) error) {
	s.t.Helper()
	p, err := trust.OpenPublisher(trust.PublisherOptions{ClientOptions: s.ClientOptions(s.State), OnlineKey: s.Online})
	if err == nil {
		err = act(p)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// operator revokes, or takes back, with the online key.
func (s *scene) operator(undo bool) {
	s.t.Helper()
	s.Clock.Add(time.Minute)
	s.publisher(func(p *trust.Publisher) error {
		_, err := p.Revoke(context.Background(), []trust.OperatorRevocation{{Repository: s.repo, Tombstone: tombstone(s, "by the operator"), Undo: undo}})
		return err
	})
}

// signer revokes the signer ci since a time from now.
func (s *scene) signer(since time.Duration) {
	s.t.Helper()
	r := attest.RevocationStatement{Revocation: attest.Revocation{
		Trust: s.Reader("").ID(), Created: s.Clock.Now().UTC().Truncate(time.Second), Reason: "key stolen",
		Signer: "ci", Since: s.Clock.Now().Add(since).UTC().Truncate(time.Second),
	}}
	s.Deliver("security", s.SignRevocation("security", r))
	s.Publish()
}

func TestOperatorDoesNotUndoRevokers(t *testing.T) {
	s := newScene(t, "{threshold: 1, from: [security]}")
	s.revoke(false, "security")
	p, err := trust.OpenPublisher(trust.PublisherOptions{ClientOptions: s.ClientOptions(s.State), OnlineKey: s.Online})
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.Revoke(context.Background(), []trust.OperatorRevocation{{Repository: s.repo, Tombstone: tombstone(s, "oops"), Undo: true}})
	if trust.CodeOf(err) != policy.ThresholdNotMet {
		t.Fatalf("%v", err)
	}
	s.requires(s.Reader(""), policy.Revoked)
}

// The same content under another name is the same content: in another repository,
// as a child of another index, as a manifest rewritten around its config.
func TestRevokedContent(t *testing.T) {
	s := newScene(t, "{threshold: 1, from: [security]}")
	other := s.Host + "/app/other"
	child := testkit.Push(t, s.Client, s.repo, "", testkit.Image(t, "child"))
	index := func(repo, tag string) attest.ReleaseStatement {
		top := testkit.Push(t, s.Client, repo, tag, testkit.Image(t, "stands for an index "+repo+tag))
		r := s.Release(repo, top)
		r.Manifests[0].MediaType, r.Manifests[0].Platform = "application/vnd.oci.image.index.v1+json", ""
		r.Manifests = append(r.Manifests, attest.Manifest{
			MediaType: string(child.MediaType), Digest: child.Digest.String(), Size: child.Size, Platform: "linux/arm64", Config: "sha256:" + strings.Repeat("c", 64),
		})
		return r
	}
	first, second := index(s.repo, "a"), index(other, "b")
	rewritten := s.Release(s.repo, testkit.Push(t, s.Client, s.repo, "", testkit.Image(t, "rewritten")))
	rewritten.Manifests[0].Config = "sha256:" + strings.Repeat("c", 64)
	for _, r := range []attest.ReleaseStatement{first, second, rewritten} {
		s.Submit("ci", r)
	}
	s.Publish()
	where := []struct {
		summary, repo, digest string
	}{
		{"the index", s.repo, first.Digest},
		{"its child", s.repo, child.Digest.String()},
		{"its child, alone in another repository", other, child.Digest.String()},
		{"another index with that child", other, second.Digest},
		{"a manifest around the same config", s.repo, rewritten.Digest},
	}
	decide := func(want policy.Code) {
		t.Helper()
		for _, w := range where {
			h, err := v1.NewHash(w.digest)
			if err != nil {
				t.Fatal(err)
			}
			s.repo, s.image.Digest = w.repo, h
			t.Run(string(want)+" "+w.summary, func(t *testing.T) { s.t = t; s.requires(s.known, want) })
		}
	}
	decide(policy.Allowed)
	s.repo = s.Host + "/app/web"
	if h, err := v1.NewHash(first.Digest); err == nil {
		s.image.Digest = h
	}
	s.revoke(false, "security")
	decide(policy.Revoked)
}
