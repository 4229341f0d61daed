package policy_test

import (
	"bytes"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/policy"
)

const (
	oneOfA   = "rules:\n  - images: [\"registry.example.com/payments/**\"]\n    signatures: {threshold: 1, from: [a]}\n"
	twoOfAB  = "rules:\n  - images: [\"registry.example.com/payments/**\"]\n    signatures: {threshold: 2, from: [a, b]}\n"
	twoOfABC = "rules:\n  - images: [\"registry.example.com/payments/**\"]\n    signatures: {threshold: 2, from: [c, b, a]}\n"
	oneOfR   = "rules:\n  - images: [\"registry.example.com/payments/**\"]\n    signatures: {threshold: 1, from: [r]}\n"
	ninety   = "    maxAge: 90d\n"
	audit    = "    audit: true\n"
	noRoot   = "    conditions:\n      - {expr: 'image.user != \"0\"', message: \"runs as root\"}\n"
)

func TestDecide(t *testing.T) {
	keys := ring{}
	sign := keys.sign
	day := 24 * time.Hour
	rows := []struct {
		summary   string
		policy    string
		envelopes []attest.Envelope
		facts     policy.Facts // Repository and Digest default to the image's
		code      policy.Code
		reason    string // in the first reason
		signers   string // names of those that counted
		audit     bool
	}{
		{summary: "one signature where one is needed", policy: oneOfA,
			envelopes: []attest.Envelope{sign(release(), "a")}, code: policy.Allowed, reason: "signed by a; rules[0] needs 1", signers: "a"},
		{summary: "nothing is there", policy: oneOfA, code: policy.ThresholdNotMet, reason: "no statement"},
		{summary: "one of two is missing", policy: twoOfAB,
			envelopes: []attest.Envelope{sign(release(), "a")}, code: policy.ThresholdNotMet, reason: "signed by a; rules[0] needs 2 of a, b", signers: "a"},
		{summary: "two of two", policy: twoOfAB,
			envelopes: []attest.Envelope{sign(release(), "b"), sign(release(), "a")}, code: policy.Allowed, signers: "a b"},
		{summary: "one envelope with two signatures counts for both", policy: twoOfAB,
			envelopes: []attest.Envelope{sign(release(), "a", "b")}, code: policy.Allowed, signers: "a b"},
		{summary: "two of three", policy: twoOfABC,
			envelopes: []attest.Envelope{sign(release(), "c"), sign(release(), "a")}, code: policy.Allowed, signers: "a c"},
		{summary: "more than the threshold", policy: twoOfABC,
			envelopes: []attest.Envelope{sign(release(), "a", "b", "c")}, code: policy.Allowed, signers: "a b c"},
		{summary: "the same signer twice counts once", policy: twoOfAB,
			envelopes: []attest.Envelope{sign(release(), "a"), sign(release(created(now.Add(-time.Hour))), "a")}, code: policy.ThresholdNotMet, signers: "a"},
		{summary: "the same signature twice in one envelope counts once", policy: twoOfAB,
			envelopes: []attest.Envelope{sign(release(), "a", "a")}, code: policy.ThresholdNotMet, signers: "a"},
		{summary: "two keys of one signer count once", policy: strings.Replace(twoOfAB, "[a, b]", "[a, r]", 1),
			envelopes: []attest.Envelope{sign(release(), "r-old"), sign(release(), "r-new-ed25519")},
			facts:     policy.Facts{Listed: now.Add(-60 * day)}, code: policy.ThresholdNotMet, signers: "r"},
		{summary: "a key that nobody has", policy: oneOfA,
			envelopes: []attest.Envelope{sign(release(), "x")}, code: policy.BadSignature, reason: "none of the envelopes"},
		{summary: "a signer of the policy whom the rule does not name", policy: oneOfA,
			envelopes: []attest.Envelope{sign(release(), "b")}, code: policy.BadSignature},
		{summary: "a payload changed after signing", policy: oneOfA,
			envelopes: []attest.Envelope{flipped(sign(release(), "a"))}, code: policy.BadSignature},
		{summary: "an envelope without signatures", policy: oneOfA,
			envelopes: []attest.Envelope{{PayloadType: attest.PayloadType, Payload: release()}}, code: policy.BadSignature},
		{summary: "another payload type under a good payload", policy: oneOfA,
			envelopes: []attest.Envelope{retyped(sign(release(), "a"))}, code: policy.BadSignature},
		{summary: "a signature of an unknown key beside a good one", policy: oneOfA,
			envelopes: []attest.Envelope{sign(release(), "x"), sign(release(), "a")}, code: policy.Allowed, signers: "a"},
		{summary: "cosign's statement names no repository and counts for nothing", policy: oneOfA,
			envelopes: []attest.Envelope{sign(must(attest.EncodeCosignSign(imageDigest)), "a")}, code: policy.ThresholdNotMet, reason: "signed by nobody"},
		{summary: "signed bytes that are no statement", policy: oneOfA,
			envelopes: []attest.Envelope{sign([]byte("hello"), "a")}, code: policy.ThresholdNotMet, reason: "signed by nobody"},

		{summary: "a statement copied from another repository", policy: oneOfA,
			envelopes: []attest.Envelope{sign(release(inRepository(elsewhere)), "a")}, code: policy.WrongRepository, reason: `a: the statement is about repository "` + elsewhere},
		{summary: "a repository that only begins alike", policy: oneOfA,
			envelopes: []attest.Envelope{sign(release(inRepository(repository+"-x")), "a")}, code: policy.WrongRepository},
		{summary: "a subject name that is not the repository's", policy: oneOfA,
			envelopes: []attest.Envelope{sign(renamed(release(), elsewhere), "a")}, code: policy.WrongRepository},
		{summary: "a statement about another digest", policy: oneOfA,
			envelopes: []attest.Envelope{sign(release(index), "a")}, code: policy.WrongRepository, reason: "a: the statement is about " + indexDigest},
		{summary: "wrong repository comes before the threshold", policy: twoOfAB,
			envelopes: []attest.Envelope{sign(release(), "a"), sign(release(inRepository(elsewhere)), "b")}, code: policy.WrongRepository, signers: "a"},
		{summary: "a foreign statement of one who counts anyhow is not the cause", policy: twoOfAB,
			envelopes: []attest.Envelope{sign(release(), "a"), sign(release(inRepository(elsewhere)), "a")}, code: policy.ThresholdNotMet, signers: "a"},
		{summary: "a foreign statement beside enough good ones", policy: oneOfA,
			envelopes: []attest.Envelope{sign(release(inRepository(elsewhere)), "a"), sign(release(), "a")}, code: policy.Allowed, signers: "a"},

		{summary: "the index", policy: oneOfA, facts: policy.Facts{Digest: indexDigest},
			envelopes: []attest.Envelope{sign(release(index), "a")}, code: policy.Allowed, signers: "a"},
		{summary: "a child of the index", policy: oneOfA, facts: policy.Facts{Digest: armDigest},
			envelopes: []attest.Envelope{sign(release(index), "a")}, code: policy.Allowed, signers: "a"},
		{summary: "a child that the index does not name", policy: oneOfA, facts: policy.Facts{Digest: otherDigest},
			envelopes: []attest.Envelope{sign(release(index), "a")}, code: policy.WrongRepository},
		{summary: "a config is no manifest", policy: oneOfA, facts: policy.Facts{Digest: armConfig},
			envelopes: []attest.Envelope{sign(release(index), "a")}, code: policy.WrongRepository},
		{summary: "a child proven by the index of one and by itself", policy: twoOfAB, facts: policy.Facts{Digest: amdDigest},
			envelopes: []attest.Envelope{sign(release(index), "a"), sign(release(alone(amdDigest, amdConfig)), "b")}, code: policy.Allowed, signers: "a b"},

		{summary: "a tag that the statement names", policy: oneOfA, facts: policy.Facts{Tag: "latest"},
			envelopes: []attest.Envelope{sign(release(), "a")}, code: policy.Allowed, signers: "a"},
		{summary: "a tag that the statement does not name", policy: oneOfA, facts: policy.Facts{Tag: "v2"},
			envelopes: []attest.Envelope{sign(release(), "a")}, code: policy.ThresholdNotMet, reason: "signed by nobody"},
		{summary: "a tag that one of two names", policy: twoOfAB, facts: policy.Facts{Tag: "v1"},
			envelopes: []attest.Envelope{sign(release(), "a"), sign(release(tags("v2")), "b")}, code: policy.ThresholdNotMet, signers: "a"},
		{summary: "signing again for another tag breaks nothing", policy: oneOfA, facts: policy.Facts{Tag: "v1"},
			envelopes: []attest.Envelope{sign(release(), "a"), sign(release(tags("v2"), created(now.Add(-time.Hour))), "a")}, code: policy.Allowed, signers: "a"},

		{summary: "five minutes ahead", policy: oneOfA,
			envelopes: []attest.Envelope{sign(release(created(now.Add(5*time.Minute))), "a")}, code: policy.Allowed, signers: "a"},
		{summary: "more than five minutes ahead", policy: oneOfA,
			envelopes: []attest.Envelope{sign(release(created(now.Add(5*time.Minute+time.Second))), "a")}, code: policy.ThresholdNotMet, reason: "signed by nobody"},
		{summary: "an older one counts beside one of the future", policy: oneOfA,
			envelopes: []attest.Envelope{sign(release(created(now.Add(time.Hour))), "a"), sign(release(), "a")}, code: policy.Allowed, signers: "a"},
		{summary: "a second before it expires", policy: oneOfA,
			envelopes: []attest.Envelope{sign(release(expires(now.Add(time.Second))), "a")}, code: policy.Allowed, signers: "a"},
		{summary: "it expires now", policy: oneOfA,
			envelopes: []attest.Envelope{sign(release(expires(now)), "a")}, code: policy.StatementExpired, reason: "a: the statement expired at 2026-06-01T12:00:00Z"},
		{summary: "one of two expired", policy: twoOfAB,
			envelopes: []attest.Envelope{sign(release(), "a"), sign(release(expires(now.Add(-time.Hour))), "b")}, code: policy.StatementExpired, reason: "b: ", signers: "a"},
		{summary: "one of three expired and two are needed", policy: twoOfABC,
			envelopes: []attest.Envelope{sign(release(), "a", "c"), sign(release(expires(now)), "b")}, code: policy.Allowed, signers: "a c"},
		{summary: "too few even with what expired", policy: twoOfAB,
			envelopes: []attest.Envelope{sign(release(expires(now)), "a")}, code: policy.ThresholdNotMet, signers: "a"},
		{summary: "a signer's newer word is taken, also when it has expired", policy: oneOfA,
			envelopes: []attest.Envelope{sign(release(), "a"), sign(release(created(now.Add(-2*time.Hour)), expires(now.Add(-time.Hour))), "a")}, code: policy.StatementExpired},
		{summary: "a second before it is too old", policy: oneOfA + ninety,
			envelopes: []attest.Envelope{sign(release(created(now.Add(time.Second-90*day))), "a")}, code: policy.Allowed, signers: "a"},
		{summary: "too old", policy: oneOfA + ninety,
			envelopes: []attest.Envelope{sign(release(created(now.Add(-90*day))), "a")}, code: policy.TooOld, reason: "older than 90d"},
		{summary: "expired comes before too old", policy: twoOfAB + ninety,
			envelopes: []attest.Envelope{sign(release(expires(now)), "a"), sign(release(created(now.Add(-91*day))), "b")}, code: policy.StatementExpired, reason: "a: ", signers: "b"},
		{summary: "signed again, not too old", policy: oneOfA + ninety,
			envelopes: []attest.Envelope{sign(release(created(now.Add(-91*day))), "a"), sign(release(), "a")}, code: policy.Allowed, signers: "a"},

		{summary: "a replaced key for an image listed before", policy: oneOfR, facts: policy.Facts{Listed: time.Date(2026, 4, 30, 23, 59, 59, 0, time.UTC)},
			envelopes: []attest.Envelope{sign(release(), "r-old")}, code: policy.Allowed, signers: "r"},
		{summary: "a replaced key for an image listed on the day", policy: oneOfR, facts: policy.Facts{Listed: time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)},
			envelopes: []attest.Envelope{sign(release(), "r-old")}, code: policy.ThresholdNotMet, reason: "signed by nobody"},
		{summary: "a replaced key for an image being listed now, whatever it states", policy: oneOfR,
			envelopes: []attest.Envelope{sign(release(created(now.Add(-300*day))), "r-old")}, code: policy.ThresholdNotMet},
		{summary: "its successor", policy: oneOfR,
			envelopes: []attest.Envelope{sign(release(), "r-old"), sign(release(), "r-new-ed25519")}, code: policy.Allowed, signers: "r"},

		{summary: "deny of the digest", policy: deny(imageDigest) + oneOfA,
			envelopes: []attest.Envelope{sign(release(), "a")}, code: policy.Denied, reason: imageDigest + " is denied"},
		{summary: "deny of the digest without any statement", policy: deny(imageDigest) + oneOfA, code: policy.Denied},
		{summary: "deny of the digest without any rule", policy: deny(imageDigest) + oneOfA, code: policy.Denied,
			facts: policy.Facts{Repository: "registry.example.com/x"}},
		{summary: "deny of the config", policy: deny(imageConfig) + oneOfA,
			envelopes: []attest.Envelope{sign(release(), "a")}, code: policy.Denied, reason: imageConfig + " is denied"},
		{summary: "deny of a child's config refuses the index", policy: deny(armConfig) + oneOfA, facts: policy.Facts{Digest: indexDigest},
			envelopes: []attest.Envelope{sign(release(index), "a")}, code: policy.Denied},
		{summary: "deny of a child's config refuses the child", policy: deny(armConfig) + oneOfA, facts: policy.Facts{Digest: armDigest},
			envelopes: []attest.Envelope{sign(release(index), "a")}, code: policy.Denied},
		{summary: "deny of a child's config does not refuse the other child", policy: deny(armConfig) + oneOfA, facts: policy.Facts{Digest: amdDigest},
			envelopes: []attest.Envelope{sign(release(index), "a")}, code: policy.Allowed, signers: "a"},
		{summary: "deny of an index refuses its children", policy: deny(indexDigest) + oneOfA, facts: policy.Facts{Digest: amdDigest},
			envelopes: []attest.Envelope{sign(release(index), "a")}, code: policy.Denied},
		{summary: "what nobody signed cannot make a digest denied", policy: deny(otherDigest) + oneOfA,
			envelopes: []attest.Envelope{sign(release(), "a"), sign(release(alone(imageDigest, otherDigest)), "x")}, code: policy.Allowed, signers: "a"},
		{summary: "what another tenant signed cannot either", policy: deny(otherDigest) + oneOfA,
			envelopes: []attest.Envelope{sign(release(), "a"), sign(release(alone(imageDigest, otherDigest)), "b")}, code: policy.Allowed, signers: "a"},
		{summary: "deny overrides audit", policy: deny(imageConfig) + oneOfA + audit,
			envelopes: []attest.Envelope{sign(release(), "a")}, code: policy.Denied},
		{summary: "deny overrides an audit rule without signatures", policy: deny(imageConfig) + "rules: [{images: [\"registry.example.com/**\"], audit: true}]\n",
			envelopes: []attest.Envelope{sign(release(), "a")}, code: policy.Denied},

		{summary: "no rule", policy: oneOfA, facts: policy.Facts{Repository: "registry.example.com/payments"},
			envelopes: []attest.Envelope{sign(release(), "a")}, code: policy.NoRule, reason: "no rule matches"},
		{summary: "audit keeps the true code", policy: oneOfA + audit,
			envelopes: []attest.Envelope{sign(release(), "x")}, code: policy.BadSignature, audit: true},
		{summary: "audit of what is allowed", policy: oneOfA + audit,
			envelopes: []attest.Envelope{sign(release(), "a")}, code: policy.Allowed, signers: "a", audit: true},
		{summary: "audit without signatures is never plainly allowed", policy: "rules: [{images: [\"registry.example.com/**\"], audit: true}]\n",
			envelopes: []attest.Envelope{sign(release(), "a")}, code: policy.ThresholdNotMet, reason: "names no signers", audit: true},

		{summary: "a condition that holds", policy: oneOfA + noRoot,
			envelopes: []attest.Envelope{sign(release(), "a")}, code: policy.Allowed, signers: "a"},
		{summary: "a condition that does not hold", policy: oneOfA + noRoot,
			envelopes: []attest.Envelope{sign(release(asUser("0:0")), "a")}, code: policy.ConditionFailed, reason: `a: condition "runs as root" does not hold`},
		{summary: "no user is root", policy: oneOfA + noRoot,
			envelopes: []attest.Envelope{sign(release(asUser("")), "a")}, code: policy.ConditionFailed},
		{summary: "a fact that is not known does not pass", policy: oneOfA + noRoot,
			envelopes: []attest.Envelope{sign(release(unknownConfig), "a")}, code: policy.ConditionFailed, reason: "could not be evaluated: no such key: user"},
		{summary: "the condition holds for one of two", policy: twoOfAB + noRoot,
			envelopes: []attest.Envelope{sign(release(), "a"), sign(release(asUser("root")), "b")}, code: policy.ConditionFailed, reason: "b: ", signers: "a"},
		{summary: "too old comes before the condition", policy: oneOfA + ninety + noRoot,
			envelopes: []attest.Envelope{sign(release(asUser("0"), created(now.Add(-91*day))), "a")}, code: policy.TooOld},
		{summary: "the ninth envelope is not read", policy: oneOfA,
			envelopes: append(slices.Repeat([]attest.Envelope{sign(release(), "x")}, policy.MaxEnvelopes), sign(release(), "a")), code: policy.BadSignature},
		{summary: "the eighth is", policy: oneOfA,
			envelopes: append(slices.Repeat([]attest.Envelope{sign(release(), "x")}, policy.MaxEnvelopes-1), sign(release(), "a")), code: policy.Allowed, signers: "a"},
	}
	for _, row := range rows {
		t.Run(row.summary, func(t *testing.T) {
			f := row.facts
			if f.Repository == "" {
				f.Repository = repository
			}
			if f.Digest == "" {
				f.Digest = imageDigest
			}
			p := keys.policy(t, row.policy)
			v := p.Decide(row.envelopes, f, now)
			if v.Code != row.code || v.Audit != row.audit {
				t.Errorf("%s, audit %t; want %s, %t: %q", v.Code, v.Audit, row.code, row.audit, v.Reasons)
			}
			if len(v.Reasons) == 0 || !strings.Contains(v.Reasons[0], row.reason) {
				t.Errorf("reasons %q, want %q in the first", v.Reasons, row.reason)
			}
			if got := counted(v); got != row.signers {
				t.Errorf("signers %q, want %q", got, row.signers)
			}
			if (v.Statement == nil) != (row.signers == "") {
				t.Errorf("statement %+v with signers %q", v.Statement, row.signers)
			}
			slices.Reverse(row.envelopes)
			if again := p.Decide(row.envelopes, f, now); len(row.envelopes) <= policy.MaxEnvelopes && (again.Code != v.Code || !reflect.DeepEqual(again.Signers, v.Signers)) {
				t.Errorf("in another order: %s %+v, before %s %+v", again.Code, again.Signers, v.Code, v.Signers)
			}
		})
	}
}

