package trust_test

import (
	"os"
	"syscall"
	"testing"
)

// smallDisk mounts a file system of 256 KiB, which takes root. CI has that.
func smallDisk(t *testing.T, dir string) {
	t.Helper()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("mounting a small disk: %v", err)
		}
		t.Skipf("SKIPPED: a small disk takes root to mount: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, 0) })
}
