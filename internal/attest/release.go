package attest

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
)

// Release is the predicate of ReleaseType.
type Release struct {
	Repository  string            `json:"repository"` // canonical, with its host in lower case
	Tags        []string          `json:"tags,omitempty"`
	Created     time.Time         `json:"created"`          // RFC 3339, UTC, whole seconds
	Expires     time.Time         `json:"expires,omitzero"` // as Created, and after it; zero: never
	Annotations map[string]string `json:"annotations,omitempty"`
	// Manifests: first the subject itself, then (for an index) its platform
	// children, BuildKit attestation manifests left out.
	Manifests  []Manifest `json:"manifests"`
	Config     *Config    `json:"config,omitempty"`     // facts of the (first) platform's config
	Provenance string     `json:"provenance,omitempty"` // digests "sha256:…"
	SBOM       string     `json:"sbom,omitempty"`
	Slim       string     `json:"slim,omitempty"`
}

// Manifest is one manifest of the image.
type Manifest struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`             // "sha256:<hex>"
	Size      int64  `json:"size"`               // bytes, above 0
	Platform  string `json:"platform,omitempty"` // "linux/amd64[/v2]"; empty for an index
	Config    string `json:"config,omitempty"`   // config digest; empty for an index
	Rootfs    string `json:"rootfs,omitempty"`   // rootfs tree digest, when the signer had the layers
}

// IsIndex tells whether m is an OCI index or a Docker manifest list.
func (m Manifest) IsIndex() bool {
	return m.MediaType == "application/vnd.oci.image.index.v1+json" ||
		m.MediaType == "application/vnd.docker.distribution.manifest.list.v2+json"
}

// Config holds facts for policy conditions. Nil pointers: not known.
type Config struct {
	User       string   `json:"user,omitempty"`
	Entrypoint []string `json:"entrypoint,omitempty"`
	ImageSize  int64    `json:"imageSize,omitempty"` // bytes: config and compressed layers
	Layers     int      `json:"layers,omitempty"`
	Setuid     *int     `json:"setuid,omitempty"` // files with the setuid or setgid bit
	Shell      *bool    `json:"shell,omitempty"`  // whether the image has a shell
}

// ReleaseStatement is a decoded release: what its envelope's payload says.
type ReleaseStatement struct {
	Digest string // subject, "sha256:<hex>"
	Release
}

// EncodeRelease writes the payload of a release. Equal statements give equal
// bytes; times are written in UTC and must be whole seconds.
func EncodeRelease(s ReleaseStatement) ([]byte, error) {
	s.Created, s.Expires = utc(s.Created), utc(s.Expires)
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("release: %w", err)
	}
	predicate, err := marshal(s.Release)
	if err != nil {
		return nil, fmt.Errorf("release: %w", err)
	}
	return EncodeStatement(Statement{Name: s.Repository, Digest: s.Digest, PredicateType: ReleaseType, Predicate: predicate})
}

// DecodeRelease reads the payload of a release strictly, except that fields of
// the predicate that it does not know are ignored, so that later signers can
// say more. The subject must be the first manifest, and its name the repository.
func DecodeRelease(payload []byte) (ReleaseStatement, error) {
	statement, err := DecodeStatement(payload)
	if err != nil {
		return ReleaseStatement{}, err
	}
	if statement.PredicateType != ReleaseType {
		return ReleaseStatement{}, fmt.Errorf("statement: predicateType: %q where %q belongs", statement.PredicateType, ReleaseType)
	}
	s := ReleaseStatement{Digest: statement.Digest}
	if err := UnmarshalStrict(statement.Predicate, &s.Release, true); err != nil {
		return ReleaseStatement{}, fmt.Errorf("release: %w", err)
	}
	if err := s.check(); err != nil {
		return ReleaseStatement{}, fmt.Errorf("release: %w", err)
	}
	if statement.Name != s.Repository {
		return ReleaseStatement{}, fmt.Errorf("release: repository: %q, but the subject's name is %q", s.Repository, statement.Name)
	}
	s.Created, s.Expires = utc(s.Created), utc(s.Expires)
	return s, nil
}

func utc(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC()
}

// check keeps the grammar and the bounds of every field.
func (s ReleaseStatement) check() error {
	for _, step := range []func() error{
		s.checkRepository, s.checkTags, s.checkTimes, s.checkAnnotations,
		s.checkManifests, s.checkConfig, s.checkDigests,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (r Release) checkRepository() error {
	if r.Repository == "" {
		return fmt.Errorf("repository is missing")
	}
	if len(r.Repository) > MaxName {
		return fmt.Errorf("repository: longer than %d bytes", MaxName)
	}
	named, err := reference.WithName(r.Repository)
	if err != nil || !isHost(reference.Domain(named)) || r.Repository != strings.ToLower(r.Repository) {
		return fmt.Errorf("repository: %q is not HOST/NAME in lower case", r.Repository)
	}
	return nil
}

// isHost tells whether domain would be taken for a registry host rather than
// for the first part of a name on Docker Hub.
func isHost(domain string) bool {
	return domain == "localhost" || strings.ContainsAny(domain, ".:")
}

func (r Release) checkTags() error {
	if len(r.Tags) > MaxTags {
		return fmt.Errorf("tags: more than %d", MaxTags)
	}
	for i, tag := range r.Tags {
		if !isTag(tag) {
			return fmt.Errorf("tags[%d]: %.200q is not a tag", i, tag)
		}
		if slices.Contains(r.Tags[:i], tag) {
			return fmt.Errorf("tags[%d]: %q is given twice", i, tag)
		}
	}
	return nil
}

func (r Release) checkTimes() error {
	if r.Created.IsZero() {
		return fmt.Errorf("created is missing")
	}
	if !wholeUTC(r.Created) {
		return fmt.Errorf("created: not in UTC and whole seconds")
	}
	if r.Expires.IsZero() {
		return nil
	}
	if !wholeUTC(r.Expires) {
		return fmt.Errorf("expires: not in UTC and whole seconds")
	}
	if !r.Expires.After(r.Created) {
		return fmt.Errorf("expires: not after created")
	}
	return nil
}

func (r Release) checkAnnotations() error {
	if len(r.Annotations) > MaxAnnotations {
		return fmt.Errorf("annotations: more than %d", MaxAnnotations)
	}
	total := 0
	for key, value := range r.Annotations {
		if key == "" {
			return fmt.Errorf("annotations: an empty key")
		}
		total += len(key) + len(value)
	}
	if total > MaxAnnotationBytes {
		return fmt.Errorf("annotations: more than %d bytes", MaxAnnotationBytes)
	}
	return nil
}

// checkManifests makes sure that the first manifest is the subject and that
// only an index has children, each listed once for a platform.
func (s ReleaseStatement) checkManifests() error {
	if n := len(s.Manifests); n < 1 || n > MaxManifests {
		return fmt.Errorf("manifests: %d where 1 to %d belong", n, MaxManifests)
	}
	type entry struct{ digest, platform string }
	seen := map[entry]bool{}
	for i, m := range s.Manifests {
		if err := m.check(); err != nil {
			return fmt.Errorf("manifests[%d].%w", i, err)
		}
		if e := (entry{m.Digest, m.Platform}); seen[e] {
			return fmt.Errorf("manifests[%d]: %s is given twice", i, m.Digest)
		} else {
			seen[e] = true
		}
	}
	if s.Manifests[0].Digest != s.Digest {
		return fmt.Errorf("manifests[0].digest: %s, but the subject is %s", s.Manifests[0].Digest, s.Digest)
	}
	if len(s.Manifests) > 1 && !s.Manifests[0].IsIndex() {
		return fmt.Errorf("manifests[1]: only an index has children")
	}
	return nil
}

func (m Manifest) check() error {
	switch {
	case !isWord(m.MediaType):
		return fmt.Errorf("mediaType: not 1 to %d printable characters", MaxWord)
	case !isDigest(m.Digest):
		return fmt.Errorf("digest: %.100q is not sha256:<64 lower-case hex digits>", m.Digest)
	case m.Size <= 0:
		return fmt.Errorf("size: %d is not above 0", m.Size)
	case m.Platform != "" && !isPlatform(m.Platform):
		return fmt.Errorf("platform: %.100q is not OS/ARCH[/VARIANT]", m.Platform)
	case m.Config != "" && !isDigest(m.Config):
		return fmt.Errorf("config: %.100q is not sha256:<64 lower-case hex digits>", m.Config)
	case m.Rootfs != "" && !isDigest(m.Rootfs):
		return fmt.Errorf("rootfs: %.100q is not sha256:<64 lower-case hex digits>", m.Rootfs)
	case m.IsIndex() && m.Platform+m.Config+m.Rootfs != "":
		return fmt.Errorf("mediaType: an index has no platform, config or rootfs")
	}
	return nil
}

func (r Release) checkConfig() error {
	c := r.Config
	if c == nil {
		return nil
	}
	words := 0
	for _, word := range c.Entrypoint {
		words += len(word)
	}
	switch {
	case len(c.User) > MaxWord:
		return fmt.Errorf("config.user: longer than %d bytes", MaxWord)
	case len(c.Entrypoint) > MaxEntrypoint || words > MaxEntrypointBytes:
		return fmt.Errorf("config.entrypoint: more than %d words or %d bytes", MaxEntrypoint, MaxEntrypointBytes)
	case c.ImageSize < 0 || c.Layers < 0 || c.Setuid != nil && *c.Setuid < 0:
		return fmt.Errorf("config: a number below 0")
	}
	return nil
}

func (r Release) checkDigests() error {
	for _, d := range []struct{ field, digest string }{
		{"provenance", r.Provenance}, {"sbom", r.SBOM}, {"slim", r.Slim},
	} {
		if d.digest != "" && !isDigest(d.digest) {
			return fmt.Errorf("%s: %.100q is not sha256:<64 lower-case hex digits>", d.field, d.digest)
		}
	}
	return nil
}
