package e2e

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The README's session runs as it stands there, line by line in a shell, in a
// directory that holds testdata/service.
func TestSessionOfTheREADME(t *testing.T) {
	needBuilder(t)
	text, err := os.ReadFile(filepath.Join(machine.root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	session := regexp.MustCompile("(?s)\n```sh\n(imgtrust registry serve .*?)```\n").FindSubmatch(text)
	if session == nil {
		t.Fatal("the README has no session")
	}
	l, err := net.Listen("tcp", "127.0.0.1:5000")
	need(t, err == nil, "the session's port is taken: %v", err)
	l.Close()

	dir := tempDir(t)
	if err := os.CopyFS(filepath.Join(dir, "testdata", "service"), os.DirFS(filepath.Join(machine.root, "testdata", "service"))); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-e", "-c", string(session[1]))
	cmd.Dir = dir
	cmd.Env = append(cleanEnv(), "HOME="+dir, "IMGTRUST_PASSWORD=secret", "PATH="+filepath.Dir(machine.imgtrust)+":"+os.Getenv("PATH"))
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// A session that fails leaves its registry behind.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = 10 * time.Second
	err = cmd.Run()
	syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	if err != nil {
		t.Fatalf("%v\n%s%s", err, &stdout, &stderr)
	}

	// What each command prints, the image three times: build's is in a variable.
	lines := strings.Split(strings.TrimSpace(stdout.String()), "\n")
	image := lines[len(lines)-1]
	if !regexp.MustCompile(`^127\.0\.0\.1:5000/app@sha256:[0-9a-f]{64}$`).MatchString(image) {
		t.Errorf("the last line is %q", image)
	}
	want := []string{"127.0.0.1:5000", "ci.pub", "online.pub", "root.json", "root.pub", "targets.pub", image, image, image}
	for _, line := range want {
		if i := slices.Index(lines, line); i < 0 {
			t.Errorf("no line %q", line)
		} else {
			lines = append(lines[:i:i], lines[i+1:]...)
		}
	}
	if len(lines) > 0 {
		t.Errorf("lines too many: %q", lines)
	}
	if !strings.Contains(stderr.String(), "\nimgtrust:   allowed "+image+", valid until ") {
		t.Errorf("not explained:\n%s", &stderr)
	}
	if strings.Contains(stderr.String(), "imgtrust: error: ") {
		t.Errorf("an error:\n%s", &stderr)
	}
}
