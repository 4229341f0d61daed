package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// MaxDocument is the largest size of a policy document in bytes.
const MaxDocument = 256 << 10

const maxDepth = 16 // levels of nesting

// Error is a fault of a policy document and its place.
type Error struct {
	File         string // as given to Parse
	Line, Column int    // from 1, columns in characters; a YAML syntax error has column 1 and the line where its part begins
	Text         string
}

// Error is "FILE:LINE:COLUMN: text".
func (e *Error) Error() string {
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Text)
}

// decoder reads YAML nodes strictly. The first fault is kept in err; methods go
// on with zero values after it, and accept a nil node as one that is absent.
type decoder struct {
	file string
	err  *Error
}

// fail notes a fault at n.
func (d *decoder) fail(n *yaml.Node, format string, args ...any) {
	d.failAt(n.Line, n.Column, format, args...)
}

func (d *decoder) failAt(line, column int, format string, args ...any) {
	if d.err == nil {
		d.err = &Error{File: d.file, Line: line, Column: column, Text: fmt.Sprintf(format, args...)}
	}
}

// document parses the one document of data; nil after a fault.
func (d *decoder) document(data []byte) *yaml.Node {
	switch {
	case len(data) > MaxDocument:
		d.failAt(1, 1, "a policy has at most %d bytes", MaxDocument)
		return nil
	case !utf8.Valid(data):
		d.failAt(1, 1, "a policy must be UTF-8")
		return nil
	}
	var first, second yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&first); err != nil {
		d.syntax(err, data)
		return nil
	}
	if err := dec.Decode(&second); err == nil {
		d.fail(&second, "a policy is one YAML document; this is a second one")
	} else if !errors.Is(err, io.EOF) {
		d.syntax(err, data)
	}
	if len(first.Content) != 1 {
		d.fail(&first, "the policy is empty")
		return nil
	}
	d.plain(first.Content[0], 1)
	if d.err != nil {
		return nil
	}
	return first.Content[0]
}

// syntax notes an error of the YAML parser, "yaml: line 3: text". Its scanner
// counts lines from 1, but what it parses from tokens it counts from 0.
func (d *decoder) syntax(err error, data []byte) {
	if errors.Is(err, io.EOF) {
		d.failAt(1, 1, "the policy is empty")
		return
	}
	line, text := 1, strings.TrimPrefix(err.Error(), "yaml: ")
	if m := regexp.MustCompile(`^line (\d{1,9}): (.*)`).FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1])
		text = m[2]
	}
	if regexp.MustCompile(`^did not find expected (<|',' or|key|'-'|node)`).MatchString(text) {
		line++
	}
	d.failAt(min(line, 1+bytes.Count(data, []byte("\n"))), 1, "%s", text)
}

// plain refuses anchors, aliases, tags and deep nesting in the whole tree.
func (d *decoder) plain(n *yaml.Node, depth int) {
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		d.fail(n, "anchors and aliases are not allowed")
	case n.Style&yaml.TaggedStyle != 0:
		d.fail(n, "tags are not allowed")
	case depth > maxDepth:
		d.fail(n, "nested more than %d levels deep", maxDepth)
	default:
		for _, child := range n.Content {
			d.plain(child, depth+1)
		}
	}
}

// field is one entry of a mapping.
type field struct {
	name       string
	key, value *yaml.Node
}

// mapping returns the entries of n with distinct string keys.
func (d *decoder) mapping(n *yaml.Node, what string) []field {
	if n == nil {
		return nil
	}
	if n.Kind != yaml.MappingNode {
		d.fail(n, "%s must be a mapping", what)
		return nil
	}
	var all []field
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		f := field{key: n.Content[i], value: n.Content[i+1]}
		f.name = d.text(f.key, "a key")
		if seen[f.name] {
			d.fail(f.key, "%q is there twice", f.name)
		}
		seen[f.name] = true
		all = append(all, f)
	}
	return all
}

// fields returns the values of a mapping with known keys only. The keys in later
// belong to the format but are refused.
func (d *decoder) fields(n *yaml.Node, what string, known, later []string) map[string]*yaml.Node {
	values := map[string]*yaml.Node{}
	for _, f := range d.mapping(n, what) {
		switch {
		case slices.Contains(known, f.name):
			values[f.name] = f.value
		case slices.Contains(later, f.name):
			d.fail(f.key, "%s is not supported yet", f.name)
		default:
			d.fail(f.key, "unknown field %q in %s (known: %s)", f.name, what, strings.Join(known, ", "))
		}
	}
	return values
}

// list returns the elements of a sequence that has at least one.
func (d *decoder) list(n *yaml.Node, what string) []*yaml.Node {
	switch {
	case n == nil:
		return nil
	case n.Kind != yaml.SequenceNode:
		d.fail(n, "%s must be a list", what)
		return nil
	case len(n.Content) == 0:
		d.fail(n, "%s is empty", what)
	}
	return n.Content
}

func (d *decoder) text(n *yaml.Node, what string) string {
	if !d.scalar(n, what, "a string", "!!str") {
		return ""
	}
	if n.Value == "" {
		d.fail(n, "%s is empty", what)
	}
	return n.Value
}

func (d *decoder) number(n *yaml.Node, what string) int {
	if !d.scalar(n, what, "a whole number", "!!int") {
		return 0
	}
	v, err := strconv.Atoi(n.Value)
	if err != nil {
		d.fail(n, "%s must be a whole number in decimal digits", what)
	}
	return v
}

func (d *decoder) boolean(n *yaml.Node, what string) bool {
	if n == nil || !d.scalar(n, what, "true or false", "!!bool") {
		return false
	}
	if n.Value != "true" && n.Value != "false" {
		d.fail(n, "%s must be true or false", what)
	}
	return n.Value == "true"
}

// scalar tells whether n is a scalar of one of the tags.
func (d *decoder) scalar(n *yaml.Node, what, kind string, tags ...string) bool {
	if n == nil {
		return false
	}
	if n.Kind != yaml.ScalarNode || !slices.Contains(tags, n.ShortTag()) {
		d.fail(n, "%s must be %s", what, kind)
		return false
	}
	return true
}

// need notes a fault at the mapping n when any of the fields is absent.
func (d *decoder) need(n *yaml.Node, what string, values map[string]*yaml.Node, names ...string) {
	for _, name := range names {
		if values[name] == nil {
			d.fail(n, "%s has no %s", what, name)
		}
	}
}
