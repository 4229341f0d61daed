package attest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// StatementType is the _type of every statement.
const StatementType = "https://in-toto.io/Statement/v1"

// Predicate types.
const (
	ReleaseType    = "https://imgtrust.dev/release/v1"
	RevocationType = "https://imgtrust.dev/revocation/v1"
	BreakGlassType = "https://imgtrust.dev/break-glass/v1"
	// CosignSignType is what cosign signs images with. It names no repository.
	CosignSignType = "https://sigstore.dev/cosign/sign/v1"
)

// Statement is an in-toto Statement v1 with exactly one subject, which has
// exactly a sha256 digest, see
// https://github.com/in-toto/attestation/blob/v1.1.2/spec/v1/statement.md.
type Statement struct {
	Name          string // subject name: the canonical repository ("" in cosign's)
	Digest        string // "sha256:<hex>"
	PredicateType string
	Predicate     json.RawMessage // an object, not looked into beyond names given twice
}

type statementJSON struct {
	Type          string          `json:"_type"`
	Subject       []subjectJSON   `json:"subject"`
	PredicateType string          `json:"predicateType"`
	Predicate     json.RawMessage `json:"predicate"`
}

type subjectJSON struct {
	Name   string     `json:"name,omitempty"`
	Digest digestJSON `json:"digest"`
	// Annotations are always written by cosign, mostly empty; they are not read.
	Annotations json.RawMessage `json:"annotations,omitempty"`
}

type digestJSON struct {
	SHA256 string `json:"sha256"`
}

// DecodeStatement reads a payload strictly: fields that Statement does not
// stand for are errors.
func DecodeStatement(payload []byte) (Statement, error) {
	s, err := decodeStatement(payload)
	if err != nil {
		return Statement{}, fmt.Errorf("statement: %w", err)
	}
	return s, nil
}

func decodeStatement(payload []byte) (Statement, error) {
	if err := checkPayload(payload); err != nil {
		return Statement{}, err
	}
	var j statementJSON
	if err := UnmarshalStrict(payload, &j, false); err != nil {
		return Statement{}, err
	}
	if j.Type != StatementType {
		return Statement{}, fmt.Errorf("_type: %.100q where %q belongs", j.Type, StatementType)
	}
	if len(j.Subject) != 1 {
		return Statement{}, fmt.Errorf("subject: %d where exactly 1 belongs", len(j.Subject))
	}
	s := Statement{
		Name:          j.Subject[0].Name,
		Digest:        "sha256:" + j.Subject[0].Digest.SHA256,
		PredicateType: j.PredicateType,
		Predicate:     j.Predicate,
	}
	return s, s.check()
}

func (s Statement) check() error {
	switch {
	case len(s.Name) > MaxName:
		return fmt.Errorf("subject[0].name: longer than %d bytes", MaxName)
	case !isDigest(s.Digest):
		return fmt.Errorf("subject[0].digest: sha256 is not 64 lower-case hex digits")
	case !isWord(s.PredicateType):
		return fmt.Errorf("predicateType: not 1 to %d printable characters", MaxWord)
	case !bytes.HasPrefix(s.Predicate, []byte("{")):
		return fmt.Errorf("predicate: not an object")
	}
	return nil
}

// EncodeStatement writes s as DecodeStatement reads it. Equal statements give
// equal bytes.
func EncodeStatement(s Statement) ([]byte, error) {
	return s.encode(nil)
}

// EncodeCosignSign writes the statement by which cosign signs the image with
// the given digest ("sha256:<hex>"), as cosign writes it.
func EncodeCosignSign(digest string) ([]byte, error) {
	s := Statement{Digest: digest, PredicateType: CosignSignType, Predicate: json.RawMessage("{}")}
	return s.encode(json.RawMessage("{}"))
}

func (s Statement) encode(annotations json.RawMessage) ([]byte, error) {
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("statement: %w", err)
	}
	hex := strings.TrimPrefix(s.Digest, "sha256:")
	payload, err := marshal(statementJSON{
		Type:          StatementType,
		Subject:       []subjectJSON{{Name: s.Name, Digest: digestJSON{SHA256: hex}, Annotations: annotations}},
		PredicateType: s.PredicateType,
		Predicate:     s.Predicate,
	})
	if err == nil {
		err = checkPayload(payload)
	}
	if err != nil {
		return nil, fmt.Errorf("statement: %w", err)
	}
	return payload, nil
}
