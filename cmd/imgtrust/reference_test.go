package main

import (
	"flag"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/spf13/cobra/doc"
)

var update = flag.Bool("update", false, "write docs/cli instead of comparing it")

// TestReference keeps docs/cli equal to what the commands say of themselves.
func TestReference(t *testing.T) {
	committed := filepath.Join("..", "..", "docs", "cli")
	if *update {
		if err := os.RemoveAll(committed); err != nil {
			t.Fatal(err)
		}
		writeReference(t, committed)
		return
	}
	generated := t.TempDir()
	writeReference(t, generated)
	want, got := readPages(t, generated), readPages(t, committed)
	for _, page := range slices.Sorted(maps.Keys(want)) {
		if got[page] != want[page] {
			t.Errorf("docs/cli/%s is not what the commands say: run make generate", page)
		}
		delete(got, page)
	}
	for page := range got {
		t.Errorf("docs/cli/%s is of no command: run make generate", page)
	}
}

func writeReference(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	root := newRootCommand(&app{
		stdout: io.Discard,
		stderr: io.Discard,
		getenv: func(string) string { return "" },
	})
	root.DisableAutoGenTag = true
	if err := doc.GenMarkdownTree(root, dir); err != nil {
		t.Fatal(err)
	}
}

func readPages(t *testing.T, dir string) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	pages := map[string]string{}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		pages[filepath.Base(file)] = string(b)
	}
	return pages
}
