package sign

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/internal/oci"
)

// maxConfig bounds the config of an image, in bytes.
const maxConfig = 4 << 20

// Annotations by which BuildKit marks its attestation manifests, see
// https://github.com/moby/buildkit/blob/v0.34.2/docs/attestations/attestation-storage.md.
const (
	referenceType   = "vnd.docker.reference.type"
	referenceDigest = "vnd.docker.reference.digest"
	predicateType   = "in-toto.io/predicate-type"
)

// describe writes the release statement about an image: everything in it was
// read under the image's digest.
func describe(ctx context.Context, image oci.Reference, m oci.Manifest, o Options) (attest.ReleaseStatement, error) {
	r := reader{client: o.Client, repository: image.Repository}
	var found contents
	var err error
	switch {
	case m.MediaType.IsIndex():
		found, err = r.index(ctx, m)
	case m.MediaType.IsImage():
		found, err = r.image(ctx, m, "")
	default:
		err = fmt.Errorf("media type %q is neither an image nor an index", m.MediaType)
	}
	if err != nil {
		return attest.ReleaseStatement{}, err
	}
	return attest.ReleaseStatement{Digest: m.Digest.String(), Release: attest.Release{
		Repository:  image.Repository,
		Tags:        o.tags(image),
		Created:     o.Created,
		Expires:     o.Expires,
		Annotations: o.Annotations,
		Manifests:   found.manifests,
		Config:      found.config,
		Provenance:  firstOf(o.Provenance, found.provenance),
		SBOM:        firstOf(o.SBOM, found.sbom),
		Slim:        o.Slim,
	}}, nil
}

func (o Options) tags(image oci.Reference) []string {
	if o.Tags == nil && image.Tag != "" {
		return []string{image.Tag}
	}
	return slices.Clone(o.Tags)
}

func firstOf(given, found string) string {
	if given != "" {
		return given
	}
	return found
}

// contents is what an image says about itself.
type contents struct {
	manifests        []attest.Manifest
	config           *attest.Config // of the first platform; nil when it has no image config
	provenance, sbom string         // digests of BuildKit's statements about the first platform
}

type reader struct {
	client     *oci.Client
	repository string
}

// index reads an index with its platform children; attestation manifests are
// no children.
func (r reader) index(ctx context.Context, m oci.Manifest) (contents, error) {
	index, err := v1.ParseIndexManifest(bytes.NewReader(m.Bytes))
	if err != nil {
		return contents{}, fmt.Errorf("index %s: %w", m.Digest, err)
	}
	found := contents{manifests: []attest.Manifest{entry(m)}}
	for _, child := range index.Manifests {
		if isAttestation(child) {
			continue
		}
		if len(found.manifests) == attest.MaxManifests {
			return contents{}, fmt.Errorf("index %s has more than %d platforms", m.Digest, attest.MaxManifests-1)
		}
		if err := r.child(ctx, child, &found); err != nil {
			return contents{}, fmt.Errorf("platform %s of the index: %w", child.Digest, err)
		}
	}
	if len(found.manifests) == 1 {
		return contents{}, fmt.Errorf("index %s has no platform", m.Digest)
	}
	return found, r.attestations(ctx, index.Manifests, &found)
}

func isAttestation(d v1.Descriptor) bool {
	return d.Annotations[referenceType] != "" ||
		d.Platform != nil && d.Platform.OS == "unknown" && d.Platform.Architecture == "unknown"
}

// child adds one platform of an index to found; an entry that the index
// repeats is added once.
func (r reader) child(ctx context.Context, d v1.Descriptor, found *contents) error {
	if !d.MediaType.IsImage() {
		return fmt.Errorf("media type %q is not an image", d.MediaType)
	}
	m, err := r.manifest(ctx, d.Digest)
	if err != nil {
		return err
	}
	if m.MediaType != d.MediaType || int64(len(m.Bytes)) != d.Size {
		return fmt.Errorf("the index says %d bytes of %s, the manifest is %d bytes of %s", d.Size, d.MediaType, len(m.Bytes), m.MediaType)
	}
	image, err := r.image(ctx, m, platform(d.Platform))
	if err != nil {
		return err
	}
	if !slices.Contains(found.manifests, image.manifests[0]) {
		found.manifests = append(found.manifests, image.manifests[0])
	}
	if len(found.manifests) == 2 {
		found.config = image.config
	}
	return nil
}

