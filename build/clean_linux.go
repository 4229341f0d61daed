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

// unmountAll undoes the mounts below state and those elsewhere that show layers
// kept there, the newest first. A mount that stays is an error: removing files
// through it would destroy what it shows. A state directory that is a mount
// point itself, or that is mounted at a second place, is left as it is.
func unmountAll(state string) error {
	all, err := mountinfo.GetMounts(nil)
	if err != nil {
		return err
	}
	shown := showsLayer(state, all)
	for i := len(all) - 1; i >= 0; i-- {
		m := all[i]
		below := m.Mountpoint != state && within(state, m.Mountpoint)
		if !below && !shown(m) {
			continue
		}
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmounting %s: %w", m.Mountpoint, err)
		}
		if !below {
			os.Remove(m.Mountpoint) // BuildKit's temporary mount point, empty now
		}
	}
	return nil
}

// showsLayer tells of a mount whether it shows a layer in state: an overlay by
// its options, a bind mount by the device and the path in it (mountinfo's Root).
func showsLayer(state string, all []*mountinfo.Info) func(*mountinfo.Info) bool {
	home := &mountinfo.Info{Major: -1}
	for _, m := range all {
		if within(m.Mountpoint, state) && len(m.Mountpoint) >= len(home.Mountpoint) {
			home = m
		}
	}
	inside := filepath.Join(home.Root, strings.TrimPrefix(state, home.Mountpoint))
	return func(m *mountinfo.Info) bool {
		return strings.Contains(m.VFSOptions, "="+state+"/runc-") ||
			m.Major == home.Major && m.Minor == home.Minor && strings.HasPrefix(m.Root, inside+"/runc-")
	}
}

// within tells whether the clean path is dir or below it.
func within(dir, path string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

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
