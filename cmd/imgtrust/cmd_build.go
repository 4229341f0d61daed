package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/imgtrust/imgtrust/build"
	"github.com/spf13/cobra"
)

// buildFlags are the flags of build that are not fields of build.Options yet.
type buildFlags struct {
	args, contexts, labels, annotations []string
	output, metadataFile, iidFile       string
	json, debug                         bool
}

func newBuildCommand(a *app) *cobra.Command {
	o := build.Options{ProgressOut: a.stderr, Notice: func(s string) { a.progress("%s", s) }}
	var f buildFlags
	cmd := &cobra.Command{
		Use:   "build [CONTEXT] -t REF (--push | -o oci:DIR)",
		Short: "Build an image from a Dockerfile, the same bytes every time",
		Long: `build runs the Dockerfile in CONTEXT (default: the working directory) through
BuildKit and prints the image as REPOSITORY@DIGEST.

Two builds of the same commit give the same digest: all times in the image are
those of the git commit, or of the newest file outside git; SOURCE_DATE_EPOCH
in the environment or as a build argument overrides them.

Without --builder and BUILDKIT_HOST an embedded BuildKit runs for the time of the
build. It needs Linux and runc, and root or a user namespace, which it enters
by itself (package uidmap).`,
		Example: `  imgtrust build -t registry.example.com/shop/web:1.4 --push
  imgtrust build ./web -t shop/web:1.4 -o oci:./web-layout --build-arg VERSION=1.4
  imgtrust build -t 127.0.0.1:5000/web:dev --build-context gosdk=/usr/local/go --push`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				o.Context = args[0]
			}
			return a.build(cmd.Context(), o, f)
		},
	}
	addBuildFlags(cmd, &o, &f)
	return cmd
}

func addBuildFlags(cmd *cobra.Command, o *build.Options, f *buildFlags) {
	s := cmd.Flags()
	s.StringVarP(&o.Reference, "tag", "t", "", "name of the image: REPOSITORY[:TAG]")
	s.StringVarP(&o.Dockerfile, "file", "f", "", "Dockerfile (default CONTEXT/Dockerfile)")
	s.StringVar(&o.Target, "target", "", "stage to build (default the last)")
	s.StringSliceVar(&o.Platforms, "platform", nil, "platforms to build for, such as linux/amd64,linux/arm64")
	s.StringArrayVar(&f.args, "build-arg", nil, "build argument K=V, or K to take it from the environment")
	s.StringArrayVar(&f.contexts, "build-context", nil, "named context NAME=DIRECTORY, NAME=oci:DIR[@digest] or NAME=IMAGE")
	s.StringArrayVar(&f.labels, "label", nil, "label K=V of the image's config")
	s.StringArrayVar(&f.annotations, "annotation", nil, "annotation K=V of the manifest")
	s.StringArrayVar(&o.Secrets, "secret", nil, "secret for RUN --mount=type=secret: id=ID[,src=FILE|env=NAME]")
	s.StringArrayVar(&o.SSH, "ssh", nil, "SSH agent for RUN --mount=type=ssh: default or ID[=SOCKET|KEY,...]")
	s.BoolVar(&o.NoCache, "no-cache", false, "run every step again")
	s.BoolVar(&o.Pull, "pull", false, "ask the registry for base images even when they are known")
	s.BoolVar(&o.Push, "push", false, "push the image to its registry")
	s.StringVarP(&f.output, "output", "o", "", "write an OCI layout: oci:DIR")
	s.StringVar(&f.metadataFile, "metadata-file", "", "write the build's metadata to this file, as JSON")
	s.StringVar(&f.iidFile, "iidfile", "", "write the image's digest to this file")
	s.StringVar(&o.Progress, "progress", "auto", "progress: auto, plain, tty, quiet or rawjson")
	s.BoolVar(&f.json, "json", false, "print the result as JSON")
	s.StringVar(&o.Builder, "builder", "", "address of a BuildKit daemon (default BUILDKIT_HOST, else the embedded one)")
	s.StringVar(&o.StateDir, "state", "", "the embedded builder's cache (default in the user's state directory)")
	s.DurationVar(&o.Wait, "wait", time.Minute, "how long to wait for another build with the same state directory")
	s.StringVar(&o.Runc, "runc", "", "runc for the embedded builder (default from PATH)")
	s.BoolVar(&o.InsecureHTTP, "insecure-http", false, "allow plain http to registries that are not on this machine")
	s.BoolVar(&f.debug, "debug", false, "print the embedded builder's log")
}

// build is the whole command: options, privileges, build, files, one line.
func (a *app) build(ctx context.Context, o build.Options, f buildFlags) error {
	if err := a.completeBuild(&o, f); err != nil {
		return err
	}
	if o.Builder == "" {
		inside, err := a.enterUserNamespace(ctx, o.Runc)
		if inside == nil {
			return err
		}
		ctx = inside
	}
	r, err := build.Image(ctx, o)
	if err != nil {
		var usage *build.UsageError
		if errors.As(err, &usage) {
			return usageError{usage}
		}
		return fmt.Errorf("building %s: %w", o.Reference, err)
	}
	if err := writeBuildFiles(r, f); err != nil {
		return err
	}
	return a.printBuild(r, f.json)
}