func counted(v policy.Verdict) string {
	var names []string
	for _, s := range v.Signers {
		names = append(names, s.Name)
	}
	return strings.Join(names, " ")
}

func deny(digest string) string { return "deny: [\"" + digest + "\"]\n" }

func flipped(e attest.Envelope) attest.Envelope {
	e.Payload = bytes.Replace(e.Payload, []byte("latest"), []byte("newest"), 1)
	return e
}

func retyped(e attest.Envelope) attest.Envelope {
	e.PayloadType = "text/plain"
	return e
}

// renamed gives the subject, but not the predicate, another name.
func renamed(payload []byte, name string) []byte {
	return bytes.Replace(payload, []byte(`"name":"`+repository+`"`), []byte(`"name":"`+name+`"`), 1)
}

func alone(digest, config string) func(*attest.ReleaseStatement) {
	return func(s *attest.ReleaseStatement) {
		s.Digest = digest
		s.Manifests = []attest.Manifest{{MediaType: "application/vnd.oci.image.manifest.v1+json", Digest: digest, Size: 500, Platform: "linux/amd64", Config: config}}
	}
}

func unknownConfig(s *attest.ReleaseStatement) { s.Config = nil }

func TestAllReasonsAreListed(t *testing.T) {
	keys := ring{}
	p := keys.policy(t, strings.Replace(twoOfABC, "threshold: 2", "threshold: 3", 1))
	v := p.Decide([]attest.Envelope{
		keys.sign(release(tags("v2")), "a"),
		keys.sign(release(inRepository(elsewhere)), "b"),
		keys.sign(release(created(now.Add(time.Hour))), "c"),
	}, policy.Facts{Repository: repository, Digest: imageDigest, Tag: "v1"}, now)
	want := []string{
		`b: the statement is about repository "` + elsewhere + `", not "` + repository + `"`,
		`a: the statement does not name the tag "v1"`,
		`c: the statement is of the future: created 2026-06-01T13:00:00Z`,
	}
	if v.Code != policy.WrongRepository || !slices.Equal(v.Reasons, want) {
		t.Errorf("%s %q, want %q", v.Code, v.Reasons, want)
	}
}

