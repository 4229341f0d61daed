package policy_test

import (
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"strings"
	"testing"
	"time"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/policy"
)

// The lines of this policy stand at the places that the rows of TestParseRefuses
// name; KEYA and KEYB are keys in one line.
const small = `apiVersion: imgtrust.dev/v1
kind: Policy
signers:
  a:
    key: "KEYA"
  b:
    keys:
      - {listedBefore: 2026-01-01, key: "KEYB"}
deny: ["sha256:0000000000000000000000000000000000000000000000000000000000000000"]
rules:
  - images: ["registry.example.com/payments/**"]
    signatures: {threshold: 1, from: [a, b]}
    maxAge: 90d
    conditions:
      - {expr: 'image.user != "0"', message: "runs as root"}
  - images: ["registry.example.com/legacy/**"]
    audit: true
`

func withKeys(text string, keys ring) []byte {
	line := func(name string) string {
		return strings.ReplaceAll(string(must(attest.MarshalPublicKey(keys.key(name).Public()))), "\n", `\n`)
	}
	return []byte(strings.NewReplacer("KEYA", line("a"), "KEYB", line("b")).Replace(text))
}

func TestParseRefuses(t *testing.T) {
	keys := ring{}
	if _, err := policy.Parse("p.yaml", withKeys(small, keys)); err != nil {
		t.Fatal(err)
	}
	anyRules := "rules: [{images: [\"a.example/**\"], audit: true}]\n"
	head := "apiVersion: imgtrust.dev/v1\nkind: Policy\n"
	rows := []struct {
		summary, old, new string // old "" takes new as the whole
		want              string // LINE:COLUMN: text
	}{
		{"nothing", "", "", "1:1: the policy is empty"},
		{"a comment only", "", "# policy\n", "1:1: the policy is empty"},
		{"null", "", "null\n", "1:1: the policy must be a mapping"},
		{"a list", "", "- a\n", "1:1: the policy must be a mapping"},
		{"not YAML", "kind: Policy", "kind: [", "2:1: did not find expected"},
		{"a tab", "kind: Policy", "\tkind: Policy", "2:1: found a tab character"},
		{"not UTF-8", "Policy", "Pol\xff", "1:1: a policy must be UTF-8"},
		{"too large", "kind", "#" + strings.Repeat("x", 256<<10) + "\nkind", "1:1: a policy has at most 262144 bytes"},
		{"a second document", "    audit: true\n", "    audit: true\n---\nkind: Policy\n", "18:1: a policy is one YAML document"},
		{"a broken second document", "    audit: true\n", "    audit: true\n---\n[", "19:1: did not find"},
		{"an anchor", "kind: Policy", "kind: &k Policy", "2:7: anchors and aliases are not allowed"},
		{"an alias", "signers:\n  a:", "signers: &s\n  c: *s\n  a:", "3:10: anchors"},
		{"a merge key", "kind: Policy", "kind: Policy\n<<: {}", "3:1: a key must be a string"},
		{"a tag", "kind: Policy", "kind: !!str Policy", "2:7: tags are not allowed"},
		{"deep nesting", "kind: Policy", "kind: " + strings.Repeat("[", 20) + strings.Repeat("]", 20), "2:22: nested more than 16 levels deep"},
		{"a key that is no string", "kind: Policy", "1: Policy", "2:1: a key must be a string"},

		{"another version", "dev/v1", "dev/v2", `1:13: apiVersion must be "imgtrust.dev/v1"`},
		{"another kind", "kind: Policy", "kind: Polity", `2:7: kind must be "Policy"`},
		{"no kind", "kind: Policy\n", "", "1:1: the policy has no kind"},
		{"no rules", "", head, "1:1: the policy has no rules"},
		{"empty rules", "", head + "rules: []\n", "3:8: rules is empty"},
		{"null rules", "", head + "rules:\n", "3:7: rules must be a list"},
		{"unknown field", "kind: Policy", "kind: Policy\nsigner: {}", `3:1: unknown field "signer" in the policy`},
		{"a field in another case", "kind: Policy", "Kind: Policy", `2:1: unknown field "Kind"`},
		{"a field twice", "kind: Policy", "kind: Policy\nkind: Policy", `3:1: "kind" is there twice`},
		{"more revokers than there are", "deny:", "revokers: {threshold: 2, from: [a]}\ndeny:", "9:23: threshold 2 is above the number of signers, 1"},
		{"a revoker who is no signer", "deny:", "revokers: {threshold: 1, from: [nobody]}\ndeny:", "unknown signer"},
		{"breakGlass", "deny:", "breakGlass: {}\ndeny:", "9:1: breakGlass is not supported yet"},
		{"running", "deny:", "running: {}\ndeny:", "9:1: running is not supported yet"},

		{"signers of the wrong type", "", head + "signers: [a]\n" + anyRules, "3:10: signers must be a mapping"},
		{"a signer twice", "  b:\n", "  a:\n", `6:3: "a" is there twice`},
		{"a signer's bad name", "  a:\n", "  \"a b\":\n", `4:3: "a b" is no name for a signer`},
		{"a signer without key", "    key: \"KEYA\"\n", "    {}\n", "4:3: signer a has no key"},
		{"a signer with key and keys", "    key: \"KEYA\"\n", "    key: \"KEYA\"\n    keys: [{key: \"KEYA\"}]\n", "5:5: signer a has both key and keys"},
		{"an empty list of keys", "    key: \"KEYA\"\n", "    keys: []\n", "5:11: keys of signer a is empty"},
		{"nine keys", "    key: \"KEYA\"\n", "    keys: [" + strings.Repeat("{key: x},", 9) + "]\n", "5:18: key of signer a: "},
		{"identity", "    key: \"KEYA\"\n", "    identity: {}\n", "5:5: identity is not supported yet"},
		{"unknown field of a signer", "    key: \"KEYA\"\n", "    pem: \"KEYA\"\n", `5:5: unknown field "pem" in signer a`},
		{"a key that is none", "KEYA", "hello", "5:10: key of signer a: "},
		{"a number for a key", "\"KEYA\"", "5", "5:10: key must be a string"},
		{"an empty key", "KEYA", "", "5:10: key is empty"},
		{"one key under two signers", "KEYB", "KEYA", "8:41: key of signer b is also a key of signer a"},
		{"one key twice", `key: "KEYB"}`, `key: "KEYB"}` + "\n      - {key: \"KEYB\"}", "9:15: key of signer b is also a key of signer b"},
		{"a key of keys without key", `, key: "KEYB"`, "", "8:9: a key of signer b has no key"},
		{"not a date", "2026-01-01", "soon", "8:24: listedBefore must be a date"},
		{"a date that does not exist", "2026-01-01", "2026-02-30", "8:24: listedBefore must be a date"},
		{"a number for a date", "2026-01-01", "20260101", "8:24: listedBefore must be a date"},

		{"deny of the wrong type", `["sha256:0000000000000000000000000000000000000000000000000000000000000000"]`, "all", "9:7: deny must be a list"},
		{"a short digest", "sha256:0", "sha256:", "9:8: \"sha256:000"},
		{"a digest in upper case", "sha256:0", "sha256:A", "is no digest"},
		{"a digest twice", `deny: [`, `deny: ["sha256:0000000000000000000000000000000000000000000000000000000000000000", `, "9:83: sha256:000"},

		{"a rule that is no mapping", "rules:\n", "rules:\n  - any\n", "11:5: rules[0] must be a mapping"},
		{"a rule without images", `  - images: ["registry.example.com/legacy/**"]` + "\n    audit", "  - audit", "16:5: rules[1] has no images"},
		{"no images", `["registry.example.com/legacy/**"]`, "[]", "16:13: images is empty"},
		{"images of the wrong type", `["registry.example.com/legacy/**"]`, `"registry.example.com/legacy/**"`, "16:13: images must be a list"},
		{"a pattern of the wrong type", `["registry.example.com/legacy/**"]`, `[[]]`, "16:14: a pattern must be a string"},
		{"a wildcard in the host", "registry.example.com/legacy/**", "*.example.com/legacy/**", "16:14: no wildcard is allowed in the host"},
		{"a host in upper case", "registry.example.com/legacy", "Registry.example.com/legacy", "16:14: \"Registry.example.com/legacy/**\" must be in lower case"},
		{"a name that is not canonical", "registry.example.com/legacy/**", "nginx", `16:14: "nginx" is not canonical: write "docker.io/library/nginx"`},
		{"unknown field of a rule", "audit: true", "audited: true", `17:5: unknown field "audited" in rules[1]`},
		{"require", "maxAge: 90d", "require: [provenance]", "13:5: require is not supported yet"},
		{"audit that is no boolean", "audit: true", `audit: "true"`, "17:12: audit must be true or false"},
		{"audit: yes", "audit: true", `audit: yes`, "17:12: audit must be true or false"},
		{"audit: True", "audit: true", `audit: True`, "17:12: audit must be true or false"},
		{"no signatures and no audit", "audit: true", "audit: false", "16:5: rules[1] has no signatures"},
		{"maxAge without signatures", "audit: true", "audit: true\n    maxAge: 1d", "18:13: maxAge of rules[1] needs signatures"},
		{"conditions without signatures", "audit: true", "audit: true\n    conditions: [{expr: 'true'}]", "18:17: conditions of rules[1] needs signatures"},

		{"no threshold", "threshold: 1, ", "", "12:17: signatures of rules[0] has no threshold"},
		{"threshold 0", "threshold: 1", "threshold: 0", "12:29: threshold must be at least 1"},
		{"a negative threshold", "threshold: 1", "threshold: -1", "12:29: threshold must be at least 1"},
		{"a threshold above the signers", "threshold: 1", "threshold: 3", "12:29: threshold 3 is above the number of signers, 2"},
		{"a threshold that is no number", "threshold: 1", "threshold: one", "12:29: threshold must be a whole number"},
		{"a threshold in quotes", "threshold: 1", `threshold: "1"`, "12:29: threshold must be a whole number"},
		{"a threshold with a fraction", "threshold: 1", "threshold: 1.0", "12:29: threshold must be a whole number"},
		{"a hexadecimal threshold", "threshold: 1", "threshold: 0x1", "12:29: threshold must be a whole number in decimal"},
		{"a huge threshold", "threshold: 1", "threshold: 99999999999999999999", "12:29: threshold must be a whole number"},
		{"nobody", "from: [a, b]", "from: []", "12:38: from is empty"},
		{"an unknown signer", "from: [a, b]", "from: [a, c]", `12:42: unknown signer "c"`},
		{"a signer twice in from", "from: [a, b]", "from: [a, a]", "12:42: signer a is there twice"},
		{"the threshold met only by naming one twice", "1, from: [a, b]", "2, from: [a, a]", "12:42: signer a is there twice"},

		{"maxAge without unit", "90d", "90", "13:13: maxAge must be like 90d, 36h or 30m"},
		{"maxAge 0", "90d", "0d", "13:13: maxAge must be like"},
		{"maxAge in weeks", "90d", "2w", "13:13: maxAge must be like"},
		{"maxAge of 101 years", "90d", "36865d", "13:13: maxAge must be at most 36500d"},
		{"maxAge that would overflow", "90d", "999999999h", "13:13: maxAge must be at most 36500d"},

		{"a condition that does not parse", `image.user != "0"`, `image.user !=`, "15:16: the expression does not compile: Syntax error"},
		{"a field that does not exist", "image.user", "image.usr", "15:16: the expression does not compile: undefined field 'usr' (line 1, column 6 of it)"},
		{"has() of a field that does not exist", `image.user != "0"`, "!has(image.setiud)", "15:16: the expression does not compile: undefined field 'setiud'"},
		{"a variable that does not exist", "image.user", "img.user", "15:16: the expression does not compile: undeclared reference to 'img'"},
		{"a comparison of unlike types", `image.user != "0"`, "image.user != 0", "15:16: the expression does not compile: found no matching overload"},
		{"a condition that is no bool", `image.user != "0"`, "image.user", "15:16: the expression yields string, not bool"},
		{"a bad regular expression", `image.user != "0"`, `image.user.matches("(")`, "15:16: the expression does not compile: invalid matches argument"},
		{"a bad duration", `image.user != "0"`, `now - statement.created < duration("1x")`, "15:16: the expression does not compile: invalid duration argument"},
		{"a long expression", `image.user != "0"`, `image.user != "` + strings.Repeat("0", 4096) + `"`, "15:16: an expression has at most 4096 bytes"},
		{"a condition without expr", `expr: 'image.user != "0"', `, "", "15:9: a condition has no expr"},
		{"an empty message", "runs as root", "", "15:46: message is empty"},
		{"unknown field of a condition", "message", "text", `15:37: unknown field "text" in a condition`},

		{"a rule again", "legacy", "payments", "16:5: rules[1] is never reached: rules[0] registry.example.com/payments/** matches first"},
		{"a narrower rule after a wide one", "legacy/**", "payments/web/*", "16:5: rules[1] is never reached"},
		{"a name after a pattern that matches it", "legacy/**", "payments/api", "16:5: rules[1] is never reached"},
	}
	for _, row := range rows {
		text := row.new
		if row.old != "" {
			if !strings.Contains(small, row.old) {
				t.Fatalf("%s: nothing to change", row.summary)
			}
			text = strings.Replace(small, row.old, row.new, 1)
		}
		p, err := policy.Parse("p.yaml", withKeys(text, keys))
		if p != nil {
			t.Errorf("%s: accepted", row.summary)
			continue
		}
		var at *policy.Error
		if !errors.As(err, &at) || at.File != "p.yaml" || err.Error() != fmt.Sprintf("p.yaml:%d:%d: %s", at.Line, at.Column, at.Text) {
			t.Errorf("%s: %v is no error with a place", row.summary, err)
		}
		got := strings.TrimPrefix(err.Error(), "p.yaml:")
		exact := row.want[0] >= '0' && row.want[0] <= '9'
		if exact && !strings.HasPrefix(got, row.want) || !strings.Contains(got, row.want) {
			t.Errorf("%s: %s\nwant %s", row.summary, got, row.want)
		}
		if strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: more than one line: %q", row.summary, err)
		}
	}
}

