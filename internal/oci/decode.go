package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// newManifest hashes the bytes and finds out what they are.
func newManifest(raw []byte) (Manifest, error) {
	h, _, err := v1.SHA256(bytes.NewReader(raw))
	if err != nil {
		return Manifest{}, err
	}
	mt, err := mediaType(raw)
	if err != nil {
		return Manifest{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return Manifest{Digest: h, MediaType: mt, Bytes: raw}, nil
}

// mediaType tells what a manifest's bytes say they are, so that no header can
// make one client see an image where another sees an index.
// https://github.com/opencontainers/image-spec/blob/v1.1.1/manifest.md#image-manifest-property-descriptions
func mediaType(raw []byte) (types.MediaType, error) {
	if err := checkKeys(raw); err != nil {
		return "", fmt.Errorf("not a manifest: %w", err)
	}
	var m struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     types.MediaType `json:"mediaType"`
		Manifests     json.RawMessage `json:"manifests"`
		Layers        json.RawMessage `json:"layers"`
		Config        json.RawMessage `json:"config"`
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return "", fmt.Errorf("not a manifest: %w", err)
	}
	index, image := m.Manifests != nil, m.Layers != nil || m.Config != nil
	switch {
	case m.SchemaVersion != 2:
		return "", fmt.Errorf("a manifest of schema version %d is not read, only 2", m.SchemaVersion)
	case index == image:
		return "", errors.New("not a manifest: neither an image nor an index, or both at once")
	case index && m.MediaType == "":
		return types.OCIImageIndex, nil
	case image && m.MediaType == "":
		return types.OCIManifestSchema1, nil
	case index && m.MediaType.IsIndex(), image && m.MediaType.IsImage():
		return m.MediaType, nil
	}
	return "", fmt.Errorf("not a manifest: its media type %q is not what it holds", clip(string(m.MediaType), maxErrorText))
}

// decodeImage decodes an image manifest.
func decodeImage(m Manifest) (v1.Manifest, error) {
	var out v1.Manifest
	if !m.MediaType.IsImage() {
		return out, fmt.Errorf("%s is an index, not an image manifest", m.Digest)
	}
	if err := json.Unmarshal(m.Bytes, &out); err != nil {
		return out, fmt.Errorf("manifest %s: %w", m.Digest, err)
	}
	return out, checkDescriptors(append([]v1.Descriptor{out.Config}, out.Layers...))
}

// decodeIndex decodes an index.
func decodeIndex(m Manifest) (v1.IndexManifest, error) {
	var out v1.IndexManifest
	if !m.MediaType.IsIndex() {
		return out, fmt.Errorf("%s is an image manifest, not an index", m.Digest)
	}
	if err := json.Unmarshal(m.Bytes, &out); err != nil {
		return out, fmt.Errorf("index %s: %w", m.Digest, err)
	}
	return out, checkDescriptors(out.Manifests)
}

func checkDescriptors(all []v1.Descriptor) error {
	for i, d := range all {
		if _, err := parseDigest(d.Digest.String()); err != nil {
			return fmt.Errorf("descriptor %d: %w", i, err)
		}
		if d.Size < 0 {
			return fmt.Errorf("descriptor %d: size %d", i, d.Size)
		}
	}
	return nil
}

// checkKeys refuses JSON that two readers could understand differently: a key
// given twice (in any case, but for the keys of annotations and labels), or
// data after the document. Unknown keys are allowed, as the specification asks.
func checkKeys(raw []byte) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := checkValue(d, ""); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("data after the document at byte %d", d.InputOffset())
	}
	return nil
}

func checkValue(d *json.Decoder, parent string) error {
	t, err := d.Token()
	if err != nil {
		return err
	}
	switch t {
	case json.Delim('{'):
		return checkObject(d, parent)
	case json.Delim('['):
		for d.More() {
			if err := checkValue(d, ""); err != nil {
				return err
			}
		}
		_, err = d.Token()
	}
	return err
}

func checkObject(d *json.Decoder, parent string) error {
	seen := map[string]bool{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return err
		}
		key := t.(string)
		folded := key
		if parent != "annotations" && parent != "labels" {
			folded = strings.ToLower(key)
		}
		if seen[folded] {
			return fmt.Errorf("key %q twice at byte %d", clip(key, maxErrorText), d.InputOffset())
		}
		seen[folded] = true
		if err := checkValue(d, key); err != nil {
			return err
		}
	}
	_, err := d.Token()
	return err
}
