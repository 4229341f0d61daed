package build

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/docker/cli/cli/config"
	"github.com/imgtrust/imgtrust/internal/oci"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth/authprovider"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/session/sshforward/sshprovider"
	"github.com/moby/buildkit/util/progress/progressui"
	"github.com/tonistiigi/fsutil"
	"golang.org/x/sync/errgroup"
)

// compatibilityVersion pins BuildKit's output format. 20 is the format since
// v0.15, which every daemon in use can write; 30 differs only in the defaults of
// media types, which the exporter options below state anyway.
const compatibilityVersion = 20

// plan is Options after validation.
type plan struct {
	Options
	reference oci.Reference
	context   string // directory, absolute
	file      string // Dockerfile, absolute
	epoch     time.Time
	contexts  []namedContext
	runc      string // of the embedded daemon, absolute
}

// newPlan validates the options and settles the defaults.
func newPlan(ctx context.Context, o Options) (*plan, error) {
	p := &plan{Options: o}
	for _, step := range []func(context.Context) error{
		p.findRunc, p.checkOutput, p.findFiles, p.findContexts, p.findEpoch,
	} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// findRunc comes first: without runc the embedded daemon can do nothing.
func (p *plan) findRunc(context.Context) (err error) {
	if p.Builder == "" {
		p.runc, err = FindRunc(p.Runc)
	}
	return err
}

func (p *plan) checkOutput(context.Context) (err error) {
	switch {
	case p.Reference == "":
		return &UsageError{"no name for the image", "-t REPOSITORY:TAG names it"}
	case !p.Push && p.Layout == "":
		return &UsageError{"no output for the image", "--push sends it to the registry, -o oci:DIR writes an OCI layout"}
	case p.Push && p.Layout != "":
		return &UsageError{"two outputs for the image", "give either --push or -o oci:DIR"}
	case p.Builder == "" && p.StateDir == "":
		return &UsageError{"no state directory for the embedded builder", "--state DIR names one"}
	}
	if p.reference, err = oci.ParseReference(p.Reference); err != nil {
		return &UsageError{Text: err.Error()}
	}
	if p.reference.Digest.Hex != "" {
		return &UsageError{fmt.Sprintf("the name %s has a digest", p.Reference), "name the image REPOSITORY:TAG: its digest is what the build finds"}
	}
	return nil
}

func (p *plan) findFiles(context.Context) (err error) {
	if p.context, err = filepath.Abs(p.Context); err != nil {
		return fmt.Errorf("finding the context: %w", err)
	}
	if info, err := os.Stat(p.context); err != nil {
		return fmt.Errorf("finding the context: %w", err)
	} else if !info.IsDir() {
		return &UsageError{Text: fmt.Sprintf("the context %s is not a directory", p.Context)}
	}
	p.file = p.Dockerfile
	if p.file == "" {
		p.file = filepath.Join(p.context, "Dockerfile")
	}
	if p.file, err = filepath.Abs(p.file); err != nil {
		return fmt.Errorf("finding the Dockerfile: %w", err)
	}
	if info, err := os.Stat(p.file); err != nil {
		return withHint(fmt.Errorf("finding the Dockerfile: %w", err), "-f FILE names another Dockerfile")
	} else if info.IsDir() {
		return &UsageError{Text: fmt.Sprintf("the Dockerfile %s is a directory", p.file)}
	}
	return nil
}

func (p *plan) findContexts(ctx context.Context) error {
	for _, name := range slices.Sorted(maps.Keys(p.Contexts)) {
		c, err := parseContext(ctx, len(p.contexts), name, p.Contexts[name])
		if err != nil {
			return err
		}
		p.contexts = append(p.contexts, c)
	}
	return nil
}

func (p *plan) findEpoch(ctx context.Context) (err error) {
	if text, ok := p.Args["SOURCE_DATE_EPOCH"]; ok {
		seconds, err := strconv.ParseInt(text, 10, 64)
		if err != nil || seconds < 0 {
			return &UsageError{Text: fmt.Sprintf("SOURCE_DATE_EPOCH %q is not a number of seconds", text)}
		}
		p.epoch = time.Unix(seconds, 0).UTC()
		return nil
	}
	if p.Epoch != nil {
		p.epoch = p.Epoch.UTC()
		return nil
	}
	p.epoch, err = contextEpoch(ctx, p.context)
	return err
}

// request says in BuildKit's words what to build. This function and the four
// below it hold all the attribute names that BuildKit takes as text.
func (p *plan) request(ctx context.Context, out *output) (client.SolveOpt, error) {
	mounts, stores, err := p.sources()
	if err != nil {
		return client.SolveOpt{}, err
	}
	attachables, err := p.attachables()
	if err != nil {
		return client.SolveOpt{}, err
	}
	return client.SolveOpt{
		CompatibilityVersion: compatibilityVersion,
		Frontend:             "dockerfile.v0",
		FrontendAttrs:        p.frontendAttrs(),
		LocalMounts:          mounts,
		OCIStores:            stores,
		Session:              attachables,
		Exports:              []client.ExportEntry{p.export(out)},
	}, nil
}

func (p *plan) frontendAttrs() map[string]string {
	attrs := map[string]string{"filename": filepath.Base(p.file)}
	if p.Target != "" {
		attrs["target"] = p.Target
	}
	if len(p.Platforms) > 0 {
		attrs["platform"] = strings.Join(p.Platforms, ",")
	}
	if p.NoCache {
		attrs["no-cache"] = ""
	}
	if p.Pull {
		attrs["image-resolve-mode"] = "pull"
	}
	for k, v := range p.Args {
		attrs["build-arg:"+k] = v
	}
	attrs["build-arg:SOURCE_DATE_EPOCH"] = strconv.FormatInt(p.epoch.Unix(), 10)
	for k, v := range p.Labels {
		attrs["label:"+k] = v
	}
	for _, c := range p.contexts {
		attrs["context:"+c.name] = c.attr
	}
	return attrs
}

func (p *plan) export(out *output) client.ExportEntry {
	attrs := map[string]string{
		"name":              p.reference.String(),
		"oci-mediatypes":    "true",
		"rewrite-timestamp": "true",
		"compression":       "gzip",
	}
	for k, v := range p.Annotations {
		attrs["annotation."+k] = v
	}
	if out != nil {
		attrs["tar"] = "false"
		return client.ExportEntry{Type: client.ExporterOCI, Attrs: attrs, OutputDir: out.temp}
	}
	attrs["push"] = "true"
	if p.reference.Tag == "" {
		attrs["push-by-digest"] = "true"
	}
	if p.InsecureHTTP && p.Builder != "" {
		attrs["registry.insecure"] = "true"
	}
	return client.ExportEntry{Type: client.ExporterImage, Attrs: attrs}
}

// sources opens what the builder may read from this machine.
func (p *plan) sources() (map[string]fsutil.FS, map[string]content.Store, error) {
	dirs := map[string]string{"context": p.context, "dockerfile": filepath.Dir(p.file)}
	stores := map[string]content.Store{}
	for _, c := range p.contexts {
		if c.dir != "" {
			dirs[c.local] = c.dir
		}
		if c.store != nil {
			stores[c.local] = c.store
		}
	}
	mounts := make(map[string]fsutil.FS, len(dirs))
	for name, dir := range dirs {
		fs, err := fsutil.NewFS(dir)
		if err != nil {
			return nil, nil, fmt.Errorf("opening %s: %w", dir, err)
		}
		mounts[name] = fs
	}
	return mounts, stores, nil
}

// attachables are what the builder may ask for during the build: credentials
// of the Docker config, secrets and SSH agents.
func (p *plan) attachables() ([]session.Attachable, error) {
	docker, err := config.Load(config.Dir())
	if err != nil {
		return nil, fmt.Errorf("reading registry credentials: %w", err)
	}
	list := []session.Attachable{authprovider.NewDockerAuthProvider(authprovider.DockerAuthProviderConfig{
		AuthConfigProvider: authprovider.LoadAuthConfig(docker),
	})}
	if len(p.Secrets) > 0 {
		store, err := parseSecrets(p.Secrets)
		if err != nil {
			return nil, err
		}
		list = append(list, secretsprovider.NewSecretProvider(store))
	}
	if len(p.SSH) > 0 {
		agents, err := sshprovider.NewSSHAgentProvider(parseSSH(p.SSH))
		if err != nil {
			return nil, fmt.Errorf("opening the SSH agent: %w", err)
		}
		list = append(list, agents)
	}
	return list, nil
}

// solve runs the request, draws its progress, and ends at once when the
// daemon does.
func (p *plan) solve(ctx context.Context, b *builder, req client.SolveOpt) (*client.SolveResponse, error) {
	display, err := p.display()
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go func() {
		select {
		case err := <-b.failed:
			stop(fmt.Errorf("the embedded builder stopped: %w", err))
		case <-ctx.Done():
		}
	}()
	var group errgroup.Group
	status := make(chan *client.SolveStatus)
	var warnings []client.VertexWarning
	group.Go(func() (err error) {
		// The last lines are drawn also after cancellation: Solve closes status.
		warnings, err = display.UpdateFrom(context.WithoutCancel(ctx), status)
		return err
	})
	res, err := b.client.Solve(ctx, nil, req, status)
	drawn := group.Wait()
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && ctx.Err() != nil {
			return nil, cause
		}
		return nil, err
	}
	if drawn != nil {
		return nil, fmt.Errorf("showing progress: %w", drawn)
	}
	p.warn(warnings)
	return res, nil
}

func (p *plan) display() (progressui.Display, error) {
	out, mode := p.ProgressOut, progressui.DisplayMode(p.Progress)
	if out == nil {
		out, mode = io.Discard, progressui.QuietMode
	}
	d, err := progressui.NewDisplay(out, mode)
	if err != nil {
		return d, &UsageError{err.Error(), "--progress takes auto, plain, tty, quiet or rawjson"}
	}
	return d, nil
}

// warn passes the warnings of the Dockerfile linter on, one line each.
func (p *plan) warn(warnings []client.VertexWarning) {
	for _, w := range warnings {
		text := string(w.Short)
		if w.SourceInfo != nil && len(w.Range) > 0 && w.Range[0].Start != nil {
			text = fmt.Sprintf("%s:%d: %s", w.SourceInfo.Filename, w.Range[0].Start.Line, text)
		}
		p.notice("warning: %s", text)
	}
}

func (p *plan) notice(format string, args ...any) {
	if p.Notice != nil {
		p.Notice(fmt.Sprintf(format, args...))
	}
}
