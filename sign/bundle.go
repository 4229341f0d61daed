package sign

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/internal/oci"
)

// bundle is the bytes of one signed bundle.
type bundle struct {
	predicateType string
	data          []byte
}

// signBundles makes the bundles of a release: its own first, then cosign's.
func signBundles(ctx context.Context, release attest.ReleaseStatement, key *Key) ([]bundle, error) {
	own, err := attest.EncodeRelease(release)
	if err != nil {
		return nil, err
	}
	cosign, err := attest.EncodeCosignSign(release.Digest)
	if err != nil {
		return nil, err
	}
	var bundles []bundle
	for _, statement := range []struct {
		predicateType string
		payload       []byte
	}{{attest.ReleaseType, own}, {attest.CosignSignType, cosign}} {
		data, err := Statement(ctx, statement.payload, key)
		if err != nil {
			return nil, err
		}
		bundles = append(bundles, bundle{statement.predicateType, data})
	}
	return bundles, nil
}

// Statement signs one in-toto statement and returns its bundle, after having
// read it back: it decodes to the same payload, and the key verifies it.
func Statement(ctx context.Context, payload []byte, key *Key) ([]byte, error) {
	if _, err := attest.DecodeStatement(payload); err != nil {
		return nil, err
	}
	envelope, err := attest.Sign(ctx, payload, key.Signer())
	if err != nil {
		return nil, err
	}
	data, err := attest.EncodeBundle(envelope, key.Public())
	if err != nil {
		return nil, err
	}
	back, err := attest.DecodeBundle(data)
	if err != nil {
		return nil, fmt.Errorf("reading back the own bundle: %w", err)
	}
	if err := back.Envelope.Verify(key.Public()); err != nil {
		return nil, fmt.Errorf("verifying the own signature: %w", err)
	}
	if !bytes.Equal(back.Envelope.Payload, payload) {
		return nil, fmt.Errorf("reading back the own bundle: another payload")
	}
	return data, nil
}

// artifact is the bundle as cosign attaches it. It carries no time, so that
// equal bundles make equal manifests.
func (b bundle) artifact() oci.Artifact {
	return oci.Artifact{
		Type: attest.BundleMediaType,
		Data: b.data,
		Annotations: map[string]string{
			"dev.sigstore.bundle.content":       "dsse-envelope",
			"dev.sigstore.bundle.predicateType": b.predicateType,
		},
	}
}

func (b bundle) hex() string {
	sum := sha256.Sum256(b.data)
	return hex.EncodeToString(sum[:])
}

func (b bundle) digest() string { return "sha256:" + b.hex() }

// inboxTag is unique to the bytes: two signers never write the same tag unless
// they write the same bundle.
func (b bundle) inboxTag() string { return "s-" + b.hex() }
