package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// refusals are the attempts that every demo makes.
var refusals = map[string]string{
	"unsigned image":        "not-listed",
	"moved tag":             "tag-mismatch",
	"flipped manifest byte": "content-mismatch",
	"flipped layer byte":    "content-mismatch",
	"foreign key":           "bad-signature",
	"copied statement":      "wrong-repository",
	"one of two signatures": "threshold-not-met",
	"rollback":              "rolled-back",
	"freeze":                "metadata-expired",
	"older bin":             "metadata-invalid",
	"renamed bin":           "metadata-invalid",
	"revoked image":         "revoked",
}

// demo is imgtrust demo with a temporary directory of its own, which must be
// empty again afterwards.
func (a actor) demo(t *testing.T, args ...string) (run, string) {
	t.Helper()
	cmd, stdout, stderr := a.command(append([]string{"demo", "--state", "state"}, args...)...)
	temp := a.temp(t, cmd)
	start := time.Now()
	cmd.Run() // the exit code says it
	got := run{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
	t.Logf("as %s: exit code %d after %v", a.name, got.code, time.Since(start).Round(time.Second/10))
	nothingIn(t, temp)
	return got, temp
}

// temp gives the command a temporary directory of its own.
func (a actor) temp(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	dir := tempDir(t)
	if a.credential != nil {
		if err := os.Chown(dir, int(a.credential.Uid), int(a.credential.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	cmd.Env = append(cmd.Env, "TMPDIR="+dir)
	return dir
}

// nothingIn checks for files and mounts that a demo left.
func nothingIn(t *testing.T, temp string) {
	t.Helper()
	if names := childNames(t, temp); len(names) > 0 {
		t.Errorf("%v is left", names)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), temp) {
		t.Errorf("mounts are left:\n%s", mounts)
	}
}

// checkReport checks what a demo with --json printed, and returns the image.
func checkReport(t *testing.T, got run) string {
	t.Helper()
	if got.code != 0 {
		t.Fatalf("exit code %d\n%s", got.code, got.stderr)
	}
	var report struct {
		Image    string
		Allowed  bool
		Attempts []struct {
			Name, Code string
			Refused    bool
		}
	}
	if err := json.Unmarshal([]byte(got.stdout), &report); err != nil {
		t.Fatalf("%v in %s", err, got.stdout)
	}
	if strings.Count(got.stdout, "\n") != 1 || !report.Allowed || !strings.Contains(report.Image, "/shop/web@sha256:") {
		t.Errorf("printed %s", got.stdout)
	}
	seen := map[string]bool{}
	for _, a := range report.Attempts {
		seen[a.Name] = true
		if !a.Refused || a.Code != refusals[a.Name] {
			t.Errorf("%s: refused %t with %s, want %q", a.Name, a.Refused, a.Code, refusals[a.Name])
		}
	}
	if len(seen) != len(refusals) || len(report.Attempts) != len(refusals) {
		t.Errorf("%d attempts, want %d", len(report.Attempts), len(refusals))
	}
	return report.Image
}

func TestDemo(t *testing.T) {
	needBuilder(t)
	digests := map[string]bool{}
	for _, a := range actors(t) {
		for _, cache := range []string{"cold", "warm"} {
			got, _ := a.demo(t, "--json")
			t.Logf("as %s, %s", a.name, cache)
			_, digest, _ := strings.Cut(checkReport(t, got), "@")
			digests[digest] = true
			if !strings.Contains(got.stderr, "it runs under runc and answers: 200 OK, hello from service v1\n") {
				t.Errorf("no answer in\n%s", got.stderr)
			}
		}
	}
	if len(digests) != 1 {
		t.Errorf("the digests differ: %v", digests)
	}
}

func TestDemoTable(t *testing.T) {
	needBuilder(t)
	a := actors(t)[0]
	dir := stepContext(t, `ENTRYPOINT ["/step", "print", "/etc/motto"]`+"\nCOPY motto /etc/motto\n")
	if err := os.WriteFile(filepath.Join(dir, "motto"), []byte("smaller\nand signed\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	got, temp := a.demo(t, dir)
	if got.code != 0 || !strings.Contains(got.stderr, `it ran under runc to its end: exit code 0, first line "smaller"`) {
		t.Errorf("exit code %d\n%s", got.code, got.stderr)
	}
	if strings.Contains(got.stdout, temp) || strings.Contains(got.stdout, "\x1b") {
		t.Errorf("stdout:\n%s", got.stdout)
	}
	lines := strings.Split(strings.TrimSuffix(got.stdout, "\n"), "\n")
	if len(lines) != len(refusals)+1 || !strings.HasPrefix(lines[0], "ATTEMPT ") {
		t.Errorf("stdout:\n%s", got.stdout)
	}
	for _, line := range lines[1:] {
		name, _, _ := strings.Cut(line, "  ")
		words := strings.Fields(line)
		if n := len(words); n < 3 || words[n-1] != "yes" || words[n-2] != refusals[name] {
			t.Errorf("line %q", line)
		}
	}
}

func TestDemoKeep(t *testing.T) {
	needBuilder(t)
	a := actors(t)[0]
	dir := stepContext(t, `ENTRYPOINT ["/step", "print", "/step"]`+"\n")
	cmd, _, stderr := a.command("demo", dir, "--keep", "--state", "state")
	temp := a.temp(t, cmd)
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, stderr)
	}
	kept := childNames(t, temp)
	if len(kept) != 1 {
		t.Fatalf("%v is left", kept)
	}
	for _, name := range []string{"root.json", "policy.yaml", "registry"} {
		if _, err := os.Stat(filepath.Join(temp, kept[0], name)); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(temp, kept[0], "bundle")); err == nil {
		t.Error("the unpacked image is kept, too")
	}
}

func TestDemoErrors(t *testing.T) {
	needBuilder(t)
	for _, tt := range []struct {
		summary string
		files   map[string]string // nil: no DIR
		args    []string
		code    int
		stderr  []string
	}{{
		summary: "no Go SDK",
		code:    1,
		stderr:  []string{"compiled with Go: no go command", "hint: install Go", "imgtrust demo DIR"},
	}, {
		summary: "no Dockerfile",
		files:   map[string]string{"main.go": "package main"},
		code:    1,
		stderr:  []string{"Dockerfile: no such file", "hint: give the directory of a Dockerfile"},
	}, {
		summary: "a build that fails shows why",
		files:   map[string]string{"Dockerfile": "FROM scratch\nCOPY nowhere /\n"},
		code:    1,
		stderr:  []string{"Dockerfile:2", "nowhere"},
	}, {
		summary: "an image with nothing to run",
		files:   map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"},
		code:    1,
		stderr:  []string{"neither ENTRYPOINT nor CMD"},
	}, {
		summary: "a user that the image does not have",
		files:   map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\nUSER nobody\nCMD [\"/x\"]\n"},
		code:    1,
		stderr:  []string{`user "nobody"`},
	}, {
		summary: "a service that does not start",
		files:   map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\nEXPOSE 80\nCMD [\"/x\"]\n"},
		code:    1,
		stderr:  []string{"before it answered", "/x"},
	}, {
		summary: "no runc",
		args:    []string{"--runc", "/nonexistent/runc"},
		code:    1,
		stderr:  []string{"runc", "hint: apt-get install runc"},
	}} {
		t.Run(tt.summary, func(t *testing.T) {
			a := actors(t)[0]
			args := append([]string{"demo", "--state", "state", "--json"}, tt.args...)
			if tt.files != nil {
				args = append(args, writeContext(t, tt.files))
			}
			cmd, stdout, stderr := a.command(args...)
			temp := a.temp(t, cmd)
			cmd.Env = append(cmd.Env, "PATH="+pathWithoutGo(t))
			cmd.Run()
			if code := cmd.ProcessState.ExitCode(); code != tt.code || stdout.Len() > 0 || strings.Count(stderr.String(), "imgtrust: error: ") != 1 {
				t.Errorf("exit code %d, want %d, stdout %q\n%s", code, tt.code, stdout, stderr)
			}
			for _, want := range tt.stderr {
				if !strings.Contains(stderr.String(), want) {
					t.Errorf("no %q in\n%s", want, stderr)
				}
			}
			if strings.Contains(stderr.String(), "goroutine ") {
				t.Errorf("a stack trace:\n%s", stderr)
			}
			nothingIn(t, temp)
		})
	}
}

// pathWithoutGo is a directory with all other programs that a demo needs.
func pathWithoutGo(t *testing.T) string {
	t.Helper()
	dir := tempDir(t)
	for _, name := range []string{"sh", "git", "newuidmap", "newgidmap"} {
		if path, err := exec.LookPath(name); err == nil {
			if err := os.Symlink(path, filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

func TestDemoInterrupted(t *testing.T) {
	needBuilder(t)
	for _, tt := range []struct {
		summary      string
		instructions string // with %s for the token
		line         string // on stderr, "": when the step runs
	}{
		{"in the build", `RUN ["/step", "wait", "%s"]` + "\n", ""},
		{"while the container runs", "EXPOSE 80\nUSER 1000\n" + `ENTRYPOINT ["/step", "wait", "%s"]` + "\n", ""},
		{"among the attempts", `ENTRYPOINT ["/step", "print", "/step", "%s"]` + "\n", "attempt: moved tag"},
	} {
		for _, a := range actors(t) {
			t.Run(tt.summary+" as "+a.name, func(t *testing.T) {
				token := strings.ReplaceAll("demo "+tt.summary+" as "+a.name, " ", "-")
				dir := stepContext(t, fmt.Sprintf(tt.instructions, token))
				cmd, stdout, _ := a.command("demo", dir, "--state", "state")
				temp := a.temp(t, cmd)
				log, err := os.Create(filepath.Join(a.home, "stderr"))
				if err != nil {
					t.Fatal(err)
				}
				defer log.Close()
				cmd.Stderr = log
				stderr := func() string { text, _ := os.ReadFile(log.Name()); return string(text) }
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				eventually(t, "it is "+tt.summary, func() bool {
					return tt.line == "" && len(processes(token)) == 2 || tt.line != "" && strings.Contains(stderr(), tt.line)
				})
				if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGINT); err != nil {
					t.Fatal(err)
				}
				cmd.Wait()
				if code := cmd.ProcessState.ExitCode(); code != 1 || stdout.Len() > 0 || !strings.Contains(stderr(), "imgtrust: error: the demo was stopped") || strings.Count(stderr(), "error: ") != 1 {
					t.Errorf("exit code %d, stdout %q\n%s", code, stdout, stderr())
				}
				nothingIn(t, temp)
				if list := processes(token); len(list) > 0 {
					t.Errorf("it still runs: %v", list)
				}
			})
		}
	}
}

// debian makes an OCI layout of a minimal Debian, from the mirror that this
// machine's own packages come from.
func debian(t *testing.T) string {
	t.Helper()
	_, err := exec.LookPath("debootstrap")
	need(t, err == nil && os.Geteuid() == 0, "debootstrap as root: %v", err)
	dir := tempDir(t)
	rootfs, tar := filepath.Join(dir, "rootfs"), filepath.Join(dir, "rootfs.tar")
	command(t, "debootstrap", "--variant=minbase", "bookworm", rootfs, mirror(t))
	command(t, "tar", "-C", rootfs, "--numeric-owner", "--exclude=./dev/*", "-cf", tar, ".")
	layer, err := tarball.LayerFromFile(tar, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), layer)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Config.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(dir, "layout")
	to, err := layout.Write(base, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := to.AppendImage(img); err != nil {
		t.Fatal(err)
	}
	command(t, "chmod", "-R", "a+rX", base) // for the ordinary user
	return base
}

// mirror is where this machine gets the packages of Debian 12 from.
func mirror(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("apt-get", "indextargets", "--format", "$(RELEASE) $(SITE)", "Created-By: Packages").Output()
	need(t, err == nil, "apt-get indextargets: %v", err)
	for line := range strings.Lines(string(out)) {
		if release, site, _ := strings.Cut(strings.TrimSpace(line), " "); release == "bookworm" {
			return site
		}
	}
	need(t, false, "its packages are not those of Debian 12")
	return ""
}

func TestDemoDebian(t *testing.T) {
	needBuilder(t)
	base := debian(t)
	for _, tt := range []struct {
		summary    string
		dockerfile string
		stderr     string
	}{{
		summary: "a service, copied to nothing",
		dockerfile: `FROM debian AS build
RUN apt-get update && apt-get install -y --no-install-recommends busybox-static
RUN mkdir /www && echo hello from busybox >/www/index.html

FROM scratch
COPY --from=build /bin/busybox /bin/busybox
COPY --from=build /www /www
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/bin/busybox", "sh", "-c", "exec /bin/busybox httpd -f -p $HOST:$PORT -h /www"]
`,
		stderr: "it runs under runc and answers: 200 OK, hello from busybox",
	}, {
		summary: "a program, copied to the base",
		dockerfile: `FROM debian AS build
RUN apt-get update && apt-get install -y --no-install-recommends hello

FROM debian
COPY --from=build /usr/bin/hello /usr/bin/hello
USER nobody
CMD ["hello", "--greeting=hello from debian"]
`,
		stderr: `it ran under runc to its end: exit code 0, first line "hello from debian"`,
	}} {
		for _, a := range actors(t) {
			t.Run(tt.summary+", as "+a.name, func(t *testing.T) {
				dir := writeContext(t, map[string]string{"Dockerfile": tt.dockerfile})
				got, _ := a.demo(t, dir, "--build-context", "debian=oci:"+base, "--json")
				checkReport(t, got)
				if !strings.Contains(got.stderr, tt.stderr+"\n") {
					t.Errorf("no %q in\n%s", tt.stderr, got.stderr)
				}
			})
		}
	}
}
