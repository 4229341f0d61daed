package policy

import (
	"strings"
	"testing"
)

func TestPatternMatches(t *testing.T) {
	rows := []struct {
		pattern string
		yes, no string // names, separated by spaces
	}{
		{"r.example/payments/api", "r.example/payments/api", "r.example/payments/ap r.example/payments/api2 r.example/payments/api/x"},
		{"r.example/payments/**", "r.example/payments/a r.example/payments/a/b/c", "r.example/payments r.example/payments/ r.example/paymentsx/a x.r.example/payments/a"},
		{"r.example/payments/*", "r.example/payments/a r.example/payments/a-b", "r.example/payments r.example/payments/a/b"},
		{"r.example/**", "r.example/a r.example/a/b", "r.example r.examples/a r.example:5000/a"},
		{"r.example/*/web", "r.example/a/web", "r.example/web r.example/a/b/web r.example/a/webx"},
		{"r.example/**/web", "r.example/a/web r.example/a/b/web", "r.example/web r.example/a/web/x"},
		{"r.example/team-*/api*", "r.example/team-a/api r.example/team-a/api2", "r.example/team/api r.example/team-a/b/api"},
		{"r.example/app**", "r.example/app2 r.example/app/x r.example/apps/x/y", "r.example/app r.example/ap"},
		{"localhost:5000/**", "localhost:5000/a", "localhost/a"},
		{"docker.io/library/*", "docker.io/library/nginx", "docker.io/nginx docker.io/library/a/b"},
	}
	for _, row := range rows {
		p, err := parsePattern(row.pattern)
		if err != nil {
			t.Errorf("%s: %v", row.pattern, err)
		}
		for _, name := range strings.Fields(row.yes) {
			if !covers(p.tokens, literal(name)) {
				t.Errorf("%s does not match %s", row.pattern, name)
			}
		}
		for _, name := range append(strings.Fields(row.no), "") {
			if covers(p.tokens, literal(name)) {
				t.Errorf("%s matches %s", row.pattern, name)
			}
		}
	}
}

func TestPatternCovers(t *testing.T) {
	rows := []struct {
		wide, narrow string
		covers, back bool
	}{
		{"r.example/a", "r.example/a", true, true},
		{"r.example/**", "r.example/a", true, false},
		{"r.example/**", "r.example/a/**", true, false},
		{"r.example/**", "r.example/a*", true, false},
		{"r.example/**", "r.example/*/b", true, false},
		{"r.example/**", "r.example/**/b", true, false},
		{"r.example/a/*", "r.example/a/b", true, false},
		{"r.example/a/*", "r.example/a/*-x", true, false},
		{"r.example/a/*", "r.example/a/**", false, true},
		{"r.example/a/*", "r.example/a/b/c", false, false},
		{"r.example/**", "r.example/*", true, false},
		{"r.example/**", "r.example/*/*", true, false},
		{"r.example/a/*", "r.example/a/*-*", true, false},
		{"r.example/*/*", "r.example/**", false, true},
		{"r.example/a**", "r.example/a*", false, false},
		{"r.example/a**", "r.example/a*b", true, false},
		{"r.example/a*", "r.example/a", true, false},
		{"r.example/a**", "r.example/a", false, false},
		{"r.example/**/x", "r.example/x", false, false},
		{"r.example/**", "s.example/a", false, false},
	}
	for _, row := range rows {
		a, b := literalOf(t, row.wide), literalOf(t, row.narrow)
		if covers(a, b) != row.covers {
			t.Errorf("%s covers %s: want %t", row.wide, row.narrow, row.covers)
		}
		if covers(b, a) != row.back {
			t.Errorf("%s covers %s: want %t", row.narrow, row.wide, row.back)
		}
	}
}

func literalOf(t *testing.T, text string) []string {
	t.Helper()
	p, err := parsePattern(text)
	if err != nil {
		t.Fatal(err)
	}
	return p.tokens
}

func TestPatternRefused(t *testing.T) {
	rows := map[string]string{
		"":                                      "not a pattern",
		"nginx":                                 `write "docker.io/library/nginx"`,
		"payments/**":                           "no canonical name",
		"**":                                    "wildcard is allowed in the host",
		"*/a":                                   "wildcard is allowed in the host",
		"r.example:*/a":                         "wildcard is allowed in the host",
		"R.example/a":                           "lower case",
		"r.example/A":                           "lower case",
		"r.example/A/**":                        "lower case",
		"r.example":                             "not canonical",
		"r.example/":                            "not a pattern",
		"r.example//a":                          "not a pattern",
		"r.example/a/":                          "not a pattern",
		"r.example/***":                         "more than two",
		"r.example/a:v1":                        "without tag or digest",
		"r.example/a@sha256:0":                  "without tag or digest",
		"nginx:v1":                              "without tag or digest",
		"r.example:443/a":                       "port 443",
		"docker.io/nginx":                       `write "docker.io/library/nginx"`,
		"docker.io/*":                           "no canonical name",
		"index.docker.io/library/*":             "Docker Hub is docker.io",
		"registry-1.docker.io/a/b":              "Docker Hub is docker.io",
		"r.example/a?":                          "not a pattern",
		"r.example/[ab]":                        "not a pattern",
		"https://r.example/a":                   "",
		"r.example/..":                          "not a pattern",
		" r.example/a":                          "not a pattern",
		"r.example/a ":                          "not a pattern",
		"r.example/" + strings.Repeat("a", 250): "at most 255",
	}
	for text, want := range rows {
		if _, err := parsePattern(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	for _, text := range []string{"docker.io/**", "localhost/a", "localhost:443x/a", "[::1]:5000/a"} {
		_, err := parsePattern(text)
		if (err == nil) == (text == "localhost:443x/a") {
			t.Errorf("%q: %v", text, err)
		}
	}
}
