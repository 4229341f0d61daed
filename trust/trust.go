// Package trust keeps the trust repository: TUF metadata in one OCI repository,
// reachable from one tag, that says which image digests are listed, under which
// policy, and until when that answer may be believed.
//
// The bytes, specified in docs/formats.md:
//
//	index "tuf"          artifactType application/vnd.imgtrust.tuf.v1
//	  manifest top       layers: 1.root.json … N.root.json, timestamp.json,
//	                     V.snapshot.json, V.targets.json, HASH.policy.yaml
//	  manifest bins A-B  layers: V.releases-A.json … V.releases-B.json
//
// A [Client] reads it: it walks root, timestamp, snapshot and targets by the
// TUF rules (https://theupdateframework.github.io/specification/v1.0.31/#detailed-client-workflow),
// checks in addition that every role carries the repository's ID and its own
// name and does not live longer than root allows, and persists what it saw, so
// that nothing older is believed later. A [Publisher] is a client that also holds the
// online key: it folds signed statements from the inbox into the bins and
// switches the tag. [Init] makes a repository.
//
// What a Client promises: a [Listing] was reached through a chain of signatures
// from the bootstrap root to the bytes, none of it expired, none of it older
// than what this state directory has seen before.
package trust

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/internal/oci"
	"github.com/imgtrust/imgtrust/policy"
)

// Tag is the tag of the trust index in its repository.
const Tag = "tuf"

// Error is a refusal of the trust repository: Code is the stable word of the
// decision that follows from it.
type Error struct {
	Code   policy.Code
	Err    error
	Advice string // what to do about it; may be empty
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Hint is the remedy, for the command line.
func (e *Error) Hint() string { return e.Advice }

// CodeOf gives the decision code of an error of this package. An error that
// does not say is Unavailable: it could not be told.
func CodeOf(err error) policy.Code {
	var e *Error
	if errors.As(err, &e) && e.Code != "" {
		return e.Code
	}
	return policy.Unavailable
}

func invalid(format string, args ...any) error {
	return &Error{Code: policy.MetadataInvalid, Err: fmt.Errorf(format, args...)}
}

// tufError gives the error of go-tuf for a role its decision code.
func tufError(role string, err error) error {
	var expired *metadata.ErrExpiredMetadata
	var version *metadata.ErrBadVersionNumber
	var unsigned *metadata.ErrUnsignedMetadata
	code, advice := policy.MetadataInvalid, ""
	switch {
	case errors.As(err, &expired):
		code, advice = policy.MetadataExpired, expiryAdvice(role)
	case errors.As(err, &version) && (role == metadata.TIMESTAMP || role == metadata.SNAPSHOT):
		code = policy.RolledBack
		advice = "the registry serves an older trust index than this state has seen; do not delete the state to get past it"
	case role == metadata.ROOT:
		code = policy.UntrustedRoot
	case errors.As(err, &unsigned):
		advice = "either this root.json belongs to another trust repository, or the index was tampered with"
	}
	return &Error{Code: code, Err: fmt.Errorf("%s: %w", role, err), Advice: advice}
}

func expiryAdvice(role string) string {
	switch role {
	case metadata.ROOT, metadata.TARGETS:
		return "the holders of the offline keys must renew it"
	default:
		return "the publisher must run `imgtrust trust publish` again"
	}
}

// fetchError gives an error of the registry its decision code: content that
// does not match its digest is invalid, everything else could not be told.
func fetchError(what string, err error) error {
	e := &Error{Code: policy.Unavailable, Err: fmt.Errorf("%s: %w", what, err)}
	if errors.Is(err, oci.ErrContentMismatch) || errors.Is(err, oci.ErrTooLarge) || errors.Is(err, oci.ErrMalformed) {
		e.Code = policy.MetadataInvalid
	}
	var hinted interface{ Hint() string }
	if errors.As(err, &hinted) {
		e.Advice = hinted.Hint()
	}
	return e
}

// WithoutRevoked leaves out the statements of signers who are revoked since a
// time before the listing; a zero listed is a listing made now. Publisher and
// verifier both call it before they let the policy decide.
func WithoutRevoked(p *policy.Policy, tombstones []Tombstone, statements []attest.Envelope, listed time.Time) []attest.Envelope {
	return slices.DeleteFunc(slices.Clone(statements), func(e attest.Envelope) bool {
		signer, known := p.Signer(e)
		return known && slices.ContainsFunc(tombstones, func(t Tombstone) bool {
			return t.Active() && t.Signer == signer.Name && (listed.IsZero() || !listed.Before(t.Since))
		})
	})
}

// RoleInfo is what a verified role says of itself.
type RoleInfo struct {
	Role      string    `json:"role"`
	Version   int64     `json:"version"`
	Expires   time.Time `json:"expires"`
	KeyIDs    []string  `json:"keyids"`
	Threshold int       `json:"threshold"`
}
