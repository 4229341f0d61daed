package attest

import (
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
)

// BundleMediaType is the media type of the bundles that are read and written.
const BundleMediaType = "application/vnd.dev.sigstore.bundle.v0.3+json"

// Bundle is a Sigstore bundle v0.3 with an envelope and a public key hint.
type Bundle struct {
	// Envelope has exactly one signature. Where the bundle gives it no key ID
	// and the hint is a hash, KeyID is filled in from the hint.
	Envelope Envelope
	// KeyHint is verificationMaterial.publicKey.hint: base64 SHA-256 of the DER
	// key as cosign and EncodeBundle write it. A hint only, never evidence.
	KeyHint string
}

// The field names are those of the JSON form of dev.sigstore.bundle.v1.Bundle,
// https://github.com/sigstore/protobuf-specs/blob/v0.5.2/protos/sigstore_bundle.proto.
type bundleJSON struct {
	MediaType            string        `json:"mediaType"`
	VerificationMaterial *materialJSON `json:"verificationMaterial"`
	DSSEEnvelope         *envelopeJSON `json:"dsseEnvelope"`
}

type materialJSON struct {
	PublicKey *publicKeyJSON `json:"publicKey"`
	// Proofs by others, which a signer with a key may add; they are not read.
	TlogEntries []json.RawMessage `json:"tlogEntries,omitempty"`
	Timestamps  json.RawMessage   `json:"timestampVerificationData,omitempty"`
}

type publicKeyJSON struct {
	Hint string `json:"hint,omitempty"`
}

// DecodeBundle reads a bundle strictly: media type v0.3, a public key as
// verification material and an envelope with exactly one signature. Bundles
// with a certificate or a message signature are errors. Transparency log
// entries and timestamps may be there and are not read.
func DecodeBundle(b []byte) (Bundle, error) {
	if len(b) > MaxBundle {
		return Bundle{}, fmt.Errorf("bundle is larger than %d bytes", MaxBundle)
	}
	var j bundleJSON
	if err := UnmarshalStrict(b, &j, false); err != nil {
		return Bundle{}, fmt.Errorf("bundle: %w", err)
	}
	if err := j.check(); err != nil {
		return Bundle{}, fmt.Errorf("bundle: %w", err)
	}
	e, err := j.DSSEEnvelope.envelope()
	if err != nil {
		return Bundle{}, fmt.Errorf("bundle: dsseEnvelope: %w", err)
	}
	hint := j.VerificationMaterial.PublicKey.Hint
	if e.Signatures[0].KeyID == "" {
		e.Signatures[0].KeyID = hintKeyID(hint)
	}
	return Bundle{Envelope: e, KeyHint: hint}, nil
}

func (j bundleJSON) check() error {
	switch {
	case j.MediaType != BundleMediaType:
		return fmt.Errorf("mediaType: %.100q where %q belongs", j.MediaType, BundleMediaType)
	case j.VerificationMaterial == nil:
		return errors.New("verificationMaterial is missing")
	case j.VerificationMaterial.PublicKey == nil:
		return errors.New("verificationMaterial.publicKey is missing")
	case len(j.VerificationMaterial.PublicKey.Hint) > MaxKeyID:
		return fmt.Errorf("verificationMaterial.publicKey.hint: longer than %d bytes", MaxKeyID)
	case len(j.VerificationMaterial.TlogEntries) > MaxTlog:
		return fmt.Errorf("verificationMaterial.tlogEntries: more than %d", MaxTlog)
	case j.DSSEEnvelope == nil:
		return errors.New("dsseEnvelope is missing")
	case len(j.DSSEEnvelope.Signatures) != 1:
		return fmt.Errorf("dsseEnvelope.signatures: %d where exactly 1 belongs", len(j.DSSEEnvelope.Signatures))
	}
	return nil
}

// EncodeBundle writes e, which must have exactly one signature, as a bundle
// with the hint of key. The signature's key ID is left out: peers that compute
// key IDs in another way would skip the signature because of it.
func EncodeBundle(e Envelope, key crypto.PublicKey) ([]byte, error) {
	hint, err := keyHint(key)
	if err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	if err := e.check(); err != nil {
		return nil, fmt.Errorf("bundle: dsseEnvelope: %w", err)
	}
	if len(e.Signatures) != 1 {
		return nil, fmt.Errorf("bundle: dsseEnvelope.signatures: %d where exactly 1 belongs", len(e.Signatures))
	}
	envelope := e.json()
	envelope.Signatures[0].KeyID = ""
	b, err := marshal(bundleJSON{
		MediaType:            BundleMediaType,
		VerificationMaterial: &materialJSON{PublicKey: &publicKeyJSON{Hint: hint}},
		DSSEEnvelope:         &envelope,
	})
	if err == nil && len(b) > MaxBundle {
		err = fmt.Errorf("bundle is larger than %d bytes", MaxBundle)
	}
	return b, err
}
