package build

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// output is an OCI layout in the making. It is written beside its place and
// renamed when it is whole. A nil output is a push: nothing to write here.
type output struct {
	dir, temp string
}

// newOutput makes the temporary directory. What is at dir may be nothing, an
// empty directory or a layout to be replaced; anything else is refused.
func newOutput(dir string) (*output, error) {
	if dir == "" {
		return nil, nil
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("writing %s: %w", dir, err)
	}
	if err := replaceable(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, fmt.Errorf("writing %s: %w", dir, err)
	}
	temp, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+".new-")
	if err != nil {
		return nil, fmt.Errorf("writing %s: %w", dir, err)
	}
	return &output{dir: dir, temp: temp}, nil
}

func replaceable(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", dir, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "oci-layout")); err != nil {
		return &UsageError{fmt.Sprintf("%s is not empty and not an OCI layout", dir), "name a new directory: it will be replaced as a whole"}
	}
	return nil
}

// commit puts the layout in its place. Between the two renames a crash leaves
// no layout at dir, and both the old and the new one whole beside it.
func (o *output) commit() error {
	if o == nil {
		return nil
	}
	// BuildKit's scratch space and lock are no part of a layout.
	for _, extra := range []string{"ingest", "index.json.lock"} {
		if err := os.RemoveAll(filepath.Join(o.temp, extra)); err != nil {
			return fmt.Errorf("writing %s: %w", o.dir, err)
		}
	}
	if err := os.Chmod(o.temp, 0o755); err != nil {
		return fmt.Errorf("writing %s: %w", o.dir, err)
	}
	old := o.temp + "-old"
	if err := os.Rename(o.dir, old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("replacing %s: %w", o.dir, err)
	}
	if err := os.Rename(o.temp, o.dir); err != nil {
		return fmt.Errorf("writing %s: %w", o.dir, errors.Join(err, os.Rename(old, o.dir)))
	}
	if err := os.RemoveAll(old); err != nil {
		return fmt.Errorf("removing what was at %s: %w", o.dir, err)
	}
	return nil
}

// discard removes what is not committed.
func (o *output) discard() {
	if o != nil {
		os.RemoveAll(o.temp)
	}
}
