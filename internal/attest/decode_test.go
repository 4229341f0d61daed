package attest_test

import (
	"context"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/imgtrust/imgtrust/internal/attest"
)

// change is one edit of a document: the first occurrence of old becomes new.
type change struct{ summary, old, new, want string }

// refuse applies each change to a good document and wants an error that names
// the place.
func refuse[T any](t *testing.T, good string, decode func([]byte) (T, error), rows []change) {
	t.Helper()
	if _, err := decode([]byte(good)); err != nil {
		t.Fatalf("the unchanged document: %v", err)
	}
	for _, row := range rows {
		if !strings.Contains(good, row.old) {
			t.Errorf("%s: %q does not occur in %s", row.summary, row.old, good)
			continue
		}
		bad := strings.Replace(good, row.old, row.new, 1)
		if _, err := decode([]byte(bad)); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: error %v, want %q", row.summary, err, row.want)
		}
	}
}

func goodBundle(t testing.TB) string {
	t.Helper()
	key := newKey(t, "ecdsa-p256")
	e := must[attest.Envelope](t)(attest.Sign(context.Background(), payload(t), newSigner(t, key)))
	return string(must[[]byte](t)(attest.EncodeBundle(e, key.Public())))
}

func TestDecodeBundleRefuses(t *testing.T) {
	refuse(t, goodBundle(t), attest.DecodeBundle, []change{
		{"unknown field at the top", `{"mediaType"`, `{"extra":1,"mediaType"`, `unknown field "extra"`},
		{"unknown field below", `"sig":`, `"extra":1,"sig":`, `dsseEnvelope.signatures[0]: unknown field "extra"`},
		{"a field twice", `"sig":`, `"sig":"AAAA","sig":`, `dsseEnvelope.signatures[0]: field "sig" is given twice`},
		{"a field in another case", `"payload":`, `"Payload":`, `dsseEnvelope: field "Payload" is written "payload"`},
		{"a field twice in two cases", `"payload":`, `"PAYLOAD":"AAAA","payload":`, `field "PAYLOAD" is written "payload"`},
		{"a field's name of the protocol buffers", `"mediaType"`, `"media_type"`, `unknown field "media_type"`},
		{"trailing data", `"}]}}`, `"}]}} x`, "after top-level value"},
		{"a second document", `"}]}}`, `"}]}}{}`, "after top-level value"},
		{"cut short", `"}]}}`, `"}]}`, "unexpected end"},
		{"another version", "v0.3+json", "v0.2+json", "bundle: mediaType"},
		{"no media type", `"mediaType"`, `"dsseEnvelope":null,"mediaType"`, "dsseEnvelope"},
		{"no verification material", `"verificationMaterial":{`, `"verificationMaterial":null,"x":{`, "unknown field"},
		{"a certificate", `"publicKey":{`, `"certificate":{`, `verificationMaterial: unknown field "certificate"`},
		{"a null key", `{"publicKey":{"hint":`, `{"publicKey":null,"timestampVerificationData":{"hint":`, "verificationMaterial.publicKey is missing"},
		{"a hint of the wrong type", `"hint":"`, `"hint":1,"hint":"`, "given twice"},
		{"a number for a string", `"payloadType":"application/vnd.in-toto+json"`, `"payloadType":7`, "dsseEnvelope.payloadType: a number where"},
		{"another payload type", "vnd.in-toto", "vnd.out-toto", "dsseEnvelope: payloadType"},
		{"an empty payload", `"payload":"`, `"payload":"","payloadtype":"`, "is written"},
		{"payload not in base64", `"payload":"`, `"payload":"!`, "dsseEnvelope: payload"},
		{"line break in base64", `"payload":"`, `"payload":"\n`, "payload: line break"},
		{"no signature", `"signatures":[{`, `"signatures":[],"x":[{`, "unknown field"},
		{"two signatures", `"signatures":[`, `"signatures":[{"sig":"AAAA"},`, "signatures: 2 where exactly 1 belongs"},
		{"an empty signature", `"sig":"`, `"sig":"","keyid":"`, "signatures[0].sig"},
		{"a long key ID", `"sig":"`, `"keyid":"` + strings.Repeat("k", attest.MaxKeyID+1) + `","sig":"`, "keyid: longer"},
		{"a long hint", `"hint":"`, `"hint":"` + strings.Repeat("k", attest.MaxKeyID), "hint: longer"},
		{"many log entries", `"publicKey"`, `"tlogEntries":[{}` + strings.Repeat(",{}", attest.MaxTlog) + `],"publicKey"`, "tlogEntries: more than"},
		{"deep nesting", `"publicKey"`, `"timestampVerificationData":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `,"publicKey"`, "nested deeper than 32"},
		{"not UTF-8", `"hint":"`, "\"hint\":\"\xff", "not valid UTF-8"},
		{"too large", `{`, strings.Repeat(" ", attest.MaxBundle) + `{`, "larger than 65536 bytes"},
		{"an array", `{`, `[{`, "unexpected end"},
	})
	for _, whole := range []string{"", "null", "[]", "1", `"x"`, "{}"} {
		if _, err := attest.DecodeBundle([]byte(whole)); err == nil {
			t.Errorf("%q was accepted", whole)
		}
	}
}

