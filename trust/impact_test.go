package trust_test

import (
	"context"
	"strings"
	"testing"

	"github.com/imgtrust/imgtrust/internal/testkit"
	"github.com/imgtrust/imgtrust/policy"
)

func TestImpact(t *testing.T) {
	v := testkit.NewVirtualTrust(t)
	v.List(v.Host+"/app/web", "v1", "one", "ci")
	v.List(v.Host+"/two/api", "v1", "two", "ci", "security")
	text := testkit.Policy(t, v.Host, v.Signers)
	tests := []struct {
		summary      string
		policy       string
		stops, start int
	}{
		{"the same policy", text, 0, 0},
		{"a second signature is wanted", strings.Replace(text, "{threshold: 1, from: [ci]}", "{threshold: 2, from: [ci, security]}", 1), 2, 0},
		{"another signer", strings.ReplaceAll(text, "from: [ci]", "from: [security]"), 2, 0},
		{"only audited", strings.Replace(text, "from: [ci]}", "from: [security]}\n    audit: true", 1), 0, 0},
	}
	for _, test := range tests {
		t.Run(test.summary, func(t *testing.T) {
			p, err := policy.Parse("policy.yaml", []byte(test.policy))
			if err != nil {
				t.Fatal(err)
			}
			got, err := v.Reader("").Impact(context.Background(), p)
			if err != nil {
				t.Fatal(err)
			}
			if got.Listed != 4 || got.Stops != test.stops || got.Starts != test.start || len(got.First) != test.stops {
				t.Errorf("got %+v, want %d stops and %d starts of 4", got, test.stops, test.start)
			}
		})
	}
}