func TestVerdictTimes(t *testing.T) {
	keys := ring{}
	at := func(h int) time.Time { return now.Add(time.Duration(h) * time.Hour) }
	facts := policy.Facts{Repository: repository, Digest: imageDigest}
	rows := []struct {
		summary     string
		policy      string
		envelopes   []attest.Envelope
		code        policy.Code
		time, until time.Time
		noCache     bool
	}{
		{summary: "one", policy: oneOfA, code: policy.Allowed, time: at(-3),
			envelopes: []attest.Envelope{keys.sign(release(created(at(-3))), "a")}},
		{summary: "the second newest of three", policy: twoOfABC, code: policy.Allowed, time: at(-2),
			envelopes: []attest.Envelope{keys.sign(release(created(at(-3))), "a"), keys.sign(release(created(at(-1))), "b"), keys.sign(release(created(at(-2))), "c")}},
		{summary: "fewer than needed have no time", policy: twoOfAB, code: policy.ThresholdNotMet,
			envelopes: []attest.Envelope{keys.sign(release(created(at(-3))), "a")}},
		{summary: "the time does not go back when the newest expires", policy: strings.Replace(twoOfABC, "threshold: 2", "threshold: 1", 1), code: policy.Allowed, time: at(-1),
			envelopes: []attest.Envelope{keys.sign(release(created(at(-3))), "a"), keys.sign(release(created(at(-1)), expires(at(0))), "b")}},
		{summary: "until the first expiry", policy: twoOfAB, code: policy.Allowed, time: at(-3), until: at(2),
			envelopes: []attest.Envelope{keys.sign(release(created(at(-3)), expires(at(5))), "a"), keys.sign(release(created(at(-2)), expires(at(2))), "b")}},
		{summary: "until it is too old", policy: oneOfA + "    maxAge: 24h\n", code: policy.Allowed, time: at(-3), until: at(21),
			envelopes: []attest.Envelope{keys.sign(release(created(at(-3)), expires(at(50))), "a")}},
		{summary: "until a statement of the future counts", policy: oneOfA, code: policy.ThresholdNotMet, until: at(1).Add(-5 * time.Minute),
			envelopes: []attest.Envelope{keys.sign(release(created(at(1))), "a")}},
		{summary: "a condition that reads now", policy: oneOfA + "    conditions: [{expr: 'now - statement.created < duration(\"4h\")'}]\n", code: policy.Allowed, time: at(-3), noCache: true,
			envelopes: []attest.Envelope{keys.sign(release(created(at(-3))), "a")}},
		{summary: "a condition that does not", policy: oneOfA + noRoot, code: policy.Allowed, time: at(-3),
			envelopes: []attest.Envelope{keys.sign(release(created(at(-3))), "a")}},
	}
	for _, row := range rows {
		v := keys.policy(t, row.policy).Decide(row.envelopes, facts, now)
		if v.Code != row.code || !v.Time.Equal(row.time) || !v.Until.Equal(row.until) || v.NoCache != row.noCache {
			t.Errorf("%s: %s, time %s, until %s, no cache %t; %q", row.summary, v.Code, v.Time, v.Until, v.NoCache, v.Reasons)
		}
		if v.Rule != "rules[0] registry.example.com/payments/**" {
			t.Errorf("%s: rule %q", row.summary, v.Rule)
		}
	}
}