func TestParseBounds(t *testing.T) {
	keys := ring{}
	signers := strings.Split(string(withKeys(small, keys)), "deny:")[0]
	rule := func(i int) string { return fmt.Sprintf("  - {images: [\"a.example/x%d\"], audit: true}\n", i) }
	rules := func(n int) string {
		var b strings.Builder
		for i := range n {
			b.WriteString(rule(i))
		}
		return signers + "rules:\n" + b.String()
	}
	patterns := func(n int) string {
		return signers + "rules:\n  - images: [" + strings.Repeat(`"a.example/x",`, n) + "]\n    audit: true\n"
	}
	conditions := func(n int) string {
		return signers + oneOfA + "    conditions:\n" + strings.Repeat("      - {expr: 'true'}\n", n)
	}
	keyring := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "      - key: %s", keys.pem(fmt.Sprint(i), 10))
		}
		return "apiVersion: imgtrust.dev/v1\nkind: Policy\nsigners:\n  a:\n    keys:\n" + b.String() + oneOfA
	}
	thresholds := func(n int) string {
		var b, from strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "  s%d:\n    key: %s", i, keys.pem(fmt.Sprint(i), 6))
			fmt.Fprintf(&from, "s%d,", i)
		}
		return fmt.Sprintf("apiVersion: imgtrust.dev/v1\nkind: Policy\nsigners:\n%srules:\n  - images: [\"a.example/x\"]\n    signatures: {threshold: %d, from: [%s]}\n", b.String(), n, from.String())
	}
	rows := []struct {
		summary string
		make    func(int) string
		most    int
		want    string
	}{
		{"rules", rules, 1024, "at most 1024 rules"},
		{"patterns", patterns, 1024, "at most 1024 patterns"},
		{"conditions", conditions, 64, "at most 64 conditions"},
		{"keys", keyring, 8, "more than 8 keys"},
		{"threshold", thresholds, policy.MaxEnvelopes, "threshold must be at most 8"},
	}
	for _, row := range rows {
		if _, err := policy.Parse("p", []byte(row.make(row.most))); err != nil {
			t.Errorf("%s, %d: %v", row.summary, row.most, err)
		}
		if _, err := policy.Parse("p", []byte(row.make(row.most+1))); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s, %d: %v, want %q", row.summary, row.most+1, err, row.want)
		}
	}
}

