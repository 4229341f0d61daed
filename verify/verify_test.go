package verify_test

import (
	"context"
	"slices"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/internal/oci"
	"github.com/imgtrust/imgtrust/internal/testkit"
	"github.com/imgtrust/imgtrust/policy"
	"github.com/imgtrust/imgtrust/trust"
	"github.com/imgtrust/imgtrust/verify"
)

func decide(t *testing.T, v *testkit.VirtualTrust, image string, state string) verify.Decision {
	t.Helper()
	l, err := oci.ParseLocation(image)
	if err != nil {
		t.Fatal(err)
	}
	r, err := verify.Image(context.Background(), l, verify.Options{Trust: v.Reader(state), Registry: v.Client, Now: v.Clock.Now})
	if err != nil {
		t.Fatal(err)
	}
	if r.Allowed() != r.Decision().Allowed {
		t.Fatal("Allowed and Decision().Allowed differ")
	}
	return r.Decision()
}

// forced lists an image of a repository with a statement that names about as its
// repository, with the online key and no check, as its thief would. It returns
// the image by its digest.
func forced(v *testkit.VirtualTrust, repo, signer, about string) string {
	d := testkit.Push(v.T, v.Client, repo, "1", testkit.Image(v.T, "web"))
	v.Force(func(ctx context.Context, draft *trust.Draft) {
		e := v.Sign(signer, v.Release(about, d))
		if err := draft.ListDigest(ctx, repo, d.Digest, d.Size, []attest.Envelope{e}); err != nil {
			v.T.Fatal(err)
		}
	})
	return repo + "@" + d.Digest.String()
}

// TestImage tells the story of one image from push to verdict.
func TestImage(t *testing.T) {
	stories := []struct {
		summary string
		act     func(v *testkit.VirtualTrust, repo string) (image string)
		code    policy.Code
		audit   bool
	}{{
		summary: "a signed and listed image is allowed by its digest",
		act: func(v *testkit.VirtualTrust, repo string) string {
			return repo + "/app/web@" + v.List(repo+"/app/web", "1", "web", "ci").Digest.String()
		},
		code: policy.Allowed,
	}, {
		summary: "and by its tag",
		act: func(v *testkit.VirtualTrust, repo string) string {
			v.List(repo+"/app/web", "1", "web", "ci")
			return repo + "/app/web:1"
		},
		code: policy.Allowed,
	}, {
		summary: "an image that nobody signed is not listed",
		act: func(v *testkit.VirtualTrust, repo string) string {
			d := testkit.Push(v.T, v.Client, repo+"/app/web", "1", testkit.Image(v.T, "unsigned"))
			return repo + "/app/web@" + d.Digest.String()
		},
		code: policy.NotListed,
	}, {
		summary: "a repository without a rule is refused even when signed",
		act: func(v *testkit.VirtualTrust, repo string) string {
			return forced(v, repo+"/other/web", "ci", repo+"/other/web")
		},
		code: policy.NoRule,
	}, {
		summary: "one signature of two required ones, listed with a stolen online key",
		act: func(v *testkit.VirtualTrust, repo string) string {
			return forced(v, repo+"/two/web", "ci", repo+"/two/web")
		},
		code: policy.ThresholdNotMet,
	}, {
		summary: "a signature by a key that the policy does not name, listed with a stolen online key",
		act: func(v *testkit.VirtualTrust, repo string) string {
			return forced(v, repo+"/app/web", "mallory", repo+"/app/web")
		},
		code: policy.BadSignature,
	}, {
		summary: "a statement copied from another repository, listed with a stolen online key",
		act: func(v *testkit.VirtualTrust, repo string) string {
			return forced(v, repo+"/app/web", "ci", repo+"/app/other")
		},
		code: policy.WrongRepository,
	}, {
		summary: "a tag moved in the registry to other content",
		act: func(v *testkit.VirtualTrust, repo string) string {
			v.List(repo+"/app/web", "1", "web", "ci")
			testkit.Push(v.T, v.Client, repo+"/app/web", "1", testkit.Image(v.T, "evil"))
			return repo + "/app/web:1"
		},
		code: policy.TagMismatch,
	}, {
		summary: "two signers of two",
		act: func(v *testkit.VirtualTrust, repo string) string {
			v.List(repo+"/two/web", "1", "web", "ci", "security")
			return repo + "/two/web:1"
		},
		code: policy.Allowed,
	}, {
		summary: "an audited repository lets an unlisted image pass and says why",
		act: func(v *testkit.VirtualTrust, repo string) string {
			testkit.Push(v.T, v.Client, repo+"/legacy/web", "1", testkit.Image(v.T, "old"))
			return repo + "/legacy/web:1"
		},
		code: policy.NotListed, audit: true,
	}, {
		summary: "a revoked digest, also in a repository that only audits",
		act: func(v *testkit.VirtualTrust, repo string) string {
			d := testkit.Push(v.T, v.Client, repo+"/legacy/web", "1", testkit.Image(v.T, "old"))
			v.Force(func(_ context.Context, draft *trust.Draft) {
				draft.Revoke(trust.Tombstone{Digest: d.Digest.String(), Date: v.Clock.Now(), Reason: "CVE"})
			})
			return repo + "/legacy/web:1"
		},
		code: policy.Revoked,
	}, {
		summary: "a trust index that stopped being refreshed",
		act: func(v *testkit.VirtualTrust, repo string) string {
			v.List(repo+"/app/web", "1", "web", "ci")
			v.Clock.Add(8 * 24 * time.Hour)
			return repo + "/app/web:1"
		},
		code: policy.MetadataExpired,
	}}
	for _, s := range stories {
		t.Run(s.summary, func(t *testing.T) {
			v := testkit.NewVirtualTrust(t)
			image := s.act(v, v.Host)
			d := decide(t, v, image, t.TempDir())
			if d.Code != s.code {
				t.Errorf("code %s, want %s: %q", d.Code, s.code, d.Reasons)
			}
			if want := s.code == policy.Allowed || s.audit; d.Allowed != want {
				t.Errorf("allowed %v, want %v", d.Allowed, want)
			}
			if !d.Allowed && len(d.Reasons) == 0 {
				t.Error("a refusal without a reason")
			}
		})
	}
}

