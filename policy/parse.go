package policy

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/imgtrust/imgtrust/internal/attest"
)

const (
	apiVersion = "imgtrust.dev/v1"
	kind       = "Policy"

	maxRules      = 1024
	maxPatterns   = 1024 // of all rules
	maxKeys       = 8    // of a signer
	maxConditions = 64   // of a rule
	maxAgeDays    = 36500
)

// Parse decodes a policy strictly. Its errors are of type *[Error] and name file,
// which is not opened. Conditions are compiled here, and only a policy that has
// some pays for it.
func Parse(file string, data []byte) (*Policy, error) {
	d := &parser{decoder: decoder{file: file}, signers: map[string]*signer{}, owners: map[string]string{}}
	p := &Policy{}
	if root := d.document(data); root != nil {
		p = d.policy(root)
	}
	if d.err != nil {
		return nil, d.err
	}
	return p, nil
}

// parser knows what the policy has named so far.
type parser struct {
	decoder
	signers  map[string]*signer
	owners   map[string]string // key ID -> signer
	patterns int
	compiler *compiler // nil until the first condition
}

func (d *parser) policy(n *yaml.Node) *Policy {
	f := d.fields(n, "the policy",
		[]string{"apiVersion", "kind", "signers", "revokers", "deny", "rules"},
		[]string{"breakGlass", "running"})
	d.need(n, "the policy", f, "apiVersion", "kind", "rules")
	d.constant(f["apiVersion"], "apiVersion", apiVersion)
	d.constant(f["kind"], "kind", kind)
	p := &Policy{signers: d.allSigners(f["signers"])}
	p.revokers.threshold, p.revokers.from = d.signatures(f["revokers"], "revokers")
	p.deny, p.rules = d.deny(f["deny"]), d.rules(f["rules"])
	return p
}

func (d *parser) constant(n *yaml.Node, what, want string) {
	if got := d.text(n, what); n != nil && got != want {
		d.fail(n, "%s must be %q", what, want)
	}
}

