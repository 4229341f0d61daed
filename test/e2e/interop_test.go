package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
)

// tool finds a program that `make tools` has built.
func tool(t *testing.T, name string) string {
	t.Helper()
	dir := os.Getenv("IMGTRUST_TOOLS")
	if dir == "" {
		dir = filepath.Join(machine.root, "bin")
	}
	path := filepath.Join(dir, name)
	_, err := os.Stat(path)
	need(t, err == nil, "%v: run make tools", err)
	return path
}

// withReferrers is a registry in memory with the referrers API; before sees each
// request and answers it when it returns true.
func withReferrers(t *testing.T, before func(http.ResponseWriter, *http.Request) bool) string {
	t.Helper()
	backend := registry.New(registry.WithReferrersSupport(true), registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if before == nil || !before(w, r) {
			backend.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

// withoutReferrers is `imgtrust registry serve`: distribution/v3, which has no
// referrers API, so that bundles are found by the fallback tag.
func (a actor) withoutReferrers(t *testing.T) string {
	t.Helper()
	cmd, _, stderr := a.command("registry", "serve", "--addr", "127.0.0.1:0")
	cmd.Stdout = nil
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGINT)
		cmd.Wait()
	})
	line := make([]byte, 100)
	n, err := out.Read(line)
	if err != nil {
		t.Fatalf("%v: %s", err, stderr)
	}
	return strings.TrimSpace(string(line[:n]))
}

// chain is an actor with keys, a policy for one host and a trust repository.
type chain struct {
	actor
	host string
}

// newChain makes keys root, targets, online, ci and mallory, and the trust
// repository HOST/trust whose policy wants ci for HOST/team/**.
func newChain(t *testing.T, host string) chain {
	t.Helper()
	t.Setenv("IMGTRUST_PASSWORD", "secret")
	t.Setenv("COSIGN_PASSWORD", "secret")
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	c := chain{actor{name: "user", home: tempDir(t)}, host}
	for _, key := range []string{"root", "targets", "online", "ci", "mallory"} {
		c.must(t, "key", "generate", "-o", key)
	}
	public, err := os.ReadFile(filepath.Join(c.home, "ci.pub"))
	if err != nil {
		t.Fatal(err)
	}
	policy := "apiVersion: imgtrust.dev/v1\nkind: Policy\nsigners:\n  ci:\n    key: |\n      " +
		strings.ReplaceAll(strings.TrimSpace(string(public)), "\n", "\n      ") +
		"\nrules:\n  - images: [\"" + host + "/team/**\"]\n    signatures: {threshold: 1, from: [ci]}\n"
	if err := os.WriteFile(filepath.Join(c.home, "policy.yaml"), []byte(policy), 0o644); err != nil {
		t.Fatal(err)
	}
	c.must(t, "trust", "init", host+"/trust", "--root-key", "root.key", "--targets-key", "targets.key",
		"--online-key", "online.key", "--policy", "policy.yaml", "-o", "root.json")
	return c
}

// must runs imgtrust and returns its one line of stdout.
func (a actor) must(t *testing.T, args ...string) string {
	t.Helper()
	got := a.imgtrust(t, args...)
	if got.code != 0 {
		t.Fatalf("imgtrust %s: exit code %d\n%s", strings.Join(args, " "), got.code, got.stderr)
	}
	return strings.TrimSuffix(got.stdout, "\n")
}