func TestVerdictUntilListedBefore(t *testing.T) {
	keys := ring{}
	before := time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC)
	payload := release(created(before.Add(-time.Hour)))
	facts := policy.Facts{Repository: repository, Digest: imageDigest}
	v := keys.policy(t, oneOfR).Decide([]attest.Envelope{keys.sign(payload, "r-old")}, facts, before)
	if want := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC); v.Code != policy.Allowed || !v.Until.Equal(want) {
		t.Errorf("%s until %s, want allowed until %s", v.Code, v.Until, want)
	}
	if len(v.Signers) != 1 || v.Signers[0].KeyID != keys.id("r-old") || !v.Signers[0].Created.Equal(before.Add(-time.Hour)) {
		t.Errorf("signers %+v", v.Signers)
	}
}

func TestFirstMatchWins(t *testing.T) {
	keys := ring{}
	p := keys.policy(t, `rules:
  - images: ["docker.io/library/*", "registry.example.com/payments/api"]
    signatures: {threshold: 1, from: [a]}
  - images: ["registry.example.com/payments/**"]
    signatures: {threshold: 1, from: [b]}
`)
	v := p.Decide([]attest.Envelope{keys.sign(release(), "b")}, policy.Facts{Repository: repository, Digest: imageDigest}, now)
	if v.Code != policy.BadSignature || v.Rule != "rules[0] registry.example.com/payments/api" {
		t.Errorf("%s by %q", v.Code, v.Rule)
	}
	r, pattern, ok := p.Match(elsewhere)
	if !ok || r.Name != "rules[1]" || pattern != "registry.example.com/payments/**" || !slices.Equal(r.From, []string{"b"}) {
		t.Errorf("%+v %q %t", r, pattern, ok)
	}
}

