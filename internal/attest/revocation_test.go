package attest_test

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/imgtrust/imgtrust/internal/attest"
)

func revocation(change ...func(*attest.RevocationStatement)) attest.RevocationStatement {
	s := attest.RevocationStatement{Repository: "registry.example.com/app", Digest: digestA, Revocation: attest.Revocation{
		Trust: strings.Repeat("0a", 16), Created: time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC), Reason: "CVE",
	}}
	for _, c := range change {
		c(&s)
	}
	return s
}

func ofSigner(s *attest.RevocationStatement) {
	s.Repository, s.Digest, s.Signer, s.Since = "", "", "ci", s.Created
}

func TestRevocationRoundTrip(t *testing.T) {
	for summary, s := range map[string]attest.RevocationStatement{
		"a digest": revocation(), "a signer": revocation(ofSigner),
		"taken back": revocation(func(s *attest.RevocationStatement) { s.Undo = true }),
	} {
		t.Run(summary, func(t *testing.T) {
			payload := must[[]byte](t)(attest.EncodeRevocation(s))
			got := must[attest.RevocationStatement](t)(attest.DecodeRevocation(payload))
			if !reflect.DeepEqual(got, s) {
				t.Errorf("%+v became %+v", s, got)
			}
		})
	}
}

func TestRevocationRefuses(t *testing.T) {
	tests := []struct {
		summary string
		change  func(*attest.RevocationStatement)
		says    string
	}{
		{"no trust repository", func(s *attest.RevocationStatement) { s.Trust = "" }, "trust"},
		{"no reason", func(s *attest.RevocationStatement) { s.Reason = "" }, "reason"},
		{"an endless reason", func(s *attest.RevocationStatement) { s.Reason = strings.Repeat("x", 513) }, "reason"},
		{"no time", func(s *attest.RevocationStatement) { s.Created = time.Time{} }, "created"},
		{"a digest since a time", func(s *attest.RevocationStatement) { s.Since = s.Created }, "since"},
		{"a signer without since", func(s *attest.RevocationStatement) { ofSigner(s); s.Since = time.Time{} }, "since"},
		{"a signer and a digest", func(s *attest.RevocationStatement) { s.Signer, s.Since = "ci", s.Created }, "or about a signer"},
		{"a repository without a host", func(s *attest.RevocationStatement) { s.Repository = "app" }, "repository"},
	}
	for _, test := range tests {
		t.Run(test.summary, func(t *testing.T) {
			_, err := attest.EncodeRevocation(revocation(test.change))
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("%v does not say %q", err, test.says)
			}
		})
	}
	payload := string(must[[]byte](t)(attest.EncodeRevocation(revocation(ofSigner))))
	for summary, text := range map[string]string{
		"another subject":  strings.Replace(payload, "signer:ci", "signer:cd", 1),
		"an unknown field": strings.Replace(payload, `"reason"`, `"except":"x","reason"`, 1),
		"another type":     strings.Replace(payload, "revocation/v1", "release/v1", 1),
	} {
		if _, err := attest.DecodeRevocation([]byte(text)); err == nil {
			t.Errorf("%s is accepted", summary)
		}
	}
}

func FuzzDecodeRevocation(f *testing.F) {
	f.Add(must[[]byte](f)(attest.EncodeRevocation(revocation())))
	f.Add(must[[]byte](f)(attest.EncodeRevocation(revocation(ofSigner))))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := attest.DecodeRevocation(b)
		if err != nil {
			return
		}
		back := must[attest.RevocationStatement](t)(attest.DecodeRevocation(must[[]byte](t)(attest.EncodeRevocation(got))))
		if !reflect.DeepEqual(back, got) {
			t.Fatalf("%+v became %+v", got, back)
		}
	})
}
