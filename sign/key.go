package sign

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/secure-systems-lab/go-securesystemslib/encrypted"
	"github.com/sigstore/sigstore/pkg/signature"

	"github.com/imgtrust/imgtrust/internal/attest"
)

// maxKeyFile bounds a key file, in bytes.
const maxKeyFile = 64 << 10

// PEM block types. The encrypted ones are cosign's: PKCS #8 in a NaCl secret
// box whose key scrypt derives from a passphrase.
const (
	encryptedSigstore = "ENCRYPTED SIGSTORE PRIVATE KEY"
	encryptedCosign   = "ENCRYPTED COSIGN PRIVATE KEY"
	plainPKCS8        = "PRIVATE KEY"
	plainPKCS1        = "RSA PRIVATE KEY"
	plainEC           = "EC PRIVATE KEY"
)

// KeyType names the type of a new key.
type KeyType string

// The key types that GenerateKey makes. ECDSA on P-256 is what every peer reads.
const (
	ECDSAP256 KeyType = "ecdsa-p256"
	ECDSAP384 KeyType = "ecdsa-p384"
	Ed25519   KeyType = "ed25519"
	RSA3072   KeyType = "rsa-3072"
)

// KeyTypes lists the key types that GenerateKey makes, the usual one first.
func KeyTypes() []KeyType { return []KeyType{ECDSAP256, ECDSAP384, Ed25519, RSA3072} }

// Key is a private key. It may be used concurrently.
type Key struct {
	private crypto.Signer
	signer  signature.Signer
	id      string
}

// NewKey wraps a private key: ECDSA P-256 or P-384, Ed25519, or RSA of 2048,
// 3072 or 4096 bits; attest.ErrKeyType otherwise.
func NewKey(private crypto.Signer) (*Key, error) {
	id, err := attest.KeyID(private.Public())
	if err != nil {
		return nil, err
	}
	signer, err := signature.LoadDefaultSigner(private)
	if err != nil {
		return nil, err
	}
	return &Key{private: private, signer: signer, id: id}, nil
}

// GenerateKey makes a new key; kind "" is ECDSAP256.
func GenerateKey(kind KeyType) (*Key, error) {
	var private crypto.Signer
	var err error
	switch kind {
	case ECDSAP256, "":
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case ECDSAP384:
		private, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case Ed25519:
		_, private, err = ed25519.GenerateKey(rand.Reader)
	case RSA3072:
		private, err = rsa.GenerateKey(rand.Reader, 3072)
	default:
		return nil, fmt.Errorf("unknown key type %q: want one of %v", kind, KeyTypes())
	}
	if err != nil {
		return nil, fmt.Errorf("generating a key: %w", err)
	}
	return NewKey(private)
}

// Signer signs statements: with the algorithm that cosign uses for the key.
func (k *Key) Signer() signature.Signer { return k.signer }

// Private is the bare key, for roles that sign in another way (RSA PSS in TUF).
func (k *Key) Private() crypto.Signer { return k.private }

// Public is the public key.
func (k *Key) Public() crypto.PublicKey { return k.private.Public() }

// ID is the key ID: hex SHA-256 of the DER SubjectPublicKeyInfo.
func (k *Key) ID() string { return k.id }

// MarshalEncrypted writes the key as PEM, encrypted under passphrase, as cosign
// reads it.
func (k *Key) MarshalEncrypted(passphrase []byte) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k.private)
	if err != nil {
		return nil, fmt.Errorf("encoding the key: %w", err)
	}
	box, err := encrypted.Encrypt(der, passphrase)
	if err != nil {
		return nil, fmt.Errorf("encrypting the key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: encryptedSigstore, Bytes: box}), nil
}

// LoadOptions of LoadKey.
type LoadOptions struct {
	// Passphrase is called once, and only for an encrypted key. Nil: encrypted
	// keys are errors.
	Passphrase func() ([]byte, error)
	// Plaintext accepts a key that is not encrypted, too: whoever reads the
	// file then signs as its owner.
	Plaintext bool
}

// ErrPassphrase is returned for a passphrase that does not open the key.
var ErrPassphrase = errors.New("wrong passphrase")

// LoadKey reads a private key from a PEM file of at most 64 KiB: encrypted as
// MarshalEncrypted and cosign write it, or plain (PKCS #8, PKCS #1, SEC 1) when
// the options allow it. A reference SCHEME://… is a key in a key service, reached
// by the program sigstore-kms-SCHEME; there is no passphrase then.
func LoadKey(ctx context.Context, path string, o LoadOptions) (*Key, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if isKMS(path) {
		return loadKMS(ctx, path)
	}
	data, err := readKeyFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading key: %w", err)
	}
	return parseKey(path, data, o)
}

func readKeyFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err == nil && len(data) > maxKeyFile {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxKeyFile)
	}
	return data, err
}

// parseKey decodes the PEM block that a key file consists of.
func parseKey(path string, data []byte, o LoadOptions) (*Key, error) {
	block, rest := pem.Decode(data)
	if block == nil || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("key %s is not one PEM block", path)
	}
	der := block.Bytes
	switch {
	case block.Type == encryptedSigstore || block.Type == encryptedCosign:
		var err error
		if der, err = decrypt(path, block.Bytes, o.Passphrase); err != nil {
			return nil, err
		}
	case block.Type == "PUBLIC KEY" || block.Type == "RSA PUBLIC KEY":
		return nil, &KeyError{path, "is a public key", "signing needs the private key, which is mostly the file ending in .key"}
	case !isPlain(block.Type):
		return nil, &KeyError{path, fmt.Sprintf("has a PEM block %q, which is not supported", block.Type), ""}
	case !o.Plaintext:
		return nil, &KeyError{path, "is not encrypted", "--insecure-plaintext-key accepts it: whoever reads the file then signs as its owner"}
	}
	private, err := parsePrivate(block.Type, der)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", path, err)
	}
	key, err := NewKey(private)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", path, err)
	}
	return key, nil
}

func isPlain(blockType string) bool {
	return blockType == plainPKCS8 || blockType == plainPKCS1 || blockType == plainEC
}

func decrypt(path string, box []byte, passphrase func() ([]byte, error)) ([]byte, error) {
	if passphrase == nil {
		return nil, &KeyError{path, "is encrypted, and there is no passphrase", ""}
	}
	word, err := passphrase()
	if err != nil {
		return nil, err
	}
	der, err := encrypted.Decrypt(box, word)
	switch {
	case err == nil:
		return der, nil
	case strings.HasSuffix(err.Error(), "decryption failed"):
		return nil, fmt.Errorf("%w for %s", ErrPassphrase, path)
	}
	return nil, fmt.Errorf("key %s is malformed: %w", path, err)
}

func parsePrivate(blockType string, der []byte) (crypto.Signer, error) {
	var key any
	var err error
	switch blockType {
	case plainPKCS1:
		key, err = x509.ParsePKCS1PrivateKey(der)
	case plainEC:
		key, err = x509.ParseECPrivateKey(der)
	default:
		key, err = x509.ParsePKCS8PrivateKey(der)
	}
	if err != nil {
		return nil, fmt.Errorf("malformed private key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, attest.ErrKeyType
	}
	return signer, nil
}

// KeyError is a key file that cannot be used as it is.
type KeyError struct {
	Path, Reason, Advice string
}

func (e *KeyError) Error() string { return fmt.Sprintf("key %s %s", e.Path, e.Reason) }

// Hint says what to do about it; empty when there is nothing to say.
func (e *KeyError) Hint() string { return e.Advice }
