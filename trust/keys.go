package trust

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// KeyID is the TUF key ID of a public key, as trust status shows it.
func KeyID(public crypto.PublicKey) (string, error) {
	_, id, err := tufKey(public)
	return id, err
}

// tufKey is the TUF form of a public key and its key ID. Key types that
// existing clients cannot read are refused here: one such key in a role makes
// go-tuf fail the whole role.
func tufKey(public crypto.PublicKey) (*metadata.Key, string, error) {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return nil, "", fmt.Errorf("ECDSA curve %s is not supported in a trust repository", k.Params().Name)
		}
	case *rsa.PublicKey:
		if k.N.BitLen() < 2048 {
			return nil, "", fmt.Errorf("an RSA key of %d bits is too short", k.N.BitLen())
		}
	case ed25519.PublicKey:
	default:
		return nil, "", fmt.Errorf("key type %T is not supported in a trust repository", public)
	}
	key, err := metadata.KeyFromPublicKey(public)
	if err != nil {
		return nil, "", err
	}
	if k, ok := public.(*ecdsa.PublicKey); ok && k.Curve == elliptic.P384() {
		key.Scheme = metadata.KeySchemeECDSA_SHA2_P384 // go-tuf labels every ECDSA key P-256
	}
	id, err := key.ID()
	return key, id, err
}

// signRole replaces the signatures of a role by those of keys.
func signRole[T metadata.Roles](m *metadata.Metadata[T], keys ...crypto.Signer) error {
	payload, err := cjson.EncodeCanonical(m.Signed)
	if err != nil {
		return err
	}
	m.ClearSignatures()
	for _, k := range keys {
		sig, id, err := signTUF(k, payload)
		if err != nil {
			return fmt.Errorf("signing: %w", err)
		}
		m.Signatures = append(m.Signatures, metadata.Signature{KeyID: id, Signature: sig})
	}
	return nil
}

// signTUF signs as TUF wants it for the type of the key, RSA by PSS, and verifies
// what was made: a key service may know one way only.
func signTUF(k crypto.Signer, payload []byte) (sig []byte, keyID string, err error) {
	key, keyID, err := tufKey(k.Public())
	if err != nil {
		return nil, "", err
	}
	hash := crypto.SHA256
	if key.Scheme == metadata.KeySchemeECDSA_SHA2_P384 {
		hash = crypto.SHA384
	}
	pss := &rsa.PSSOptions{Hash: hash, SaltLength: rsa.PSSSaltLengthEqualsHash}
	switch k.Public().(type) {
	case ed25519.PublicKey:
		sig, err = k.Sign(rand.Reader, payload, crypto.Hash(0))
	case *rsa.PublicKey:
		sig, err = k.Sign(rand.Reader, digest(hash, payload), pss)
	default:
		sig, err = k.Sign(rand.Reader, digest(hash, payload), hash)
	}
	if err != nil {
		return nil, "", err
	}
	if err := verifyTUF(k.Public(), hash, pss, payload, sig); err != nil {
		return nil, "", fmt.Errorf("key %.16s signs in another way than TUF reads: %w", keyID, err)
	}
	return sig, keyID, nil
}

func digest(hash crypto.Hash, payload []byte) []byte {
	h := hash.New()
	h.Write(payload)
	return h.Sum(nil)
}

func verifyTUF(public crypto.PublicKey, hash crypto.Hash, pss *rsa.PSSOptions, payload, sig []byte) error {
	var verifier signature.Verifier
	var err error
	if k, ok := public.(*rsa.PublicKey); ok {
		verifier, err = signature.LoadRSAPSSVerifier(k, hash, pss)
	} else {
		verifier, err = signature.LoadVerifier(public, hash)
	}
	if err != nil {
		return err
	}
	return verifier.VerifySignature(bytes.NewReader(sig), bytes.NewReader(payload))
}