func TestParseAccepts(t *testing.T) {
	keys := ring{}
	for summary, change := range map[string][2]string{
		"a rule of which a part is shadowed":    {`["registry.example.com/legacy/**"]`, `["registry.example.com/payments/x", "registry.example.com/legacy/**"]`},
		"a wide rule after a narrow one":        {"legacy/**", "**"},
		"a document start, comments and an end": {"apiVersion", "# policy\n---\napiVersion"},
		"hours":                                 {"90d", "36h"},
		"an instant":                            {"2026-01-01", "2026-01-01T10:00:00+02:00"},
		"audit: false with signatures":          {"maxAge: 90d", "audit: false"},
		"no deny":                               {"deny: [\"sha256:0000000000000000000000000000000000000000000000000000000000000000\"]\n", ""},
		"CRLF":                                  {"\n", "\r\n"},
	} {
		if _, err := policy.Parse("p", withKeys(strings.ReplaceAll(small, change[0], change[1]), keys)); err != nil {
			t.Errorf("%s: %v", summary, err)
		}
	}
	p := must(policy.Parse("p", withKeys(small, keys)))
	first := p.Rules()[0]
	if len(p.Rules()) != 2 || first.Threshold != 1 || first.MaxAge != 90*24*time.Hour || first.Audit || !p.Rules()[1].Audit || first.Conditions[0] != `image.user != "0"` {
		t.Errorf("%+v", p.Rules())
	}
}

