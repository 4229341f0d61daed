package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// A daemon that was killed leaves behind the containers of its steps, their
// mounts, and a bundle directory for each. runc keeps its records in the state
// directory, so that they can be found there and nothing else is touched.

func (d *daemon) runcRoot() string { return filepath.Join(d.state, "runc") }

// writeWrapper writes the command that BuildKit runs as runc: it has no option
// for runc's --root, whose default an ordinary user may not write.
func (d *daemon) writeWrapper() (string, error) {
	path := filepath.Join(d.state, "runc.sh")
	script := fmt.Sprintf("#!/bin/sh\nexec %s --root %s \"$@\"\n", quote(d.runc), quote(d.runcRoot()))
	if old, err := os.ReadFile(path); err == nil && string(old) == script {
		return path, nil
	}
	if err := os.WriteFile(path+".new", []byte(script), 0o700); err != nil {
		return "", err
	}
	return path, os.Rename(path+".new", path)
}

// quote makes one word of s for the shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// clean kills the steps, undoes the mounts and removes the bundles that are in
// the state directory. The caller holds its lock and runs no step.
func (d *daemon) clean(ctx context.Context) error {
	if err := d.killSteps(ctx); err != nil {
		return err
	}
	if err := unmountAll(d.state); err != nil {
		return err
	}
	bundles, err := d.bundles()
	if err != nil {
		return err
	}
	for _, dir := range bundles {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// killSteps ends every container that runc has a record of.
func (d *daemon) killSteps(ctx context.Context) error {
	entries, err := os.ReadDir(d.runcRoot())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		out, err := exec.CommandContext(ctx, d.runc, "--root", d.runcRoot(), "delete", "--force", e.Name()).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ending step %s: %w: %s", e.Name(), err, strings.TrimSpace(string(out)))
		}
		if err := os.RemoveAll(filepath.Join(d.runcRoot(), e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// unmountAll undoes the mounts at, below or made of layers in dir, the newest
// first. A mount that stays is an error: removing files through it would
// destroy what it shows.
func unmountAll(dir string) error {
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !within(dir, m.Mountpoint) && !strings.Contains(m.VFSOptions, "="+dir+"/"), false
	})
	if err != nil {
		return err
	}
	for i := len(mounts) - 1; i >= 0; i-- {
		at := mounts[i].Mountpoint
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmounting %s: %w", at, err)
		}
		if !within(dir, at) {
			os.Remove(at) // BuildKit's temporary mount point, empty now
		}
	}
	return nil
}

func within(dir, path string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// bundles are the directories of steps that run or were cut off.
func (d *daemon) bundles() ([]string, error) {
	entries, err := filepath.Glob(filepath.Join(globQuote(d.state), "runc-*", "executor", "*"))
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, path := range entries {
		if info, err := os.Lstat(path); err == nil && info.IsDir() {
			dirs = append(dirs, path)
		}
	}
	return dirs, nil
}

// globQuote makes path match only itself.
func globQuote(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// busy tells whether a step has not been cleaned away by its own executor.
func (d *daemon) busy() bool {
	bundles, err := d.bundles()
	return err == nil && len(bundles) > 0
}
