package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/imgtrust/imgtrust/build"
	"github.com/imgtrust/imgtrust/internal/oci"
	"github.com/imgtrust/imgtrust/testdata"
)

// serviceTime is the time of everything in the service's image: the same
// program gives the same digest on every machine.
var serviceTime = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// build builds the image and pushes it.
func (w *world) build(ctx context.Context) error {
	o, err := w.buildOptions()
	if err != nil {
		return err
	}
	log := &tail{}
	o.ProgressOut, o.Progress = w.Progress, "auto"
	if w.Progress == nil {
		o.ProgressOut, o.Progress = log, "plain"
	}
	w.say("building %s with the embedded BuildKit", o.Reference)
	r, err := build.Image(ctx, o)
	if err != nil {
		return w.failedBuild(ctx, o.Reference, log, err)
	}
	w.image, err = oci.ParseReference(o.Reference)
	w.image.Digest = r.Descriptor.Digest
	w.say("built and pushed %s", r.Reference)
	return err
}

func (w *world) failedBuild(ctx context.Context, reference string, log *tail, err error) error {
	if ctx.Err() == nil {
		for line := range strings.Lines(log.String()) {
			w.say("build: %s", strings.TrimRight(line, "\n"))
		}
	}
	return fmt.Errorf("building %s: %w", reference, err)
}

// complete looks for what the machine must have, before anything is started.
func (o *Options) complete(ctx context.Context) (err error) {
	if o.Runc, err = build.FindRunc(o.Runc); err != nil {
		return err
	}
	if o.Context != "" {
		if _, err := os.Stat(filepath.Join(o.Context, "Dockerfile")); err != nil {
			return noDockerfile{err}
		}
		return nil
	}
	if o.Contexts["gosdk"] != "" {
		return nil
	}
	sdk, err := findSDK(ctx)
	o.Contexts = maps.Clone(o.Contexts)
	if o.Contexts == nil {
		o.Contexts = map[string]string{}
	}
	o.Contexts["gosdk"] = sdk
	return err
}

// noDockerfile is a directory that is not what was meant.
type noDockerfile struct{ error }

func (e noDockerfile) Unwrap() error { return e.error }

func (noDockerfile) Hint() string {
	return "give the directory of a Dockerfile, or none for the demo's own service"
}

func (w *world) buildOptions() (build.Options, error) {
	o := build.Options{
		Context: w.Context, Contexts: w.Contexts,
		Reference: w.host + "/shop/web:v1", Push: true,
		StateDir: w.StateDir, Runc: w.Runc, Notice: w.Say,
	}
	if w.Context != "" {
		return o, nil
	}
	o.Context = filepath.Join(w.dir, "service")
	o.Args = map[string]string{"VERSION": "v1"}
	o.Epoch = &serviceTime
	return o, writeService(o.Context)
}

// writeService writes the build context of the demo's own image, a small HTTP
// service that is compiled inside BuildKit, to a new directory.
func writeService(dir string) error {
	files, err := fs.Sub(testdata.Service, "service")
	if err != nil {
		return err
	}
	return os.CopyFS(dir, files)
}

// findSDK is the directory of the Go SDK that the go command belongs to.
func findSDK(ctx context.Context) (string, error) {
	program, err := exec.LookPath("go")
	if err != nil {
		return "", noSDK(errors.New("no go command"))
	}
	out, err := exec.CommandContext(ctx, program, "env", "GOROOT").Output()
	if err != nil {
		return "", noSDK(fmt.Errorf("asking %s for its directory: %w", program, err))
	}
	dir := strings.TrimSpace(string(out))
	for _, part := range []string{"bin/go", "src", "pkg/tool"} {
		// Debian's own package spreads the SDK with symbolic links, which lead
		// out of the build context.
		info, err := os.Lstat(filepath.Join(dir, part))
		if err != nil || info.Mode()&fs.ModeSymlink != 0 {
			return "", noSDK(fmt.Errorf("%s is not a whole Go SDK: %s is missing or a symbolic link", dir, part))
		}
	}
	return dir, nil
}

// sdkError says that there is nothing to compile the service with.
type sdkError struct{ error }

func noSDK(err error) error {
	return sdkError{fmt.Errorf("the demo's service is compiled with Go: %w", err)}
}

func (e sdkError) Unwrap() error { return e.error }

func (sdkError) Hint() string {
	return "install Go from its official archive and put go into PATH\nor give a directory with a Dockerfile of your own: imgtrust demo DIR"
}

// tail keeps the end of what is written to it, of a build's log the part that
// tells why it failed.
type tail struct{ data []byte }

const maxTail = 8 << 10 // bytes

var _ io.Writer = (*tail)(nil)

func (t *tail) Write(p []byte) (int, error) {
	t.data = append(t.data, p...)
	if len(t.data) > 2*maxTail {
		t.data = append([]byte(nil), t.data[len(t.data)-maxTail:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	if len(t.data) <= maxTail {
		return string(t.data)
	}
	_, whole, _ := strings.Cut(string(t.data[len(t.data)-maxTail:]), "\n")
	return whole
}
