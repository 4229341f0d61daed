package policy

import (
	"fmt"
	"strings"

	"github.com/distribution/reference"
)

const maxPattern = 255 // bytes, as the longest repository name

// pattern matches canonical repository names.
type pattern struct {
	text   string
	tokens []string // "*", "/*" (a whole part of the name), "**", or one byte that stands for itself
}

func parsePattern(text string) (pattern, error) {
	if err := checkPattern(text); err != nil {
		return pattern{}, err
	}
	p := pattern{text: text}
	for i, part := range strings.Split(text, "/") {
		if i > 0 {
			p.tokens = append(p.tokens, "/")
		}
		p.tokens = append(p.tokens, tokens(part)...)
	}
	return p, nil
}

// tokens splits the part of a pattern between two slashes. A part "*" stands for
// at least one byte, since no part of a name is empty.
func tokens(part string) []string {
	if part == "*" {
		return []string{"/*"}
	}
	var all []string
	for part != "" {
		n := 1
		if strings.HasPrefix(part, "**") {
			n = 2
		}
		all, part = append(all, part[:n]), part[n:]
	}
	return all
}

// checkPattern refuses what can match no canonical name.
func checkPattern(text string) error {
	host, path, slash := strings.Cut(text, "/")
	switch {
	case len(text) > maxPattern:
		return fmt.Errorf("a pattern has at most %d bytes", maxPattern)
	case strings.Contains(host, "*"):
		return fmt.Errorf("no wildcard is allowed in the host of %q", text)
	case text != strings.ToLower(text):
		return fmt.Errorf("%q must be in lower case", text)
	case !canonicalHost(host):
		return fmt.Errorf("%q is not canonical: port 443 is left out, and Docker Hub is docker.io", text)
	case strings.ContainsAny(path, ":@") || !slash && strings.ContainsAny(text, ":@"):
		return fmt.Errorf("%q must name repositories, without tag or digest", text)
	case strings.Contains(path, "***"):
		return fmt.Errorf("%q has more than two * in a row", text)
	}
	return checkCanonical(text)
}

// canonicalHost refuses spellings that canonical names do not have.
func canonicalHost(host string) bool {
	switch host {
	case "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		return false
	}
	bare, found := strings.CutSuffix(host, ":443")
	return !found || bare != "localhost" && !strings.ContainsAny(bare, ".:")
}

// checkCanonical checks the form of a name that the pattern matches.
func checkCanonical(text string) error {
	sample := strings.NewReplacer("**", "a/a", "*", "a").Replace(text)
	named, err := reference.ParseNormalizedNamed(sample)
	switch {
	case err != nil:
		return fmt.Errorf("%q is not a pattern of repository names: %w", text, err)
	case named.Name() == sample:
		return nil
	case sample == text:
		return fmt.Errorf("%q is not canonical: write %q", text, named.Name())
	default:
		return fmt.Errorf("%q matches no canonical name (those begin like %q)", text, named.Name())
	}
}

// literal is the pattern that matches only name.
func literal(name string) []string {
	return strings.Split(name, "")
}

// covers tells whether a matches every name that b matches; with a literal b,
// whether a matches it. It may miss a containment that takes several tokens of
// a for one of b, but never claims one that is none.
func covers(a, b []string) bool {
	for len(a) > 0 && len(b) > 0 && !isWild(a[0]) {
		if a[0] != b[0] {
			return false
		}
		a, b = a[1:], b[1:]
	}
	reached := make([]bool, len(b)+1) // reached[j]: what is read of a covers b[:j]
	reached[0] = true
	for _, token := range a {
		switch token {
		case "*":
			reached = coverWild(reached, b, false, true)
		case "/*":
			reached = coverWild(reached, b, false, false)
		case "**":
			reached = coverWild(reached, b, true, false)
		default:
			reached = coverByte(reached, token, b)
		}
	}
	return reached[len(b)]
}

func isWild(token string) bool { return token == "*" || token == "/*" || token == "**" }

func coverByte(reached []bool, token string, b []string) []bool {
	next := make([]bool, len(reached))
	for j, t := range b {
		next[j+1] = reached[j] && t == token
	}
	return next
}

// coverWild lets a wildcard stand for any run of tokens, with slashes or
// without, or for nothing if it may. A "*" in b may be nothing, so that alone it
// does not fill a wildcard that may not.
func coverWild(reached []bool, b []string, slashes, nothing bool) []bool {
	next := make([]bool, len(reached))
	next[0] = nothing && reached[0]
	begun := reached[0] // the wildcard stands for b[i:j], which may be nothing
	for j, t := range b {
		fits := slashes || t != "/" && t != "**"
		next[j+1] = fits && (next[j] || begun && t != "*") || nothing && reached[j+1]
		begun = reached[j+1] || begun && fits && t == "*"
	}
	return next
}