// push pushes a new image and returns REPO@DIGEST.
func (c chain) push(t *testing.T, repo, tag string) string {
	t.Helper()
	img, err := random.Image(1000, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := crane.Push(img, c.host+"/"+repo+":"+tag); err != nil {
		t.Fatal(err)
	}
	h, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return c.host + "/" + repo + "@" + h.String()
}

func (c chain) sign(t *testing.T, image string) {
	t.Helper()
	c.must(t, "sign", image, "--tag", "v1", "--key", "ci.key", "--trust", c.host+"/trust")
}

func (c chain) publish(t *testing.T) {
	t.Helper()
	c.must(t, "trust", "publish", c.host+"/trust", "--root", "root.json", "--online-key", "online.key")
}

// verify asks a trust repository with no state of its own.
func (c chain) verify(t *testing.T, image, trust string) run {
	t.Helper()
	return c.imgtrust(t, "verify", image, "--trust", trust, "--root", "root.json", "--state", t.TempDir())
}

// peer runs another program in the actor's directory.
func (a actor) peer(t *testing.T, program string, args ...string) (stdout string, ok bool, all string) {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Dir = a.home
	cmd.Env = append(cleanEnv(), "HOME="+a.home, "DOCKER_CONFIG="+a.home)
	var out, talk bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &talk
	err := cmd.Run()
	return out.String(), err == nil, out.String() + talk.String()
}

func TestCosignAcceptsWhatWeSign(t *testing.T) {
	cosign := tool(t, "cosign")
	for _, row := range []struct {
		summary string
		host    func(actor) string
	}{
		{"with the referrers API", func(actor) string { return withReferrers(t, nil) }},
		{"with the fallback tag", func(a actor) string { return a.withoutReferrers(t) }},
	} {
		t.Run(row.summary, func(t *testing.T) {
			c := newChain(t, row.host(actor{name: "user", home: tempDir(t)}))
			image, unsigned := c.push(t, "team/app", "v1"), c.push(t, "team/app", "v2")
			c.sign(t, image)

			verify := func(key, image string) (string, bool, string) {
				return c.peer(t, cosign, "verify", "--key", key, "--insecure-ignore-tlog=true", image)
			}
			attested := func(key, image string) (string, bool, string) {
				return c.peer(t, cosign, "verify-attestation", "--key", key, "--insecure-ignore-tlog=true", "--type", "https://imgtrust.dev/release/v1", image)
			}
			for _, ref := range []string{image, c.host + "/team/app:v1"} {
				if out, ok, all := verify("ci.pub", ref); !ok || !strings.Contains(out, strings.TrimPrefix(image, c.host+"/team/app@")) {
					t.Errorf("cosign verify %s: %s", ref, all)
				}
				out, ok, all := attested("ci.pub", ref)
				if !ok {
					t.Fatalf("cosign verify-attestation %s: %s", ref, all)
				}
				checkStatement(t, out, c.host+"/team/app")
			}
			if _, ok, _ := verify("mallory.pub", image); ok {
				t.Error("cosign verify accepts another key")
			}
			if _, ok, _ := attested("mallory.pub", image); ok {
				t.Error("cosign verify-attestation accepts another key")
			}
			if _, ok, _ := verify("ci.pub", unsigned); ok {
				t.Error("cosign verify accepts an unsigned image")
			}
			if _, ok, _ := attested("ci.pub", unsigned); ok {
				t.Error("cosign verify-attestation accepts an unsigned image")
			}
		})
	}
}

// checkStatement decodes the envelope that cosign printed.
func checkStatement(t *testing.T, printed, repository string) {
	t.Helper()
	var envelope struct{ Payload string }
	if err := json.Unmarshal([]byte(printed), &envelope); err != nil {
		t.Fatalf("%v: %s", err, printed)
	}
	payload, err := base64.StdEncoding.DecodeString(envelope.Payload)
	if err != nil {
		t.Fatal(err)
	}
	var statement struct {
		PredicateType string
		Predicate     struct {
			Repository string
			Tags       []string
		}
	}
	if err := json.Unmarshal(payload, &statement); err != nil {
		t.Fatal(err)
	}
	p := statement.Predicate
	if statement.PredicateType != "https://imgtrust.dev/release/v1" || p.Repository != repository || len(p.Tags) != 1 || p.Tags[0] != "v1" {
		t.Errorf("%s", payload)
	}
}

// Whatever copies a whole index mirrors a trust repository; what leaves out the
// parts is told from that.
func TestCopiesOfTheTrustRepository(t *testing.T) {
	own := actor{name: "user", home: tempDir(t)}
	hosts := map[string]string{"distribution": own.withoutReferrers(t), "referrers": withReferrers(t, nil)}
	for from, to := range map[string]string{"distribution": "referrers", "referrers": "distribution"} {
		t.Run(from+" to "+to, func(t *testing.T) {
			c := newChain(t, hosts[from])
			image := c.push(t, "team/app", "v1")
			c.sign(t, image)
			c.publish(t)
			source, other := c.host+"/trust:tuf", hosts[to]

			t.Run("crane copy", func(t *testing.T) {
				if _, ok, all := c.peer(t, tool(t, "crane"), "copy", source, other+"/crane:tuf"); !ok {
					t.Fatal(all)
				}
				c.requireCopy(t, image, other+"/crane")
			})
			t.Run("skopeo copy --all", func(t *testing.T) {
				if _, ok, all := c.skopeo(t, source, other+"/skopeo:tuf", "--all"); !ok {
					t.Fatal(all)
				}
				c.requireCopy(t, image, other+"/skopeo")
			})
			t.Run("skopeo copy of one platform", func(t *testing.T) {
				_, ok, all := c.skopeo(t, source, other+"/one:tuf")
				if ok { // it took one part for the image
					got := c.requireNoCopy(t, image, other+"/one", 3, "metadata-invalid")
					if !strings.Contains(got.stderr, ": one part of a trust index stands where the index should be\nimgtrust: hint: a copy must carry the whole index: ") {
						t.Error(got.stderr)
					}
					return
				}
				if !strings.Contains(all, "no image found") {
					t.Errorf("skopeo failed for another reason: %s", all)
				}
				c.requireNoCopy(t, image, other+"/one", 1, "unavailable")
			})
			t.Run("the index alone", func(t *testing.T) {
				dropParts(t, other+"/crane:tuf")
				got := c.requireNoCopy(t, image, other+"/crane", 1, "unavailable")
				if !strings.Contains(got.stderr, "the trust index in "+other+"/crane lacks its parts: ") || !strings.Contains(got.stderr, "imgtrust: hint: a copy must carry the whole index: `crane copy`, `skopeo copy --all`") {
					t.Error(got.stderr)
				}
			})
			if got := c.verify(t, image, c.host+"/trust"); got.code != 0 {
				t.Errorf("the original: %+v", got)
			}
		})
	}
}

func (c chain) skopeo(t *testing.T, from, to string, flags ...string) (string, bool, string) {
	t.Helper()
	path, err := exec.LookPath("skopeo")
	need(t, err == nil, "%v", err)
	args := append([]string{"--insecure-policy", "copy", "--src-tls-verify=false", "--dest-tls-verify=false"}, flags...)
	return c.peer(t, path, append(args, "docker://"+from, "docker://"+to)...)
}

func (c chain) requireCopy(t *testing.T, image, trust string) {
	t.Helper()
	for _, ref := range []string{image, c.host + "/team/app:v1"} {
		if got := c.verify(t, ref, trust); got.code != 0 || got.stdout != image+"\n" {
			t.Errorf("%s by the copy: %+v", ref, got)
		}
	}
	unsigned := c.push(t, "team/other", "v1")
	if got := c.verify(t, unsigned, trust); got.code != 3 || got.stdout != "" || !strings.Contains(got.stderr, ": not-listed: ") {
		t.Errorf("an unsigned image by the copy: %+v", got)
	}
}

func (c chain) requireNoCopy(t *testing.T, image, trust string, code int, word string) run {
	t.Helper()
	got := c.verify(t, image, trust)
	if got.code != code || got.stdout != "" || !strings.Contains(got.stderr, "imgtrust: refused "+image+": "+word+": ") {
		t.Errorf("want exit code %d and %s: %+v", code, word, got)
	}
	return got
}

// dropParts deletes the manifests that an index lists.
func dropParts(t *testing.T, ref string) {
	t.Helper()
	raw, err := crane.Manifest(ref)
	if err != nil {
		t.Fatal(err)
	}
	var index struct{ Manifests []struct{ Digest string } }
	if err := json.Unmarshal(raw, &index); err != nil || len(index.Manifests) == 0 {
		t.Fatalf("%v: %s", err, raw)
	}
	for _, m := range index.Manifests {
		if err := crane.Delete(strings.TrimSuffix(ref, ":tuf") + "@" + m.Digest); err != nil {
			t.Fatal(err)
		}
	}
}

// stuck is a registry that can be made to hold requests until their sender
// gives up; what it has held is never done.
type stuck struct {
	host string
	hold atomic.Pointer[func(*http.Request) bool]
	held chan struct{}
}

func newStuck(t *testing.T) *stuck {
	t.Helper()
	s := &stuck{held: make(chan struct{}, 100)}
	s.host = withReferrers(t, func(_ http.ResponseWriter, r *http.Request) bool {
		hold := s.hold.Load()
		if hold == nil || !(*hold)(r) {
			return false
		}
		s.held <- struct{}{}
		io.Copy(io.Discard, r.Body) // or the end of the connection is not seen
		<-r.Context().Done()
		return true
	})
	return s
}

// while holds the requests that match during f.
func (s *stuck) while(match func(*http.Request) bool, f func()) {
	for len(s.held) > 0 {
		<-s.held // of an earlier call
	}
	s.hold.Store(&match)
	defer s.hold.Store(nil)
	f()
}

func TestInterrupted(t *testing.T) {
	put := func(part string) func(*http.Request) bool {
		return func(r *http.Request) bool {
			return r.Method != http.MethodGet && r.Method != http.MethodHead && strings.Contains(r.URL.Path, part)
		}
	}
	publish := func(c chain, _ string) []string {
		return []string{"trust", "publish", c.host + "/trust", "--root", "root.json", "--online-key", "online.key"}
	}
	sign := func(c chain, image string) []string {
		return []string{"sign", image, "--tag", "v1", "--key", "ci.key", "--trust", c.host + "/trust"}
	}
	s := newStuck(t)
	c := newChain(t, s.host)
	for i, row := range []struct {
		summary string
		args    func(chain, string) []string
		hold    func(*http.Request) bool
		signal  os.Signal
	}{
		{"publish at its first upload", publish, put("/trust/blobs/"), syscall.SIGINT},
		{"publish as it switches the tag", publish, put("/trust/manifests/tuf"), syscall.SIGINT},
		{"publish as it reads the inbox", publish, func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/inbox/tags/list") }, syscall.SIGTERM},
		{"sign as it attaches", sign, put("/team/app"), syscall.SIGINT},
		{"sign as it fills the inbox", sign, put("/trust/inbox/"), syscall.SIGINT},
		{"sign as it reads the image", sign, func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/manifests/sha256:") }, syscall.SIGTERM},
	} {
		t.Run(row.summary, func(t *testing.T) {
			image := c.push(t, "team/app"+string(rune('a'+i)), "v1")
			c.sign(t, image)
			before := digest(t, c.host+"/trust:tuf")
			s.while(row.hold, func() { c.interrupt(t, s, row.signal, row.args(c, image)...) })
			if after := digest(t, c.host+"/trust:tuf"); after != before {
				t.Errorf("the trust index changed from %s to %s", before, after)
			}
			if got := c.verify(t, image, c.host+"/trust"); got.code != 3 {
				t.Errorf("before it was published: %+v", got)
			}
			c.sign(t, image)
			c.publish(t)
			if got := c.verify(t, strings.Replace(image, "@", ":v1@", 1), c.host+"/trust"); got.code != 0 {
				t.Errorf("after the next publish: %+v", got)
			}
		})
	}
}

// interrupt runs imgtrust until the registry holds a request of it, sends the
// signal, and requires one line of error soon.
func (c chain) interrupt(t *testing.T, s *stuck, signal os.Signal, args ...string) {
	t.Helper()
	cmd, stdout, stderr := c.command(args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	defer context.AfterFunc(ctx, func() { cmd.Process.Kill() })()
	select {
	case <-s.held:
	case <-ctx.Done():
	}
	start := time.Now()
	cmd.Process.Signal(signal)
	cmd.Wait()
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v to end", took)
	}
	if code := cmd.ProcessState.ExitCode(); code != 1 || stdout.Len() != 0 {
		t.Errorf("exit code %d, stdout %q", code, stdout)
	}
	if lines := strings.Count(stderr.String(), "imgtrust: error: "); lines != 1 || strings.Contains(stderr.String(), "goroutine") {
		t.Errorf("stderr: %s", stderr)
	}
	t.Logf("%s", strings.TrimSpace(stderr.String()))
}

func digest(t *testing.T, ref string) string {
	t.Helper()
	h, err := crane.Digest(ref)
	if err != nil {
		t.Fatal(err)
	}
	return h
}
