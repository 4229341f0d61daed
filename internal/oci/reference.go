package oci

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/distribution/reference"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Reference is a canonical image reference. The zero value names nothing.
type Reference struct {
	// Repository is canonical: "docker.io/library/nginx", host in lower case,
	// ":443" stripped, Docker Hub's aliases folded.
	Repository string
	// Tag is "" when absent; it is never defaulted.
	Tag string
	// Digest is zero when absent; sha256 only.
	Digest v1.Hash
}

// ParseReference reads HOST/PATH[:TAG][@sha256:HEX], of at most 1024 bytes, in
// the forms that Docker and containerd accept, and returns its canonical form.
// A tag and a digest are both kept.
func ParseReference(s string) (Reference, error) {
	r, err := parseReference(s)
	if err != nil {
		return Reference{}, fmt.Errorf("reference %q: %w", clip(s, maxErrorText), err)
	}
	return r, nil
}

func parseReference(s string) (Reference, error) {
	if err := checkText(s); err != nil {
		return Reference{}, err
	}
	rest, digest, err := cutDigest(s)
	if err != nil {
		return Reference{}, err
	}
	named, err := reference.ParseNormalizedNamed(rest)
	if err != nil {
		return Reference{}, plainly(err)
	}
	if _, twice := named.(reference.Digested); twice {
		return Reference{}, errors.New("has two digests")
	}
	repo, err := canonical(reference.Domain(named), reference.Path(named))
	if err != nil {
		return Reference{}, err
	}
	r := Reference{Repository: repo, Digest: digest}
	if t, ok := named.(reference.Tagged); ok {
		r.Tag = t.Tag()
	}
	return r, nil
}

// checkText refuses what no part of a reference may be.
func checkText(s string) error {
	switch {
	case s == "":
		return errors.New("is empty")
	case len(s) > maxReference:
		return fmt.Errorf("is longer than %d bytes: %w", maxReference, ErrTooLarge)
	case strings.Contains(s, "://"):
		return errors.New("has a scheme; write HOST/PATH without one")
	}
	return nil
}

// cutDigest splits what follows the last "@" off.
func cutDigest(s string) (string, v1.Hash, error) {
	i := strings.LastIndexByte(s, '@')
	if i < 0 {
		return s, v1.Hash{}, nil
	}
	h, err := parseDigest(s[i+1:])
	return s[:i], h, err
}

// parseDigest accepts sha256:HEX in lower case.
func parseDigest(s string) (v1.Hash, error) {
	algorithm, hex, _ := strings.Cut(s, ":")
	if algorithm != "sha256" {
		return v1.Hash{}, fmt.Errorf("digest %q: only sha256 is accepted", clip(s, maxErrorText))
	}
	if len(hex) != 64 || strings.Trim(hex, "0123456789abcdef") != "" {
		return v1.Hash{}, fmt.Errorf("digest %q: sha256 takes 64 hexadecimal digits in lower case", clip(s, maxErrorText))
	}
	return v1.Hash{Algorithm: algorithm, Hex: hex}, nil
}

// canonical folds the host and returns the canonical repository.
func canonical(host, path string) (string, error) {
	folded, err := foldHost(host)
	if err != nil {
		return "", err
	}
	named, err := reference.ParseNormalizedNamed(folded + "/" + path)
	if err != nil {
		return "", plainly(err)
	}
	return named.Name(), nil
}

// foldHost returns the one spelling of a registry's host.
func foldHost(host string) (string, error) {
	host = strings.ToLower(host)
	if bare := strings.TrimSuffix(host, ":443"); isHost(bare) {
		host = bare
	}
	switch host {
	case "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		return "docker.io", nil
	}
	if !isHost(host) {
		return "", fmt.Errorf("host %q needs a dot or a port, or to be localhost", host)
	}
	return host, nil
}

// isHost reports whether the first part of a name is read as a host:
// otherwise it is a path on Docker Hub.
func isHost(s string) bool {
	return s == "localhost" || strings.ContainsAny(s, ".:")
}

