package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/moby/patternmatcher/ignorefile"
	"github.com/tonistiigi/fsutil"
)

// contextEpoch is the time that an image built from dir carries, in whole
// seconds: of the commit that dir is checked out at, which a shallow clone and a
// full one share, or of the newest file that .dockerignore does not leave out.
func contextEpoch(ctx context.Context, dir string) (time.Time, error) {
	work, err := gitWorkTree(dir)
	if err != nil {
		return time.Time{}, err
	}
	if work != "" {
		return commitTime(ctx, dir)
	}
	return newestFile(ctx, dir)
}

// gitWorkTree is the nearest directory with a .git at or above dir, or "".
func gitWorkTree(dir string) (string, error) {
	for {
		_, err := os.Lstat(filepath.Join(dir, ".git"))
		if err == nil {
			return dir, nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
			return "", fmt.Errorf("looking for git: %w", err)
		}
		if parent := filepath.Dir(dir); parent != dir {
			dir = parent
			continue
		}
		return "", nil
	}
}

const epochHint = "set SOURCE_DATE_EPOCH to the time, in seconds, that the image shall carry"

// commitTime asks git. rev-list is plumbing: it runs nothing that the
// repository's own configuration could name.
func commitTime(ctx context.Context, dir string) (time.Time, error) {
	var out, talk bytes.Buffer
	cmd := exec.CommandContext(ctx, "git", "-C", dir, "rev-list", "--max-count=1", "--timestamp", "HEAD")
	cmd.Stdout, cmd.Stderr = &out, &talk
	if err := cmd.Run(); err != nil {
		reason := err.Error()
		if line, _, _ := strings.Cut(strings.TrimSpace(talk.String()), "\n"); line != "" {
			reason = line
		}
		return time.Time{}, withHint(fmt.Errorf("asking git for the commit time of %s: %s", dir, reason), epochHint)
	}
	text, _, _ := strings.Cut(strings.TrimSpace(out.String()), " ")
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, withHint(fmt.Errorf("asking git for the commit time of %s: answer %q", dir, text), epochHint)
	}
	return time.Unix(max(seconds, 0), 0).UTC(), nil
}

// newestFile is the largest modification time of a file or link in dir; the
// zero of Unix time when there is none. Directories do not count: writing a
// file that .dockerignore leaves out changes theirs.
func newestFile(ctx context.Context, dir string) (time.Time, error) {
	newest := time.Unix(0, 0)
	err := walkContext(ctx, dir, func(info fs.FileInfo) {
		if !info.IsDir() && info.ModTime().After(newest) {
			newest = info.ModTime()
		}
	})
	if err != nil {
		return time.Time{}, fmt.Errorf("looking for the newest file of %s: %w", dir, err)
	}
	return newest.Truncate(time.Second).UTC(), nil
}

func walkContext(ctx context.Context, dir string, visit func(fs.FileInfo)) error {
	excludes, err := readIgnore(filepath.Join(dir, ".dockerignore"))
	if err != nil {
		return err
	}
	tree, err := fsutil.NewFS(dir)
	if err != nil {
		return err
	}
	tree, err = fsutil.NewFilterFS(tree, &fsutil.FilterOpt{ExcludePatterns: excludes})
	if err != nil {
		return err
	}
	return tree.Walk(ctx, "", func(_ string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			visit(info)
		}
		return err
	})
}

func readIgnore(path string) ([]string, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return ignorefile.ReadAll(f)
}
