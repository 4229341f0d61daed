package policy

import (
	"errors"
	"fmt"
	"strings"

	"github.com/distribution/reference"
)

const maxPattern = 255 // bytes, as the longest repository name

// pattern matches canonical repository names.
type pattern struct {
	text   string
	tokens []string // "*", "**", or one byte that stands for itself
}

func parsePattern(text string) (pattern, error) {
	if err := checkPattern(text); err != nil {
		return pattern{}, err
	}
	p := pattern{text: text}
	for rest := text; rest != ""; {
		n := 1
		if strings.HasPrefix(rest, "**") {
			n = 2
		}
		p.tokens, rest = append(p.tokens, rest[:n]), rest[n:]
	}
	return p, nil
}

// checkPattern refuses what can match no canonical name.
func checkPattern(text string) error {
	host, path, slash := strings.Cut(text, "/")
	switch {
	case len(text) > maxPattern:
		return fmt.Errorf("a pattern has at most %d bytes", maxPattern)
	case strings.Contains(host, "*"):
		return fmt.Errorf("no wildcard is allowed in the host of %q", text)
	case host != strings.ToLower(host):
		return fmt.Errorf("the host of %q must be in lower case", text)
	case slash && strings.HasSuffix(host, ":443"):
		return fmt.Errorf("%q is not canonical: the port 443 is left out", text)
	case strings.ContainsAny(path, ":@") || !slash && strings.ContainsAny(text, ":@"):
		return fmt.Errorf("%q must name repositories, without tag or digest", text)
	case strings.Contains(path, "***"):
		return fmt.Errorf("%q has more than two * in a row", text)
	}
	return checkCanonical(text)
}

// checkCanonical checks the form of a name that the pattern matches.
func checkCanonical(text string) error {
	sample := strings.NewReplacer("**", "a/a", "*", "a").Replace(text)
	named, err := reference.ParseNormalizedNamed(sample)
	switch {
	case errors.Is(err, reference.ErrNameContainsUppercase):
		return fmt.Errorf("%q must be in lower case", text)
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
	reached := make([]bool, len(b)+1) // reached[j]: what is read of a covers b[:j]
	reached[0] = true
	for _, token := range a {
		switch token {
		case "*":
			reached = coverStar(reached, b)
		case "**":
			reached = coverStars(reached, b)
		default:
			reached = coverByte(reached, token, b)
		}
	}
	return reached[len(b)]
}

func coverByte(reached []bool, token string, b []string) []bool {
	next := make([]bool, len(reached))
	for j, t := range b {
		next[j+1] = reached[j] && t == token
	}
	return next
}

// coverStar lets "*" stand for nothing, for bytes but "/", and for other "*".
func coverStar(reached []bool, b []string) []bool {
	next := make([]bool, len(reached))
	next[0] = reached[0]
	for j, t := range b {
		next[j+1] = reached[j+1] || next[j] && t != "/" && t != "**"
	}
	return next
}

// coverStars lets "**" stand for anything but nothing; a "*" may be nothing.
func coverStars(reached []bool, b []string) []bool {
	next := make([]bool, len(reached))
	maybeEmpty := reached[0]
	for j, t := range b {
		next[j+1] = next[j] || maybeEmpty && t != "*"
		maybeEmpty = reached[j+1] || maybeEmpty && t == "*"
	}
	return next
}