func TestNoPolicyAllowsNothing(t *testing.T) {
	keys := ring{}
	e := keys.sign(release(), "a")
	for _, p := range []*policy.Policy{nil, {}} {
		v := p.Decide([]attest.Envelope{e}, policy.Facts{Repository: repository, Digest: imageDigest}, now)
		if v.Code != policy.NoRule || v.Audit || v.Rule != "" || v.Signers != nil {
			t.Errorf("%+v", v)
		}
		_, signed := p.Signer(e)
		_, denied := p.Denied(imageDigest)
		_, _, matched := p.Match(repository)
		if signed || denied || matched || p.Rules() != nil || p.Signers() != nil {
			t.Errorf("%v knows something", p)
		}
	}
}

func TestSignerAndDenied(t *testing.T) {
	keys := ring{}
	p := keys.policy(t, deny(otherDigest)+oneOfA)
	for key, name := range map[string]string{"b": "b", "r-old": "r", "r-new-ed25519": "r"} {
		s, ok := p.Signer(keys.sign(release(), "x", key))
		if !ok || s.Name != name || s.KeyID != keys.id(key) || !s.Created.IsZero() {
			t.Errorf("%s: %+v %t", key, s, ok)
		}
	}
	if s, ok := p.Signer(keys.sign(release(), "x")); ok {
		t.Errorf("an unknown key is %+v", s)
	}
	if d, ok := p.Denied(imageDigest, otherDigest); !ok || d != otherDigest {
		t.Errorf("denied %q %t", d, ok)
	}
	if d, ok := p.Denied(imageDigest, ""); ok || d != "" {
		t.Errorf("denied %q %t", d, ok)
	}
}
