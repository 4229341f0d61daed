package attest_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/options"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/imgtrust/imgtrust/internal/attest"
)

var (
	digestA = "sha256:" + strings.Repeat("a", 64)
	digestB = "sha256:" + strings.Repeat("b", 64)
	digestC = "sha256:" + strings.Repeat("c", 64)
)

// must returns v, or ends the test.
func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func newKey(t testing.TB, kind string) crypto.Signer {
	t.Helper()
	var key crypto.Signer
	var err error
	switch kind {
	case "ecdsa-p256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ecdsa-p384":
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "ecdsa-p521":
		key, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "ed25519":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	case "rsa-2048":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	default:
		t.Fatalf("no key type %s", kind)
	}
	return must[crypto.Signer](t)(key, err)
}

func newSigner(t testing.TB, key crypto.Signer) signature.Signer {
	t.Helper()
	return must[signature.Signer](t)(signature.LoadDefaultSigner(key))
}

// release is a statement about an index with two platforms that says
// everything that can be said.
func release() attest.ReleaseStatement {
	setuid, shell := 0, false
	return attest.ReleaseStatement{
		Digest: digestA,
		Release: attest.Release{
			Repository:  "registry.example.com/payments/api",
			Tags:        []string{"v1.2.3", "v1"},
			Created:     time.Date(2026, 11, 24, 1, 2, 3, 0, time.UTC),
			Expires:     time.Date(2027, 11, 24, 1, 2, 3, 0, time.UTC),
			Annotations: map[string]string{"git": "<0123>"},
			Manifests: []attest.Manifest{
				{MediaType: "application/vnd.oci.image.index.v1+json", Digest: digestA, Size: 700},
				{MediaType: "application/vnd.oci.image.manifest.v1+json", Digest: digestB, Size: 500, Platform: "linux/amd64", Config: digestC, Rootfs: digestA},
				{MediaType: "application/vnd.oci.image.manifest.v1+json", Digest: digestC, Size: 500, Platform: "linux/arm/v7", Config: digestB},
			},
			Config:     &attest.Config{User: "65532", Entrypoint: []string{"/api", "-v"}, ImageSize: 1 << 20, Layers: 3, Setuid: &setuid, Shell: &shell},
			Provenance: digestB, SBOM: digestC, Slim: digestA,
		},
	}
}

func payload(t testing.TB) []byte {
	t.Helper()
	return must[[]byte](t)(attest.EncodeRelease(release()))
}

func TestSignAndVerifyWithEveryKeyType(t *testing.T) {
	other := newKey(t, "ecdsa-p256").Public()
	for _, kind := range []string{"ecdsa-p256", "ecdsa-p384", "ed25519", "rsa-2048"} {
		t.Run(kind, func(t *testing.T) {
			key := newKey(t, kind)
			e := must[attest.Envelope](t)(attest.Sign(context.Background(), payload(t), newSigner(t, key)))
			b := must[[]byte](t)(attest.EncodeBundle(e, key.Public()))
			bundle := must[attest.Bundle](t)(attest.DecodeBundle(b))
			if !reflect.DeepEqual(bundle.Envelope, e) {
				t.Errorf("the bundle's envelope is %+v, want %+v", bundle.Envelope, e)
			}
			if err := bundle.Envelope.Verify(key.Public()); err != nil {
				t.Errorf("own key: %v", err)
			}
			if err := bundle.Envelope.Verify(other); !errors.Is(err, attest.ErrSignature) {
				t.Errorf("another key: %v, want ErrSignature", err)
			}
			flipped := bundle.Envelope
			flipped.Payload = bytes.Replace(flipped.Payload, []byte("v1.2.3"), []byte("v1.2.4"), 1)
			if err := flipped.Verify(key.Public()); !errors.Is(err, attest.ErrSignature) {
				t.Errorf("changed payload: %v, want ErrSignature", err)
			}
		})
	}
}

