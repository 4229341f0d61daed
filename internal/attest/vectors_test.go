package attest_test

import (
	"crypto"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/imgtrust/imgtrust/internal/attest"
)

// Bundles made by cosign 3.1.3, see testdata/cosign/README.md.
func TestCosignVectors(t *testing.T) {
	rows := []struct {
		name, digest string
		want         error
	}{
		{"p256", "sha256:268a810d38f812a5963b8a23baac3b04e7a56da490d76a582197d9520ce7ff01", nil},
		{"p384", "sha256:97498a0afb7e35edcdd3e605b2048f4191f11898c9435cb50f47fc9aeb5bf521", nil},
		{"rsa", "sha256:15fe2bb3985ee93548c913ca72392b8411a3882acd933edbb3a4e68b0839748a", nil},
		{"ed25519", "sha256:e5f1e709b238eb9cbf76f3d62fbc50a80ee0f05b4581bec62aacfc4eab5be752", attest.ErrSignature},
	}
	for _, row := range rows {
		read := func(suffix string) []byte {
			return must[[]byte](t)(os.ReadFile(filepath.Join("testdata", "cosign", row.name+suffix)))
		}
		key := must[crypto.PublicKey](t)(attest.ParsePublicKey(read(".pub")))
		bundle := must[attest.Bundle](t)(attest.DecodeBundle(read(".bundle.json")))
		if err := bundle.Envelope.Verify(key); !errors.Is(err, row.want) {
			t.Errorf("%s: %v, want %v", row.name, err, row.want)
		}
		if id := must[string](t)(attest.KeyID(key)); bundle.Envelope.Signatures[0].KeyID != id {
			t.Errorf("%s: key ID %s from the hint, %s from the key", row.name, bundle.Envelope.Signatures[0].KeyID, id)
		}
		payload := must[[]byte](t)(attest.EncodeCosignSign(row.digest))
		if string(bundle.Envelope.Payload) != string(payload) {
			t.Errorf("%s: cosign's payload is %s, ours %s", row.name, bundle.Envelope.Payload, payload)
		}
		if row.want != nil {
			continue
		}
		// The same bytes come out of our encoder.
		ours := must[[]byte](t)(attest.EncodeBundle(bundle.Envelope, key))
		if string(ours) != string(read(".bundle.json")) {
			t.Errorf("%s: cosign's bundle is\n%s\nours\n%s", row.name, read(".bundle.json"), ours)
		}
	}
}
