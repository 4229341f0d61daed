package layer_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"github.com/imgtrust/imgtrust/internal/layer"
	"github.com/imgtrust/imgtrust/internal/oci"
)

var modTime = time.Unix(1700000000, 0)

func dir(name string) tar.Header { return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755} }
func sym(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}
}
func hard(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}
}
func mode(h tar.Header, m int64) tar.Header { h.Mode = m; return h }

// file holds its content in Linkname until it is written.
func file(name, content string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Linkname: content}
}

// tarOf writes a layer of these entries.
func tarOf(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		content := ""
		if h.Typeflag == tar.TypeReg {
			content, h.Linkname = h.Linkname, ""
			h.Size = int64(len(content))
		}
		h.Uid, h.Gid = os.Getuid(), os.Getgid()
		if h.ModTime.IsZero() {
			h.ModTime = modTime
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// show draws a tree, one line an entry: "mode path content".
func show(t testing.TB, root string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, root+"/")
		switch {
		case d.IsDir():
			name += "/"
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, "link %s %s\n", name, target)
			return nil
		default:
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			name += " " + string(content)
		}
		bits := uint32(info.Mode().Perm())
		for bit, of := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
			if info.Mode()&of != 0 {
				bits |= bit
			}
		}
		fmt.Fprintf(&b, "%o %s\n", bits, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// stage is a root beside a file that no layer may touch.
func stage(t testing.TB) (root *os.Root, path string, untouched func()) {
	t.Helper()
	outside := t.TempDir()
	path = filepath.Join(outside, "root")
	for _, err := range []error{os.Mkdir(path, 0o755), os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	before := must(os.Stat(outside))
	return root, path, func() {
		t.Helper()
		after := must(os.Stat(outside))
		if after.Mode() != before.Mode() || !after.ModTime().Equal(before.ModTime()) {
			t.Errorf("the directory above has changed: %s, %s", after.Mode(), after.ModTime())
		}
		secret := filepath.Join(outside, "secret")
		info, err := os.Lstat(secret)
		if err != nil || info.Mode() != 0o600 || string(must(os.ReadFile(secret))) != "secret" || info.Sys().(*syscall.Stat_t).Nlink != 1 {
			t.Errorf("the file outside has changed: %v, %v", info, err)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestApply(t *testing.T) {
	for _, tt := range []struct {
		summary string
		layers  [][]tar.Header
		want    string
	}{{
		summary: "files, directories and links, with parents that no entry names",
		layers:  [][]tar.Header{{dir("etc"), mode(file("etc/conf", "a"), 0o600), file("usr/share/doc", "d"), sym("bin", "usr/bin"), hard("etc/same", "etc/conf")}},
		want:    "link bin usr/bin\n755 etc/\n600 etc/conf a\n600 etc/same a\n755 usr/\n755 usr/share/\n644 usr/share/doc d\n",
	}, {
		summary: "setuid, setgid and sticky stay, without regard to the umask",
		layers:  [][]tar.Header{{mode(file("su", ""), 0o4755), mode(file("wall", ""), 0o2755), mode(dir("tmp/"), 0o1777)}},
		want:    "4755 su \n1777 tmp/\n2755 wall \n",
	}, {
		summary: "names with ./ and / are inside all the same",
		layers:  [][]tar.Header{{mode(dir("./"), 0o755), file("./a", "1"), file("/b", "2"), file("c//d", "3")}},
		want:    "644 a 1\n644 b 2\n755 c/\n644 c/d 3\n",
	}, {
		summary: "a whiteout removes what lower layers have, and only that",
		layers:  [][]tar.Header{{file("a/x", "1"), file("a/y", "2"), file("b", "3")}, {file("a/.wh.x", ""), file(".wh.b", ""), file(".wh.never", "")}},
		want:    "755 a/\n644 a/y 2\n",
	}, {
		summary: "a whiteout removes a whole directory",
		layers:  [][]tar.Header{{file("a/b/c", "1"), file("d", "2")}, {file(".wh.a", "")}},
		want:    "644 d 2\n",
	}, {
		summary: "a whiteout hides nothing of its own layer, whichever comes first",
		layers: [][]tar.Header{{file("a/old", "1"), file("b/old", "2")},
			{file(".wh.a", ""), file("a/new", "3"), file("b/new", "4"), file(".wh.b", "")}},
		want: "755 a/\n644 a/new 3\n755 b/\n644 b/new 4\n",
	}, {
		summary: "an opaque directory shows only its own layer, whichever comes first",
		layers: [][]tar.Header{{file("a/old", "1"), file("a/sub/old", "1"), file("b/old", "2")},
			{dir("a"), file("a/.wh..wh..opq", ""), file("a/new", "3"), file("a/sub/new", "5"), file("b/new", "4"), file("b/.wh..wh..opq", "")}},
		want: "755 a/\n644 a/new 3\n755 a/sub/\n644 a/sub/new 5\n755 b/\n644 b/new 4\n",
	}, {
		summary: "a later layer replaces a directory by a file, a file by a directory and a link by a file",
		layers: [][]tar.Header{{file("a/x", "1"), file("b", "2"), sym("c", "b")},
			{file("a", "3"), dir("b"), file("c", "4")}},
		want: "644 a 3\n755 b/\n644 c 4\n",
	}, {
		summary: "a directory that comes again keeps its content and takes the new mode",
		layers:  [][]tar.Header{{dir("a"), file("a/x", "1")}, {mode(dir("a"), 0o700)}},
		want:    "700 a/\n644 a/x 1\n",
	}, {
		summary: "what replaces one of two hard links leaves the other alone",
		layers:  [][]tar.Header{{file("a", "old"), hard("b", "a")}, {file("a", "new")}},
		want:    "644 a new\n644 b old\n",
	}, {
		summary: "a relative and an absolute link to a directory are followed inside",
		layers:  [][]tar.Header{{dir("usr/bin"), dir("run"), sym("bin", "usr/bin"), dir("var"), sym("var/run", "/run")}, {file("bin/sh", "1"), file("var/run/pid", "2")}},
		want:    "link bin usr/bin\n755 run/\n644 run/pid 2\n755 usr/\n755 usr/bin/\n644 usr/bin/sh 1\n755 var/\nlink var/run /run\n",
	}, {
		summary: "a whiteout below a link removes inside",
		layers:  [][]tar.Header{{file("usr/bin/sh", "1"), dir("var"), sym("var/bin", "/usr/bin")}, {file("var/bin/.wh.sh", "")}},
		want:    "755 usr/\n755 usr/bin/\n755 var/\nlink var/bin /usr/bin\n",
	}, {
		summary: "devices, pipes and global headers are left out",
		layers: [][]tar.Header{{{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3}, {Typeflag: tar.TypeFifo, Name: "pipe"},
			{Typeflag: tar.TypeBlock, Name: "sda"}, file("a", "1")}},
		want: "644 a 1\n",
	}, {
		summary: "the bookkeeping of aufs means nothing",
		layers:  [][]tar.Header{{file("a", "1")}, {dir(".wh..wh.plnk"), file(".wh..wh.aufs", "")}},
		want:    "644 a 1\n",
	}} {
		t.Run(tt.summary, func(t *testing.T) {
			root, path, untouched := stage(t)
			for _, entries := range tt.layers {
				if _, err := layer.Apply(t.Context(), root, bytes.NewReader(tarOf(t, entries...)), layer.Options{}); err != nil {
					t.Fatal(err)
				}
			}
			if got := show(t, path); got != tt.want {
				t.Errorf("got\n%swant\n%s", got, tt.want)
			}
			untouched()
		})
	}
}

func TestApplyRefuses(t *testing.T) {
	deep := strings.Repeat("d/", 2100) + "f"
	for _, tt := range []struct {
		summary string
		entries []tar.Header
		options layer.Options
		is      error  // nil: any
		text    string // part of the error
	}{
		{summary: "a path that leads upwards", entries: []tar.Header{file("../secret", "x")}, is: layer.ErrUnsafe, text: `"../secret"`},
		{summary: "a path that goes down before it leads upwards", entries: []tar.Header{file("a/../../secret", "x")}, is: layer.ErrUnsafe},
		{summary: "an absolute path that leads upwards", entries: []tar.Header{file("/../secret", "x")}, is: layer.ErrUnsafe},
		{summary: "a directory that leads upwards", entries: []tar.Header{mode(dir("../"), 0o777)}, is: layer.ErrUnsafe},
		{summary: "a hard link to a file outside", entries: []tar.Header{hard("a", "../secret")}, is: layer.ErrUnsafe},
		{summary: "a hard link through a link to the outside", entries: []tar.Header{sym("up", ".."), hard("a", "up/secret")}, text: "hard link"},
		{summary: "a hard link to nothing", entries: []tar.Header{hard("a", "b")}, is: fs.ErrNotExist},
		{summary: "a hard link to a directory", entries: []tar.Header{dir("d"), hard("a", "d")}, is: layer.ErrUnsafe},
		{summary: "a hard link to the root", entries: []tar.Header{hard("a", "/")}, is: layer.ErrUnsafe},
		{summary: "a hard link to itself", entries: []tar.Header{file("a", "x"), hard("a", "a")}, is: layer.ErrUnsafe},
		{summary: "links that go round in circles", entries: []tar.Header{sym("a", "b"), sym("b", "a"), file("a/f", "x")}, is: layer.ErrUnsafe},
		{summary: "a link to itself", entries: []tar.Header{sym("a", "a"), file("a/f", "x")}, is: layer.ErrUnsafe},
		{summary: "a file in the way", entries: []tar.Header{file("a", "x"), file("a/f", "x")}, is: layer.ErrUnsafe},
		{summary: "the root as a link", entries: []tar.Header{sym("/", "/tmp")}, is: layer.ErrUnsafe},
		{summary: "a link with no target", entries: []tar.Header{sym("a", "")}, is: layer.ErrUnsafe},
		{summary: "a whiteout of nothing", entries: []tar.Header{file("a/.wh.", "")}, is: layer.ErrUnsafe},
		{summary: "a whiteout of the directory above", entries: []tar.Header{file("a/.wh...", "")}, is: layer.ErrUnsafe},
		{summary: "a whiteout of the directory itself", entries: []tar.Header{file("a/.wh..", "")}, is: layer.ErrUnsafe},
		{summary: "a path that is too long", entries: []tar.Header{file(deep, "x")}, is: layer.ErrUnsafe},
		{summary: "a target that is too long", entries: []tar.Header{sym("a", strings.Repeat("d/", 2100))}, is: layer.ErrUnsafe},
		{summary: "an entry of no known type", entries: []tar.Header{{Typeflag: 'Z', Name: "a"}}, is: layer.ErrUnsafe},
		{summary: "too many entries", entries: []tar.Header{file("a", ""), file("b", ""), file("c", "")}, options: layer.Options{MaxEntries: 2}, is: layer.ErrTooLarge},
		{summary: "too many bytes", entries: []tar.Header{file("a", strings.Repeat("x", 4000))}, options: layer.Options{MaxBytes: 3000}, is: layer.ErrTooLarge},
	} {
		t.Run(tt.summary, func(t *testing.T) {
			root, _, untouched := stage(t)
			_, err := layer.Apply(t.Context(), root, bytes.NewReader(tarOf(t, tt.entries...)), tt.options)
			untouched()
			if err == nil || tt.is != nil && !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error %v, want %v with %q", err, tt.is, tt.text)
			}
		})
	}
}

// A symbolic link may point anywhere; nothing is written where it points to.
func TestLinksAreNotFollowedOut(t *testing.T) {
	for _, target := range []string{"..", "../..", "/", "../secret", "/../..", "a/../../.."} {
		t.Run(target, func(t *testing.T) {
			root, path, untouched := stage(t)
			entries := []tar.Header{sym("up", target), file("up2", "x"), mode(dir("up/made"), 0o700), file("up/made/f", "x"), file("up/.wh.secret", ""), file("up/.wh..wh..opq", "")}
			_, err := layer.Apply(t.Context(), root, bytes.NewReader(tarOf(t, entries...)), layer.Options{})
			untouched()
			if err == nil && !strings.Contains(show(t, path), "made/f x") {
				t.Errorf("no error, and not inside:\n%s", show(t, path))
			}
		})
	}
}

// owner is the user ID of a file.
func owner(t *testing.T, path string) int {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return int(info.Sys().(*syscall.Stat_t).Uid)
}

func TestApplyTimes(t *testing.T) {
	root, path, _ := stage(t)
	if _, err := layer.Apply(t.Context(), root, bytes.NewReader(tarOf(t, dir("a"), file("a/f", "x"))), layer.Options{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "a/f"} {
		if got := must(os.Stat(filepath.Join(path, name))).ModTime(); !got.Equal(modTime) {
			t.Errorf("%s has time %s", name, got)
		}
	}
}

func TestApplyOwners(t *testing.T) {
	b := tarOf(t, file("a", "x"))
	copy(b[108:], "0001750\x00") // uid 1000
	copy(b[148:], checksum(b))
	root, path, _ := stage(t)
	_, err := layer.Apply(t.Context(), root, bytes.NewReader(b), layer.Options{})
	if os.Geteuid() == 0 {
		if uid := owner(t, filepath.Join(path, "a")); err != nil || uid != 1000 {
			t.Errorf("owner %d, error %v", uid, err)
		}
	} else if !errors.Is(err, fs.ErrPermission) && os.Getuid() != 1000 {
		t.Errorf("error %v: an owner that cannot be set is an error", err)
	}
	root, path, _ = stage(t)
	if _, err := layer.Apply(t.Context(), root, bytes.NewReader(b), layer.Options{SkipOwners: true}); err != nil {
		t.Error(err)
	}
	if uid := owner(t, filepath.Join(path, "a")); uid != os.Geteuid() {
		t.Errorf("owner %d, want the process's own", uid)
	}
}

// checksum is the header checksum of the first block.
func checksum(b []byte) string {
	sum := 8 * int(' ')
	for i, c := range b[:512] {
		if i < 148 || i >= 156 {
			sum += int(c)
		}
	}
	return fmt.Sprintf("%06o\x00 ", sum)
}

func TestApplyCompressed(t *testing.T) {
	plain := tarOf(t, file("a", "x"))
	var zipped, packed bytes.Buffer
	g := gzip.NewWriter(&zipped)
	z := must(zstd.NewWriter(&packed))
	for _, w := range []io.WriteCloser{g, z} {
		if _, err := w.Write(plain); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		summary string
		data    []byte
		want    string // "" for an error
	}{
		{"plain", plain, "644 a x\n"},
		{"gzip", zipped.Bytes(), "644 a x\n"},
		{"zstd", packed.Bytes(), "644 a x\n"},
		{"an empty layer", nil, "(nothing)"},
		{"cut gzip", zipped.Bytes()[:zipped.Len()-9], ""},
		{"cut zstd", packed.Bytes()[:packed.Len()-5], ""},
		{"cut tar", plain[:512], ""},
		{"neither", []byte("neither of them"), ""},
	} {
		t.Run(tt.summary, func(t *testing.T) {
			root, path, _ := stage(t)
			_, err := layer.Apply(t.Context(), root, bytes.NewReader(tt.data), layer.Options{})
			switch {
			case tt.want == "" && err == nil:
				t.Errorf("no error, and\n%s", show(t, path))
			case tt.want == "(nothing)" && (err != nil || show(t, path) != ""):
				t.Errorf("error %v, and\n%s", err, show(t, path))
			case tt.want != "" && tt.want != "(nothing)" && (err != nil || show(t, path) != tt.want):
				t.Errorf("error %v, and\n%s", err, show(t, path))
			}
		})
	}
}

func TestApplyStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	root, path, _ := stage(t)
	_, err := layer.Apply(ctx, root, bytes.NewReader(tarOf(t, file("a", "x"))), layer.Options{})
	if !errors.Is(err, context.Canceled) || show(t, path) != "" {
		t.Errorf("error %v, and\n%s", err, show(t, path))
	}
}

// written writes an image to a layout.
func written(t *testing.T, img v1.Image) (oci.Source, v1.Hash, string) {
	t.Helper()
	dir := t.TempDir()
	if err := must(layout.Write(dir, empty.Index)).AppendImage(img); err != nil {
		t.Fatal(err)
	}
	src, d, err := oci.New(oci.Options{}).Open(t.Context(), oci.Location{Layout: dir})
	if err != nil {
		t.Fatal(err)
	}
	return src, d.Digest, dir
}

func layerOf(t *testing.T, entries ...tar.Header) v1.Layer {
	t.Helper()
	data := tarOf(t, entries...)
	return must(tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }))
}

func TestUnpack(t *testing.T) {
	img := must(mutate.AppendLayers(empty.Image, layerOf(t, file("a", "1"), file("b", "2")), layerOf(t, file(".wh.a", ""), file("c", "3"))))
	src, digest, _ := written(t, img)
	root, path, _ := stage(t)
	config, stats, err := layer.Unpack(t.Context(), src, digest, root, layer.Options{})
	if err != nil || show(t, path) != "644 b 2\n644 c 3\n" || len(config.RootFS.DiffIDs) != 2 {
		t.Errorf("error %v, and\n%s", err, show(t, path))
	}
	if stats.Layers != 2 || stats.Entries != 3 || stats.Bytes == 0 {
		t.Errorf("stats %+v", stats)
	}
	root, _, _ = stage(t)
	if _, _, err := layer.Unpack(t.Context(), src, digest, root, layer.Options{MaxEntries: 3}); !errors.Is(err, layer.ErrTooLarge) {
		t.Errorf("4 entries in two layers, 3 allowed: error %v", err)
	}
}

func TestUnpackRefuses(t *testing.T) {
	honest := layerOf(t, file("a", "1"))
	lied := must(mutate.ConfigFile(must(mutate.AppendLayers(empty.Image, honest)), &v1.ConfigFile{
		RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{{Algorithm: "sha256", Hex: strings.Repeat("0", 64)}}},
	}))
	short := must(mutate.ConfigFile(must(mutate.AppendLayers(empty.Image, honest)), &v1.ConfigFile{RootFS: v1.RootFS{Type: "layers"}}))
	noTar := must(mutate.AppendLayers(empty.Image, static.NewLayer([]byte("no tar"), types.OCILayer)))
	for _, tt := range []struct {
		summary string
		image   v1.Image
		damage  func(t *testing.T, dir string, img v1.Image)
		is      error
		nothing bool // was unpacked
	}{
		{summary: "a layer that is not the one of the config", image: lied, is: layer.ErrDiffID},
		{summary: "a config with fewer layers", image: short, is: layer.ErrDiffID, nothing: true},
		{summary: "a layer that is no tar", image: noTar, nothing: true},
		{summary: "one flipped bit in a layer", image: must(mutate.AppendLayers(empty.Image, honest)), damage: flipLayer, is: oci.ErrContentMismatch, nothing: true},
	} {
		t.Run(tt.summary, func(t *testing.T) {
			src, digest, dir := written(t, tt.image)
			if tt.damage != nil {
				tt.damage(t, dir, tt.image)
			}
			root, path, _ := stage(t)
			_, _, err := layer.Unpack(t.Context(), src, digest, root, layer.Options{})
			if err == nil || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error %v, want %v", err, tt.is)
			}
			if got := show(t, path); tt.nothing && got != "" {
				t.Errorf("unpacked all the same:\n%s", got)
			}
		})
	}
}

