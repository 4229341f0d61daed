package sign

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/kms"
	"github.com/sigstore/sigstore/pkg/signature/options"

	"github.com/imgtrust/imgtrust/internal/attest"
)

// kmsTime bounds one call of a key service.
const kmsTime = 60 * time.Second

// isKMS tells whether a key is named by a reference, SCHEME://…, and not by a file.
func isKMS(path string) bool {
	scheme, _, ok := strings.Cut(path, "://")
	return ok && scheme != ""
}

// loadKMS asks a key service for a key: the program sigstore-kms-SCHEME on the
// PATH, by sigstore's plugin protocol. The key never leaves the service.
func loadKMS(ctx context.Context, reference string) (*Key, error) {
	public, err := kmsPublic(ctx, reference, crypto.SHA256)
	if err != nil {
		return nil, err
	}
	hash := crypto.SHA256
	if k, ok := public.(*ecdsa.PublicKey); ok && k.Curve == elliptic.P384() {
		hash = crypto.SHA384
	}
	service, err := openKMS(ctx, reference, hash)
	if err != nil {
		return nil, err
	}
	id, err := attest.KeyID(public)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", reference, err)
	}
	k := &kmsKey{service: service, reference: reference, public: public}
	return &Key{private: k, signer: k, id: id}, nil
}

func openKMS(ctx context.Context, reference string, hash crypto.Hash) (kms.SignerVerifier, error) {
	service, err := kms.Get(ctx, reference, hash)
	var unknown *kms.ProviderNotFoundError
	if errors.As(err, &unknown) {
		scheme, _, _ := strings.Cut(reference, "://")
		return nil, &KeyError{reference, "is kept by a key service for which there is no program",
			fmt.Sprintf("install sigstore-kms-%s, a plugin of sigstore's protocol, on the PATH", scheme)}
	}
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", reference, err)
	}
	return service, nil
}

func kmsPublic(ctx context.Context, reference string, hash crypto.Hash) (crypto.PublicKey, error) {
	service, err := openKMS(ctx, reference, hash)
	if err != nil {
		return nil, err
	}
	var public crypto.PublicKey
	err = askKMS(ctx, reference, func(ctx context.Context) (err error) {
		public, err = service.PublicKey(options.WithContext(ctx))
		return err
	})
	return public, err
}

// askKMS makes one call of a key service, bounded in time. A plugin whose answer
// lacks what was asked for makes the protocol's client panic.
func askKMS(ctx context.Context, reference string, call func(context.Context) error) (err error) {
	ctx, cancel := context.WithTimeout(ctx, kmsTime)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("key %s: the key service gave a malformed answer", reference)
		}
	}()
	if err := call(ctx); err != nil {
		return fmt.Errorf("key %s: %w", reference, err)
	}
	return nil
}

// kmsKey signs by a key service, as signature.Signer with the algorithm of the
// service, and as crypto.Signer.
type kmsKey struct {
	service   kms.SignerVerifier
	reference string
	public    crypto.PublicKey
}

func (k *kmsKey) Public() crypto.PublicKey { return k.public }

func (k *kmsKey) PublicKey(...signature.PublicKeyOption) (crypto.PublicKey, error) {
	return k.public, nil
}

// SignMessage signs a message that the service hashes itself.
func (k *kmsKey) SignMessage(message io.Reader, opts ...signature.SignOption) ([]byte, error) {
	ctx := context.Background()
	for _, o := range opts {
		o.ApplyContext(&ctx)
	}
	var sig []byte
	err := askKMS(ctx, k.reference, func(ctx context.Context) (err error) {
		sig, err = k.service.SignMessage(message, append(opts, options.WithContext(ctx))...)
		return err
	})
	return sig, err
}

// Sign signs a digest, or for Ed25519 the message.
func (k *kmsKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if _, ok := k.public.(ed25519.PublicKey); ok {
		return k.SignMessage(bytes.NewReader(digest))
	}
	return k.SignMessage(bytes.NewReader(nil), options.WithDigest(digest), options.WithCryptoSignerOpts(opts))
}