func (d *parser) allSigners(n *yaml.Node) []*signer {
	for _, f := range d.mapping(n, "signers") {
		if !regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$`).MatchString(f.name) {
			d.fail(f.key, "%q is no name for a signer: up to 64 letters, digits and . _ @ -", f.name)
		}
		d.signers[f.name] = d.signer(f)
	}
	all := []*signer{}
	for _, s := range d.signers {
		all = append(all, s)
	}
	slices.SortFunc(all, byName)
	return all
}

func (d *parser) signer(f field) *signer {
	what := "signer " + f.name
	s := &signer{name: f.name}
	v := d.fields(f.value, what, []string{"key", "keys"}, []string{"identity"})
	switch {
	case v["key"] != nil && v["keys"] != nil:
		d.fail(f.value, "%s has both key and keys", what)
	case v["key"] != nil:
		s.keys = append(s.keys, d.key(v["key"], s.name))
	case v["keys"] != nil:
		for _, n := range d.list(v["keys"], "keys of "+what) {
			s.keys = append(s.keys, d.datedKey(n, s.name))
		}
	default:
		d.fail(f.key, "%s has no key", what)
	}
	if len(s.keys) > maxKeys {
		d.fail(v["keys"], "%s has more than %d keys", what, maxKeys)
	}
	return s
}

func (d *parser) datedKey(n *yaml.Node, owner string) key {
	what := "a key of signer " + owner
	f := d.fields(n, what, []string{"key", "listedBefore"}, nil)
	d.need(n, what, f, "key")
	k := d.key(f["key"], owner)
	k.listedBefore = d.instant(f["listedBefore"], "listedBefore")
	return k
}

// key reads a PEM public key that no other place of the policy has.
func (d *parser) key(n *yaml.Node, owner string) key {
	text := d.text(n, "key")
	if d.err != nil {
		return key{}
	}
	public, err := attest.ParsePublicKey([]byte(text))
	if err != nil {
		d.fail(n, "key of signer %s: %v", owner, err)
		return key{}
	}
	id, err := attest.KeyID(public)
	if err != nil {
		d.fail(n, "key of signer %s: %v", owner, err)
	}
	if other, taken := d.owners[id]; taken {
		d.fail(n, "key of signer %s is also a key of signer %s", owner, other)
	}
	d.owners[id] = owner
	return key{id: id, public: public}
}

// instant reads a date (00:00 UTC) or an RFC 3339 time.
func (d *parser) instant(n *yaml.Node, what string) time.Time {
	const form = "a date like 2026-01-31 or an RFC 3339 time"
	if n == nil || !d.scalar(n, what, form, "!!timestamp", "!!str") {
		return time.Time{}
	}
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if t, err := time.Parse(layout, n.Value); err == nil && t.Year() > 1 {
			return t.UTC()
		}
	}
	d.fail(n, "%s must be %s", what, form)
	return time.Time{}
}

func (d *parser) deny(n *yaml.Node) map[string]bool {
	denied := map[string]bool{}
	for _, e := range d.list(n, "deny") {
		digest := d.text(e, "a denied digest")
		switch {
		case !regexp.MustCompile(`^sha256:[0-9a-f]{64}$`).MatchString(digest):
			d.fail(e, "%q is no digest: sha256: and 64 hexadecimal digits in lower case", digest)
		case denied[digest]:
			d.fail(e, "%s is there twice", digest)
		}
		denied[digest] = true
	}
	return denied
}

func (d *parser) rules(n *yaml.Node) []rule {
	nodes := d.list(n, "rules")
	if len(nodes) > maxRules {
		d.fail(nodes[maxRules], "a policy has at most %d rules", maxRules)
	}
	var all []rule
	for i, rn := range nodes {
		r := d.rule(rn, ruleName(i))
		if d.err != nil {
			return nil
		}
		d.shadowed(rn, all, r)
		all = append(all, r)
	}
	return all
}

func (d *parser) rule(n *yaml.Node, what string) rule {
	f := d.fields(n, what,
		[]string{"images", "signatures", "maxAge", "conditions", "audit"},
		[]string{"require"})
	d.need(n, what, f, "images")
	r := rule{audit: d.boolean(f["audit"], "audit")}
	r.patterns = d.images(f["images"])
	r.threshold, r.from = d.signatures(f["signatures"], "signatures of "+what)
	r.maxAge = d.age(f["maxAge"])
	r.conditions = d.conditions(f["conditions"], "conditions of "+what)
	if f["signatures"] == nil {
		d.unsigned(n, what, f)
	}
	return r
}

// unsigned checks a rule that asks for no signatures: it may only audit.
func (d *parser) unsigned(n *yaml.Node, what string, f map[string]*yaml.Node) {
	if f["audit"] == nil || f["audit"].Value != "true" {
		d.fail(n, "%s has no signatures; only a rule with audit: true needs none", what)
	}
	for _, name := range []string{"maxAge", "conditions"} {
		if f[name] != nil {
			d.fail(f[name], "%s of %s needs signatures: it reads signed statements", name, what)
		}
	}
}

func (d *parser) images(n *yaml.Node) []pattern {
	var all []pattern
	for _, e := range d.list(n, "images") {
		text := d.text(e, "a pattern")
		if d.err != nil {
			return nil
		}
		p, err := parsePattern(text)
		if err != nil {
			d.fail(e, "%v", err)
		}
		if d.patterns++; d.patterns > maxPatterns {
			d.fail(e, "a policy has at most %d patterns", maxPatterns)
		}
		all = append(all, p)
	}
	return all
}

func (d *parser) signatures(n *yaml.Node, what string) (int, []*signer) {
	if n == nil {
		return 0, nil
	}
	f := d.fields(n, what, []string{"threshold", "from"}, nil)
	d.need(n, what, f, "threshold", "from")
	from := d.from(f["from"])
	threshold := d.number(f["threshold"], "threshold")
	switch t := f["threshold"]; {
	case d.err != nil:
	case threshold < 1:
		d.fail(t, "threshold must be at least 1")
	case threshold > len(from):
		d.fail(t, "threshold %d is above the number of signers, %d", threshold, len(from))
	case threshold > MaxEnvelopes:
		d.fail(t, "threshold must be at most %d", MaxEnvelopes)
	}
	return threshold, from
}

// from reads distinct names of signers.
func (d *parser) from(n *yaml.Node) []*signer {
	var all []*signer
	for _, e := range d.list(n, "from") {
		name := d.text(e, "a signer")
		s := d.signers[name]
		switch {
		case s == nil:
			d.fail(e, "unknown signer %q", name)
		case slices.Contains(all, s):
			d.fail(e, "signer %s is there twice", name)
		default:
			all = append(all, s)
		}
	}
	slices.SortFunc(all, byName)
	return all
}

// age reads a whole number of days, hours or minutes.
func (d *parser) age(n *yaml.Node) time.Duration {
	if n == nil || !d.scalar(n, "maxAge", "like 90d, 36h or 30m", "!!str") {
		return 0
	}
	m := regexp.MustCompile(`^([1-9][0-9]{0,8})([dhm])$`).FindStringSubmatch(n.Value)
	if m == nil {
		d.fail(n, "maxAge must be like 90d, 36h or 30m")
		return 0
	}
	units := map[string]time.Duration{"d": 24 * time.Hour, "h": time.Hour, "m": time.Minute}
	count, _ := strconv.Atoi(m[1])
	if count > int(maxAgeDays*24*time.Hour/units[m[2]]) {
		d.fail(n, "maxAge must be at most %dd", maxAgeDays)
	}
	return time.Duration(count) * units[m[2]]
}

func (d *parser) conditions(n *yaml.Node, what string) []condition {
	nodes := d.list(n, what)
	if len(nodes) > maxConditions {
		d.fail(nodes[maxConditions], "a rule has at most %d conditions", maxConditions)
	}
	var all []condition
	for _, e := range nodes {
		f := d.fields(e, "a condition", []string{"expr", "message"}, nil)
		d.need(e, "a condition", f, "expr")
		expr, message := d.text(f["expr"], "expr"), d.text(f["message"], "message")
		if d.err != nil {
			return nil
		}
		c, err := d.compile(expr, message)
		if err != nil {
			d.fail(f["expr"], "%v", err)
		}
		all = append(all, c)
	}
	return all
}

func (d *parser) compile(expr, message string) (condition, error) {
	if d.compiler == nil {
		c, err := newCompiler()
		if err != nil {
			return condition{}, err
		}
		d.compiler = c
	}
	return d.compiler.compile(expr, message)
}

// shadowed refuses a rule when earlier rules match all that it matches.
func (d *parser) shadowed(n *yaml.Node, earlier []rule, r rule) {
	by := ""
	for _, p := range r.patterns {
		if by = coveredBy(earlier, p); by == "" {
			return
		}
	}
	d.fail(n, "%s is never reached: %s matches first", ruleName(len(earlier)), by)
}

// coveredBy names the first rule and pattern that match all that p matches.
func coveredBy(rules []rule, p pattern) string {
	for i, r := range rules {
		for _, q := range r.patterns {
			if covers(q.tokens, p.tokens) {
				return ruleName(i) + " " + q.text
			}
		}
	}
	return ""
}

func ruleName(index int) string { return fmt.Sprintf("rules[%d]", index) }
