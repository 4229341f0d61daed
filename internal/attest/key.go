package attest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// ErrKeyType is returned for a key that signs nothing here: only ECDSA on P-256
// and P-384, Ed25519, and RSA of 2048, 3072 and 4096 bits do, which are the
// keys that cosign reads.
var ErrKeyType = errors.New("unsupported key type: want ECDSA P-256 or P-384, Ed25519, or RSA of 2048, 3072 or 4096 bits")

// CheckKey returns ErrKeyType unless key is of a supported type and size.
func CheckKey(key crypto.PublicKey) error {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k != nil && (k.Curve == elliptic.P256() || k.Curve == elliptic.P384()) {
			return nil
		}
	case ed25519.PublicKey:
		if len(k) == ed25519.PublicKeySize {
			return nil
		}
	case *rsa.PublicKey:
		if k != nil && k.N != nil && supportedRSA(k.N.BitLen()) {
			return nil
		}
	}
	return ErrKeyType
}

func supportedRSA(bits int) bool { return bits == 2048 || bits == 3072 || bits == 4096 }

// KeyID is the lower-case hex SHA-256 of the key's DER SubjectPublicKeyInfo.
func KeyID(key crypto.PublicKey) (string, error) {
	sum, err := keySum(key)
	return hex.EncodeToString(sum), err
}

// keyHint is the same hash as a bundle carries it: in standard base64.
func keyHint(key crypto.PublicKey) (string, error) {
	sum, err := keySum(key)
	return base64.StdEncoding.EncodeToString(sum), err
}

// hintKeyID is the key ID that a hint stands for, empty when it is not a hash.
func hintKeyID(hint string) string {
	sum, err := base64.StdEncoding.Strict().DecodeString(hint)
	if err != nil || len(sum) != sha256.Size {
		return ""
	}
	return hex.EncodeToString(sum)
}

func keySum(key crypto.PublicKey) ([]byte, error) {
	if err := CheckKey(key); err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding public key: %w", err)
	}
	sum := sha256.Sum256(der)
	return sum[:], nil
}

// ParsePublicKey reads one PEM block "PUBLIC KEY" (PKIX), with nothing but
// white space around it.
func ParsePublicKey(data []byte) (crypto.PublicKey, error) {
	if len(data) > MaxPublicKey {
		return nil, fmt.Errorf("public key is larger than %d bytes", MaxPublicKey)
	}
	if !bytes.HasPrefix(bytes.TrimSpace(data), []byte("-----BEGIN ")) {
		return nil, errors.New("not a PEM public key")
	}
	block, rest := pem.Decode(data)
	switch {
	case block == nil:
		return nil, errors.New("malformed PEM block")
	case strings.Contains(block.Type, "PRIVATE KEY"):
		return nil, errors.New("a private key where a public key belongs")
	case block.Type != "PUBLIC KEY":
		return nil, fmt.Errorf("PEM block %q where PUBLIC KEY belongs", block.Type)
	case len(bytes.TrimSpace(rest)) > 0:
		return nil, errors.New("data after the public key")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("malformed public key: %w", err)
	}
	if err := CheckKey(key); err != nil {
		return nil, err
	}
	return key, nil
}

// MarshalPublicKey writes key as ParsePublicKey reads it.
func MarshalPublicKey(key crypto.PublicKey) ([]byte, error) {
	if err := CheckKey(key); err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding public key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}
