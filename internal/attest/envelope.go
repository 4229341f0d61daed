package attest

import (
	"bytes"
	"context"
	"crypto"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/options"
)

// PayloadType is the only payload type that is read or written.
const PayloadType = "application/vnd.in-toto+json"

// ErrSignature is returned by Verify when no signature of the envelope is by
// the key.
var ErrSignature = errors.New("no valid signature by this key")

// Envelope is a DSSE envelope, see
// https://github.com/secure-systems-lab/dsse/blob/v1.0.2/envelope.md.
type Envelope struct {
	PayloadType string // PayloadType
	Payload     []byte // the exact signed bytes, at most MaxPayload
	Signatures  []Signature
}

// Signature is one signature of an envelope.
type Signature struct {
	// KeyID is a hint only, never evidence: hex SHA-256 of the DER
	// SubjectPublicKeyInfo in envelopes made by Sign or taken from a bundle.
	KeyID string
	Sig   []byte
}

// Sign makes an envelope around payload with one signature by signer, which
// must use the algorithm that sigstore gives its key by default (see Verify).
func Sign(ctx context.Context, payload []byte, signer signature.Signer) (Envelope, error) {
	e := Envelope{PayloadType: PayloadType, Payload: payload}
	if err := checkPayload(payload); err != nil {
		return Envelope{}, err
	}
	public, err := signer.PublicKey(options.WithContext(ctx))
	if err != nil {
		return Envelope{}, fmt.Errorf("asking the signer for its public key: %w", err)
	}
	id, err := KeyID(public)
	if err != nil {
		return Envelope{}, err
	}
	sig, err := signer.SignMessage(bytes.NewReader(e.PAE()), options.WithContext(ctx))
	if err != nil {
		return Envelope{}, fmt.Errorf("signing: %w", err)
	}
	e.Signatures = []Signature{{KeyID: id, Sig: sig}}
	return e, e.check()
}

// Verify returns nil when one of the signatures of e is by key over the PAE of
// e, ErrSignature when none is. The algorithm follows from the key alone:
// ECDSA P-256 with SHA-256, P-384 with SHA-384, Ed25519 (not the prehashed
// form), RSA PKCS #1 v1.5 with SHA-256. Key IDs are not looked at.
func (e Envelope) Verify(key crypto.PublicKey) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	if err := e.check(); err != nil {
		return err
	}
	verifier, err := signature.LoadDefaultVerifier(key)
	if err != nil {
		return err
	}
	pae := e.PAE()
	for _, s := range e.Signatures {
		if verifier.VerifySignature(bytes.NewReader(s.Sig), bytes.NewReader(pae)) == nil {
			return nil
		}
	}
	return ErrSignature
}

// PAE is the pre-authentication encoding: the bytes that are signed, see
// https://github.com/secure-systems-lab/dsse/blob/v1.0.2/protocol.md#signature-definition.
func (e Envelope) PAE() []byte { return dsse.PAE(e.PayloadType, e.Payload) }

// check keeps the bounds; it looks at no signature's validity.
func (e Envelope) check() error {
	if e.PayloadType != PayloadType {
		return fmt.Errorf("payloadType: %.100q where %q belongs", e.PayloadType, PayloadType)
	}
	if err := checkPayload(e.Payload); err != nil {
		return err
	}
	if n := len(e.Signatures); n < 1 || n > MaxSignatures {
		return fmt.Errorf("signatures: %d where 1 to %d belong", n, MaxSignatures)
	}
	for i, s := range e.Signatures {
		if err := s.check(); err != nil {
			return fmt.Errorf("signatures[%d].%w", i, err)
		}
	}
	return nil
}

func checkPayload(payload []byte) error {
	if n := len(payload); n < 1 || n > MaxPayload {
		return fmt.Errorf("payload: %d bytes where 1 to %d belong", n, MaxPayload)
	}
	return nil
}

func (s Signature) check() error {
	if n := len(s.Sig); n < 1 || n > MaxSignature {
		return fmt.Errorf("sig: %d bytes where 1 to %d belong", n, MaxSignature)
	}
	if len(s.KeyID) > MaxKeyID {
		return fmt.Errorf("keyid: longer than %d bytes", MaxKeyID)
	}
	return nil
}

// The order of fields is that of the bundle's protocol buffers, which is how
// cosign writes them.
type envelopeJSON struct {
	Payload     string          `json:"payload"`
	PayloadType string          `json:"payloadType"`
	Signatures  []signatureJSON `json:"signatures"`
}

type signatureJSON struct {
	Sig   string `json:"sig"`
	KeyID string `json:"keyid,omitempty"`
}

// DecodeEnvelope reads the JSON of an envelope strictly. Its payload type must
// be PayloadType.
func DecodeEnvelope(b []byte) (Envelope, error) {
	if len(b) > MaxEnvelope {
		return Envelope{}, fmt.Errorf("envelope is larger than %d bytes", MaxEnvelope)
	}
	var j envelopeJSON
	if err := UnmarshalStrict(b, &j, false); err != nil {
		return Envelope{}, fmt.Errorf("envelope: %w", err)
	}
	e, err := j.envelope()
	if err != nil {
		return Envelope{}, fmt.Errorf("envelope: %w", err)
	}
	return e, nil
}

// EncodeEnvelope writes e as DecodeEnvelope reads it. Equal envelopes give
// equal bytes.
func EncodeEnvelope(e Envelope) ([]byte, error) {
	if err := e.check(); err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	return marshal(e.json())
}

func (e Envelope) json() envelopeJSON {
	j := envelopeJSON{Payload: base64.StdEncoding.EncodeToString(e.Payload), PayloadType: e.PayloadType}
	for _, s := range e.Signatures {
		j.Signatures = append(j.Signatures, signatureJSON{Sig: base64.StdEncoding.EncodeToString(s.Sig), KeyID: s.KeyID})
	}
	return j
}

func (j envelopeJSON) envelope() (Envelope, error) {
	payload, err := decodeBase64(j.Payload)
	if err != nil {
		return Envelope{}, fmt.Errorf("payload: %w", err)
	}
	e := Envelope{PayloadType: j.PayloadType, Payload: payload}
	for i, s := range j.Signatures {
		sig, err := decodeBase64(s.Sig)
		if err != nil {
			return Envelope{}, fmt.Errorf("signatures[%d].sig: %w", i, err)
		}
		e.Signatures = append(e.Signatures, Signature{KeyID: s.KeyID, Sig: sig})
	}
	return e, e.check()
}

// decodeBase64 accepts standard base64 with padding in its one canonical form.
func decodeBase64(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, errors.New("line break in base64")
	}
	return base64.StdEncoding.Strict().DecodeString(s)
}
