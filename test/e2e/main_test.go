// Package e2e runs the real imgtrust program on the real machine: BuildKit,
// runc, user namespaces. What a test needs and the machine lacks makes it skip
// with a reason, and fail when CI=true.
package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// machine is what TestMain prepares once for all tests.
var machine struct {
	imgtrust string // the program under test
	step     string // testdata/dockerfiles/step, static
	root     string // of the repository
	goroot   string
}

func TestMain(m *testing.M) {
	code, err := prepare(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, "preparing the e2e tests:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

// prepare builds the programs that the tests run, in a directory that every
// user can read.
func prepare(run func() int) (int, error) {
	bin, err := os.MkdirTemp("", "imgtrust-e2e-bin-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(bin)
	if err := os.Chmod(bin, 0o755); err != nil {
		return 0, err
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		return 0, err
	}
	machine.root = root
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return 0, err
	}
	machine.goroot = strings.TrimSpace(string(goroot))
	for _, program := range []struct {
		path    *string
		name    string
		sources string
	}{
		{&machine.imgtrust, "imgtrust", "./cmd/imgtrust"},
		{&machine.step, "step", "testdata/dockerfiles/step/main.go"},
	} {
		*program.path = filepath.Join(bin, program.name)
		cmd := exec.Command("go", "build", "-o", *program.path, program.sources)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("building %s: %w\n%s", program.name, err, out)
		}
	}
	return run(), nil
}

// need skips the test, or fails it in CI, when ok is false.
func need(t *testing.T, ok bool, format string, args ...any) {
	t.Helper()
	if ok {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("this machine cannot run the test: "+format, args...)
	}
	t.Skipf("SKIPPED, this machine cannot run the test: "+format, args...)
}

// actor is who runs the program: the user of the test, or for root also an
// ordinary user.
type actor struct {
	name       string
	home       string // a new directory of the actor's own
	credential *syscall.Credential
}

// actors are all that this machine lets the test be.
func actors(t *testing.T) []actor {
	t.Helper()
	self := actor{name: "user", home: tempDir(t)}
	if os.Geteuid() != 0 {
		return []actor{self}
	}
	self.name = "root"
	return []actor{self, ordinaryUser(t)}
}

const userName = "imgtrust-e2e"

// ordinaryUser makes a user with subordinate IDs for the time of the test.
func ordinaryUser(t *testing.T) actor {
	t.Helper()
	if _, err := user.Lookup(userName); err != nil {
		command(t, "useradd", "--no-create-home", userName)
	}
	t.Cleanup(func() { exec.Command("userdel", userName).Run() })
	ranges, err := os.ReadFile("/etc/subuid")
	if err != nil || !strings.Contains(string(ranges), userName+":") {
		command(t, "usermod", "--add-subuids", "700000-765535", "--add-subgids", "700000-765535", userName)
	}
	u, err := user.Lookup(userName)
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	a := actor{name: "user", home: tempDir(t), credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	if err := os.Chown(a.home, uid, gid); err != nil {
		t.Fatal(err)
	}
	return a
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		need(t, false, "%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}

// tempDir is as t.TempDir, but other users may enter it.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "imgtrust-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// An ordinary user cannot remove what belongs to subordinate IDs.
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// run is the outcome of one imgtrust command.
type run struct {
	stdout, stderr string
	code           int
}

// command is imgtrust with args as the actor runs it, not started yet.
func (a actor) command(args ...string) (*exec.Cmd, *bytes.Buffer, *bytes.Buffer) {
	cmd := exec.Command(machine.imgtrust, args...)
	cmd.Dir = a.home
	cmd.Env = append(cleanEnv(), "HOME="+a.home, "USER="+a.name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: a.credential, Setpgid: true}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	return cmd, &stdout, &stderr
}

// cleanEnv is the environment without what changes a build.
func cleanEnv() []string {
	var env []string
	for _, kv := range os.Environ() {
		switch name, _, _ := strings.Cut(kv, "="); name {
		case "HOME", "USER", "BUILDKIT_HOST", "SOURCE_DATE_EPOCH", "XDG_STATE_HOME", "DOCKER_CONFIG":
		default:
			env = append(env, kv)
		}
	}
	return env
}

// imgtrust runs the program to its end.
func (a actor) imgtrust(t *testing.T, args ...string) run {
	t.Helper()
	cmd, stdout, stderr := a.command(args...)
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return run{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// eventually waits until check holds.
func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if check() {
			return
		}
	}
	t.Fatalf("after a minute still not: %s", what)
}
