// Package policy decides which images may run: it reads the policy document and
// holds signed statements against it. It is pure: no input or output, no clock.
//
// A policy is one YAML document:
//
//	apiVersion: imgtrust.dev/v1
//	kind: Policy
//
//	# Who may sign. One key, or several while a key is being replaced; no key
//	# may stand under two signers. Keys are PEM: ECDSA P-256 or P-384, Ed25519,
//	# RSA from 2048 bits.
//	signers:
//	  payments-ci:
//	    key: |
//	      -----BEGIN PUBLIC KEY-----
//	      MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt
//	      6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q==
//	      -----END PUBLIC KEY-----
//	  security:
//	    keys:
//	      # A key with listedBefore counts only for images that the publisher
//	      # listed before that day (00:00 UTC) or RFC 3339 instant.
//	      - listedBefore: 2026-01-01
//	        key: |
//	          -----BEGIN PUBLIC KEY-----
//	          MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=
//	          -----END PUBLIC KEY-----
//	      - key: |
//	          -----BEGIN PUBLIC KEY-----
//	          MCowBQYDK2VwAyEAPUAXw+hDiVqStwqnTRt+vJyYLM8uxJaMwM1V8Sr0Zgw=
//	          -----END PUBLIC KEY-----
//
//	# Who may revoke a digest, or a signer, without the offline keys, and take that
//	# back: so many of these signers, each by a key of their own.
//	revokers: {threshold: 1, from: [security]}
//
//	# Digests of indexes, manifests or configs that are refused everywhere,
//	# under audit rules too.
//	deny:
//	  - "sha256:0000000000000000000000000000000000000000000000000000000000000000"
//
//	# The first rule with a matching pattern decides; no match is a refusal.
//	rules:
//	  # "*" stands for any characters but "/", possibly none; "**" for at least
//	  # one character of any kind, so payments/** does not match payments. There
//	  # is no wildcard in the host. Names are canonical: docker.io/library/nginx.
//	  - images: ["registry.example.com/payments/**"]
//	    # Statements by so many of these signers, each by a key of their own.
//	    signatures: {threshold: 2, from: [payments-ci, security]}
//	    # Statements older than this do not count; a whole number of d, h or m.
//	    maxAge: 90d
//	    # CEL, true for each statement that counts.
//	    conditions:
//	      - expr: 'image.user != "0"'
//	        message: "runs as root"
//	      - expr: '!has(image.setuid) || image.setuid == 0'
//	        message: "has setuid files"
//	  - images: ["registry.example.com/legacy/**", "docker.io/library/*"]
//	    # Decide and record, but let it run. A rule that audits needs no signatures.
//	    audit: true
//
// Decoding is strict. An unknown field, a repeated key, a value of the wrong
// type, an anchor, alias or tag, a second document, an unknown signer, a
// threshold of 0 or above the distinct signers, a key under two signers, a
// condition that does not compile and a rule that earlier rules leave nothing to
// match are an [*Error] that names line and column. The fields identity, require,
// breakGlass and running are part of the format but not enforced yet;
// they are refused, never ignored.
//
// # Conditions
//
// A condition is an expression of the Common Expression Language
// (https://github.com/google/cel-spec/blob/v0.24.0/doc/langdef.md) over three
// variables. A field that is not known is missing: has(image.user) is false and
// reading it fails the condition, so what could not be told never passes. A
// field that does not exist at all does not compile.
//
//	image.repository  string        canonical repository that is decided
//	image.digest      string        "sha256:…" that would run
//	image.tag         string        missing when decided by digest alone
//	image.platforms   list(string)  "linux/amd64", …; what the digest covers
//	image.user        string        user without its group; "0" for root, 0 and none
//	image.entrypoint  list(string)  missing when the image has none
//	image.size        int           bytes: config and compressed layers
//	image.layers      int           number of layers
//	image.setuid      int           number of setuid and setgid files
//	image.shell       bool          whether there is a shell
//
//	statement.created      timestamp
//	statement.expires      timestamp  missing when the statement never expires
//	statement.repository   string
//	statement.tags         list(string)
//	statement.annotations  map(string, string)
//	statement.provenance   string     digest; missing when none is named
//	statement.sbom         string     digest; missing when none is named
//
//	now                    timestamp  of the decision
//
// A statement describes the config of its first platform only. So image.user,
// entrypoint, size, layers, setuid and shell are missing for the other
// platforms, and for an index whose platforms have different configs. A user
// name that the image's own passwd file maps to 0 is not seen as root.
//
// # Limits
//
// A document has at most 256 KiB, 1024 rules, 1024 patterns in all, 64
// conditions a rule of at most 4096 bytes each, and 16 levels of nesting. A
// signer has at most 8 keys. Decide looks at the first [MaxEnvelopes] envelopes,
// so a threshold is at most that. Each condition may cost 100,000 units of CEL's
// own cost model, about some milliseconds, and no time-out is needed.
package policy

