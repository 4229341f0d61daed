package policy_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/policy"
)

const (
	repository = "registry.example.com/payments/api"
	elsewhere  = "registry.example.com/payments/other"
)

var (
	now = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

	indexDigest = digest('1') // an index of two platforms
	amdDigest   = digest('2')
	armDigest   = digest('3')
	amdConfig   = digest('4')
	armConfig   = digest('5')
	imageDigest = digest('6') // an image of one platform
	imageConfig = digest('7')
	otherDigest = digest('8')
)

func digest(c byte) string { return "sha256:" + strings.Repeat(string(c), 64) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// ring has a key for each name that it is asked for.
type ring map[string]crypto.Signer

func (r ring) key(name string) crypto.Signer {
	if r[name] == nil {
		if strings.HasSuffix(name, "-ed25519") {
			_, k, err := ed25519.GenerateKey(rand.Reader)
			r[name] = must(k, err)
		} else {
			r[name] = must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
		}
	}
	return r[name]
}

// pem is the public key as a YAML block scalar at an indentation.
func (r ring) pem(name string, indent int) string {
	text := strings.TrimSpace(string(must(attest.MarshalPublicKey(r.key(name).Public()))))
	pad := "\n" + strings.Repeat(" ", indent)
	return "|" + pad + strings.ReplaceAll(text, "\n", pad) + "\n"
}

func (r ring) id(name string) string { return must(attest.KeyID(r.key(name).Public())) }

func (r ring) sign(payload []byte, names ...string) attest.Envelope {
	var all attest.Envelope
	for _, name := range names {
		s := must(signature.LoadDefaultSigner(r.key(name)))
		e := must(attest.Sign(context.Background(), payload, s))
		e.Signatures = append(all.Signatures, e.Signatures...)
		all = e
	}
	return all
}

// policy is a policy in which signers a, b and c have a key of their name.
func (r ring) policy(t testing.TB, body string) *policy.Policy {
	t.Helper()
	p, err := policy.Parse("policy.yaml", []byte(r.document(body)))
	if err != nil {
		t.Fatalf("%v in\n%s", err, r.document(body))
	}
	return p
}

func (r ring) document(body string) string {
	var b strings.Builder
	b.WriteString("apiVersion: imgtrust.dev/v1\nkind: Policy\nsigners:\n")
	for _, name := range []string{"a", "b", "c"} {
		fmt.Fprintf(&b, "  %s:\n    key: %s", name, r.pem(name, 6))
	}
	fmt.Fprintf(&b, "  r:\n    keys:\n      - listedBefore: 2026-05-01\n        key: %s      - key: %s", r.pem("r-old", 10), r.pem("r-new-ed25519", 10))
	return b.String() + body
}

// release is a statement about the image of one platform, a day old.
func release(changes ...func(*attest.ReleaseStatement)) []byte {
	s := attest.ReleaseStatement{Digest: imageDigest, Release: attest.Release{
		Repository: repository,
		Tags:       []string{"v1", "latest"},
		Created:    now.Add(-24 * time.Hour),
		Manifests:  []attest.Manifest{{MediaType: "application/vnd.oci.image.manifest.v1+json", Digest: imageDigest, Size: 500, Platform: "linux/amd64", Config: imageConfig}},
		Config:     &attest.Config{User: "65532:65532", Entrypoint: []string{"/api"}, ImageSize: 1 << 20, Layers: 2},
	}}
	for _, change := range changes {
		change(&s)
	}
	return must(attest.EncodeRelease(s))
}

// index makes the statement one about an index of two platforms.
func index(s *attest.ReleaseStatement) {
	s.Digest = indexDigest
	s.Manifests = []attest.Manifest{
		{MediaType: "application/vnd.oci.image.index.v1+json", Digest: indexDigest, Size: 700},
		{MediaType: "application/vnd.oci.image.manifest.v1+json", Digest: amdDigest, Size: 500, Platform: "linux/amd64", Config: amdConfig},
		{MediaType: "application/vnd.oci.image.manifest.v1+json", Digest: armDigest, Size: 500, Platform: "linux/arm64", Config: armConfig},
	}
}

func inRepository(name string) func(*attest.ReleaseStatement) {
	return func(s *attest.ReleaseStatement) { s.Repository = name }
}

func created(at time.Time) func(*attest.ReleaseStatement) {
	return func(s *attest.ReleaseStatement) { s.Created = at }
}

func expires(at time.Time) func(*attest.ReleaseStatement) {
	return func(s *attest.ReleaseStatement) { s.Expires = at }
}

func tags(names ...string) func(*attest.ReleaseStatement) {
	return func(s *attest.ReleaseStatement) { s.Tags = names }
}

func asUser(name string) func(*attest.ReleaseStatement) {
	return func(s *attest.ReleaseStatement) { s.Config.User = name }
}