func TestVerify(t *testing.T) {
	ctx := context.Background()
	key := newKey(t, "ecdsa-p256")
	good := must[attest.Envelope](t)(attest.Sign(ctx, payload(t), newSigner(t, key)))
	foreign := must[attest.Envelope](t)(attest.Sign(ctx, payload(t), newSigner(t, newKey(t, "ed25519")))).Signatures[0]
	with := func(signatures ...attest.Signature) attest.Envelope {
		return attest.Envelope{PayloadType: attest.PayloadType, Payload: good.Payload, Signatures: signatures}
	}
	misnamed := attest.Signature{KeyID: "not the key's", Sig: good.Signatures[0].Sig}
	claimed := attest.Signature{KeyID: good.Signatures[0].KeyID, Sig: foreign.Sig}
	raw := must[[]byte](t)(newSigner(t, key).SignMessage(bytes.NewReader(good.Payload)))
	rows := []struct {
		summary  string
		envelope attest.Envelope
		ok       bool
	}{
		{"one signature by the key", good, true},
		{"the second signature is by the key", with(foreign, good.Signatures[0]), true},
		{"the key ID is a hint only: a wrong one does not hide a signature", with(misnamed), true},
		{"the key ID is a hint only: the right one does not make a signature", with(claimed), false},
		{"no signatures", with(), false},
		{"an empty signature", with(attest.Signature{}), false},
		{"a signature over the payload instead of the PAE", with(attest.Signature{Sig: raw}), false},
		{"another payload type", attest.Envelope{PayloadType: "text/plain", Payload: good.Payload, Signatures: good.Signatures}, false},
		{"more signatures than the bound", with(make([]attest.Signature, attest.MaxSignatures+1)...), false},
	}
	for _, row := range rows {
		if err := row.envelope.Verify(key.Public()); (err == nil) != row.ok {
			t.Errorf("%s: %v", row.summary, err)
		}
	}
	for _, bad := range []crypto.PublicKey{nil, (*ecdsa.PublicKey)(nil), "a string", newKey(t, "ecdsa-p521").Public()} {
		if err := good.Verify(bad); !errors.Is(err, attest.ErrKeyType) {
			t.Errorf("key %T: %v, want ErrKeyType", bad, err)
		}
	}
}

// The algorithm follows from the key: no weaker one by the same key counts.
func TestVerifyRefusesOtherAlgorithms(t *testing.T) {
	rows := []struct {
		summary, kind string
		option        signature.LoadOption
	}{
		{"P-384 with SHA-256", "ecdsa-p384", options.WithHash(crypto.SHA256)},
		{"Ed25519 prehashed", "ed25519", options.WithED25519ph()},
		{"RSA PSS", "rsa-2048", options.WithRSAPSS(&rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256})},
	}
	for _, row := range rows {
		key := newKey(t, row.kind)
		signer := must[signature.Signer](t)(signature.LoadSignerWithOpts(key, row.option))
		e := must[attest.Envelope](t)(attest.Sign(context.Background(), payload(t), signer))
		if err := e.Verify(key.Public()); !errors.Is(err, attest.ErrSignature) {
			t.Errorf("%s: %v, want ErrSignature", row.summary, err)
		}
	}
}

// A bundle of ours is what the reference protocol buffers read, field for
// field, and the other way round.
func TestBundleIsSigstores(t *testing.T) {
	key := newKey(t, "ecdsa-p256")
	e := must[attest.Envelope](t)(attest.Sign(context.Background(), payload(t), newSigner(t, key)))
	ours := must[[]byte](t)(attest.EncodeBundle(e, key.Public()))
	var proto protobundle.Bundle
	if err := protojson.Unmarshal(ours, &proto); err != nil {
		t.Fatal(err)
	}
	envelope := proto.GetDsseEnvelope()
	sum := must[[]byte](t)(hex.DecodeString(must[string](t)(attest.KeyID(key.Public()))))
	switch {
	case proto.GetMediaType() != "application/vnd.dev.sigstore.bundle.v0.3+json":
		t.Errorf("mediaType %q", proto.GetMediaType())
	case proto.GetVerificationMaterial().GetPublicKey().GetHint() != base64.StdEncoding.EncodeToString(sum):
		t.Errorf("hint %q", proto.GetVerificationMaterial().GetPublicKey().GetHint())
	case !bytes.Equal(envelope.GetPayload(), e.Payload) || envelope.GetPayloadType() != "application/vnd.in-toto+json":
		t.Errorf("envelope %v", envelope)
	case len(envelope.GetSignatures()) != 1 || !bytes.Equal(envelope.GetSignatures()[0].GetSig(), e.Signatures[0].Sig):
		t.Errorf("signatures %v", envelope.GetSignatures())
	case envelope.GetSignatures()[0].GetKeyid() != "":
		t.Errorf("key ID %q, which cosign would compare with another kind of key ID", envelope.GetSignatures()[0].GetKeyid())
	}
	theirs := must[[]byte](t)(protojson.Marshal(&proto))
	if got := must[attest.Bundle](t)(attest.DecodeBundle(theirs)); !reflect.DeepEqual(got.Envelope, e) {
		t.Errorf("from protojson: %+v, want %+v", got.Envelope, e)
	}
}

