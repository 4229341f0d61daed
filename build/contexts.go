package build

import (
	"context"
	"encoding/csv"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	contentlocal "github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/distribution/reference"
	"github.com/imgtrust/imgtrust/internal/oci"
	"github.com/moby/buildkit/session/secrets"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/session/sshforward/sshprovider"
)

// namedContext is one --build-context in the words of BuildKit.
type namedContext struct {
	name  string        // as FROM and COPY --from look it up
	attr  string        // local:…, oci-layout://… or docker-image://…
	local string        // name under which dir or store is served
	dir   string        // of a local context
	store content.Store // of an OCI layout
	host  string        // registry host of an image
}

// parseContext reads NAME=VALUE, where VALUE is oci:DIR[@digest], a directory,
// or an image reference. A directory that exists wins over an image of the same
// name; a value that begins with / or . is never an image.
func parseContext(ctx context.Context, n int, name, value string) (namedContext, error) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return namedContext{}, &UsageError{Text: fmt.Sprintf("build context name %q: %v", name, err)}
	}
	c := namedContext{
		name:  strings.TrimSuffix(reference.FamiliarString(named), ":latest"),
		local: fmt.Sprintf("named%d", n),
	}
	switch {
	case strings.HasPrefix(value, "oci:"):
		return c.layout(ctx, value)
	case isDir(value) || strings.HasPrefix(value, "/") || strings.HasPrefix(value, "."):
		return c.directory(value)
	default:
		return c.image(value)
	}
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func (c namedContext) directory(path string) (namedContext, error) {
	if !isDir(path) {
		return c, &UsageError{Text: fmt.Sprintf("build context %s: %s is not a directory", c.name, path)}
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return c, fmt.Errorf("build context %s: %w", c.name, err)
	}
	c.dir, c.attr = abs, "local:"+c.local
	return c, nil
}

func (c namedContext) layout(ctx context.Context, value string) (namedContext, error) {
	location, err := oci.ParseLocation(value)
	if err != nil {
		return c, &UsageError{Text: fmt.Sprintf("build context %s: %v", c.name, err)}
	}
	_, d, err := oci.New(oci.Options{}).Open(ctx, location)
	if err != nil {
		return c, fmt.Errorf("build context %s: %w", c.name, err)
	}
	c.store, err = contentlocal.NewStore(location.Layout)
	if err != nil {
		return c, fmt.Errorf("build context %s: opening %s: %w", c.name, location.Layout, err)
	}
	c.attr = "oci-layout://" + c.local + "@" + d.Digest.String()
	return c, nil
}

func (c namedContext) image(value string) (namedContext, error) {
	value = strings.TrimPrefix(value, "docker-image://")
	ref, err := oci.ParseReference(value)
	if err != nil {
		return c, &UsageError{
			fmt.Sprintf("build context %s: %s is neither a directory nor an image: %v", c.name, value, err),
			"NAME=DIRECTORY, NAME=oci:DIR[@digest] or NAME=IMAGE",
		}
	}
	c.host, _, _ = strings.Cut(ref.Repository, "/")
	c.attr = "docker-image://" + ref.String()
	return c, nil
}

// parseSecrets reads id=ID[,src=FILE|env=NAME] with the aliases of docker build.
func parseSecrets(list []string) (secrets.SecretStore, error) {
	var sources []secretsprovider.Source
	for _, text := range list {
		s, err := parseSecret(text)
		if err != nil {
			return nil, &UsageError{fmt.Sprintf("secret %q: %v", text, err), "--secret id=ID,src=FILE or --secret id=ID,env=NAME"}
		}
		sources = append(sources, s)
	}
	store, err := secretsprovider.NewStore(sources)
	if err != nil {
		return nil, fmt.Errorf("reading secrets: %w", err)
	}
	return store, nil
}

func parseSecret(text string) (secretsprovider.Source, error) {
	var s secretsprovider.Source
	fields, err := csv.NewReader(strings.NewReader(text)).Read()
	if err != nil {
		return s, err
	}
	kind, src := "", ""
	for _, field := range fields {
		key, value, ok := strings.Cut(field, "=")
		if !ok {
			return s, fmt.Errorf("%q is not KEY=VALUE", field)
		}
		switch strings.ToLower(key) {
		case "id":
			s.ID = value
		case "src", "source":
			src = value
		case "env":
			s.Env = value
		case "type":
			kind = value
		default:
			return s, fmt.Errorf("unknown key %q", key)
		}
	}
	return placeSecret(s, kind, src)
}

// placeSecret settles where the secret comes from: type=env makes src a variable.
func placeSecret(s secretsprovider.Source, kind, src string) (secretsprovider.Source, error) {
	switch {
	case s.ID == "":
		return s, fmt.Errorf("no id")
	case kind != "" && kind != "file" && kind != "env":
		return s, fmt.Errorf("unknown type %q", kind)
	case src != "" && s.Env != "":
		return s, fmt.Errorf("both src and env")
	case kind == "env" && s.Env == "":
		s.Env = src
	default:
		s.FilePath = src
	}
	return s, nil
}

// parseSSH reads default or ID[=SOCKET|KEY[,KEY...]].
func parseSSH(list []string) []sshprovider.AgentConfig {
	var agents []sshprovider.AgentConfig
	for _, text := range list {
		id, paths, ok := strings.Cut(text, "=")
		agent := sshprovider.AgentConfig{ID: id}
		if ok {
			agent.Paths = strings.Split(paths, ",")
		}
		agents = append(agents, agent)
	}
	return agents
}

// registryHosts are the registries that the options name.
func (p *plan) registryHosts() []string {
	host, _, _ := strings.Cut(p.reference.Repository, "/")
	hosts := []string{host}
	for _, c := range p.contexts {
		if c.host != "" {
			hosts = append(hosts, c.host)
		}
	}
	return hosts
}