func TestDecodeBundleAccepts(t *testing.T) {
	good := goodBundle(t)
	rows := []change{
		{summary: "log entries and timestamps, which are not read", old: `"publicKey"`, new: `"tlogEntries":[{"logIndex":"1"}],"timestampVerificationData":{},"publicKey"`},
		{summary: "white space", old: `{`, new: " {\n\t"},
		{summary: "a hint that is not a hash", old: `"hint":"`, new: `"hint":"my-key-`},
		{summary: "no hint", old: `"publicKey":{`, new: `"publicKey":{},"timestampVerificationData":{`},
	}
	for _, row := range rows {
		if !strings.Contains(good, row.old) {
			t.Fatalf("%s: nothing to change", row.summary)
		}
		b, err := attest.DecodeBundle([]byte(strings.Replace(good, row.old, row.new, 1)))
		if err != nil {
			t.Errorf("%s: %v", row.summary, err)
		}
		if strings.Contains(row.summary, "hint") && b.Envelope.Signatures[0].KeyID != "" {
			t.Errorf("%s: key ID %q", row.summary, b.Envelope.Signatures[0].KeyID)
		}
	}
}

func TestDecodeEnvelopeRefuses(t *testing.T) {
	e := must[attest.Envelope](t)(attest.Sign(context.Background(), payload(t), newSigner(t, newKey(t, "ed25519"))))
	good := string(must[[]byte](t)(attest.EncodeEnvelope(e)))
	refuse(t, good, attest.DecodeEnvelope, []change{
		{"unknown field", `{"payload"`, `{"extra":1,"payload"`, `envelope: unknown field "extra"`},
		{"trailing data", `"}]}`, `"}]}0`, "after top-level value"},
		{"no signature", `"signatures":[`, `"signatures":[],"x":[`, "unknown field"},
		{"too many signatures", `"signatures":[`, `"signatures":[` + strings.Repeat(`{"sig":"AAAA"},`, attest.MaxSignatures), "signatures: 9 where 1 to 8 belong"},
		{"a null signature", `"signatures":[`, `"signatures":[null,`, "signatures[0].sig"},
		{"too large", `{`, strings.Repeat(" ", attest.MaxEnvelope) + `{`, "larger than"},
	})
	if _, err := attest.DecodeEnvelope([]byte(`{"payload":"YQ==","payloadType":"application/vnd.in-toto+json","signatures":[]}`)); err == nil {
		t.Error("an envelope without signatures was accepted")
	}
}