// completeBuild fills what flags, environment and defaults say into o.
func (a *app) completeBuild(o *build.Options, f buildFlags) (err error) {
	for _, list := range []struct {
		flag string
		from []string
		into *map[string]string
	}{
		{"--build-arg", a.withEnvironment(f.args), &o.Args}, {"--build-context", f.contexts, &o.Contexts},
		{"--label", f.labels, &o.Labels}, {"--annotation", f.annotations, &o.Annotations},
	} {
		if *list.into, err = keyValues(list.flag, list.from); err != nil {
			return err
		}
	}
	if o.Layout, err = layoutOutput(f.output); err != nil {
		return err
	}
	if o.Epoch, err = parseEpoch(a.getenv("SOURCE_DATE_EPOCH")); err != nil {
		return err
	}
	if o.Builder == "" {
		o.Builder = a.getenv("BUILDKIT_HOST")
	}
	if o.StateDir == "" {
		o.StateDir, err = a.stateDir("buildkit")
	}
	if f.debug {
		o.DaemonLog = a.stderr
	}
	return err
}

// withEnvironment completes each K without a value from the environment; one
// that is not set there is dropped, as docker build does.
func (a *app) withEnvironment(list []string) []string {
	var full []string
	for _, text := range list {
		if strings.Contains(text, "=") {
			full = append(full, text)
		} else if value := a.getenv(text); value != "" {
			full = append(full, text+"="+value)
		}
	}
	return full
}

func keyValues(flag string, list []string) (map[string]string, error) {
	m := make(map[string]string, len(list))
	for _, text := range list {
		key, value, ok := strings.Cut(text, "=")
		if !ok || key == "" {
			return nil, usageError{fmt.Errorf("%s %q is not KEY=VALUE", flag, text)}
		}
		m[key] = value
	}
	return m, nil
}

func layoutOutput(text string) (string, error) {
	dir, ok := strings.CutPrefix(text, "oci:")
	if text != "" && (!ok || dir == "") {
		return "", usageError{fmt.Errorf("-o %q is not oci:DIR", text)}
	}
	return dir, nil
}

func parseEpoch(text string) (*time.Time, error) {
	if text == "" {
		return nil, nil
	}
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil || seconds < 0 {
		return nil, usageError{fmt.Errorf("SOURCE_DATE_EPOCH %q is not a number of seconds", text)}
	}
	t := time.Unix(seconds, 0)
	return &t, nil
}

// stateDir is a directory below the user's state directory (XDG_STATE_HOME).
func (a *app) stateDir(name string) (string, error) {
	if dir := a.getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "imgtrust", name), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("finding the state directory: %w", err)
	}
	return filepath.Join(home, ".local", "state", "imgtrust", name), nil
}

// enterUserNamespace gives the context to go on with. A nil context means that
// a child did the command's work and has reported; the error holds its exit code.
func (a *app) enterUserNamespace(ctx context.Context, runc string) (context.Context, error) {
	inside, code, err := build.EnterUserNamespace(ctx, build.Namespace{
		Args: os.Args, Marker: a.getenv(build.NamespaceVariable), Runc: runc,
		Stdin: a.stdin, Stdout: a.stdout, Stderr: a.stderr,
	})
	if err != nil || inside != nil || code == 0 {
		return inside, err
	}
	reported := silent{fmt.Errorf("exit code %d", code)}
	switch code {
	case 2:
		return nil, errors.Join(usageError{reported}, reported)
	case 3:
		return nil, refusal{}
	default:
		return nil, reported
	}
}

// writeBuildFiles writes --iidfile and --metadata-file, each as a whole or not.
func writeBuildFiles(r build.Result, f buildFlags) error {
	if f.iidFile != "" {
		if err := replaceFile(f.iidFile, []byte(r.Descriptor.Digest.String())); err != nil {
			return fmt.Errorf("writing --iidfile: %w", err)
		}
	}
	if f.metadataFile != "" {
		text, err := json.MarshalIndent(r.Metadata, "", "  ")
		if err != nil {
			return fmt.Errorf("writing --metadata-file: %w", err)
		}
		if err := replaceFile(f.metadataFile, append(text, '\n')); err != nil {
			return fmt.Errorf("writing --metadata-file: %w", err)
		}
	}
	return nil
}

// replaceFile writes a file beside path and renames it.
func replaceFile(path string, text []byte) error {
	temp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".new-")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	_, err = temp.Write(text)
	if err = errors.Join(err, temp.Chmod(0o644), temp.Sync(), temp.Close()); err != nil {
		return err
	}
	return os.Rename(temp.Name(), path)
}

// printBuild prints the one line that the next command takes.
func (a *app) printBuild(r build.Result, asJSON bool) error {
	if !asJSON {
		_, err := fmt.Fprintln(a.stdout, r.Reference)
		return err
	}
	return json.NewEncoder(a.stdout).Encode(map[string]any{
		"image":     r.Reference.String(),
		"digest":    r.Descriptor.Digest.String(),
		"mediaType": r.Descriptor.MediaType,
		"size":      r.Descriptor.Size,
		"created":   r.Epoch.Format(time.RFC3339),
	})
}
