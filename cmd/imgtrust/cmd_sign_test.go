package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"

	"github.com/imgtrust/imgtrust/sign"
)

// ran is what a command printed.
type ran struct {
	code           int
	stdout, stderr string
}

func execute(t *testing.T, env map[string]string, args ...string) ran {
	t.Helper()
	var stdout, stderr bytes.Buffer
	a := &app{stdin: strings.NewReader(""), stdout: &stdout, stderr: &stderr, getenv: func(name string) string { return env[name] }}
	code := a.execute(context.Background(), args)
	return ran{code, stdout.String(), stderr.String()}
}

// signStage is a registry with one image, and a key.
type signStage struct {
	host, digest, key string
}

func newSignStage(t *testing.T) signStage {
	t.Helper()
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	s := signStage{host: strings.TrimPrefix(server.URL, "http://"), key: filepath.Join(t.TempDir(), "ci")}
	image, err := random.Image(100, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := crane.Push(image, s.host+"/team/app:v1"); err != nil {
		t.Fatal(err)
	}
	hash, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	s.digest = hash.String()
	key, err := sign.GenerateKey("")
	if err != nil {
		t.Fatal(err)
	}
	if err := key.Save(s.key, []byte("secret")); err != nil {
		t.Fatal(err)
	}
	return s
}

// plaintextKey writes the key as it must not be kept.
func (s signStage) plaintextKey(t *testing.T) string {
	t.Helper()
	password := func() ([]byte, error) { return []byte("secret"), nil }
	key, err := sign.LoadKey(context.Background(), s.key+".key", sign.LoadOptions{Passphrase: password})
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key.Private())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "plain.key")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSignCommand(t *testing.T) {
	s := newSignStage(t)
	repo := s.host + "/team/app"
	image, trust, key := repo+":v1@"+s.digest, "--trust="+s.host+"/trust", "--key="+s.key+".key"
	password := map[string]string{"IMGTRUST_PASSWORD": "secret"}
	rows := []struct {
		summary        string
		args           []string
		code           int
		stdout, stderr string // substrings; "" for nothing at all on stdout
	}{
		{"an image", []string{image, trust, key}, 0, repo + "@" + s.digest + "\n", "imgtrust: signed " + repo},
		{"with everything said", []string{image, trust, key, "--tag=v1", "--tag=latest", "-a", "git=0123", "--expires=90d"}, 0, repo + "@" + s.digest + "\n", ""},
		{"by tag", []string{repo + ":v1", trust, key}, 2, "", "imgtrust: hint: sign " + image},
		{"one that is there and one that is not", []string{image, repo + "@sha256:" + strings.Repeat("0", 64), trust, key}, 1, repo + "@" + s.digest + "\n", "imgtrust: error: signing " + repo + "@sha256:000"},
		{"no image", []string{trust, key}, 2, "", "requires at least 1 arg"},
		{"no key", []string{image, trust}, 2, "", "missing --key KEY"},
		{"no trust repository", []string{image, key}, 2, "", "missing --trust REPO"},
		{"an inbox alone is enough", []string{image, key, "--inbox=" + s.host + "/elsewhere"}, 0, repo + "@" + s.digest + "\n", ""},
		{"a trust repository with a tag", []string{image, key, trust + ":v1"}, 2, "", "want the repository alone"},
		{"a malformed reference", []string{"Not A Reference", trust, key}, 2, "", "imgtrust: error: reference"},
		{"a layout", []string{"oci:dir", trust, key}, 2, "", "push the image first"},
		{"an annotation without value", []string{image, trust, key, "-a", "git"}, 2, "", `--annotation "git": want K=V`},
		{"an annotation twice", []string{image, trust, key, "-a", "git=1", "-a", "git=2"}, 2, "", "is given twice"},
		{"a date that is past", []string{image, trust, key, "--expires=2001-01-01"}, 2, "", "is past"},
		{"a date that is none", []string{image, trust, key, "--expires=soon"}, 2, "", "want a date"},
		{"a bad tag", []string{image, trust, key, "--tag=a/b"}, 1, "", "tags[0]"},
	}
	for _, row := range rows {
		got := execute(t, password, append([]string{"sign"}, row.args...)...)
		if got.code != row.code || !strings.Contains(got.stderr, row.stderr) {
			t.Errorf("%s: exit code %d, want %d; stderr %q, want %q", row.summary, got.code, row.code, got.stderr, row.stderr)
		}
		if got.stdout != row.stdout {
			t.Errorf("%s: stdout %q, want %q", row.summary, got.stdout, row.stdout)
		}
	}
	plain := "--key=" + s.plaintextKey(t)
	if got := execute(t, nil, "sign", image, trust, plain); got.code != 1 || got.stdout != "" || !strings.Contains(got.stderr, "hint: --insecure-plaintext-key") {
		t.Errorf("a plain key: %+v", got)
	}
	if got := execute(t, nil, "sign", image, trust, plain, "--insecure-plaintext-key"); got.code != 0 {
		t.Errorf("a plain key that is allowed: %+v", got)
	}
	if got := execute(t, nil, "sign", image, trust, key); got.code != 1 || !strings.Contains(got.stderr, "hint: set IMGTRUST_PASSWORD") {
		t.Errorf("no passphrase: %+v", got)
	}
	if got := execute(t, map[string]string{"COSIGN_PASSWORD": "secret"}, "sign", image, trust, key); got.code != 0 {
		t.Errorf("cosign's variable: %+v", got)
	}
	tags, err := crane.ListTags(s.host + "/trust/inbox")
	if err != nil || len(tags) != 5 {
		t.Errorf("the inbox holds %v, %v; want one entry for each image signed", tags, err)
	}
}

