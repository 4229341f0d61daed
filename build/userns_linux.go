package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A process that is not root builds in a user namespace in which it is. It
// starts itself twice over:
//
//	user        starts "mapping" in a new user, mount and PID namespace, has
//	            newuidmap and newgidmap write its ID maps, writes one byte into
//	            the pipe, and waits; it closes the pipe when it is cancelled
//	mapping     waits for that byte, then executes itself, which gives it the
//	            capabilities of root: it could not have them before the maps
//	inside      mounts /proc and does the work; the end of the pipe cancels it,
//	            so it stops in good order even when the user's process is killed
//
// The PID namespace ends every step with the process inside, whatever ends that.
const (
	markMapping = "mapping"
	markInside  = "inside"
	pipeFD      = 3 // of the two inner processes
)

// EnterUserNamespace makes sure that the embedded daemon has the privileges
// that it needs. Root and the process inside a namespace get a context to work
// with. In the user's own process the context is nil: it has waited for a child
// that did the work, and ends with that child's exit code.
func EnterUserNamespace(ctx context.Context, n Namespace) (inside context.Context, code int, err error) {
	first := os.Getpid() == 1 // in its PID namespace: the variable is not a grandchild's inheritance
	switch {
	case n.Marker == markMapping && first:
		return nil, 0, awaitMaps(n)
	case n.Marker == markInside && first:
		inside, err := settleInside(ctx)
		return inside, 0, err
	case os.Geteuid() == 0:
		return ctx, 0, nil
	}
	if _, err := FindRunc(n.Runc); err != nil {
		return nil, 0, err
	}
	m, err := newMaps()
	if err != nil {
		return nil, 0, err
	}
	code, err = m.run(ctx, n)
	return nil, code, err
}

// idMaps are the two ID maps of the namespace to be, and who writes them.
type idMaps struct {
	newuidmap, newgidmap string // programs
	uids, gids           []string
}

func newMaps() (m idMaps, err error) {
	if m.newuidmap, m.newgidmap, err = findMappers(); err != nil {
		return m, err
	}
	id := strconv.Itoa(os.Getuid())
	name := ""
	if u, err := user.LookupId(id); err == nil {
		name = u.Username
	}
	uids, err := subordinate("/etc/subuid", name, id)
	if err != nil {
		return m, err
	}
	gids, err := subordinate("/etc/subgid", name, id)
	if err != nil {
		return m, err
	}
	m.uids, m.gids = mapping(os.Getuid(), uids), mapping(os.Getgid(), gids)
	return m, nil
}

func findMappers() (newuidmap, newgidmap string, err error) {
	newuidmap, err1 := exec.LookPath("newuidmap")
	newgidmap, err2 := exec.LookPath("newgidmap")
	if err1 != nil || err2 != nil {
		return "", "", withHint(errors.New("not root, and no newuidmap and newgidmap to make a user namespace with"),
			"apt-get install uidmap\nor build as root, or give --builder the address of a BuildKit daemon")
	}
	return newuidmap, newgidmap, nil
}

// subordinate are the IDs that the user may map; none is an error.
func subordinate(path, name, id string) ([]idRange, error) {
	ranges, err := readRanges(path, name, id)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if len(ranges) > 0 {
		return ranges, nil
	}
	if name == "" {
		name = id
	}
	return nil, withHint(fmt.Errorf("not root, and %s grants %s no IDs for a user namespace", path, name),
		fmt.Sprintf("usermod --add-subuids 100000-165535 --add-subgids 100000-165535 %s (as root)", name))
}

// run starts the child and waits for it. The goroutine keeps its thread.
func (m idMaps) run(ctx context.Context, n Namespace) (int, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	read, write, err := os.Pipe()
	if err != nil {
		return 0, fmt.Errorf("entering a user namespace: %w", err)
	}
	defer write.Close()
	cmd := n.command(read)
	err = cmd.Start()
	read.Close()
	if err != nil {
		return 0, withHint(fmt.Errorf("entering a user namespace: %w", err), namespaceHint)
	}
	if err := m.write(cmd.Process.Pid, write); err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		return 0, err
	}
	defer context.AfterFunc(ctx, func() { write.Close() })()
	return exitCode(cmd.Wait())
}

const namespaceHint = "the kernel or a security module may forbid user namespaces: see sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns\nor build as root, or give --builder the address of a BuildKit daemon"

func (n Namespace) command(pipe *os.File) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = n.Args
	cmd.Env = append(os.Environ(), NamespaceVariable+"="+markMapping)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = n.Stdin, n.Stdout, n.Stderr
	cmd.ExtraFiles = []*os.File{pipe} // becomes pipeFD
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID}
	return cmd
}

// write has the maps written and tells the child.
func (m idMaps) write(pid int, pipe *os.File) error {
	for _, step := range []struct {
		program string
		words   []string
	}{{m.newuidmap, m.uids}, {m.newgidmap, m.gids}} {
		out, err := exec.Command(step.program, append([]string{strconv.Itoa(pid)}, step.words...)...).CombinedOutput()
		if err != nil {
			return withHint(fmt.Errorf("entering a user namespace: %s: %w: %s", step.program, err, strings.TrimSpace(string(out))), namespaceHint)
		}
	}
	if _, err := pipe.Write([]byte{1}); err != nil {
		return fmt.Errorf("entering a user namespace: %w", err)
	}
	return nil
}

// exitCode is the child's, or 128 and its signal as shells have it.
func exitCode(err error) (int, error) {
	var exit *exec.ExitError
	if err == nil {
		return 0, nil
	}
	if !errors.As(err, &exit) {
		return 0, fmt.Errorf("in the user namespace: %w", err)
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return exit.ExitCode(), nil
}

// awaitMaps is the work of the process "mapping". It returns only on failure.
func awaitMaps(n Namespace) error {
	var b [1]byte
	count, err := unix.Read(pipeFD, b[:])
	if err != nil || count != 1 {
		return fmt.Errorf("entering a user namespace: the parent process is gone (%v)", err)
	}
	env := append(os.Environ(), NamespaceVariable+"="+markInside)
	return fmt.Errorf("entering a user namespace: %w", syscall.Exec("/proc/self/exe", n.Args, lastWins(env)))
}

// lastWins drops all but the last setting of each variable, as os/exec does.
func lastWins(env []string) []string {
	seen := map[string]bool{}
	var kept []string
	for i := len(env) - 1; i >= 0; i-- {
		name, _, _ := strings.Cut(env[i], "=")
		if !seen[name] {
			seen[name] = true
			kept = append(kept, env[i])
		}
	}
	return kept
}

// settleInside mounts a /proc that shows this PID namespace, and gives a context
// that ends with the pipe.
func settleInside(ctx context.Context) (context.Context, error) {
	unix.CloseOnExec(pipeFD)
	if os.Geteuid() != 0 {
		return nil, withHint(errors.New("entering a user namespace: not root in it"), namespaceHint)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return nil, withHint(fmt.Errorf("entering a user namespace: mounting /proc: %w", err), namespaceHint)
	}
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		os.NewFile(pipeFD, "parent").Read(make([]byte, 1))
	}()
	return ctx, nil
}
