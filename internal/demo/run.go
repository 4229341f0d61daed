package demo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgtrust/imgtrust/internal/layer"
	"github.com/imgtrust/imgtrust/internal/oci"
	"github.com/imgtrust/imgtrust/policy"
)

// run fetches the image that was allowed, unpacks it and runs it. The unpacked
// tree is removed at the end in any case.
func (w *world) run(ctx context.Context) error {
	bundle := filepath.Join(w.dir, "bundle")
	defer os.RemoveAll(bundle)
	config, err := w.unpack(ctx, filepath.Join(bundle, "rootfs"))
	if err != nil {
		return err
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	spec, err := newSpec(config, bundle, port)
	if err != nil {
		return err
	}
	c, err := startContainer(ctx, w.Runc, filepath.Join(w.dir, "runc"), bundle, spec)
	if err != nil {
		return err
	}
	err = w.use(ctx, c, len(config.Config.ExposedPorts) > 0, port)
	return errors.Join(err, c.stop())
}

// unpack decides once more, now by digest, fetches what was decided on, and
// makes the directory tree of it.
func (w *world) unpack(ctx context.Context, rootfs string) (*v1.ConfigFile, error) {
	allowed, err := w.decide(ctx, w.image.AtDigest(w.image.Digest), w.readerState())
	if err != nil {
		return nil, err
	}
	if code := allowed.Decision().Code; code != policy.Allowed {
		return nil, fmt.Errorf("%s was refused: %s", w.image, code)
	}
	fetched := filepath.Join(w.dir, "fetched")
	if err := w.fetch(ctx, allowed, fetched); err != nil {
		return nil, err
	}
	source, d, err := w.client.Open(ctx, oci.Location{Layout: fetched})
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(rootfs, 0o755); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(rootfs)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	config, stats, err := layer.Unpack(ctx, source, d.Digest, root, layer.Options{})
	if err != nil {
		return nil, fmt.Errorf("unpacking %s: %w", w.image, err)
	}
	w.say("fetched and unpacked it, every byte hashed: %d layers, %d entries, %d bytes", stats.Layers, stats.Entries, stats.Bytes)
	return config, nil
}

// use asks a service over HTTP, or waits for the end of anything else.
func (w *world) use(ctx context.Context, c *container, serves bool, port int) error {
	if serves {
		answer, err := c.ask(ctx, port)
		if err != nil {
			return err
		}
		w.say("it runs under runc and answers: %s", answer)
		return nil
	}
	code, err := c.wait(ctx)
	if err != nil {
		return err
	}
	first, _, _ := strings.Cut(c.output.String(), "\n")
	w.say("it ran under runc to its end: exit code %d, first line %q", code, cmp.Or(first, "(nothing)"))
	return nil
}