func TestEncodeBundleNeedsOneSignature(t *testing.T) {
	key := newKey(t, "ecdsa-p256")
	e := must[attest.Envelope](t)(attest.Sign(context.Background(), payload(t), newSigner(t, key)))
	e.Signatures = append(e.Signatures, e.Signatures[0])
	if b, err := attest.EncodeBundle(e, key.Public()); err == nil || b != nil {
		t.Errorf("two signatures: %d bytes, error %v", len(b), err)
	}
	two := must[attest.Envelope](t)(attest.DecodeEnvelope(must[[]byte](t)(attest.EncodeEnvelope(e))))
	if !reflect.DeepEqual(two, e) {
		t.Errorf("an envelope may have two signatures, but came back as %+v", two)
	}
}

func TestSignBounds(t *testing.T) {
	signer := newSigner(t, newKey(t, "ecdsa-p256"))
	for size, ok := range map[int]bool{0: false, 1: true, attest.MaxPayload: true, attest.MaxPayload + 1: false} {
		if _, err := attest.Sign(context.Background(), make([]byte, size), signer); (err == nil) != ok {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// The largest payload fits a bundle and an envelope, whatever the key.
func TestLargestPayloadFits(t *testing.T) {
	key := newKey(t, "ecdsa-p256")
	e := attest.Envelope{PayloadType: attest.PayloadType, Payload: make([]byte, attest.MaxPayload)}
	for range attest.MaxSignatures {
		e.Signatures = append(e.Signatures, attest.Signature{KeyID: strings.Repeat("k", attest.MaxKeyID), Sig: make([]byte, attest.MaxSignature)})
	}
	b := must[[]byte](t)(attest.EncodeEnvelope(e))
	must[attest.Envelope](t)(attest.DecodeEnvelope(b))
	e.Signatures = e.Signatures[:1]
	b = must[[]byte](t)(attest.EncodeBundle(e, key.Public()))
	must[attest.Bundle](t)(attest.DecodeBundle(b))
}

func TestPublicKeys(t *testing.T) {
	for _, kind := range []string{"ecdsa-p256", "ecdsa-p384", "ed25519", "rsa-2048"} {
		key := newKey(t, kind).Public()
		pem := must[[]byte](t)(attest.MarshalPublicKey(key))
		back := must[crypto.PublicKey](t)(attest.ParsePublicKey(pem))
		if !reflect.DeepEqual(back, key) {
			t.Errorf("%s came back as %v", kind, back)
		}
	}
	good := string(must[[]byte](t)(attest.MarshalPublicKey(newKey(t, "ecdsa-p256").Public())))
	rows := []struct{ summary, pem, want string }{
		{"nothing", "", "not a PEM public key"},
		{"text before the block", "my key\n" + good, "not a PEM public key"},
		{"two keys", good + good, "data after the public key"},
		{"a private key", strings.ReplaceAll(good, "PUBLIC", "ENCRYPTED SIGSTORE PRIVATE"), "a private key where a public key belongs"},
		{"a certificate", strings.ReplaceAll(good, "PUBLIC KEY", "CERTIFICATE"), `PEM block "CERTIFICATE"`},
		{"cut short", good[:60], "malformed PEM block"},
		{"not a key inside", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "malformed public key"},
		{"too large", good + strings.Repeat(" ", attest.MaxPublicKey), "larger than"},
	}
	for _, row := range rows {
		if _, err := attest.ParsePublicKey([]byte(row.pem)); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v, want %q", row.summary, err, row.want)
		}
	}
	for _, kind := range []string{"ecdsa-p521"} {
		if _, err := attest.KeyID(newKey(t, kind).Public()); !errors.Is(err, attest.ErrKeyType) {
			t.Errorf("%s: %v, want ErrKeyType", kind, err)
		}
	}
	small := &rsa.PublicKey{N: newKey(t, "rsa-2048").Public().(*rsa.PublicKey).N, E: 65537}
	small.N.SetBit(small.N, 2047, 0)
	if err := attest.CheckKey(small); !errors.Is(err, attest.ErrKeyType) {
		t.Errorf("RSA of %d bits: %v, want ErrKeyType", small.N.BitLen(), err)
	}
}