// The example at the top of the package comment is a policy.
func TestPackageCommentParses(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "policy.go", nil, parser.ParseComments|parser.PackageClauseOnly)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for line := range strings.Lines(file.Doc.Text()) {
		if indented, ok := strings.CutPrefix(line, "\t"); ok {
			b.WriteString(indented)
		} else if line == "\n" {
			b.WriteString(line)
		} else if b.Len() > 100 {
			break
		}
	}
	p, err := policy.Parse("policy.yaml", []byte(b.String()))
	if err != nil {
		t.Fatalf("%v in\n%s", err, b.String())
	}
	if len(p.Rules()) != 2 || len(p.Signers()) != 2 {
		t.Errorf("rules %+v, signers %q", p.Rules(), p.Signers())
	}
}

func FuzzParse(f *testing.F) {
	keys := ring{}
	f.Add(withKeys(small, keys))
	f.Add([]byte("{}"))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("---\n...\n---\n"))
	f.Add([]byte("apiVersion: imgtrust.dev/v1\nkind: Policy\nrules: [{images: [\"a.example/**\"], audit: true}]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := policy.Parse("p", data)
		var at *policy.Error
		switch {
		case err == nil && len(p.Rules()) == 0:
			t.Error("a policy without rules")
		case err != nil && (p != nil || !errors.As(err, &at) || at.Line < 1 || at.Column < 1):
			t.Errorf("%v: no error with a place", err)
		}
		v := p.Decide(nil, policy.Facts{Repository: repository, Digest: imageDigest}, now)
		if v.Code == policy.Allowed {
			t.Error("allowed without a statement")
		}
	})
}
