package build

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// sbin are the directories that an ordinary user's PATH lacks.
var sbin = [...]string{"/usr/local/sbin", "/usr/sbin", "/sbin"}

// FindRunc is the absolute path of runc: path itself, or for "" the first one
// in PATH and the system's sbin directories.
func FindRunc(path string) (string, error) {
	if path != "" {
		found, err := exec.LookPath(path)
		if err != nil {
			return "", noRunc(path)
		}
		return filepath.Abs(found)
	}
	if found, err := exec.LookPath("runc"); err == nil {
		return filepath.Abs(found)
	}
	for _, dir := range sbin {
		if info, err := os.Stat(filepath.Join(dir, "runc")); err == nil && info.Mode()&0o111 != 0 {
			return filepath.Join(dir, "runc"), nil
		}
	}
	return "", noRunc("runc")
}

func noRunc(name string) error {
	return withHint(fmt.Errorf("no runc to build with: %s not found", name),
		"apt-get install runc\nor give --builder the address of a BuildKit daemon")
}
