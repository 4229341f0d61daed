package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// Names of whiteouts,
// https://github.com/opencontainers/image-spec/blob/v1.1.1/layer.md#whiteouts
const (
	whiteoutPrefix = ".wh."
	opaqueName     = ".wh..wh..opq"
)

// applied is one layer while it is applied. Paths are relative to the root and
// hold no symbolic link before their last part.
type applied struct {
	*unpacker
	touched map[string]bool      // what this layer holds, and the directories above: no whiteout of it removes that
	whited  map[string]bool      // where nothing of a lower layer is left
	times   map[string]time.Time // of directories, set when nothing is written to them any more
}

// entries applies the entries in their order.
func (l *applied) entries(t *tar.Reader) error {
	for {
		h, err := t.Next()
		if err == io.EOF {
			return l.setTimes()
		}
		if err != nil {
			return fmt.Errorf("reading the tar: %w", err)
		}
		if l.unpacker.entries--; l.unpacker.entries < 0 {
			return fmt.Errorf("more than %d entries: %w", l.options.MaxEntries, ErrTooLarge)
		}
		if err := l.entry(h, t); err != nil {
			return fmt.Errorf("entry %.200q: %w", h.Name, err)
		}
	}
}

// entry applies one entry.
func (l *applied) entry(h *tar.Header, content io.Reader) error {
	name, err := clean(h.Name)
	if err != nil {
		return err
	}
	parent, err := l.resolve(path.Dir(name))
	if err != nil {
		return err
	}
	if base := path.Base(name); strings.HasPrefix(base, whiteoutPrefix) {
		return l.whiteout(parent, base)
	}
	at := path.Join(parent, path.Base(name))
	if skip, err := skipped(h.Typeflag); skip || err != nil {
		l.stats.Skipped++
		return err
	}
	l.stats.Entries++
	if err := l.makeParents(parent); err != nil {
		return err
	}
	l.touch(at)
	return l.write(at, h, content)
}

// skipped tells the types of entries that are left out from those that are
// applied.
func skipped(flag byte) (bool, error) {
	switch flag {
	case tar.TypeDir, tar.TypeReg, tar.TypeGNUSparse, tar.TypeLink, tar.TypeSymlink:
		return false, nil
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo, tar.TypeXGlobalHeader:
		return true, nil
	}
	return false, fmt.Errorf("%w: unknown type %q", ErrUnsafe, flag)
}

// clean makes the path of an entry relative to the root.
func clean(name string) (string, error) {
	switch {
	case len(name) > maxPath:
		return "", fmt.Errorf("%w: a path of %d bytes", ErrUnsafe, len(name))
	case slices.Contains(strings.Split(name, "/"), ".."):
		return "", fmt.Errorf("%w: the path leads upwards", ErrUnsafe)
	}
	return path.Join(".", path.Clean("/" + name)[1:]), nil
}

func (l *applied) touch(at string) {
	for ; at != "." && !l.touched[at]; at = path.Dir(at) {
		l.touched[at] = true
	}
}

// makeParents makes the directories that the layer does not name itself.
func (l *applied) makeParents(dir string) error {
	if dir == "." {
		return nil
	}
	info, err := l.root.Lstat(dir)
	if err == nil && info.IsDir() {
		return nil
	}
	return l.root.MkdirAll(dir, 0o755)
}

// write puts one entry at its place, where an entry of another type is removed
// first. Directories stay with what is in them.
func (l *applied) write(at string, h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeDir {
		return l.directory(at, h)
	}
	if at == "." {
		return fmt.Errorf("%w: the root must be a directory", ErrUnsafe)
	}
	if h.Typeflag == tar.TypeLink {
		return l.hardLink(at, h.Linkname)
	}
	if err := l.root.RemoveAll(at); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeSymlink {
		return l.symlink(at, h)
	}
	return l.file(at, h, content)
}

func (l *applied) directory(at string, h *tar.Header) error {
	info, err := l.root.Lstat(at)
	if err == nil && !info.IsDir() {
		if err := l.root.RemoveAll(at); err != nil {
			return err
		}
	}
	if err != nil || !info.IsDir() {
		if err := l.root.Mkdir(at, 0o700); err != nil {
			return err
		}
	}
	if !h.ModTime.IsZero() {
		l.times[at] = h.ModTime
	}
	return l.own(at, h)
}

func (l *applied) file(at string, h *tar.Header, content io.Reader) error {
	f, err := l.root.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	// A sparse file is larger than what the stream holds of it.
	n, err := io.Copy(f, io.LimitReader(content, l.content+1))
	if l.content -= n; err == nil && l.content < 0 {
		err = fmt.Errorf("files of more than %d bytes: %w", l.options.MaxBytes, ErrTooLarge)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := l.own(at, h); err != nil {
		return err
	}
	return l.root.Chtimes(at, h.ModTime, h.ModTime)
}

// own sets owner and mode, in this order: a change of the owner takes setuid away.
func (l *applied) own(at string, h *tar.Header) error {
	if err := l.chown(at, h); err != nil {
		return err
	}
	return l.root.Chmod(at, h.FileInfo().Mode()&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky))
}

