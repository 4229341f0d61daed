package oci

import (
	"strings"
	"testing"
)

const someDigest = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"

var references = []struct{ summary, in, want string }{ // want "": refused
	{"a familiar name", "nginx", "docker.io/library/nginx"},
	{"no tag is added", "nginx:1", "docker.io/library/nginx:1"},
	{"an organisation on Docker Hub", "grafana/loki", "docker.io/grafana/loki"},
	{"Docker Hub's alias", "registry-1.docker.io/grafana/loki", "docker.io/grafana/loki"},
	{"an alias with a familiar name", "registry.hub.docker.com/nginx", "docker.io/library/nginx"},
	{"the index's name", "index.docker.io/nginx", "docker.io/library/nginx"},
	{"upper case in the host", "Registry.Example.COM/Team/app", ""},
	{"upper case in the host only", "Registry.Example.COM/team/app", "registry.example.com/team/app"},
	{"the https port", "registry.example.com:443/app:1", "registry.example.com/app:1"},
	{"another port", "registry.example.com:8443/app", "registry.example.com:8443/app"},
	{"a short host with the https port keeps it", "registry:443/app", "registry:443/app"},
	{"IPv6", "[::1]:5000/app", "[::1]:5000/app"},
	{"localhost", "localhost/app", "localhost/app"},
	{"upper case that is no host in lower case", "Team/app", ""},
	{"a tag and a digest", "nginx:1@" + someDigest, "docker.io/library/nginx:1@" + someDigest},
	{"a digest", "a.b/c@" + someDigest, "a.b/c@" + someDigest},
	{"sha512", "nginx@sha512:" + strings.Repeat("0", 128), ""},
	{"a short digest", "nginx@sha256:0123", ""},
	{"a digest in upper case", "nginx@" + strings.ToUpper(someDigest), ""},
	{"two digests", "nginx@" + someDigest + "@" + someDigest, ""},
	{"a scheme", "https://nginx", ""},
	{"nothing", "", ""},
	{"only a digest", "@" + someDigest, ""},
	{"a space", "a b", ""},
	{"a climb", "a.b/../c", ""},
	{"a line feed", "nginx\n", ""},
	{"too long", strings.Repeat("a", 2000), ""},
}

func TestParseReference(t *testing.T) {
	for _, row := range references {
		t.Run(row.summary, func(t *testing.T) {
			r, err := ParseReference(row.in)
			if (err == nil) != (row.want != "") || r.String() != row.want {
				t.Fatalf("%q, %v", r, err)
			}
			if err != nil && (!strings.HasPrefix(err.Error(), `reference "`) || strings.Contains(err.Error(), "\n")) {
				t.Errorf("text: %v", err)
			}
		})
	}
}

func TestParseLocation(t *testing.T) {
	for _, row := range []struct{ summary, in, layout, digest string }{
		{"a layout", "oci:dir/of it", "dir/of it", ""},
		{"a layout and a digest", "oci:dir@" + someDigest, "dir", someDigest},
		{"an at sign in the directory", "oci:a@b", "a@b", ""},
		{"a reference", "nginx@" + someDigest, "", someDigest},
	} {
		t.Run(row.summary, func(t *testing.T) {
			l, err := ParseLocation(row.in)
			if err != nil || l.Layout != row.layout || (row.digest != "" && l.Reference.Digest.String() != row.digest) {
				t.Fatalf("%+v, %v", l, err)
			}
			if again, err := ParseLocation(l.String()); err != nil || again != l {
				t.Errorf("again %+v, %v", again, err)
			}
		})
	}
	for _, in := range []string{"oci:", "oci:@" + someDigest, "oci:dir@sha512:00", "oci:dir@sha256:00", "oci:a\x00b", ""} {
		if l, err := ParseLocation(in); err == nil {
			t.Errorf("%q gave %+v", in, l)
		}
	}
}

func FuzzParseReference(f *testing.F) {
	for _, row := range references {
		f.Add(row.in)
	}
	f.Add("A.b:443:443/c")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseReference(s)
		if err != nil {
			if r != (Reference{}) || strings.Contains(err.Error(), "\n") {
				t.Fatalf("%+v, %v", r, err)
			}
			return
		}
		again, err := ParseReference(r.String())
		if err != nil || again != r {
			t.Fatalf("%q gave %q, then %q, %v", s, r, again, err)
		}
		if err := parseRepository(r.Repository); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzParseLocation(f *testing.F) {
	f.Add("oci:dir@" + someDigest)
	f.Add("oci:a@b@" + someDigest)
	f.Fuzz(func(t *testing.T, s string) {
		l, err := ParseLocation(s)
		if err != nil {
			return
		}
		if again, err := ParseLocation(l.String()); err != nil || again != l {
			t.Fatalf("%q gave %q, then %q, %v", s, l, again, err)
		}
	})
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(goodManifest))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"mediaType":"a","size":1,"digest":"` + someDigest + `"}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := newManifest(raw)
		if err != nil {
			return
		}
		if m.MediaType.IsIndex() == m.MediaType.IsImage() {
			t.Fatalf("%q is both or neither", m.MediaType)
		}
		_, _ = decodeIndex(m)
		_, _ = decodeImage(m)
	})
}

func TestMirrors(t *testing.T) {
	mirrors := map[string]string{
		"docker.io":              "mirror.example.com/hub/",
		"index.docker.io/team":   "team.example.com",
		"registry.example.com/a": "127.0.0.1:5000/x",
	}
	for _, row := range []struct{ repo, want string }{
		{"docker.io/library/nginx", "mirror.example.com/hub/library/nginx"},
		{"docker.io/team/app", "team.example.com/app"},
		{"docker.io/teammate/app", "mirror.example.com/hub/teammate/app"},
		{"registry.example.com/a", "127.0.0.1:5000/x"},
		{"registry.example.com/a/b", "127.0.0.1:5000/x/b"},
		{"registry.example.com/ab", "registry.example.com/ab"},
	} {
		if got := mirrored(row.repo, mirrors); got != row.want {
			t.Errorf("%s: %s, want %s", row.repo, got, row.want)
		}
	}
}
