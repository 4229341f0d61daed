package attest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"
)

// MaxReason bounds the reason of a revocation, in bytes.
const MaxReason = 512

// signerSubject begins the subject name of a revocation of a signer.
const signerSubject = "signer:"

// Revocation is the predicate of RevocationType.
type Revocation struct {
	Trust   string    `json:"trust"`            // ID of the trust repository: it holds in no other one
	Created time.Time `json:"created"`          // RFC 3339, UTC, whole seconds
	Reason  string    `json:"reason"`           // 1 to 512 bytes, for people
	Undo    bool      `json:"undo,omitempty"`   // takes back what was revoked before Created
	Since   time.Time `json:"since,omitzero"`   // of a signer: what was listed then or later; required
	Signer  string    `json:"signer,omitempty"` // a signer of the policy, instead of a digest
}

// RevocationStatement is a decoded revocation: what its envelope's payload says.
// It is about a digest, or about a signer.
type RevocationStatement struct {
	Repository string // canonical, where the digest was found; "" for a signer
	Digest     string // "sha256:<hex>"; "" for a signer
	Revocation
}

// EncodeRevocation writes the payload of a revocation. Equal statements give
// equal bytes.
func EncodeRevocation(s RevocationStatement) ([]byte, error) {
	s.Created, s.Since = utc(s.Created), utc(s.Since)
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("revocation: %w", err)
	}
	predicate, err := marshal(s.Revocation)
	if err != nil {
		return nil, fmt.Errorf("revocation: %w", err)
	}
	name, digest := s.subject()
	return EncodeStatement(Statement{Name: name, Digest: digest, PredicateType: RevocationType, Predicate: predicate})
}

// DecodeRevocation reads the payload of a revocation strictly: a field that it
// does not know may say what is not to be missed.
func DecodeRevocation(payload []byte) (RevocationStatement, error) {
	statement, err := DecodeStatement(payload)
	if err != nil {
		return RevocationStatement{}, err
	}
	if statement.PredicateType != RevocationType {
		return RevocationStatement{}, fmt.Errorf("statement: predicateType: %q where %q belongs", statement.PredicateType, RevocationType)
	}
	var s RevocationStatement
	if err := UnmarshalStrict(statement.Predicate, &s.Revocation, false); err != nil {
		return RevocationStatement{}, fmt.Errorf("revocation: %w", err)
	}
	if s.Signer == "" {
		s.Repository, s.Digest = statement.Name, statement.Digest
	}
	if err := s.check(); err != nil {
		return RevocationStatement{}, fmt.Errorf("revocation: %w", err)
	}
	if name, digest := s.subject(); name != statement.Name || digest != statement.Digest {
		return RevocationStatement{}, fmt.Errorf("revocation: the subject %.100q is not the signer %q", statement.Name, s.Signer)
	}
	s.Created, s.Since = utc(s.Created), utc(s.Since)
	return s, nil
}

// subject is the subject of the statement: in-toto wants a digest, and that of a
// signer is the hash of the name.
func (s RevocationStatement) subject() (name, digest string) {
	if s.Signer == "" {
		return s.Repository, s.Digest
	}
	sum := sha256.Sum256([]byte(s.Signer))
	return signerSubject + s.Signer, "sha256:" + hex.EncodeToString(sum[:])
}

// check keeps the grammar and the bounds of every field.
func (s RevocationStatement) check() error {
	_, err := hex.DecodeString(s.Trust)
	switch {
	case err != nil || len(s.Trust) != 32 || s.Trust != strings.ToLower(s.Trust):
		return fmt.Errorf("trust: %.100q is not the ID of a trust repository", s.Trust)
	case s.Created.IsZero() || !wholeUTC(s.Created):
		return fmt.Errorf("created: missing, or not in UTC and whole seconds")
	case s.Reason == "" || len(s.Reason) > MaxReason:
		return fmt.Errorf("reason: %d bytes where 1 to %d belong", len(s.Reason), MaxReason)
	case s.Signer != "":
		return s.checkSigner()
	case !s.Since.IsZero():
		return fmt.Errorf("since: only a signer is revoked since a time")
	case !isDigest(s.Digest):
		return fmt.Errorf("the subject %.100q is not sha256:<64 lower-case hex digits>", s.Digest)
	}
	return Release{Repository: s.Repository}.checkRepository()
}

func (s RevocationStatement) checkSigner() error {
	switch {
	case !isWord(s.Signer):
		return fmt.Errorf("signer: not 1 to %d printable characters", MaxWord)
	case s.Since.IsZero() || !wholeUTC(s.Since):
		return fmt.Errorf("since: missing, or not in UTC and whole seconds")
	case s.Repository+s.Digest != "":
		return fmt.Errorf("signer: a revocation is about a digest or about a signer")
	}
	return nil
}