func (l *applied) chown(at string, h *tar.Header) error {
	if l.options.SkipOwners {
		return nil
	}
	if h.Uid < 0 || h.Gid < 0 {
		return fmt.Errorf("%w: owner %d:%d", ErrUnsafe, h.Uid, h.Gid)
	}
	return l.root.Lchown(at, h.Uid, h.Gid)
}

// symlink keeps the target as it stands: whoever follows it does so inside the
// tree.
func (l *applied) symlink(at string, h *tar.Header) error {
	if h.Linkname == "" || len(h.Linkname) > maxPath {
		return fmt.Errorf("%w: a symbolic link with a target of %d bytes", ErrUnsafe, len(h.Linkname))
	}
	if err := l.root.Symlink(h.Linkname, at); err != nil {
		return err
	}
	return l.chown(at, h)
}

// hardLink links to a file of this or a lower layer.
func (l *applied) hardLink(at, target string) error {
	name, err := clean(target)
	if err != nil {
		return err
	}
	parent, err := l.resolve(path.Dir(name))
	if err != nil {
		return err
	}
	from := path.Join(parent, path.Base(name))
	info, err := l.root.Lstat(from)
	if err != nil {
		return fmt.Errorf("hard link to %.200q: %w", target, err)
	}
	if info.IsDir() {
		return fmt.Errorf("%w: a hard link to the directory %.200q", ErrUnsafe, target)
	}
	if from == at {
		return fmt.Errorf("%w: a hard link to itself", ErrUnsafe)
	}
	if err := l.root.RemoveAll(at); err != nil {
		return err
	}
	return l.root.Link(from, at)
}

// whiteout removes what lower layers have at a path, or in a directory.
func (l *applied) whiteout(parent, base string) error {
	if base == opaqueName {
		return l.removeChildren(parent)
	}
	name := strings.TrimPrefix(base, whiteoutPrefix)
	switch {
	case name == "" || name == "." || name == "..":
		return fmt.Errorf("%w: a whiteout of %q", ErrUnsafe, name)
	case strings.HasPrefix(name, whiteoutPrefix):
		return nil // bookkeeping of aufs, such as .wh..wh.plnk
	}
	return l.removeLower(path.Join(parent, name))
}

// removeLower removes a path, but for what this layer has put there.
func (l *applied) removeLower(at string) error {
	if !l.touched[at] {
		return l.root.RemoveAll(at)
	}
	return l.removeChildren(at)
}

func (l *applied) removeChildren(dir string) error {
	if l.whited[dir] {
		return nil
	}
	l.whited[dir] = true
	info, err := l.root.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
		return nil
	}
	if err != nil {
		return err
	}
	children, err := fs.ReadDir(l.root.FS(), dir)
	if err != nil {
		return err
	}
	for _, c := range children {
		if err := l.removeLower(path.Join(dir, c.Name())); err != nil {
			return err
		}
	}
	return nil
}

// setTimes sets the times of the directories that are still there.
func (l *applied) setTimes() error {
	for at, t := range l.times {
		info, err := l.root.Lstat(at)
		if err != nil || !info.IsDir() {
			continue
		}
		if err := l.root.Chtimes(at, t, t); err != nil {
			return fmt.Errorf("entry %.200q: %w", at, err)
		}
	}
	return nil
}

// maxLinks is how many symbolic links are followed on the way to one entry, as
// the kernel does.
const maxLinks = 40

// resolve follows the symbolic links of a directory's path inside the tree:
// "/" is the root, and ".." of the root is the root. What does not exist yet
// is taken as it stands; what exists and is no directory is an error.
func (l *applied) resolve(dir string) (string, error) {
	at, rest, links := ".", strings.Split(dir, "/"), 0
	for len(rest) > 0 {
		part := rest[0]
		rest = rest[1:]
		target, err := l.step(&at, part)
		if err != nil {
			return "", err
		}
		if target == "" {
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("%w: more than %d symbolic links on the way", ErrUnsafe, maxLinks)
		}
		if path.IsAbs(target) {
			at = "."
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return at, nil
}

// step goes from a directory into one part of a path, or returns the target of
// the symbolic link that the part is.
func (l *applied) step(at *string, part string) (target string, err error) {
	switch part {
	case "", ".":
		return "", nil
	case "..":
		*at = path.Dir(*at)
		return "", nil
	}
	next := path.Join(*at, part)
	info, err := l.root.Lstat(next)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		*at = next
		return "", nil
	case err != nil:
		return "", err
	case info.Mode()&fs.ModeSymlink != 0:
		return l.root.Readlink(next)
	case !info.IsDir():
		return "", fmt.Errorf("%w: %.200q is no directory", ErrUnsafe, next)
	}
	*at = next
	return "", nil
}