func flipLayer(t *testing.T, dir string, img v1.Image) {
	t.Helper()
	h := must(must(img.Layers())[0].Digest())
	path := filepath.Join(dir, "blobs", "sha256", h.Hex)
	data := must(os.ReadFile(path))
	data[len(data)/2] ^= 1
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestUnpackIndex(t *testing.T) {
	dir := t.TempDir()
	index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: empty.Image})
	if err := must(layout.Write(dir, empty.Index)).AppendIndex(index); err != nil {
		t.Fatal(err)
	}
	src, d, err := oci.New(oci.Options{}).Open(t.Context(), oci.Location{Layout: dir})
	if err != nil {
		t.Fatal(err)
	}
	root, _, _ := stage(t)
	if _, _, err := layer.Unpack(t.Context(), src, d.Digest, root, layer.Options{}); err == nil || !strings.Contains(err.Error(), "is an index") {
		t.Errorf("error %v", err)
	}
}

func FuzzApply(f *testing.F) {
	f.Add(tarOf(f, dir("a"), file("a/f", "x"), sym("l", "a"), hard("h", "a/f"), file("l/g", "y"), file("a/.wh.f", ""), file(".wh..wh..opq", "")))
	f.Add(tarOf(f, sym("up", "../.."), file("up/secret", "x")))
	f.Add(tarOf(f, file("a/b/../../../c", "x")))
	f.Add([]byte{0x1f, 0x8b, 8, 0})
	f.Add([]byte("\x28\xb5\x2f\xfd\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		root, _, untouched := stage(t)
		stats, err := layer.Apply(t.Context(), root, bytes.NewReader(data), layer.Options{MaxEntries: 100, MaxBytes: 1 << 20, SkipOwners: true})
		untouched()
		if err == nil && stats.Layers != 1 {
			t.Errorf("stats %+v", stats)
		}
	})
}