// image reads one image manifest and its config; platform overrides what the
// config says.
func (r reader) image(ctx context.Context, m oci.Manifest, platform string) (contents, error) {
	manifest, err := v1.ParseManifest(bytes.NewReader(m.Bytes))
	if err != nil {
		return contents{}, fmt.Errorf("manifest %s: %w", m.Digest, err)
	}
	e := entry(m)
	e.Config, e.Platform = manifest.Config.Digest.String(), platform
	found := contents{manifests: []attest.Manifest{e}}
	if !isImageConfig(manifest.Config.MediaType) {
		return found, nil
	}
	config, err := r.config(ctx, manifest.Config)
	if err != nil {
		return contents{}, fmt.Errorf("config %s: %w", manifest.Config.Digest, err)
	}
	if platform == "" {
		found.manifests[0].Platform = platformOf(config)
	}
	found.config = facts(manifest, config)
	return found, nil
}

func isImageConfig(mt types.MediaType) bool {
	return mt == types.OCIConfigJSON || mt == types.DockerConfigJSON
}

func (r reader) manifest(ctx context.Context, h v1.Hash) (oci.Manifest, error) {
	return r.client.Manifest(ctx, oci.Reference{Repository: r.repository, Digest: h}, 0)
}

func (r reader) config(ctx context.Context, d v1.Descriptor) (*v1.ConfigFile, error) {
	data, err := r.client.Blob(ctx, r.repository, d, maxConfig)
	if err != nil {
		return nil, err
	}
	return v1.ParseConfigFile(bytes.NewReader(data))
}

// facts are what the config and the manifest tell without the layers. An
// entrypoint beyond the bounds of a statement is left out.
func facts(m *v1.Manifest, config *v1.ConfigFile) *attest.Config {
	c := &attest.Config{User: config.Config.User, ImageSize: m.Config.Size, Layers: len(m.Layers)}
	for _, layer := range m.Layers {
		c.ImageSize += layer.Size
	}
	bytes := len(strings.Join(config.Config.Entrypoint, ""))
	if len(config.Config.Entrypoint) <= attest.MaxEntrypoint && bytes <= attest.MaxEntrypointBytes {
		c.Entrypoint = config.Config.Entrypoint
	}
	return c
}

func entry(m oci.Manifest) attest.Manifest {
	return attest.Manifest{MediaType: string(m.MediaType), Digest: m.Digest.String(), Size: int64(len(m.Bytes))}
}

func platform(p *v1.Platform) string {
	if p == nil {
		return ""
	}
	return joinPlatform(p.OS, p.Architecture, p.Variant)
}

func platformOf(c *v1.ConfigFile) string {
	return joinPlatform(c.OS, c.Architecture, c.Variant)
}

// joinPlatform is empty when the operating system or architecture is not known.
func joinPlatform(os, arch, variant string) string {
	switch {
	case os == "" || arch == "":
		return ""
	case variant == "":
		return os + "/" + arch
	}
	return os + "/" + arch + "/" + variant
}

// attestations finds BuildKit's provenance and SBOM of the first platform. An
// index may have been copied without them; then there are none to name.
func (r reader) attestations(ctx context.Context, descriptors []v1.Descriptor, found *contents) error {
	for _, d := range descriptors {
		if d.Annotations[referenceType] != "attestation-manifest" || d.Annotations[referenceDigest] != found.manifests[1].Digest {
			continue
		}
		m, err := r.manifest(ctx, d.Digest)
		if errors.Is(err, oci.ErrNotFound) {
			continue
		}
		if err != nil {
			return fmt.Errorf("attestation manifest %s: %w", d.Digest, err)
		}
		manifest, err := v1.ParseManifest(bytes.NewReader(m.Bytes))
		if err != nil {
			return fmt.Errorf("attestation manifest %s: %w", d.Digest, err)
		}
		found.name(manifest.Layers)
	}
	return nil
}

// name takes the first statement of each kind.
func (c *contents) name(statements []v1.Descriptor) {
	for _, d := range statements {
		kind := d.Annotations[predicateType]
		switch {
		case c.provenance == "" && strings.HasPrefix(kind, "https://slsa.dev/provenance/"):
			c.provenance = d.Digest.String()
		case c.sbom == "" && (kind == "https://spdx.dev/Document" || strings.HasPrefix(kind, "https://cyclonedx.org/bom")):
			c.sbom = d.Digest.String()
		}
	}
}
