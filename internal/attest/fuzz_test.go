package attest_test

import (
	"bytes"
	"context"
	"reflect"
	"testing"

	"github.com/imgtrust/imgtrust/internal/attest"
)

// Whatever is accepted keeps the bounds, and encodes to bytes that decode to
// the same.

func FuzzDecodeBundle(f *testing.F) {
	key := newKey(f, "ecdsa-p256")
	e := must[attest.Envelope](f)(attest.Sign(context.Background(), payload(f), newSigner(f, key)))
	f.Add(must[[]byte](f)(attest.EncodeBundle(e, key.Public())))
	f.Add([]byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"publicKey":{}},"dsseEnvelope":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := attest.DecodeBundle(b)
		if err != nil {
			return
		}
		if len(got.Envelope.Signatures) != 1 {
			t.Fatalf("%d signatures", len(got.Envelope.Signatures))
		}
		again := must[[]byte](t)(attest.EncodeBundle(got.Envelope, key.Public()))
		back := must[attest.Bundle](t)(attest.DecodeBundle(again))
		if !bytes.Equal(back.Envelope.PAE(), got.Envelope.PAE()) || !bytes.Equal(back.Envelope.Signatures[0].Sig, got.Envelope.Signatures[0].Sig) {
			t.Fatalf("%+v became %+v", got, back)
		}
	})
}

func FuzzDecodeEnvelope(f *testing.F) {
	e := must[attest.Envelope](f)(attest.Sign(context.Background(), payload(f), newSigner(f, newKey(f, "ed25519"))))
	f.Add(must[[]byte](f)(attest.EncodeEnvelope(e)))
	f.Add([]byte(`{"payload":"YQ==","payloadType":"application/vnd.in-toto+json","signatures":[{"sig":"YQ=="},{"sig":"YQ==","keyid":"x"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := attest.DecodeEnvelope(b)
		if err != nil {
			return
		}
		back := must[attest.Envelope](t)(attest.DecodeEnvelope(must[[]byte](t)(attest.EncodeEnvelope(got))))
		if !reflect.DeepEqual(back, got) {
			t.Fatalf("%+v became %+v", got, back)
		}
	})
}

func FuzzDecodeStatement(f *testing.F) {
	f.Add(payload(f))
	f.Add(must[[]byte](f)(attest.EncodeCosignSign(digestA)))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := attest.DecodeStatement(b)
		if err != nil {
			return
		}
		again, err := attest.EncodeStatement(got)
		if err != nil {
			return // escaping may make a predicate longer than the bound
		}
		back := must[attest.Statement](t)(attest.DecodeStatement(again))
		if back.Name != got.Name || back.Digest != got.Digest || back.PredicateType != got.PredicateType {
			t.Fatalf("%+v became %+v", got, back)
		}
	})
}

func FuzzDecodeRelease(f *testing.F) {
	f.Add(payload(f))
	f.Add(bytes.Replace(payload(f), []byte(`"predicate":{`), []byte(`"predicate":{"new":[{"a":null}],`), 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := attest.DecodeRelease(b)
		if err != nil {
			return
		}
		if got.Manifests[0].Digest != got.Digest || len(got.Manifests) > attest.MaxManifests || len(got.Tags) > attest.MaxTags {
			t.Fatalf("out of bounds: %+v", got)
		}
		again, err := attest.EncodeRelease(got)
		if err != nil {
			return // escaping may make a payload longer than the bound
		}
		back := must[attest.ReleaseStatement](t)(attest.DecodeRelease(again))
		if third := must[[]byte](t)(attest.EncodeRelease(back)); !bytes.Equal(third, again) {
			t.Fatalf("%s became %s", again, third)
		}
	})
}

func FuzzParsePublicKey(f *testing.F) {
	for _, kind := range []string{"ecdsa-p256", "ed25519"} {
		f.Add(must[[]byte](f)(attest.MarshalPublicKey(newKey(f, kind).Public())))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		key, err := attest.ParsePublicKey(b)
		if err != nil {
			return
		}
		must[[]byte](t)(attest.MarshalPublicKey(key))
		must[string](t)(attest.KeyID(key))
	})
}