func TestDecodeStatementRefuses(t *testing.T) {
	refuse(t, string(payload(t)), attest.DecodeStatement, []change{
		{"unknown field", `{"_type"`, `{"extra":1,"_type"`, `statement: unknown field "extra"`},
		{"unknown field of the subject", `{"name"`, `{"uri":"x","name"`, `subject[0]: unknown field "uri"`},
		{"another type", "Statement/v1", "Statement/v0.1", "_type"},
		{"two subjects", `"subject":[`, `"subject":[{"digest":{"sha256":"` + strings.Repeat("0", 64) + `"}},`, "subject: 2 where exactly 1 belongs"},
		{"no subject", `"subject":[{`, `"subject":[],"x":[{`, "unknown field"},
		{"a second digest", `"digest":{`, `"digest":{"sha512":"00",`, `subject[0].digest: unknown field "sha512"`},
		{"a short digest", `"sha256":"aa`, `"sha256":"`, "subject[0].digest"},
		{"a digest in upper case", `"sha256":"aa`, `"sha256":"AA`, "subject[0].digest"},
		{"a digest twice", `"sha256":"`, `"sha256":"00","sha256":"`, "given twice"},
		{"a predicate field twice", `"predicate":{`, `"predicate":{"x":{"a":1,"a":2},`, `predicate.x: field "a" is given twice`},
		{"a predicate that is no object", `"predicate":{`, `"predicate":[],"subject":{`, "given twice"},
		{"no predicate type", `"predicateType":"https://imgtrust.dev/release/v1"`, `"predicateType":""`, "predicateType"},
	})
	for _, whole := range []string{"", "null", "{}", `{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":"` + digestA[7:] + `"}}],"predicateType":"x","predicate":null}`} {
		if _, err := attest.DecodeStatement([]byte(whole)); err == nil {
			t.Errorf("%q was accepted", whole)
		}
	}
}

func TestReleaseRoundTrip(t *testing.T) {
	want := release()
	got := must[attest.ReleaseStatement](t)(attest.DecodeRelease(payload(t)))
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	small := attest.ReleaseStatement{Digest: digestA, Release: attest.Release{
		Repository: "localhost:5000/x", Created: want.Created.In(time.FixedZone("", 3600)),
		Manifests: []attest.Manifest{{MediaType: "application/vnd.oci.image.manifest.v1+json", Digest: digestA, Size: 1}},
	}}
	b := must[[]byte](t)(attest.EncodeRelease(small))
	for _, absent := range []string{"expires", "tags", "annotations", "config", "sbom", "+01:00"} {
		if strings.Contains(string(b), absent) {
			t.Errorf("%q occurs in %s", absent, b)
		}
	}
	got = must[attest.ReleaseStatement](t)(attest.DecodeRelease(b))
	if !got.Created.Equal(want.Created) || !got.Expires.IsZero() || got.Config != nil {
		t.Errorf("got %+v", got)
	}
}

