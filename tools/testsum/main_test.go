package main

import (
	"strings"
	"testing"
)

func TestSummary(t *testing.T) {
	const pass = `{"Action":"output","Package":"p","Test":"TestA","Output":"quiet\n"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Output":"ok  \tp\n"}
{"Action":"pass","Package":"p"}
`
	for _, c := range []struct {
		summary                 string
		events                  string
		passed, failed, skipped int
		ok, okInCI              bool
		shown, hidden           string
	}{
		{"one test passes", pass, 1, 0, 0, true, true, "ok  \tp", "quiet"},
		{"nothing ran", "", 0, 0, 0, false, false, "", ""},
		{"a failure is shown once, and not counted for its package too", pass + `{"Action":"output","Package":"q","Test":"TestB","Output":"boom\n"}
{"Action":"fail","Package":"q","Test":"TestB"}
{"Action":"fail","Package":"q"}
`, 1, 1, 0, false, false, "boom", "quiet"},
		{"a package that does not build", pass + `{"Action":"build-output","ImportPath":"q","Output":"undefined: x\n"}
{"Action":"build-fail","ImportPath":"q"}
{"Action":"fail","Package":"q","FailedBuild":"q"}
`, 1, 1, 0, false, false, "undefined: x", "quiet"},
		{"a skipped test is a failure in CI", pass + `{"Action":"output","Package":"q","Test":"TestC","Output":"no runc\n"}
{"Action":"skip","Package":"q","Test":"TestC"}
{"Action":"pass","Package":"q"}
`, 1, 0, 1, true, false, "no runc", "quiet"},
		{"a package without tests is not a skipped test", pass + `{"Action":"skip","Package":"q"}
`, 1, 0, 0, true, true, "", "quiet"},
		{"what is not an event is shown", pass + "go: downloading\n", 1, 0, 0, true, true, "go: downloading", "quiet"},
	} {
		t.Run(c.summary, func(t *testing.T) {
			var out strings.Builder
			s := newSummary()
			if err := s.read(strings.NewReader(c.events), &out); err != nil {
				t.Fatal(err)
			}
			if s.passed != c.passed || s.failed != c.failed || s.skipped != c.skipped {
				t.Errorf("%d passed, %d failed, %d skipped", s.passed, s.failed, s.skipped)
			}
			if s.ok(false) != c.ok || s.ok(true) != c.okInCI {
				t.Errorf("ok %v, in CI %v", s.ok(false), s.ok(true))
			}
			if strings.Count(out.String(), c.shown) != 1 && c.shown != "" {
				t.Errorf("output %q, want %q once", out.String(), c.shown)
			}
			if c.hidden != "" && strings.Contains(out.String(), c.hidden) {
				t.Errorf("output %q shows %q", out.String(), c.hidden)
			}
		})
	}
}
