package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgtrust/imgtrust/internal/oci"
	"github.com/imgtrust/imgtrust/trust"
)

// What follows needs no key: only the right to write to the registry.

// manifest reads the manifest of an image.
func (w *world) manifest(ctx context.Context, image oci.Reference) (*v1.Manifest, error) {
	m, err := w.client.Manifest(ctx, image.AtDigest(image.Digest), 0)
	if err != nil {
		return nil, err
	}
	return v1.ParseManifest(bytes.NewReader(m.Bytes))
}

// variant pushes the same files under another manifest, and so another digest,
// and points a tag to it.
func (w *world) variant(ctx context.Context, of oci.Reference, tag string) (oci.Reference, error) {
	m, err := w.manifest(ctx, of)
	if err != nil {
		return oci.Reference{}, err
	}
	m.Annotations = map[string]string{"dev.imgtrust.demo": "not what was built, tag " + tag}
	raw, err := json.Marshal(m)
	if err != nil {
		return oci.Reference{}, err
	}
	h, err := w.client.PutManifest(ctx, of.Repository, tag, m.MediaType, raw)
	return oci.Reference{Repository: of.Repository, Tag: tag, Digest: h}, err
}

// document is a manifest or index of the trust repository.
type document struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     types.MediaType `json:"mediaType"`
	ArtifactType  string          `json:"artifactType"`
	Config        *v1.Descriptor  `json:"config,omitempty"`
	Manifests     []v1.Descriptor `json:"manifests,omitempty"`
	Layers        []v1.Descriptor `json:"layers,omitempty"`
}

const fileName = "tuf.io/filename" // annotation of each metadata layer

var errNoFile = errors.New("no such file in the trust index")

// find finds the layer whose file name is accepted: in the manifest of that
// number.
func (w *world) find(ctx context.Context, index document, accept func(file string) bool) (manifest, layer int, m document, err error) {
	for i, d := range index.Manifests {
		raw, err := w.client.Manifest(ctx, oci.Reference{Repository: w.trustRepository(), Digest: d.Digest}, 0)
		if err != nil {
			return 0, 0, m, err
		}
		m = document{}
		if err := json.Unmarshal(raw.Bytes, &m); err != nil {
			return 0, 0, m, err
		}
		for j, l := range m.Layers {
			if accept(l.Annotations[fileName]) {
				return i, j, m, nil
			}
		}
	}
	return 0, 0, m, errNoFile
}

// sameRole finds another version of a bin.
func sameRole(file, bin string) bool {
	_, role, _ := strings.Cut(bin, ".")
	return file != bin && strings.HasSuffix(file, "."+role)
}

// otherRole finds a bin of another name.
func otherRole(file, bin string) bool {
	return strings.Contains(file, ".releases-") && file != bin && !sameRole(file, bin)
}

// otherRoleSameVersion finds one where only the name that it carries tells that
// it is the wrong bin. There is nearly always one.
func otherRoleSameVersion(file, bin string) bool {
	version, _, _ := strings.Cut(bin, ".")
	return otherRole(file, bin) && strings.HasPrefix(file, version+".")
}

// swapBin rewrites the honest trust index so that the file name of the bin that
// holds the image leads to the bytes of another file, taken from an index.
func (s *scene) swapBin(ctx context.Context, from oci.Manifest, other func(file, bin string) bool) error {
	bin, err := s.binFile(ctx)
	if err != nil {
		return err
	}
	var source, index document
	if err := errors.Join(json.Unmarshal(from.Bytes, &source), json.Unmarshal(s.honest.Bytes, &index)); err != nil {
		return err
	}
	_, j, m, err := s.find(ctx, source, func(file string) bool { return other(file, bin) })
	if err != nil {
		return err
	}
	swapped := m.Layers[j]
	i, j, m, err := s.find(ctx, index, func(file string) bool { return file == bin })
	if err != nil {
		return err
	}
	swapped.Annotations = m.Layers[j].Annotations
	m.Layers[j] = swapped
	return s.replace(ctx, index, i, m)
}

// binFile is the name of the file that lists the honest image's tag.
func (s *scene) binFile(ctx context.Context) (string, error) {
	c, err := trust.Open(s.clientOptions(s.readerState()))
	if err != nil {
		return "", err
	}
	listing, err := c.LookupTag(ctx, s.image.Repository, s.image.Tag)
	return fmt.Sprintf("%d.%s.json", listing.Bin.Version, listing.Bin.Role), err
}

// replace writes a manifest, and the index with it in place of manifest i.
func (s *scene) replace(ctx context.Context, index document, i int, m document) error {
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	h, err := s.client.PutManifest(ctx, s.trustRepository(), "", m.MediaType, raw)
	if err != nil {
		return err
	}
	index.Manifests[i].Digest, index.Manifests[i].Size, index.Manifests[i].Data = h, int64(len(raw)), nil
	if raw, err = json.Marshal(index); err != nil {
		return err
	}
	_, err = s.client.PutManifest(ctx, s.trustRepository(), trust.Tag, index.MediaType, raw)
	return err
}
