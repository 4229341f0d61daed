package verify_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/internal/oci"
	"github.com/imgtrust/imgtrust/internal/testkit"
	"github.com/imgtrust/imgtrust/policy"
	"github.com/imgtrust/imgtrust/trust"
	"github.com/imgtrust/imgtrust/verify"
)

// layoutOf writes an image as an OCI layout and returns its directory.
func layoutOf(t *testing.T, img v1.Image) string {
	t.Helper()
	p, err := layout.Write(t.TempDir(), empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(img); err != nil {
		t.Fatal(err)
	}
	return string(p)
}

// decideLayout decides on a layout under a trusted name.
func decideLayout(t *testing.T, v *testkit.VirtualTrust, dir, as string) verify.Decision {
	t.Helper()
	name, err := oci.ParseReference(as)
	if err != nil {
		t.Fatal(err)
	}
	r, err := verify.Image(context.Background(), oci.Location{Layout: dir}, verify.Options{Trust: v.Reader(""), Registry: v.Client, As: name, Now: v.Clock.Now})
	if err != nil {
		t.Fatal(err)
	}
	return r.Decision()
}

// TestLayout: every byte of a layout is hashed, under an audit rule, too.
func TestLayout(t *testing.T) {
	v := testkit.NewVirtualTrust(t)
	img := testkit.Image(t, "layer")
	v.List(v.Host+"/app/web", "1", "layer", "ci")
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	forged, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	good, bad := layoutOf(t, img), layoutOf(t, img)
	if err := os.WriteFile(filepath.Join(bad, "blobs", "sha256", forged.Hex), []byte("forge"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		summary, dir, as string
		code             policy.Code
		allowed          bool
	}{
		{"signed and listed", good, v.Host + "/app/web:1", policy.Allowed, true},
		{"signed and listed, with a forged layer", bad, v.Host + "/app/web:1", policy.ContentMismatch, false},
		{"under a name that it is not listed for", good, v.Host + "/app/other", policy.NotListed, false},
		{"audited", good, v.Host + "/legacy/web", policy.NotListed, true},
		{"audited, with a forged layer", bad, v.Host + "/legacy/web", policy.ContentMismatch, false},
	} {
		t.Run(row.summary, func(t *testing.T) {
			if d := decideLayout(t, v, row.dir, row.as); d.Code != row.code || d.Allowed != row.allowed {
				t.Errorf("%s, allowed %v: %q", d.Code, d.Allowed, d.Reasons)
			}
		})
	}
}

// TestAuditNeverOverridesRevoked: a revoked config refuses the image under an
// audit rule, and goes on to do so when the statement that names it has expired.
func TestAuditNeverOverridesRevoked(t *testing.T) {
	v := testkit.NewVirtualTrust(t)
	repo, config := v.Host+"/legacy/web", "sha256:"+strings.Repeat("c", 64)
	d := testkit.Push(t, v.Client, repo, "", testkit.Image(t, "web"))
	s := v.Release(repo, d, "1")
	s.Manifests[0].Config, s.Expires = config, s.Created.Add(time.Hour)
	v.Force(func(ctx context.Context, draft *trust.Draft) {
		if err := draft.ListDigest(ctx, repo, d.Digest, d.Size, []attest.Envelope{v.Sign("ci", s)}); err != nil {
			t.Fatal(err)
		}
		draft.Revoke(trust.Tombstone{Digest: config, Date: v.Clock.Now(), Reason: "CVE"})
	})
	for _, later := range []time.Duration{0, 2 * time.Hour} {
		v.Clock.Add(later)
		if got := decide(t, v, repo+"@"+d.Digest.String(), ""); got.Code != policy.Revoked || got.Allowed {
			t.Errorf("after %s: %s, allowed %v", later, got.Code, got.Allowed)
		}
	}
}

// TestLongLivedClient: a decision made with a client that was opened long ago is
// not made on metadata that has expired since.
func TestLongLivedClient(t *testing.T) {
	v := testkit.NewVirtualTrust(t)
	repo := v.Host + "/app/web"
	d := v.List(repo, "1", "web", "ci")
	l, err := oci.ParseLocation(repo + "@" + d.Digest.String())
	if err != nil {
		t.Fatal(err)
	}
	client := v.Reader(t.TempDir())
	for _, row := range []struct {
		later time.Duration
		code  policy.Code
	}{{0, policy.Allowed}, {60 * 24 * time.Hour, policy.MetadataExpired}} {
		v.Clock.Add(row.later)
		r, err := verify.Image(context.Background(), l, verify.Options{Trust: client, Registry: v.Client, Now: v.Clock.Now})
		if err != nil || r.Decision().Code != row.code {
			t.Errorf("after %s: %s %v", row.later, r.Decision().Code, err)
		}
	}
}
