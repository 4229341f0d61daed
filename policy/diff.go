package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Diff tells in words what changes between two policies, one line each: who may
// sign more and who less, what is denied, and which rule asks for what. It is
// empty when both decide alike. A nil old policy is one that allows nothing.
func Diff(old, new *Policy) []string {
	if old == nil {
		old = &Policy{}
	}
	if new == nil {
		new = &Policy{}
	}
	var lines []string
	lines = append(lines, diffSigners(old, new)...)
	if was, is := old.revokers.String(), new.revokers.String(); was != is {
		lines = append(lines, fmt.Sprintf("revokers: were %s; are %s", was, is))
	}
	lines = append(lines, diffDeny(old, new)...)
	lines = append(lines, diffRules(old, new)...)
	return lines
}

func (q quorum) String() string {
	if q.threshold == 0 {
		return "nobody"
	}
	return fmt.Sprintf("%d of %s", q.threshold, strings.Join(names(q.from), ", "))
}

// diffSigners tells of signers and of their keys.
func diffSigners(old, new *Policy) []string {
	var lines []string
	before, after := signerKeys(old), signerKeys(new)
	for _, name := range union(old.Signers(), new.Signers()) {
		was, is := before[name], after[name]
		switch {
		case was == nil:
			lines = append(lines, fmt.Sprintf("signer %s is new, with %s", name, keyList(is)))
		case is == nil:
			lines = append(lines, fmt.Sprintf("signer %s is gone: nothing that only it signed may run any more", name))
		case !slices.Equal(was, is):
			lines = append(lines, fmt.Sprintf("signer %s: %s become %s", name, keyList(was), keyList(is)))
		}
	}
	return lines
}

func signerKeys(p *Policy) map[string][]string {
	keys := map[string][]string{}
	for _, s := range p.signers {
		for _, k := range s.keys {
			text := k.id[:12]
			if !k.listedBefore.IsZero() {
				text += " (listed before " + stamp(k.listedBefore) + ")"
			}
			keys[s.name] = append(keys[s.name], text)
		}
		slices.Sort(keys[s.name])
	}
	return keys
}

func keyList(keys []string) string {
	if len(keys) == 1 {
		return "key " + keys[0]
	}
	return "keys " + strings.Join(keys, " and ")
}

func diffDeny(old, new *Policy) []string {
	var lines []string
	for _, d := range union(digests(old), digests(new)) {
		switch {
		case !old.deny[d]:
			lines = append(lines, d+" is denied now")
		case !new.deny[d]:
			lines = append(lines, d+" is not denied any more")
		}
	}
	return lines
}

func digests(p *Policy) []string {
	var all []string
	for d := range p.deny {
		all = append(all, d)
	}
	slices.Sort(all)
	return all
}

// diffRules compares what each pattern asks for, then the order of the patterns
// that both policies have.
func diffRules(old, new *Policy) []string {
	var lines []string
	before, after := ruleOf(old), ruleOf(new)
	for _, pattern := range union(patterns(old), patterns(new)) {
		was, is := before[pattern], after[pattern]
		switch {
		case was == nil:
			lines = append(lines, fmt.Sprintf("%s: new: %s", pattern, is))
		case is == nil:
			lines = append(lines, fmt.Sprintf("%s: gone (%s): another rule decides, or none, which refuses", pattern, was))
		case was.String() != is.String():
			lines = append(lines, fmt.Sprintf("%s: was %s; is %s%s", pattern, was, is, gains(*was, *is)))
		}
	}
	both := func(p *Policy) []string {
		return slices.DeleteFunc(patterns(p), func(s string) bool { return before[s] == nil || after[s] == nil })
	}
	if !slices.Equal(both(old), both(new)) {
		lines = append(lines, "the order of the rules changes: the first that matches decides")
	}
	return lines
}

// gains names who may sign now and could not, and the other way round.
func gains(was, is Rule) string {
	text := ""
	for _, name := range union(was.From, is.From) {
		switch {
		case !slices.Contains(was.From, name):
			text += fmt.Sprintf(" (%s gains)", name)
		case !slices.Contains(is.From, name):
			text += fmt.Sprintf(" (%s loses)", name)
		}
	}
	return text
}

func patterns(p *Policy) []string {
	var all []string
	for _, r := range p.Rules() {
		all = append(all, r.Images...)
	}
	return all
}

func ruleOf(p *Policy) map[string]*Rule {
	all := map[string]*Rule{}
	for _, r := range p.Rules() {
		for _, pattern := range r.Images {
			all[pattern] = &r
		}
	}
	return all
}

// union is a, then what only b has.
func union(a, b []string) []string {
	all := slices.Clone(a)
	for _, s := range b {
		if !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	return all
}

// String tells what a rule asks for.
func (r Rule) String() string { return strings.Join(r.Demands(), "; ") }

// Demands lists what a rule asks for, in words.
func (r Rule) Demands() []string {
	var all []string
	if r.Threshold > 0 {
		all = append(all, fmt.Sprintf("signed by %d of %s", r.Threshold, strings.Join(r.From, ", ")))
	}
	if r.MaxAge > 0 {
		all = append(all, fmt.Sprintf("at most %g days old", float64(r.MaxAge)/float64(24*time.Hour)))
	}
	for _, expr := range r.Conditions {
		all = append(all, "condition "+strings.Join(strings.Fields(expr), " "))
	}
	if r.Audit {
		all = append(all, "audit only, so it runs anyway")
	}
	return all
}
