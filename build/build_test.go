package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
)

// write makes files with one modification time each, in seconds.
func write(t *testing.T, dir string, files map[string]int64) {
	t.Helper()
	for path, seconds := range files {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(filepath.Base(path)), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Time{}, time.Unix(seconds, 500)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestContextEpoch(t *testing.T) {
	for _, tt := range []struct {
		summary string
		files   map[string]int64
		ignore  string
		commit  string // time of a commit of the parent directory, "" outside git
		want    int64
		err     string
	}{{
		summary: "an empty context is as old as time",
	}, {
		summary: "outside git the newest file counts",
		files:   map[string]int64{"a": 1000, "b/c": 2000, "d": 1500},
		want:    2000,
	}, {
		summary: "a file that .dockerignore names does not count",
		files:   map[string]int64{"a": 1000, "b/c": 2000},
		ignore:  "b\n.dockerignore\n",
		want:    1000,
	}, {
		summary: "in git the commit counts, also for newer files in a directory below",
		files:   map[string]int64{"a": 2000000000},
		commit:  "1600000000",
		want:    1600000000,
	}, {
		summary: "a repository without a commit has no time",
		commit:  "none",
		err:     "asking git for the commit time",
	}} {
		t.Run(tt.summary, func(t *testing.T) {
			parent := t.TempDir()
			dir := filepath.Join(parent, "context")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			write(t, dir, tt.files)
			if tt.ignore != "" {
				if err := os.WriteFile(filepath.Join(dir, ".dockerignore"), []byte(tt.ignore), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			commit(t, parent, tt.commit)
			got, err := contextEpoch(context.Background(), dir)
			if !matches(err, tt.err) || err == nil && got.Unix() != tt.want {
				t.Errorf("got %d, %v; want %d, %q", got.Unix(), err, tt.want, tt.err)
			}
			var h interface{ Hint() string }
			if err != nil && !errors.As(err, &h) {
				t.Errorf("no hint in %v", err)
			}
		})
	}
}

func commit(t *testing.T, dir, when string) {
	t.Helper()
	if when == "" {
		return
	}
	steps := [][]string{{"init", "-q"}, {"add", "."}, {"-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "-qm", "a"}}
	if when == "none" {
		steps = steps[:1]
	}
	for _, args := range steps {
		cmd := exec.Command("git", append([]string{"-C", dir}, args...)...)
		cmd.Env = append(os.Environ(), "GIT_COMMITTER_DATE="+when+" +0000", "GIT_AUTHOR_DATE="+when+" +0000")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v: %s", args, err, out)
		}
	}
}

// matches tells whether err is nil for "", or has want in its text.
func matches(err error, want string) bool {
	if want == "" || err == nil {
		return want == "" && err == nil
	}
	return strings.Contains(err.Error(), want)
}

func TestParseContext(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	write(t, dir, map[string]int64{"sdk/file": 1})
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	digest := writeLayout(t, one, 1)
	writeLayout(t, two, 2)
	hex := strings.Repeat("a", 64)
	for _, tt := range []struct {
		summary, name, value string
		wantName, attr       string
		err                  string
	}{
		{"a directory", "gosdk", "sdk", "gosdk", "local:named0", ""},
		{"a directory that is not there", "gosdk", "./none", "", "", "./none is not a directory"},
		{"an absolute path is never an image", "gosdk", "/none", "", "", "/none is not a directory"},
		{"an image", "base", "example.com/base:v1", "base", "docker-image://example.com/base:v1", ""},
		{"an image by digest", "base", "docker-image://example.com/base@sha256:" + hex, "base", "docker-image://example.com/base@sha256:" + hex, ""},
		{"the name of an image in FROM", "docker.io/library/debian:latest", "sdk", "debian", "local:named0", ""},
		{"a layout with one image", "base", "oci:one", "base", "oci-layout://named0@" + digest, ""},
		{"a layout and its digest", "base", "oci:one@" + digest, "base", "oci-layout://named0@" + digest, ""},
		{"a layout with two images", "base", "oci:two", "", "", "build context base: "},
		{"a layout that is not there", "base", "oci:none", "", "", "build context base: "},
		{"neither", "base", "not an image", "", "", "neither a directory nor an image"},
		{"a bad name", "UPPER", "sdk", "", "", "build context name"},
	} {
		t.Run(tt.summary, func(t *testing.T) {
			got, err := parseContext(context.Background(), 0, tt.name, tt.value)
			if !matches(err, tt.err) || err == nil && (got.name != tt.wantName || got.attr != tt.attr) {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
	if _, err := os.Stat(filepath.Join(one, "ingest")); err == nil {
		t.Error("reading a layout wrote into it")
	}
}

// writeLayout writes n random images and gives the last one's digest.
func writeLayout(t *testing.T, dir string, n int) (digest string) {
	t.Helper()
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	for range n {
		img, err := random.Image(10, 1)
		if err != nil {
			t.Fatal(err)
		}
		if err := path.AppendImage(img); err != nil {
			t.Fatal(err)
		}
		h, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		digest = h.String()
	}
	return digest
}

func TestPlainErrors(t *testing.T) {
	done, cancel := context.WithCancel(context.Background())
	cancel()
	source := &errdefs.Source{
		Info:   &pb.SourceInfo{Filename: "Dockerfile"},
		Ranges: []*pb.Range{{Start: &pb.Position{Line: 7}, End: &pb.Position{Line: 9}}},
	}
	cause := errors.New("cause")
	for _, tt := range []struct {
		summary string
		ctx     context.Context
		err     error
		want    string
	}{
		{"a cancelled build says only that", done, errors.New("failed to solve: rpc error: code = Canceled desc = context canceled"), "cancelled"},
		{"the first line of the range", context.Background(), errdefs.WithSource(fmt.Errorf("failed to solve: %w", cause), source), "Dockerfile:7: cause"},
		{"the line is not said twice", context.Background(), errdefs.WithSource(errors.New("dockerfile parse error on line 7: unknown instruction: FOO"), source), "Dockerfile:7: unknown instruction: FOO"},
		{"no source", context.Background(), errors.New("failed to solve: rpc error: code = Unknown desc = no route"), "no route"},
		{"a source without ranges", context.Background(), errdefs.WithSource(cause, &errdefs.Source{Info: source.Info}), "cause"},
		{"a checksum's way down", context.Background(), errors.New(`failed to compute cache key: failed to calculate checksum of ref a::b: "/x": not found`), `"/x": not found`},
	} {
		t.Run(tt.summary, func(t *testing.T) {
			got := plain(tt.ctx, tt.err)
			if got.Error() != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if errors.Is(tt.err, cause) && !errors.Is(got, cause) {
				t.Error("the cause is not in the chain any more")
			}
		})
	}
	if err := plain(done, cause); !errors.Is(err, context.Canceled) {
		t.Errorf("%v is not context.Canceled", err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]int64{"Dockerfile": 1})
	good := Options{Context: dir, Reference: "example.com/x:v1", Layout: "out", Builder: "unix:///none"}
	for _, tt := range []struct {
		summary string
		change  func(*Options)
		err     string
	}{
		{"good options", func(*Options) {}, ""},
		{"no name", func(o *Options) { o.Reference = "" }, "no name for the image"},
		{"a bad name", func(o *Options) { o.Reference = "a b" }, "a b"},
		{"a name with a digest", func(o *Options) { o.Reference += "@sha256:" + strings.Repeat("a", 64) }, "has a digest"},
		{"no output", func(o *Options) { o.Layout = "" }, "no output for the image"},
		{"two outputs", func(o *Options) { o.Push = true }, "two outputs"},
		{"no state", func(o *Options) { o.Builder, o.Runc = "", "/bin/sh" }, "no state directory"},
		{"no runc", func(o *Options) { o.Builder, o.Runc = "", "/none" }, "no runc to build with: /none not found"},
		{"no context", func(o *Options) { o.Context = dir + "/none" }, "finding the context"},
		{"a file as context", func(o *Options) { o.Context = dir + "/Dockerfile" }, "is not a directory"},
		{"no Dockerfile", func(o *Options) { o.Dockerfile = dir + "/none" }, "finding the Dockerfile"},
		{"a bad time", func(o *Options) { o.Args = map[string]string{"SOURCE_DATE_EPOCH": "-1"} }, "not a number of seconds"},
	} {
		t.Run(tt.summary, func(t *testing.T) {
			o := good
			tt.change(&o)
			if _, err := newPlan(context.Background(), o); !matches(err, tt.err) {
				t.Errorf("got %v, want %q", err, tt.err)
			}
		})
	}
}

func TestFrontendAttributes(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]int64{"Dockerfile": 1234})
	p, err := newPlan(context.Background(), Options{
		Context: dir, Reference: "Example.com/x", Push: true, Builder: "unix:///none", InsecureHTTP: true,
		Platforms: []string{"linux/amd64", "linux/arm64"}, Args: map[string]string{"A": "1"}, Annotations: map[string]string{"k": "v"},
	})
	if err != nil {
		t.Fatal(err)
	}
	wantAttrs(t, p.frontendAttrs(), map[string]string{
		"filename": "Dockerfile", "platform": "linux/amd64,linux/arm64", "build-arg:A": "1", "build-arg:SOURCE_DATE_EPOCH": "1234",
	})
	wantAttrs(t, p.export(nil).Attrs, map[string]string{
		"name": "example.com/x", "push": "true", "push-by-digest": "true", "registry.insecure": "true", "annotation.k": "v",
		"oci-mediatypes": "true", "rewrite-timestamp": "true", "compression": "gzip",
	})
}

func wantAttrs(t *testing.T, got, want map[string]string) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

func TestOutputIsWholeOrNot(t *testing.T) {
	for _, tt := range []struct {
		summary string
		before  map[string]int64
		commit  bool
		err     string
		after   string
	}{
		{"a new directory", nil, true, "", "index.json"},
		{"a layout is replaced as a whole", map[string]int64{"out/oci-layout": 1, "out/old": 1}, true, "", "index.json"},
		{"a build that failed leaves the old layout", map[string]int64{"out/oci-layout": 1}, false, "", "oci-layout"},
		{"other files are not replaced", map[string]int64{"out/precious": 1}, true, "not empty and not an OCI layout", "precious"},
	} {
		t.Run(tt.summary, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, tt.before)
			out, err := newOutput(filepath.Join(dir, "out"))
			if !matches(err, tt.err) {
				t.Fatal(err)
			}
			if err == nil {
				write(t, out.temp, map[string]int64{"index.json": 1, "ingest/x": 1})
				if tt.commit {
					if err := out.commit(); err != nil {
						t.Fatal(err)
					}
				}
				out.discard()
			}
			if got := tree(t, dir); got != "out out/"+tt.after {
				t.Errorf("left: %s", got)
			}
		})
	}
}

func tree(t *testing.T, dir string) string {
	t.Helper()
	var paths []string
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if path != dir {
			rel, _ := filepath.Rel(dir, path)
			paths = append(paths, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(paths, " ")
}

func TestSecrets(t *testing.T) {
	for _, tt := range []struct {
		text, want, err string
	}{
		{"id=a,src=/f", "a:/f:", ""},
		{"id=a,source=/f,type=file", "a:/f:", ""},
		{"id=a,env=B", "a::B", ""},
		{"type=env,id=a,src=B", "a::B", ""},
		{`"id=a","src=/f,g"`, "a:/f,g:", ""},
		{"id=a", "a::", ""},
		{"src=/f", "", "no id"},
		{"id=a,src=/f,env=B", "", "both src and env"},
		{"id=a,type=x", "", "unknown type"},
		{"id=a,color=x", "", "unknown key"},
		{"a", "", "not KEY=VALUE"},
		{"", "", "EOF"},
	} {
		s, err := parseSecret(tt.text)
		if got := s.ID + ":" + s.FilePath + ":" + s.Env; !matches(err, tt.err) || err == nil && got != tt.want {
			t.Errorf("%q: got %s, %v", tt.text, got, err)
		}
	}
}

func FuzzSecret(f *testing.F) {
	f.Add("id=a,src=/f")
	f.Add(`"id=a","env=B`)
	f.Fuzz(func(t *testing.T, text string) {
		if s, err := parseSecret(text); err == nil && s.ID == "" {
			t.Errorf("%q: a secret without an ID", text)
		}
	})
}

func TestSubordinateIDs(t *testing.T) {
	const file = "# comment\nann:100000:65536\nbob:200000:10\n1000:300000:5 # ann, by number\nann:broken\n"
	for _, tt := range []struct {
		names []string
		want  string
	}{
		{[]string{"ann", "1000"}, "0 1000 1 1 100000 65536 65537 300000 5"},
		{[]string{"bob", "1001"}, "0 1000 1 1 200000 10"},
		{[]string{"", "1002"}, "0 1000 1"},
	} {
		ranges, err := parseRanges(strings.NewReader(file), tt.names...)
		if got := strings.Join(mapping(1000, ranges), " "); err != nil || got != tt.want {
			t.Errorf("%v: got %s, %v", tt.names, got, err)
		}
	}
	for _, bad := range []string{"ann:0:1", "ann:1:0", "ann:-1:5", "ann:x:5", "ann:4294967295:2"} {
		if _, err := parseRanges(strings.NewReader("\n"+bad), "ann"); !matches(err, "line 2: ") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func FuzzSubordinateIDs(f *testing.F) {
	f.Add("ann:100000:65536\n")
	f.Add("ann:9223372036854775807:1\nann:1:9223372036854775807")
	f.Fuzz(func(t *testing.T, text string) {
		ranges, err := parseRanges(strings.NewReader(text), "ann")
		for _, r := range ranges {
			if err == nil && (r.start < 1 || r.count < 1 || r.start+r.count > 1<<32) {
				t.Errorf("%q: range %+v", text, r)
			}
		}
	})
}