func TestDecodeReleaseRefuses(t *testing.T) {
	many := func(n int, one string) string { return strings.TrimSuffix(strings.Repeat(one, n), ",") }
	refuse(t, string(payload(t)), attest.DecodeRelease, []change{
		{"another predicate type", "release/v1", "release/v2", "predicateType"},
		{"no repository", `"repository":"registry.example.com/payments/api"`, `"repository":""`, "release: repository is missing"},
		{"the repository is not the subject's name", `"repository":"registry.example.com/payments/api"`, `"repository":"registry.example.com/other"`, "the subject's name is"},
		{"a repository without host", `"repository":"registry.example.com/payments/api"`, `"repository":"payments/api"`, "is not HOST/NAME"},
		{"a repository in upper case", `"repository":"registry`, `"repository":"Registry`, "is not HOST/NAME in lower case"},
		{"a repository with a tag", `"repository":"registry.example.com/payments/api"`, `"repository":"registry.example.com/payments/api:v1"`, "is not HOST/NAME"},
		{"a field in another case", `"repository"`, `"Repository"`, `field "Repository" is written "repository"`},
		{"a field twice", `"created"`, `"created":"2020-01-01T00:00:00Z","created"`, `predicate: field "created" is given twice`},
		{"a bad tag", `"v1.2.3"`, `"-v1"`, "tags[0]"},
		{"an empty tag", `"v1.2.3"`, `""`, "tags[0]"},
		{"a tag with a slash", `"v1.2.3"`, `"a/b"`, "tags[0]"},
		{"a long tag", `"v1.2.3"`, `"` + strings.Repeat("t", 129) + `"`, "tags[0]"},
		{"a tag twice", `"v1.2.3"`, `"v1"`, `tags[1]: "v1" is given twice`},
		{"too many tags", `["v1.2.3","v1"]`, "[" + many(65, `"a",`) + "]", "tags: more than 64"},
		{"no creation time", `"created":"2026-11-24T01:02:03Z",`, ``, "created is missing"},
		{"a fraction of a second", "01:02:03Z", "01:02:03.5Z", "created: not in UTC"},
		{"another zone", "01:02:03Z", "01:02:03+01:00", "created: not in UTC"},
		{"not a time", `"created":"2026-11-24T01:02:03Z"`, `"created":"yesterday"`, "parsing time"},
		{"a number for a time", `"created":"2026-11-24T01:02:03Z"`, `"created":1`, "release"},
		{"expires before created", "2027-11-24", "2025-11-24", "expires: not after created"},
		{"no manifests", `"manifests":[`, `"manifests":[],"x":[`, "manifests: 0"},
		{"too many manifests", `"manifests":[`, `"manifests":[` + strings.Repeat(`{},`, 64), "manifests: 67"},
		{"the first manifest is not the subject", `"digest":"` + digestA, `"digest":"` + digestC, "manifests[0].digest"},
		{"a manifest twice", digestC + `","size":500,"platform":"linux/arm/v7"`, digestB + `","size":500,"platform":"linux/amd64"`, "manifests[2]: " + digestB + " is given twice"},
		{"children of what is no index", "image.index", "image.manifest", "only an index has children"},
		{"an index with a platform", `"size":700`, `"size":700,"platform":"linux/amd64"`, "an index has no platform"},
		{"no size", `"size":700`, `"size":0`, "manifests[0].size"},
		{"a size that is no integer", `"size":700`, `"size":7e2`, "size"},
		{"no media type", `"mediaType":"application/vnd.oci.image.manifest.v1+json"`, `"mediaType":""`, "manifests[1].mediaType"},
		{"a bad platform", `"linux/amd64"`, `"linux"`, "manifests[1].platform"},
		{"a bad config digest", `"config":"sha256:`, `"config":"sha512:`, "manifests[1].config"},
		{"a bad rootfs digest", `"rootfs":"sha256:`, `"rootfs":"`, "manifests[1].rootfs"},
		{"an annotation without key", `"git"`, `""`, "annotations: an empty key"},
		{"an annotation twice", `"git"`, `"git":"x","git"`, `annotations: field "git" is given twice`},
		{"annotations too large", `"git"`, `"x":"` + strings.Repeat("x", attest.MaxAnnotationBytes) + `","git"`, "annotations: more than 8192 bytes"},
		{"a long user", `"user":"`, `"user":"` + strings.Repeat("u", attest.MaxWord), "config.user"},
		{"a long entrypoint", `["/api"`, `["` + strings.Repeat("x", attest.MaxEntrypointBytes) + `"`, "config.entrypoint"},
		{"a negative number", `"setuid":0`, `"setuid":-1`, "config: a number below 0"},
		{"a bad provenance digest", `"provenance":"sha256:`, `"provenance":"`, "provenance"},
		{"a bad SBOM digest", `"sbom":"sha256:`, `"sbom":"`, "sbom"},
		{"a bad slim digest", `"slim":"sha256:`, `"slim":"`, "slim"},
	})
}

func TestDecodeReleaseIgnoresUnknownPredicateFields(t *testing.T) {
	for _, row := range []change{
		{summary: "in the predicate", old: `"predicate":{`, new: `"predicate":{"signedBy":{"name":"x"},`},
		{summary: "in a manifest", old: `"size":700`, new: `"size":700,"urls":["x"]`},
		{summary: "in the config", old: `"user"`, new: `"healthcheck":null,"user"`},
	} {
		changed := strings.Replace(string(payload(t)), row.old, row.new, 1)
		got, err := attest.DecodeRelease([]byte(changed))
		if err != nil || !reflect.DeepEqual(got, release()) {
			t.Errorf("%s: %+v, %v", row.summary, got, err)
		}
	}
}