// TestChildOfIndex shows that membership is proven by the signed statement of
// an index, never by what the listing says.
func TestChildOfIndex(t *testing.T) {
	v := testkit.NewVirtualTrust(t)
	repo := v.Host + "/app/multi"
	member := testkit.Push(t, v.Client, repo, "", testkit.Image(t, "member"))
	stranger := testkit.Push(t, v.Client, repo, "", testkit.Image(t, "stranger"))
	raw := []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`)
	index, err := v.Client.PutManifest(context.Background(), repo, "1", types.OCIImageIndex, raw)
	if err != nil {
		t.Fatal(err)
	}
	s := v.Release(repo, v1.Descriptor{MediaType: types.OCIImageIndex, Digest: index, Size: int64(len(raw))}, "1")
	s.Manifests[0].Platform = ""
	s.Manifests = append(s.Manifests, attest.Manifest{MediaType: string(member.MediaType), Digest: member.Digest.String(), Size: member.Size, Platform: "linux/arm64"})
	v.Submit("ci", s)
	v.Publish()
	v.Force(func(ctx context.Context, d *trust.Draft) {
		if err := d.ListChild(ctx, repo, stranger.Digest, stranger.Size, index); err != nil {
			t.Fatal(err)
		}
	})
	if d := decide(t, v, repo+"@"+member.Digest.String(), ""); d.Code != policy.Allowed || d.Evidence.Index != index.String() {
		t.Errorf("member: %s through %q: %q", d.Code, d.Evidence.Index, d.Reasons)
	}
	if d := decide(t, v, repo+"@"+stranger.Digest.String(), ""); d.Allowed {
		t.Errorf("a child that the index does not list is allowed: %s", d.Code)
	}
	v.Force(func(_ context.Context, d *trust.Draft) {
		d.Revoke(trust.Tombstone{Digest: index.String(), Date: v.Clock.Now(), Reason: "withdrawn"})
	})
	if d := decide(t, v, repo+"@"+member.Digest.String(), ""); d.Code != policy.Revoked {
		t.Errorf("a child of a revoked index: %s", d.Code)
	}
}

// TestTagsNeverGoBack: a reader with state refuses a tag that went back to an
// older signed digest; one without state cannot know.
func TestTagsNeverGoBack(t *testing.T) {
	v := testkit.NewVirtualTrust(t)
	repo, state := v.Host+"/app/web", t.TempDir()
	old := v.List(repo, "1", "old", "ci")
	oldStatement := v.Sign("ci", v.Release(repo, old, "1"))
	v.Clock.Add(time.Hour)
	v.List(repo, "1", "new", "ci")
	if d := decide(t, v, repo+":1", state); d.Code != policy.Allowed {
		t.Fatalf("the new image: %s %q", d.Code, d.Reasons)
	}
	testkit.Push(t, v.Client, repo, "1", testkit.Image(t, "old"))
	v.Force(func(ctx context.Context, d *trust.Draft) {
		if err := d.ListTag(ctx, repo, "1", old.Digest, old.Size, []attest.Envelope{oldStatement}); err != nil {
			t.Fatal(err)
		}
	})
	if d := decide(t, v, repo+":1", state); d.Code != policy.RolledBack {
		t.Errorf("with state: %s %q", d.Code, d.Reasons)
	}
	if d := decide(t, v, repo+":1", ""); d.Code != policy.Allowed || d.Evidence.RollbackProtected {
		t.Errorf("without state it cannot know, and says so: %s, protected %v", d.Code, d.Evidence.RollbackProtected)
	}
	v.Clock.Add(time.Hour)
	v.Submit("ci", v.Release(repo, old, "1"))
	v.Publish()
	if d := decide(t, v, repo+":1", state); d.Code != policy.Allowed {
		t.Errorf("signed again on purpose: %s %q", d.Code, d.Reasons)
	}
}

// TestRequests pins what a decision costs at the registry.
func TestRequests(t *testing.T) {
	v := testkit.NewVirtualTrust(t)
	repo, state := v.Host+"/app/web", t.TempDir()
	d := v.List(repo, "1", "web", "ci")
	v.Requests()
	if got := decide(t, v, repo+"@"+d.Digest.String(), state); !got.Allowed {
		t.Fatalf("%s %q", got.Code, got.Reasons)
	}
	if cold := v.Requests(); len(cold) > 5 {
		t.Errorf("a cold decision on a digest makes %d requests, at most 5: %q", len(cold), cold)
	}
	if got := decide(t, v, repo+"@"+d.Digest.String(), state); !got.Allowed {
		t.Fatalf("%s %q", got.Code, got.Reasons)
	}
	if warm := v.Requests(); len(warm) != 1 || slices.ContainsFunc(warm, func(r string) bool { return r[:4] != "HEAD" }) {
		t.Errorf("a warm decision makes %q, want one HEAD", warm)
	}
	offline := v.ClientOptions(state)
	offline.Offline = true
	c, err := trust.Open(offline)
	if err != nil {
		t.Fatal(err)
	}
	l, err := oci.ParseLocation(repo + "@" + d.Digest.String())
	if err != nil {
		t.Fatal(err)
	}
	r, err := verify.Image(context.Background(), l, verify.Options{Trust: c, Registry: v.Client, Now: v.Clock.Now})
	if err != nil || !r.Allowed() {
		t.Errorf("offline: %v %v", r.Decision(), err)
	}
	l.Reference = oci.Reference{Repository: repo, Tag: "1"}
	r, err = verify.Image(context.Background(), l, verify.Options{Trust: c, Registry: v.Client, Now: v.Clock.Now})
	if err != nil || r.Decision().Code != policy.Unavailable {
		t.Errorf("a tag, offline: %v %v", r.Decision(), err)
	}
	if none := v.Requests(); len(none) != 0 {
		t.Errorf("offline makes requests: %q", none)
	}
}