// plainly drops the library's own prefix, and what would break the line.
func plainly(err error) error {
	return errors.New(clip(strings.TrimPrefix(err.Error(), "invalid reference format: "), maxErrorText))
}

// parseRepository checks that repo is a repository in canonical form.
func parseRepository(repo string) error {
	r, err := ParseReference(repo)
	switch {
	case err != nil:
		return err
	case r.String() != repo || r.Tag != "" || r.Digest != (v1.Hash{}):
		return fmt.Errorf("repository %q: is not canonical, write %s", clip(repo, maxErrorText), r.Repository)
	}
	return nil
}

// String is REPOSITORY[:TAG][@DIGEST]; parsing it gives the same reference.
func (r Reference) String() string {
	s := r.Repository
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != (v1.Hash{}) {
		s += "@" + r.Digest.String()
	}
	return s
}

// AtDigest is REPOSITORY@h: the tag is dropped.
func (r Reference) AtDigest(h v1.Hash) Reference {
	return Reference{Repository: r.Repository, Digest: h}
}

// WithTag is REPOSITORY:tag: the digest is dropped.
func (r Reference) WithTag(tag string) Reference {
	return Reference{Repository: r.Repository, Tag: tag}
}

// Location is an IMAGE argument: a registry reference or an OCI layout.
type Location struct {
	Reference Reference // zero Repository for a layout (Digest may be set)
	Layout    string    // directory; "" for a registry
}

// ParseLocation reads oci:DIR[@sha256:HEX] or a reference. A DIR with an "@"
// followed by a ":" needs a digest after it.
func ParseLocation(s string) (Location, error) {
	dir, isLayout := strings.CutPrefix(s, "oci:")
	if !isLayout {
		r, err := ParseReference(s)
		return Location{Reference: r}, err
	}
	l, err := parseLayout(dir)
	if err != nil {
		return Location{}, fmt.Errorf("layout %q: %w", clip(s, maxErrorText), err)
	}
	return l, nil
}

func parseLayout(dir string) (Location, error) {
	var l Location
	if i := strings.LastIndexByte(dir, '@'); i >= 0 && strings.Contains(dir[i:], ":") {
		h, err := parseDigest(dir[i+1:])
		if err != nil {
			return Location{}, err
		}
		dir, l.Reference.Digest = dir[:i], h
	}
	if dir == "" {
		return Location{}, errors.New("names no directory")
	}
	if strings.ContainsRune(dir, 0) {
		return Location{}, errors.New("the directory has a NUL byte")
	}
	l.Layout = dir
	return l, nil
}

// String is what ParseLocation reads.
func (l Location) String() string {
	if l.Layout == "" {
		return l.Reference.String()
	}
	s := "oci:" + l.Layout
	if l.Reference.Digest != (v1.Hash{}) {
		s += "@" + l.Reference.Digest.String()
	}
	return s
}

// mirrored returns the address of a canonical repository: the longest mirror
// prefix on a path boundary, or the repository itself.
func mirrored(repo string, mirrors map[string]string) string {
	best, address := "", repo
	for prefix, target := range mirrors {
		prefix = foldPrefix(prefix)
		rest, ok := strings.CutPrefix(repo, prefix)
		if ok && len(prefix) > len(best) && (rest == "" || rest[0] == '/') {
			best, address = prefix, strings.TrimRight(target, "/")+rest
		}
	}
	return address
}

// foldPrefix is HOST[/PREFIX] with a canonical host.
func foldPrefix(prefix string) string {
	host, path, _ := strings.Cut(strings.TrimRight(prefix, "/"), "/")
	folded, err := foldHost(host)
	switch {
	case err != nil:
		return prefix
	case path == "":
		return folded
	}
	return folded + "/" + path
}

// isLoopback reports whether a host without port is this machine. Names other
// than localhost are not: what they resolve to is not ours to trust.
func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