func TestEncodeReleaseChecks(t *testing.T) {
	s := release()
	s.Created = s.Created.Add(time.Millisecond)
	if b, err := attest.EncodeRelease(s); err == nil || b != nil {
		t.Errorf("a fraction of a second: %s, %v", b, err)
	}
	s = release()
	s.Digest = digestB
	if b, err := attest.EncodeRelease(s); err == nil || b != nil {
		t.Errorf("another subject: %s, %v", b, err)
	}
}

// The statement that cosign 3.1.3 signs for a digest, but for the white space
// that its encoder inserts at random.
func TestEncodeCosignSign(t *testing.T) {
	got := string(must[[]byte](t)(attest.EncodeCosignSign(digestA)))
	want := `{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":"` + digestA[7:] +
		`"},"annotations":{}}],"predicateType":"https://sigstore.dev/cosign/sign/v1","predicate":{}}`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	s := must[attest.Statement](t)(attest.DecodeStatement([]byte(got)))
	if s.Name != "" || s.Digest != digestA || s.PredicateType != attest.CosignSignType {
		t.Errorf("decoded as %+v", s)
	}
	if _, err := attest.DecodeRelease([]byte(got)); err == nil {
		t.Error("cosign's statement was taken for a release")
	}
	for _, bad := range []string{"", "sha256:", strings.ToUpper(digestA), digestA[7:]} {
		if _, err := attest.EncodeCosignSign(bad); err == nil {
			t.Errorf("digest %q was accepted", bad)
		}
	}
}

func TestUnmarshalStrict(t *testing.T) {
	type inner struct {
		N   *int `json:"n"`
		Any any  `json:"any"`
	}
	type doc struct {
		inner
		List []inner           `json:"list"`
		Map  map[string]*inner `json:"map"`
		Raw  json.RawMessage   `json:"raw"`
		Skip string            `json:"-"`
		Bare string
	}
	rows := []struct {
		summary, in  string
		allowUnknown bool
		want         string // "" for accepted
	}{
		{"everything known", `{"n":1,"any":{"x":[1]},"list":[{"n":2},null],"map":{"a":{"n":1},"A":null},"raw":{"b":{}},"Bare":"x"}`, false, ""},
		{"unknown in a list", `{"list":[{"n":1},{"x":1}]}`, false, `list[1]: unknown field "x"`},
		{"unknown in a map", `{"map":{"a":{"x":1}}}`, false, `map.a: unknown field "x"`},
		{"unknown allowed", `{"x":{"y":1},"list":[{"x":1}]}`, true, ""},
		{"twice inside the unknown", `{"x":{"y":1,"y":1}}`, true, `x: field "y" is given twice`},
		{"twice inside any", `{"any":[{"y":1,"y":1}]}`, false, `any[0]: field "y" is given twice`},
		{"twice by an escape", `{"x":1,"\u0078":2}`, true, `field "x" is given twice`},
		{"case, unknown allowed", `{"LIST":[]}`, true, `field "LIST" is written "list"`},
		{"case by a letter that folds", `{"liſt":[]}`, true, `is written "list"`},
		{"a field kept from JSON", `{"Skip":"x"}`, false, `unknown field "Skip"`},
		{"bad syntax", `{"n":1,}`, false, "byte 8"},
		{"wrong type", `{"list":[{"n":"one"}]}`, false, "a string where a value of type int belongs"},
		{"nothing", ``, false, "unexpected end"},
		{"two documents", `{} {}`, false, "after top-level value"},
	}
	for _, row := range rows {
		var v doc
		err := attest.UnmarshalStrict([]byte(row.in), &v, row.allowUnknown)
		if row.want == "" && err != nil || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
			t.Errorf("%s: error %v, want %q", row.summary, err, row.want)
		}
	}
}
