package trust

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/imgtrust/imgtrust/internal/attest"
)

// DigestTarget is the name of the target that lists a digest of a repository.
func DigestTarget(repository string, digest v1.Hash) string {
	return repository + "@" + digest.String()
}

// TagTarget is the name of the target that says what a tag points to.
func TagTarget(repository, tag string) string { return repository + ":" + tag }

// Listing is a verified target of the bins: what the publisher lists for a
// digest or a tag.
type Listing struct {
	Target    string
	Digest    v1.Hash           // of the manifest
	Size      int64             // of the manifest in bytes
	Listed    time.Time         // when the publisher first listed it
	Envelopes []attest.Envelope // the statements, newest per signer
	Indexes   []v1.Hash         // of a child manifest: the newest indexes that list it
	Bin       RoleInfo          // the role that signed the entry
}

// entry is the custom part of a target.
type entry struct {
	Listed    time.Time        `json:"listed"`
	Envelopes []storedEnvelope `json:"envelopes,omitempty"`
	Indexes   []string         `json:"indexes,omitempty"`
}

// storedEnvelope is a DSSE envelope with the in-toto payload as text instead of
// base64: the same bytes, which compress to about half.
type storedEnvelope struct {
	Payload    string            `json:"payload"`
	Signatures []storedSignature `json:"signatures"`
}

type storedSignature struct {
	KeyID string `json:"keyid"`
	Sig   []byte `json:"sig"`
}

func storeEnvelope(e attest.Envelope) (storedEnvelope, error) {
	if e.PayloadType != attest.PayloadType || !utf8.Valid(e.Payload) {
		return storedEnvelope{}, fmt.Errorf("the payload is not in-toto text")
	}
	s := storedEnvelope{Payload: string(e.Payload)}
	for _, sig := range e.Signatures {
		s.Signatures = append(s.Signatures, storedSignature{sig.KeyID, sig.Sig})
	}
	return s, nil
}

func (s storedEnvelope) envelope() attest.Envelope {
	e := attest.Envelope{PayloadType: attest.PayloadType, Payload: []byte(s.Payload)}
	for _, sig := range s.Signatures {
		e.Signatures = append(e.Signatures, attest.Signature{KeyID: sig.KeyID, Sig: sig.Sig})
	}
	return e
}

// target makes the TUF target of an entry.
func (e entry) target(digest v1.Hash, size int64) (*metadata.TargetFiles, error) {
	custom, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	sum, err := hashBytes(digest)
	if err != nil {
		return nil, err
	}
	raw := json.RawMessage(custom)
	return &metadata.TargetFiles{Length: size, Hashes: metadata.Hashes{"sha256": sum}, Custom: &raw}, nil
}

// listing decodes a target of a verified bin, strictly and within bounds.
func listing(name string, t *metadata.TargetFiles) (Listing, entry, error) {
	var e entry
	if t == nil || t.Custom == nil {
		return Listing{}, e, invalid("target %s: no custom part", name)
	}
	if err := attest.UnmarshalStrict(*t.Custom, &e, false); err != nil {
		return Listing{}, e, invalid("target %s: %w", name, err)
	}
	digest, err := v1.NewHash("sha256:" + t.Hashes["sha256"].String())
	if err != nil || len(t.Hashes) != 1 || t.Length <= 0 {
		return Listing{}, e, invalid("target %s: its hash or length is not valid", name)
	}
	if len(e.Envelopes) > maxEnvelopes || len(e.Indexes) > maxIndexes {
		return Listing{}, e, invalid("target %s: more than %d statements or %d indexes", name, maxEnvelopes, maxIndexes)
	}
	l := Listing{Target: name, Digest: digest, Size: t.Length, Listed: e.Listed}
	for _, s := range e.Envelopes {
		l.Envelopes = append(l.Envelopes, s.envelope())
	}
	for _, i := range e.Indexes {
		h, err := v1.NewHash(i)
		if err != nil {
			return Listing{}, e, invalid("target %s: %w", name, err)
		}
		l.Indexes = append(l.Indexes, h)
	}
	return l, e, nil
}

// addIndex puts index first and keeps the newest maxIndexes.
func (e *entry) addIndex(index string) {
	rest := slices.DeleteFunc(e.Indexes, func(i string) bool { return i == index })
	e.Indexes = append([]string{index}, rest...)
	e.Indexes = e.Indexes[:min(len(e.Indexes), maxIndexes)]
}

// binOf gives the bin responsible for a target: the first bits of the SHA-256
// of its name (TAP 15, succinct hash bin delegation).
func binOf(target string, b int) int {
	sum := sha256.Sum256([]byte(target))
	return int(binary.BigEndian.Uint32(sum[:4]) >> (32 - b))
}

func hashBytes(h v1.Hash) (metadata.HexBytes, error) {
	var b metadata.HexBytes
	err := b.UnmarshalJSON([]byte(`"` + h.Hex + `"`))
	return b, err
}
