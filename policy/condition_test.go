package policy_test

import (
	"strings"
	"testing"
	"time"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/policy"
)

func TestConditions(t *testing.T) {
	keys := ring{}
	rich := func(s *attest.ReleaseStatement) {
		none, no := 0, false
		s.Config.Setuid, s.Config.Shell = &none, &no
		s.Annotations = map[string]string{"git": "0123"}
		s.Expires = now.Add(time.Hour)
		s.Provenance, s.SBOM = digest('a'), digest('b')
	}
	sameConfig := func(s *attest.ReleaseStatement) { index(s); s.Manifests[2].Config = amdConfig }
	noEntrypoint := func(s *attest.ReleaseStatement) { s.Config.Entrypoint = nil }
	rows := []struct {
		summary, expr string
		change        func(*attest.ReleaseStatement)
		facts         policy.Facts
		reason        string // "" for allowed
	}{
		{summary: "names", expr: `image.repository == "` + repository + `" && image.digest == "` + imageDigest + `"`},
		{summary: "no tag by digest alone", expr: `!has(image.tag)`},
		{summary: "reading the tag that is not there", expr: `image.tag == "v1"`, reason: "no such key: tag"},
		{summary: "the tag", expr: `image.tag == "v1"`, facts: policy.Facts{Tag: "v1"}},
		{summary: "platforms of an image", expr: `image.platforms == ["linux/amd64"]`},
		{summary: "platforms of an index", expr: `image.platforms == ["linux/amd64", "linux/arm64"]`, change: index, facts: policy.Facts{Digest: indexDigest}},
		{summary: "platforms of a child", expr: `image.platforms == ["linux/arm64"]`, change: index, facts: policy.Facts{Digest: armDigest}},
		{summary: "user without group", expr: `image.user == "65532"`},
		{summary: "no user", expr: `image.user == "0"`, change: asUser("")},
		{summary: "root", expr: `image.user == "0"`, change: asUser("root:staff")},
		{summary: "other spellings of 0", expr: `image.user == "0"`, change: asUser("+00")},
		{summary: "a group only", expr: `image.user == "0"`, change: asUser(":5")},
		{summary: "another name", expr: `image.user == "nobody"`, change: asUser("nobody")},
		{summary: "entrypoint", expr: `image.entrypoint[0].startsWith("/")`},
		{summary: "no entrypoint", expr: `!has(image.entrypoint)`, change: noEntrypoint},
		{summary: "size and layers", expr: `image.size <= 1048576 && image.layers == 2`},
		{summary: "setuid and shell are not known", expr: `!has(image.setuid) && !has(image.shell)`},
		{summary: "reading what is not known", expr: `image.setuid == 0`, reason: "could not be evaluated: no such key: setuid"},
		{summary: "its denial does not pass either", expr: `!(image.setuid > 0)`, reason: "could not be evaluated"},
		{summary: "setuid and shell", expr: `image.setuid == 0 && !image.shell`, change: rich},
		{summary: "the statement", change: rich, expr: `statement.created < now && statement.expires > now && statement.repository == image.repository &&
			"v1" in statement.tags && statement.annotations["git"] == "0123" && has(statement.provenance) && statement.sbom.startsWith("sha256:b")`},
		{summary: "what the statement leaves out", expr: `!has(statement.expires) && !has(statement.provenance) && !has(statement.sbom) && size(statement.annotations) == 0`},
		{summary: "an annotation that is not there", expr: `statement.annotations["git"] == "0123"`, reason: "no such key: git"},
		{summary: "no tags", expr: `statement.tags.size() == 0`, change: tags()},
		{summary: "facts of the first platform", expr: `image.user == "65532"`, change: index, facts: policy.Facts{Digest: amdDigest}},
		{summary: "no facts of the second", expr: `image.user == "65532"`, change: index, facts: policy.Facts{Digest: armDigest}, reason: "no such key: user"},
		{summary: "no facts of an index with two configs", expr: `image.user == "65532"`, change: index, facts: policy.Facts{Digest: indexDigest}, reason: "no such key: user"},
		{summary: "facts of an index with one config", expr: `image.user == "65532"`, change: sameConfig, facts: policy.Facts{Digest: indexDigest}},
		{summary: "an error in the left part that the right part settles", expr: `image.setuid == 0 || image.user != "0"`},
		{summary: "too costly", reason: "cost limit exceeded",
			expr: `[1,2,3,4,5,6,7,8].all(a, [1,2,3,4,5,6,7,8].all(b, [1,2,3,4,5,6,7,8].all(c, [1,2,3,4,5,6,7,8].all(d, [1,2,3,4,5,6,7,8].all(e, [1,2,3,4,5,6,7,8].all(f, a+b+c+d+e+f > 0))))))`},
		{summary: "a division by zero", expr: `1 / (image.layers - 2) == 0`, reason: "division by zero"},
	}
	for _, row := range rows {
		f := row.facts
		f.Repository = repository
		if f.Digest == "" {
			f.Digest = imageDigest
		}
		change := row.change
		if change == nil {
			change = func(*attest.ReleaseStatement) {}
		}
		body := oneOfA + "    conditions:\n      - expr: >-\n          " + strings.ReplaceAll(row.expr, "\n", " ") + "\n"
		start := time.Now()
		v := keys.policy(t, body).Decide([]attest.Envelope{keys.sign(release(change), "a")}, f, now)
		if row.reason == "" && v.Code != policy.Allowed {
			t.Errorf("%s: %s %q", row.summary, v.Code, v.Reasons)
		}
		if row.reason != "" && (v.Code != policy.ConditionFailed || !strings.Contains(v.Reasons[0], row.reason)) {
			t.Errorf("%s: %s %q, want condition-failed, %q", row.summary, v.Code, v.Reasons, row.reason)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("%s: took %s", row.summary, took)
		}
	}
}

// A policy is used by many goroutines at once; the race detector looks on.
func TestDecideConcurrently(t *testing.T) {
	keys := ring{}
	p := keys.policy(t, oneOfA+noRoot)
	envelopes := []attest.Envelope{keys.sign(release(), "a")}
	done := make(chan policy.Code)
	for range 8 {
		go func() {
			done <- p.Decide(envelopes, policy.Facts{Repository: repository, Digest: imageDigest}, now).Code
		}()
	}
	for range 8 {
		if code := <-done; code != policy.Allowed {
			t.Error(code)
		}
	}
}