import (
	"crypto"
	"slices"
	"strings"
	"time"

	"github.com/imgtrust/imgtrust/internal/attest"
)

// Code is the stable word of a decision. Decide gives Allowed, Denied, NoRule,
// BadSignature, WrongRepository, ThresholdNotMet, StatementExpired, TooOld and
// ConditionFailed; the others belong to its callers.
type Code string

const (
	Allowed          Code = "allowed"
	UntrustedRoot    Code = "untrusted-root"
	Unavailable      Code = "unavailable"
	MetadataInvalid  Code = "metadata-invalid"
	RolledBack       Code = "rolled-back"
	MetadataExpired  Code = "metadata-expired"
	Denied           Code = "denied"
	Revoked          Code = "revoked"
	TagMismatch      Code = "tag-mismatch"
	NotListed        Code = "not-listed"
	ContentMismatch  Code = "content-mismatch"
	NoRule           Code = "no-rule"
	BadSignature     Code = "bad-signature"
	WrongRepository  Code = "wrong-repository"
	ThresholdNotMet  Code = "threshold-not-met"
	StatementExpired Code = "statement-expired"
	TooOld           Code = "too-old"
	ConditionFailed  Code = "condition-failed"
)

// MaxEnvelopes is how many envelopes Decide looks at, and so the largest
// threshold. A listing carries no more either.
const MaxEnvelopes = 8

// MaxSkew is how far ahead of now a statement may have been created and count.
const MaxSkew = 5 * time.Minute

// Facts are what is known about the image beside its envelopes.
type Facts struct {
	Repository string    // canonical repository being decided
	Digest     string    // "sha256:…" the digest that would run: a subject, or a manifest named in a subject's statement
	Tag        string    // "" when decided by digest alone; otherwise statements must name it to count
	Listed     time.Time // when the publisher first listed the digest; zero: being listed now
}

// Verdict is the answer of Decide. The zero Verdict allows nothing.
type Verdict struct {
	Code    Code
	Reasons []string // each one sentence; first is the cause of Code
	Rule    string   // "rules[1] registry.example.com/payments/**"; "" when none
	Audit   bool     // the rule only audits: callers allow, and say so; never with Denied or NoRule
	Signers []Signer // counted, distinct, in order of name; below the threshold those that did count
	// Committed are the digests that the validly signed statements about the
	// image bind to it, counted or not: their subjects, and the manifests and
	// configs that the image covers. What revokes one of them revokes the image.
	Committed []string
	// Statement is the newest counted statement (nil when none counts).
	Statement *attest.ReleaseStatement
	// Time is the k-th newest Created among the signers, k the threshold: the
	// tag's time. Each signer's newest statement about this repository, digest
	// and tag is taken, expired or not, so that the time does not go back when a
	// statement expires. Zero when there are fewer than k.
	Time time.Time
	// Until is the earliest instant at which this verdict may change by time
	// alone; zero: none. NoCache: the rule reads now.
	Until   time.Time
	NoCache bool
}

