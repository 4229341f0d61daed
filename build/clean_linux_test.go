package build

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

func TestUnmountAllLeavesOtherMounts(t *testing.T) {
	if os.Getenv("IMGTRUST_TEST_NAMESPACE") == "" {
		inNamespace(t)
		return
	}
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	at := func(path string) string {
		path = filepath.Join(top, path)
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	state := at("state")
	mount(t, state, state, "", unix.MS_BIND, "")
	layer, upper, work := at("state/runc-overlayfs/snapshots/1/fs"), at("state/runc-overlayfs/snapshots/2/fs"), at("state/runc-overlayfs/snapshots/2/work")
	overlay := "lowerdir=" + layer + ",upperdir=" + upper + ",workdir=" + work
	mount(t, layer, at("buildkit-mount1"), "", unix.MS_BIND, "")
	mount(t, "overlay", at("buildkit-mount2"), "overlay", 0, overlay)
	mount(t, "tmpfs", at("state/runc-overlayfs/executor/x/rootfs"), "tmpfs", 0, "")
	mount(t, state, at("alias"), "", unix.MS_BIND, "")
	mount(t, at("other"), at("keep"), "", unix.MS_BIND, "")
	defer func() {
		for _, path := range mountsBelow(t, top) {
			unix.Unmount(filepath.Join(top, path), unix.MNT_DETACH)
		}
	}()
	if err := unmountAll(state); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(mountsBelow(t, top), " "); got != "state alias keep" {
		t.Errorf("still mounted: %s", got)
	}
	if _, err := os.Stat(filepath.Join(top, "buildkit-mount1")); err == nil {
		t.Error("the temporary mount point is left")
	}
	if _, err := os.Stat(layer); err != nil {
		t.Error("the layer is gone")
	}
}

// inNamespace runs the test that calls it once more, as root of a user and
// mount namespace of its own: no privilege is needed, no mount gets out.
func inNamespace(t *testing.T) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "IMGTRUST_TEST_NAMESPACE=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("in a user namespace: %v\n%s", err, out)
	}
}

func mount(t *testing.T, source, target, kind string, flags uintptr, options string) {
	t.Helper()
	if err := unix.Mount(source, target, kind, flags, options); err != nil {
		t.Fatalf("mounting %s: %v", target, err)
	}
}

func mountsBelow(t *testing.T, top string) (paths []string) {
	t.Helper()
	all, err := mountinfo.GetMounts(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		if within(top, m.Mountpoint) {
			paths = append(paths, strings.TrimPrefix(m.Mountpoint, top+"/"))
		}
	}
	return paths
}
