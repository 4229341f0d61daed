package policy_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/imgtrust/imgtrust/policy"
)

func TestDiff(t *testing.T) {
	const rule = "rules:\n  - images: [\"r.example.com/app/**\"]\n    signatures: {threshold: 1, from: [a]}\n"
	tests := []struct {
		summary  string
		old, new string
		keys     func(ring) // changes keys before the new policy is made
		lines    []string   // beginnings
	}{
		{summary: "nothing", old: rule, new: rule},
		{summary: "a signer loses what it may sign", old: strings.Replace(rule, "[a]", "[a, b]", 1), new: rule,
			lines: []string{"r.example.com/app/**: was signed by 1 of a, b; is signed by 1 of a (b loses)"}},
		{summary: "a signer gains, and more must sign", old: rule, new: strings.Replace(rule, "threshold: 1, from: [a]", "threshold: 2, from: [a, c]", 1),
			lines: []string{"r.example.com/app/**: was signed by 1 of a; is signed by 2 of a, c (c gains)"}},
		{summary: "a key is replaced", old: rule, new: rule, keys: func(r ring) { delete(r, "a") }, lines: []string{"signer a: key "}},
		{summary: "a digest is denied", old: rule, new: "deny: [\"" + imageDigest + "\"]\n" + rule, lines: []string{imageDigest + " is denied now"}},
		{summary: "a digest is not denied any more", old: "deny: [\"" + imageDigest + "\"]\n" + rule, new: rule, lines: []string{imageDigest + " is not denied any more"}},
		{summary: "a pattern comes and one goes", old: rule, new: strings.Replace(rule, "/app/", "/web/", 1),
			lines: []string{"r.example.com/app/**: gone", "r.example.com/web/**: new: signed by 1 of a"}},
		{summary: "a rule only audits", old: rule, new: rule + "    audit: true\n", lines: []string{"r.example.com/app/**: was signed by 1 of a; is signed by 1 of a; audit only"}},
		{summary: "the order changes", old: rule + strings.Replace(rule[7:], "/app/", "/web/", 1), new: strings.Replace(rule, "/app/", "/web/", 1) + rule[7:],
			lines: []string{"the order of the rules changes"}},
	}
	for _, test := range tests {
		t.Run(test.summary, func(t *testing.T) {
			r := ring{}
			old := r.policy(t, test.old)
			if test.keys != nil {
				test.keys(r)
			}
			got := policy.Diff(old, r.policy(t, test.new))
			if !slices.EqualFunc(got, test.lines, strings.HasPrefix) {
				t.Errorf("got %q, want %q", got, test.lines)
			}
		})
	}
	t.Run("from no policy at all", func(t *testing.T) {
		got := policy.Diff(nil, ring{}.policy(t, rule))
		if len(got) != 5 || !strings.HasPrefix(got[0], "signer a is new") {
			t.Errorf("got %q", got)
		}
	})
}