// Signer is one signer whose statement counted.
type Signer struct {
	Name    string    `json:"name"`
	KeyID   string    `json:"keyid"`
	Created time.Time `json:"created"`
}

// Policy is a decoded policy document. It does not change after Parse, so any
// number of goroutines may use it. The zero value and nil allow nothing.
type Policy struct {
	signers  []*signer // in order of name
	revokers quorum
	deny     map[string]bool
	rules    []rule
}

// quorum is so many of these signers; the zero quorum is nobody.
type quorum struct {
	threshold int
	from      []*signer // distinct, in order of name
}

type signer struct {
	name string
	keys []key
}

type key struct {
	id           string
	public       crypto.PublicKey
	listedBefore time.Time // zero: no limit
}

type rule struct {
	patterns   []pattern
	threshold  int       // 0 only in an audit rule without signatures
	from       []*signer // distinct, in order of name
	maxAge     time.Duration
	conditions []condition
	audit      bool
}

// Rule describes a rule of the policy.
type Rule struct {
	Name       string   // "rules[1]"
	Images     []string // patterns
	Threshold  int      // 0: an audit rule that asks for no signatures
	From       []string // names of signers, in order
	MaxAge     time.Duration
	Conditions []string // CEL expressions
	Audit      bool
}

// Rules describes all rules in the order in which they are tried.
func (p *Policy) Rules() []Rule {
	if p == nil {
		return nil
	}
	var all []Rule
	for i := range p.rules {
		all = append(all, p.rules[i].describe(i))
	}
	return all
}

// Match describes the rule that decides about a canonical repository and names
// the pattern that matched; false when there is none.
func (p *Policy) Match(repository string) (r Rule, pattern string, ok bool) {
	i, pattern := p.find(repository)
	if i < 0 {
		return Rule{}, "", false
	}
	return p.rules[i].describe(i), pattern, true
}

// Signers names the signers of the policy, in order.
func (p *Policy) Signers() []string {
	if p == nil {
		return nil
	}
	return names(p.signers)
}

// Signer names the signer (and key ID) of the policy by whose key e is validly
// signed, the first in order of name if several are. It says nothing about what
// e states or whether it counts. The Created of the result is zero.
func (p *Policy) Signer(e attest.Envelope) (Signer, bool) {
	if p == nil {
		return Signer{}, false
	}
	for _, s := range p.signers {
		if k, ok := s.signed(e); ok {
			return Signer{Name: s.name, KeyID: k.id}, true
		}
	}
	return Signer{}, false
}

// Denied tells whether any of the digests is under deny:, and which is the first.
func (p *Policy) Denied(digests ...string) (string, bool) {
	if p == nil {
		return "", false
	}
	i := slices.IndexFunc(digests, func(d string) bool { return p.deny[d] })
	if i < 0 {
		return "", false
	}
	return digests[i], true
}

// find returns the index of the first rule that matches and its pattern, or -1.
func (p *Policy) find(repository string) (int, string) {
	if p == nil {
		return -1, ""
	}
	name := literal(repository)
	for i, r := range p.rules {
		for _, pat := range r.patterns {
			if covers(pat.tokens, name) {
				return i, pat.text
			}
		}
	}
	return -1, ""
}

func (r *rule) describe(index int) Rule {
	d := Rule{Name: ruleName(index), Threshold: r.threshold, From: names(r.from), MaxAge: r.maxAge, Audit: r.audit}
	for _, pat := range r.patterns {
		d.Images = append(d.Images, pat.text)
	}
	for _, c := range r.conditions {
		d.Conditions = append(d.Conditions, c.expr)
	}
	return d
}

// signed returns the first key of s by which e is validly signed.
func (s *signer) signed(e attest.Envelope) (key, bool) {
	for _, k := range s.keys {
		if e.Verify(k.public) == nil {
			return k, true
		}
	}
	return key{}, false
}

func names(signers []*signer) []string {
	var all []string
	for _, s := range signers {
		all = append(all, s.name)
	}
	return all
}

func byName(a, b *signer) int { return strings.Compare(a.name, b.name) }
