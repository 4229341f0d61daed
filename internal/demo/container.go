package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const (
	answerTimeout = 30 * time.Second // from the start of a service to its first answer
	runTimeout    = 2 * time.Minute  // of an image that is run to its end
	stopTimeout   = 5 * time.Second  // from SIGTERM to SIGKILL
	maxOutput     = 8 << 10          // bytes of a container's output that are kept
)

// newSpec makes the runtime configuration: the network of the host, everything
// else apart, no capabilities and no way to new privileges, the user of the
// image. There is no /sys and no name service in it.
// https://github.com/opencontainers/runtime-spec/blob/v1.3.0/config.md
func newSpec(config *v1.ConfigFile, bundle string, port int) (*specs.Spec, error) {
	c := config.Config
	args := append(append([]string{}, c.Entrypoint...), c.Cmd...)
	if len(args) == 0 {
		return nil, errors.New("the image has neither ENTRYPOINT nor CMD: there is nothing to run")
	}
	as, err := findUser(filepath.Join(bundle, "rootfs"), c.User)
	if err != nil {
		return nil, fmt.Errorf("user %q of the image: %w", c.User, err)
	}
	cwd := c.WorkingDir
	if !filepath.IsAbs(cwd) {
		cwd = "/" + cwd
	}
	return &specs.Spec{
		Version:  "1.0.2",
		Hostname: "demo",
		Root:     &specs.Root{Path: "rootfs"},
		Process: &specs.Process{
			Args: args, Env: environment(c.Env, as, port), Cwd: cwd, User: specs.User{UID: uint32(as.Uid), GID: uint32(as.Gid), AdditionalGids: groups(as)},
			Capabilities: &specs.LinuxCapabilities{}, NoNewPrivileges: true,
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		},
		Linux: &specs.Linux{
			Namespaces:    []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace}},
			MaskedPaths:   []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/acpi", "/proc/scsi"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}, nil
}

// environment is the image's, completed with where to listen.
func environment(image []string, as *user.ExecUser, port int) []string {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + as.Home}
	return append(append(env, image...), "HOST=127.0.0.1", "PORT="+strconv.Itoa(port))
}

// findUser looks a user up in the image, whose files may be links to anywhere.
func findUser(rootfs, name string) (*user.ExecUser, error) {
	root, err := os.OpenRoot(rootfs)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	var files [2]io.Reader
	for i, path := range []string{"etc/passwd", "etc/group"} {
		f, err := root.Open(path)
		if err != nil {
			continue // numbers need no file, and GetExecUser refuses names that are nowhere
		}
		defer f.Close()
		files[i] = io.LimitReader(f, 1<<20)
	}
	return user.GetExecUser(name, &user.ExecUser{Home: "/"}, files[0], files[1])
}

func groups(as *user.ExecUser) []uint32 {
	var ids []uint32
	for _, id := range as.Sgids {
		ids = append(ids, uint32(id))
	}
	return ids
}

// container is a container that runc runs in the foreground.
type container struct {
	runc   []string // with its --root
	id     string
	cmd    *exec.Cmd
	output *head
	done   chan struct{} // closed at the end
}

// startContainer writes the configuration and starts runc. The caller stops the
// container in any case.
func startContainer(ctx context.Context, runc, state, bundle string, spec *specs.Spec) (*container, error) {
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), text, 0o644); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c := &container{runc: []string{runc, "--root", state}, id: filepath.Base(filepath.Dir(bundle)), output: &head{}, done: make(chan struct{})}
	c.cmd = exec.Command(runc, "--root", state, "run", "--bundle", bundle, c.id)
	c.cmd.Stdout, c.cmd.Stderr = c.output, c.output
	c.cmd.WaitDelay = time.Second
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting runc: %w", err)
	}
	go func() {
		defer close(c.done)
		_ = c.cmd.Wait() // the exit code is in ProcessState
	}()
	return c, nil
}

// ask repeats GET / until there is an answer, and returns its status and first line.
func (c *container) ask(ctx context.Context, port int) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	url := "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) + "/"
	for {
		answer, err := get(ctx, client, url)
		if err == nil {
			return answer, nil
		}
		select {
		case <-c.done:
			return "", fmt.Errorf("the container ended with exit code %d before it answered: %s", c.cmd.ProcessState.ExitCode(), c.output)
		case <-ctx.Done():
			return "", fmt.Errorf("no answer from the container: %w: %s", err, c.output)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func get(ctx context.Context, client *http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var body head
	if _, err := io.Copy(&body, io.LimitReader(resp.Body, maxOutput)); err != nil {
		return "", err
	}
	first, _, _ := strings.Cut(body.String(), "\n")
	return resp.Status + ", " + first, nil
}

// wait waits for the container's own end and returns its exit code.
func (c *container) wait(ctx context.Context) (int, error) {
	select {
	case <-c.done:
		return c.cmd.ProcessState.ExitCode(), nil
	case <-time.After(runTimeout):
		return 0, fmt.Errorf("the container still runs after %s: %s", runTimeout, c.output)
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// stop ends the container: with SIGTERM, and after a while with SIGKILL. It
// works also while runc is still starting it, and after its own end.
func (c *container) stop() error {
	deadline := time.After(stopTimeout)
	for signalled := false; ; {
		if !signalled {
			signalled = c.command("kill", c.id, "TERM") == nil
		}
		select {
		case <-c.done:
			return c.command("delete", "--force", c.id)
		case <-deadline:
			err := c.command("delete", "--force", c.id)
			_ = c.cmd.Process.Kill() // the container is gone, or never was
			<-c.done
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// command runs runc; a cancelled demo must still be able to stop its container.
func (c *container) command(args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, c.runc[0], append(append([]string{}, c.runc[1:]...), args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("runc %s: %w: %s", args[0], err, strings.TrimSpace(string(out)))
	}
	return nil
}

// head keeps the beginning of a container's output, as printable text.
type head struct {
	mu   sync.Mutex
	data []byte
}

func (h *head) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.data = append(h.data, p[:min(len(p), maxOutput-len(h.data))]...)
	return len(p), nil
}

func (h *head) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Map(func(r rune) rune {
		if r == '\n' || unicode.IsPrint(r) {
			return r
		}
		return -1
	}, strings.TrimSpace(string(h.data)))
}

// freePort finds a port of 127.0.0.1 that nobody listens on now.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}