func TestSignCommandJSON(t *testing.T) {
	s := newSignStage(t)
	got := execute(t, map[string]string{"IMGTRUST_PASSWORD": "secret"},
		"sign", s.host+"/team/app@"+s.digest, "--json", "--trust", s.host+"/trust", "--key", s.key+".key")
	var result signedJSON
	if err := json.Unmarshal([]byte(got.stdout), &result); err != nil || strings.Count(got.stdout, "\n") != 1 {
		t.Fatalf("%+v: %v", got, err)
	}
	if result.Image != s.host+"/team/app@"+s.digest || len(result.Bundles) != 2 || len(result.Tags) != 0 || !strings.HasPrefix(result.InboxTag, "s-") {
		t.Errorf("%+v", result)
	}
	if !strings.Contains(got.stdout, `"tags":[]`) {
		t.Errorf("no tags are not an empty list: %s", got.stdout)
	}
	got = execute(t, map[string]string{"IMGTRUST_PASSWORD": "secret"},
		"sign", s.host+"/team/app:v1@"+s.digest, "--json", "--trust", s.host+"/trust", "--key", s.key+".key")
	if !strings.Contains(got.stdout, `"image":"`+s.host+`/team/app@`+s.digest+`","tags":["v1"]`) {
		t.Errorf("the tag given with the digest is not named: %+v", got)
	}
}

func TestParseExpires(t *testing.T) {
	now := time.Date(2026, 11, 24, 1, 0, 0, 0, time.UTC)
	rows := map[string]string{
		"":                          "0001-01-01T00:00:00Z",
		"2027-01-31":                "2027-01-31T00:00:00Z",
		"2027-01-31T12:00:00+02:00": "2027-01-31T10:00:00Z",
		"90d":                       "2027-02-22T01:00:00Z",
		"36h":                       "2026-11-25T13:00:00Z",
		"0d":                        "", "-1d": "", "-1h": "", "2026-11-24": "", "99999999d": "", "d": "", "1": "",
	}
	for in, want := range rows {
		got, err := parseExpires(in, now)
		if want == "" && err == nil || want != "" && (err != nil || got.UTC().Format(time.RFC3339) != want) {
			t.Errorf("%q: %v, %v, want %q", in, got, err, want)
		}
	}
}
