package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gofrs/flock"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/imgtrust/imgtrust/build"
)

const epoch = "1700000000"

// needBuilder checks what the embedded builder needs.
func needBuilder(t *testing.T) {
	t.Helper()
	_, err := build.FindRunc("")
	need(t, err == nil, "%v", err)
	if os.Geteuid() != 0 {
		_, err := exec.LookPath("newuidmap")
		need(t, err == nil, "%v", err)
	}
}

// writeContext makes a context that every actor can read; times differ with
// every call.
func writeContext(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := tempDir(t)
	for path, text := range files {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// service copies testdata/service out of the work tree, which an ordinary user
// may not be able to enter.
func service(t *testing.T) string {
	t.Helper()
	dir := tempDir(t)
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(machine.root, "testdata", "service"))); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestBuildSameDigestAsRootAndAsUser(t *testing.T) {
	needBuilder(t)
	digests := map[string]string{}
	for _, a := range actors(t) {
		start := time.Now()
		got := a.imgtrust(t, "build", service(t), "-t", "example.com/service:v1", "-o", "oci:out", "--state", "state",
			"--build-context", "gosdk="+machine.goroot, "--build-arg", "SOURCE_DATE_EPOCH="+epoch)
		if got.code != 0 {
			t.Fatalf("as %s: exit code %d\n%s", a.name, got.code, got.stderr)
		}
		t.Logf("as %s: %s in %v", a.name, strings.TrimSpace(got.stdout), time.Since(start).Round(time.Second/10))
		digests[got.stdout] = a.name
		checkLayout(t, filepath.Join(a.home, "out"), got.stdout)
	}
	if len(digests) != 1 {
		t.Errorf("digests differ: %v", digests)
	}
}

// checkLayout validates every byte of the one image in an OCI layout.
func checkLayout(t *testing.T, dir, line string) {
	t.Helper()
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	list, err := index.IndexManifest()
	if err != nil || len(list.Manifests) != 1 {
		t.Fatalf("%d manifests, %v", len(list.Manifests), err)
	}
	digest := list.Manifests[0].Digest
	if !strings.HasSuffix(strings.TrimSpace(line), "@"+digest.String()) {
		t.Errorf("printed %q, written %s", line, digest)
	}
	img, err := index.Image(digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(img); err != nil {
		t.Errorf("validating the image: %v", err)
	}
	if names := childNames(t, dir); strings.Join(names, " ") != "blobs index.json oci-layout" {
		t.Errorf("layout holds %v", names)
	}
}

func childNames(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestBuildOptionsReachTheImage(t *testing.T) {
	needBuilder(t)
	a := actors(t)[0]
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	base := writeContext(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY hello /hello\nENV BASE=yes\n", "hello": "hello\n"})
	if got := a.imgtrust(t, "build", base, "-t", "example.com/base:v1", "-o", "oci:base"); got.code != 0 {
		t.Fatalf("exit code %d\n%s", got.code, got.stderr)
	}
	dir := writeContext(t, map[string]string{
		"files/Dockerfile": "FROM base AS first\nARG WHO\nENV WHO=${WHO}\nCOPY . /context\nCOPY --from=more /more /more\nFROM scratch AS second\nCOPY hello /other\n",
		"hello":            "hello\n", "ignored": "1", ".dockerignore": "ignored\n",
	})
	more := writeContext(t, map[string]string{"more": "more\n"})
	args := []string{"build", dir, "-f", filepath.Join(dir, "files/Dockerfile"), "-t", host + "/app:v1", "--push", "--target", "first", "--build-arg", "WHO=me",
		"--build-context", "base=oci:base", "--build-context", "more=" + more, "--label", "a.b=c", "--annotation", "d.e=f",
		"--metadata-file", "md.json", "--iidfile", "iid", "--json", "--build-arg", "SOURCE_DATE_EPOCH=" + epoch}
	got := a.imgtrust(t, args...)
	if got.code != 0 {
		t.Fatalf("exit code %d\n%s", got.code, got.stderr)
	}
	var line struct{ Image, Digest string }
	if err := json.Unmarshal([]byte(got.stdout), &line); err != nil || strings.Count(got.stdout, "\n") != 1 {
		t.Fatalf("stdout %q: %v", got.stdout, err)
	}
	checkPushed(t, host, line.Digest)
	if iid, err := os.ReadFile(filepath.Join(a.home, "iid")); err != nil || string(iid) != line.Digest {
		t.Errorf("iidfile holds %q, %v", iid, err)
	}
	var md map[string]any
	if text, err := os.ReadFile(filepath.Join(a.home, "md.json")); err != nil || json.Unmarshal(text, &md) != nil || md["containerimage.digest"] != line.Digest {
		t.Errorf("metadata file holds %s, %v", text, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ignored"), []byte("2"), 0o644); err != nil {
		t.Fatal(err)
	}
	again := a.imgtrust(t, append(args, "--no-cache")...)
	if again.stdout != got.stdout {
		t.Errorf("a file that .dockerignore names changed the image: %s, then %s\n%s", got.stdout, again.stdout, again.stderr)
	}
}

func checkPushed(t *testing.T, host, digest string) {
	t.Helper()
	ref, err := name.ParseReference(host + "/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(ref)
	if err != nil {
		t.Fatal(err)
	}
	if h, err := img.Digest(); err != nil || h.String() != digest {
		t.Errorf("pushed %s, printed %s, %v", h, digest, err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	env := strings.Join(config.Config.Env, " ")
	for what, ok := range map[string]bool{
		"the base's environment": strings.Contains(env, "BASE=yes"),
		"the build argument":     strings.Contains(env, "WHO=me"),
		"the label":              config.Config.Labels["a.b"] == "c",
		"the annotation":         manifest.Annotations["d.e"] == "f",
		"the time":               config.Created.Unix() == 1700000000,
		"the OCI media type":     manifest.MediaType == "application/vnd.oci.image.manifest.v1+json",
		"three layers":           len(manifest.Layers) == 3,
	} {
		if !ok {
			t.Errorf("%s did not reach the image: %+v %+v", what, config.Config, manifest)
		}
	}
}

func TestBuildErrors(t *testing.T) {
	needBuilder(t)
	a := actors(t)[0]
	for _, tt := range []struct {
		summary    string
		dockerfile string
		args       []string
		code       int
		stderr     []string // each in the error and hint lines
	}{{
		summary:    "an unknown instruction",
		dockerfile: "FROM scratch\nFOO bar\n",
		code:       1,
		stderr:     []string{"error: building example.com/x:v1: Dockerfile:2: unknown instruction: FOO"},
	}, {
		summary:    "a step that fails",
		dockerfile: "FROM scratch\nCOPY Dockerfile /a\n\nRUN [\"/a\"]\n",
		code:       1,
		stderr:     []string{"error: building example.com/x:v1: Dockerfile:4: process \"/a\" did not complete successfully"},
	}, {
		summary:    "a file that is not there",
		dockerfile: "FROM scratch\nCOPY nothing /\n",
		code:       1,
		stderr:     []string{"error: building example.com/x:v1: Dockerfile:2: ", "\"/nothing\": not found"},
	}, {
		summary:    "a stage that is not there",
		dockerfile: "FROM scratch\nCOPY Dockerfile /\n",
		args:       []string{"--target", "none"},
		code:       1,
		stderr:     []string{"target stage \"none\" could not be found"},
	}, {
		summary: "no Dockerfile",
		code:    1,
		stderr:  []string{"error: building example.com/x:v1: finding the Dockerfile: ", "hint: -f FILE"},
	}, {
		summary:    "no runc",
		dockerfile: "FROM scratch\nCOPY Dockerfile /\n",
		args:       []string{"--runc", "/nonexistent/runc"},
		code:       1,
		stderr:     []string{"error: building example.com/x:v1: no runc to build with: /nonexistent/runc not found\n", "hint: apt-get install runc"},
	}, {
		summary:    "two outputs",
		dockerfile: "FROM scratch\nCOPY Dockerfile /\n",
		args:       []string{"--push"},
		code:       2,
		stderr:     []string{"error: two outputs", "hint: give either"},
	}, {
		summary:    "a builder that is not there",
		dockerfile: "FROM scratch\nCOPY Dockerfile /\n",
		args:       []string{"--builder", "unix:///nonexistent.sock"},
		code:       1,
		stderr:     []string{"connecting to builder unix:///nonexistent.sock", "hint: give --builder"},
	}} {
		t.Run(tt.summary, func(t *testing.T) {
			dir := tempDir(t)
			if tt.dockerfile != "" {
				dir = writeContext(t, map[string]string{"Dockerfile": tt.dockerfile})
			}
			got := a.imgtrust(t, append([]string{"build", dir, "-t", "example.com/x:v1", "-o", "oci:out", "--progress", "quiet"}, tt.args...)...)
			if got.code != tt.code || got.stdout != "" || strings.Count(got.stderr, "imgtrust: error: ") != 1 {
				t.Errorf("exit code %d, stdout %q, stderr:\n%s", got.code, got.stdout, got.stderr)
			}
			for _, want := range tt.stderr {
				if !strings.Contains(got.stderr, want) {
					t.Errorf("no %q in:\n%s", want, got.stderr)
				}
			}
			if bad := "rpc error"; strings.Contains(got.stderr, bad) || strings.Contains(got.stderr, "goroutine ") {
				t.Errorf("noise in:\n%s", got.stderr)
			}
			noOutput(t, a)
		})
	}
}

func TestBuildPushesPlainlyOnlyWhenTold(t *testing.T) {
	needBuilder(t)
	a := actors(t)[0]
	listener, err := net.Listen("tcp4", net.JoinHostPort(address(t), "0"))
	if err != nil {
		t.Fatal(err)
	}
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}}
	server.Start()
	defer server.Close()
	dir := writeContext(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"})
	args := []string{"build", dir, "-t", listener.Addr().String() + "/x", "--push", "--progress", "quiet"}
	if got := a.imgtrust(t, args...); got.code != 1 || got.stdout != "" || !strings.Contains(got.stderr, "HTTP response to HTTPS client") {
		t.Errorf("exit code %d, stdout %q\n%s", got.code, got.stdout, got.stderr)
	}
	got := a.imgtrust(t, append(args, "--insecure-http")...)
	if got.code != 0 {
		t.Fatalf("exit code %d\n%s", got.code, got.stderr)
	}
	ref, err := name.ParseReference(strings.TrimSpace(got.stdout), name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := remote.Image(ref); err != nil {
		t.Errorf("pushed by digest: %v", err)
	}
	if tags, err := remote.List(ref.Context()); err != nil || len(tags) != 0 {
		t.Errorf("tags without a tag asked for: %v, %v", tags, err)
	}
}

// address is one of this machine's that is not loopback.
func address(t *testing.T) string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range addrs {
		if ip, ok := addr.(*net.IPNet); ok && ip.IP.To4() != nil && ip.IP.IsGlobalUnicast() {
			return ip.IP.String()
		}
	}
	need(t, false, "no address but loopback")
	return ""
}

func TestBuildSecrets(t *testing.T) {
	needBuilder(t)
	dir := stepContext(t, "RUN --mount=type=secret,id=s,required,mode=0444 [\"/step\", \"print\", \"/run/secrets/s\"]\n")
	for _, a := range actors(t) {
		if err := os.WriteFile(filepath.Join(a.home, "secret"), []byte("from a file\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		args := []string{"build", dir, "-t", "example.com/x:v1", "-o", "oci:out", "--no-cache"}
		for secret, want := range map[string]string{"id=s,src=secret": "from a file", "id=s,env=HOME": a.home} {
			got := a.imgtrust(t, append(args, "--secret", secret)...)
			if got.code != 0 || !strings.Contains(got.stderr, want) {
				t.Errorf("as %s, %s: exit code %d\n%s", a.name, secret, got.code, got.stderr)
			}
		}
		if got := a.imgtrust(t, args...); got.code != 1 || !strings.Contains(got.stderr, "Dockerfile:3: secret s: not found") {
			t.Errorf("as %s, without the secret: exit code %d\n%s", a.name, got.code, got.stderr)
		}
	}
}

func TestBuildWithoutSubordinateIDs(t *testing.T) {
	needBuilder(t)
	need(t, os.Geteuid() == 0, "running as another user needs root")
	dir := writeContext(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"})
	nobody := actor{name: "nobody", home: tempDir(t), credential: &syscall.Credential{Uid: 65533, Gid: 65533}}
	got := nobody.imgtrust(t, "build", dir, "-t", "example.com/x:v1", "-o", "oci:out")
	if got.code != 1 || got.stdout != "" || !strings.HasPrefix(got.stderr, "imgtrust: error: not root, and /etc/subuid grants ") || !strings.Contains(got.stderr, "\nimgtrust: hint: usermod --add-subuids ") {
		t.Errorf("exit code %d, stdout %q, stderr:\n%s", got.code, got.stdout, got.stderr)
	}
	cmd, _, stderr := nobody.command("build", dir, "-t", "example.com/x:v1", "-o", "oci:out")
	cmd.Env = append(cmd.Env, "PATH=/nonexistent")
	if err := cmd.Run(); err == nil || !strings.Contains(stderr.String(), "no newuidmap and newgidmap") || !strings.Contains(stderr.String(), "hint: apt-get install uidmap\n") {
		t.Errorf("%v, stderr:\n%s", err, stderr)
	}
}

func TestImageTwiceInOneProcess(t *testing.T) {
	needBuilder(t)
	need(t, os.Geteuid() == 0, "a build in the test's own process needs root")
	dir := writeContext(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"})
	home := tempDir(t)
	o := build.Options{Context: dir, Reference: "example.com/x:v1", Layout: filepath.Join(home, "out"), StateDir: filepath.Join(home, "state")}
	first, err := build.Image(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	o.Platforms = []string{"linux/amd64", "linux/arm64"}
	index, err := build.Image(t.Context(), o)
	if err != nil || index.Descriptor.MediaType != "application/vnd.oci.image.index.v1+json" {
		t.Fatalf("%+v, %+v", index, err)
	}
	time.Sleep(1200 * time.Millisecond) // the daemons' own timers fire after one second
	o.Platforms = nil
	second, err := build.Image(t.Context(), o)
	if err != nil || second.Descriptor.Digest != first.Descriptor.Digest || second.Reference.String() != "example.com/x@"+first.Descriptor.Digest.String() {
		t.Errorf("%+v, then %+v, %v", first, second, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	if _, err := build.Image(ctx, o); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("past its deadline: %v", err)
	}
}

// noOutput checks that neither a layout nor its makings are in the actor's home.
func noOutput(t *testing.T, a actor) {
	t.Helper()
	for _, name := range childNames(t, a.home) {
		if strings.HasPrefix(strings.TrimPrefix(name, "."), "out") {
			t.Errorf("%s was left behind", name)
		}
	}
}

func TestBuildWaitsForAnother(t *testing.T) {
	needBuilder(t)
	a := actors(t)[0]
	dir := writeContext(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"})
	args := []string{"build", dir, "-t", "example.com/x:v1", "-o", "oci:out", "--state", "state", "--progress", "quiet"}
	if err := os.MkdirAll(filepath.Join(a.home, "state"), 0o700); err != nil {
		t.Fatal(err)
	}
	lock := flock.New(filepath.Join(a.home, "state", "lock"))
	if ok, err := lock.TryLock(); !ok || err != nil {
		t.Fatalf("locking: %v, %v", ok, err)
	}
	got := a.imgtrust(t, append(args, "--wait", "50ms")...)
	if got.code != 1 || !strings.Contains(got.stderr, "another build uses the state directory") || !strings.Contains(got.stderr, "waiting up to 50ms") {
		t.Errorf("exit code %d, stderr:\n%s", got.code, got.stderr)
	}
	noOutput(t, a)
	time.AfterFunc(300*time.Millisecond, func() { lock.Unlock() })
	if got := a.imgtrust(t, args...); got.code != 0 || !strings.Contains(got.stderr, "waiting up to 1m0s: another build uses ") {
		t.Errorf("exit code %d, stderr:\n%s", got.code, got.stderr)
	}
}

// stepContext makes a context whose Dockerfile has /step to run.
func stepContext(t *testing.T, instructions string) string {
	t.Helper()
	dir := writeContext(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY --chmod=755 step /step\n" + instructions})
	program, err := os.ReadFile(machine.step)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "step"), program, 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// waiting starts a build whose step never ends, and returns it when that runs.
func waiting(t *testing.T, a actor, token string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	dir := stepContext(t, fmt.Sprintf("USER 1000\nRUN [\"/step\", \"wait\", %q]\n", token))
	cmd, _, stderr := a.command("build", dir, "-t", "example.com/x:v1", "-o", "oci:out", "--state", "state")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the step runs", func() bool { return len(processes(token)) == 2 })
	return cmd, stderr
}

// processes are the ones with the token as an argument.
func processes(token string) (list []string) {
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range paths {
		line, err := os.ReadFile(path)
		if err == nil && strings.HasPrefix(string(line), "/step\x00wait") && strings.HasSuffix(string(line), "\x00"+token+"\x00") {
			list = append(list, path)
		}
	}
	return list
}

func TestBuildAfterKill(t *testing.T) {
	needBuilder(t)
	for _, a := range actors(t) {
		t.Run("as "+a.name, func(t *testing.T) {
			token := "killed-as-" + a.name
			cmd, _ := waiting(t, a, token)
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			cmd.Wait()
			dir := writeContext(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"})
			got := a.imgtrust(t, "build", dir, "-t", "example.com/x:v2", "-o", "oci:out2", "--state", "state")
			if got.code != 0 {
				t.Errorf("exit code %d\n%s", got.code, got.stderr)
			}
			nothingLeft(t, a, token)
		})
	}
}

// nothingLeft checks for processes, mounts and bundles of a build that ended.
func nothingLeft(t *testing.T, a actor, token string) {
	t.Helper()
	if list := processes(token); len(list) > 0 {
		t.Errorf("the step still runs: %v", list)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), a.home) {
		t.Errorf("mounts are left:\n%s", mounts)
	}
	bundles, err := filepath.Glob(filepath.Join(a.home, "state/runc-*/executor/*/config.json"))
	if err != nil || len(bundles) > 0 {
		t.Errorf("bundles are left: %v, %v", bundles, err)
	}
	if records := childNames(t, filepath.Join(a.home, "state/runc")); len(records) > 0 {
		t.Errorf("runc still knows %v", records)
	}
}

func TestBuildInterrupted(t *testing.T) {
	needBuilder(t)
	for _, a := range actors(t) {
		for _, tt := range []struct {
			summary string
			pid     func(*exec.Cmd) int
			signal  syscall.Signal
		}{
			{"Ctrl-C in a terminal", func(c *exec.Cmd) int { return -c.Process.Pid }, syscall.SIGINT},
			{"SIGTERM to the process", func(c *exec.Cmd) int { return c.Process.Pid }, syscall.SIGTERM},
		} {
			t.Run(tt.summary+" as "+a.name, func(t *testing.T) {
				token := fmt.Sprintf("interrupted-%d-as-%s", tt.signal, a.name)
				cmd, stderr := waiting(t, a, token)
				if err := syscall.Kill(tt.pid(cmd), tt.signal); err != nil {
					t.Fatal(err)
				}
				cmd.Wait()
				if code := cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(stderr.String(), "imgtrust: error: building example.com/x:v1: cancelled\n") {
					t.Errorf("exit code %d\n%s", code, stderr)
				}
				noOutput(t, a)
				nothingLeft(t, a, token)
			})
		}
	}
}
