package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/distribution/reference"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// PutBlob uploads a blob, unless the repository has it already, and describes it.
func (c *Client) PutBlob(ctx context.Context, repo string, b []byte, mt types.MediaType) (v1.Descriptor, error) {
	d, err := describe(b, mt)
	if err != nil {
		return v1.Descriptor{}, err
	}
	if err := c.putBlob(ctx, repo, d.Digest, b); err != nil {
		return v1.Descriptor{}, fmt.Errorf("writing blob %s@%s: %w", repo, d.Digest, err)
	}
	return d, nil
}

func describe(b []byte, mt types.MediaType) (v1.Descriptor, error) {
	h, size, err := v1.SHA256(bytes.NewReader(b))
	return v1.Descriptor{MediaType: mt, Digest: h, Size: size}, err
}

func (c *Client) putBlob(ctx context.Context, repo string, h v1.Hash, b []byte) error {
	s, err := c.session(ctx, repo, transport.PushScope)
	if err != nil {
		return err
	}
	_, _, err = s.whole(ctx, request{method: http.MethodHead, path: "blobs/" + h.String(), ok: []int{http.StatusOK}})
	if err == nil {
		return nil
	}
	if !errors.Is(err, ErrNotFound) {
		return err
	}
	return s.upload(ctx, h, b)
}

// upload is POST then PUT.
// https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#post-then-put
func (s *session) upload(ctx context.Context, h v1.Hash, b []byte) error {
	_, resp, err := s.whole(ctx, request{method: http.MethodPost, path: "blobs/uploads/",
		ok: []int{http.StatusAccepted, http.StatusCreated}})
	if err != nil {
		return err
	}
	to, err := uploadLocation(resp, h)
	if err != nil {
		return err
	}
	if b == nil {
		b = []byte{}
	}
	_, _, err = s.whole(ctx, request{method: http.MethodPut, at: to, body: b,
		header: map[string]string{"Content-Type": "application/octet-stream"}, ok: []int{http.StatusCreated}})
	return err
}

// uploadLocation is where the registry wants the bytes.
func uploadLocation(resp *http.Response, h v1.Hash) (*url.URL, error) {
	u, err := resp.Location()
	if err != nil {
		return nil, fmt.Errorf("where to upload: %w", err)
	}
	if err := checkTarget(resp.Request.URL.Hostname(), u.Hostname()); err != nil {
		return nil, err
	}
	q := u.Query()
	q.Set("digest", h.String())
	u.RawQuery = q.Encode()
	return u, nil
}

// PutManifest writes the bytes under a tag, or by digest when tag is "", and
// returns their digest. Registries have stored other bytes than they were
// given: a caller whose safety depends on it reads back.
func (c *Client) PutManifest(ctx context.Context, repo, tag string, mt types.MediaType, raw []byte) (v1.Hash, error) {
	h, _, err := c.putManifest(ctx, repo, tag, mt, raw)
	return h, err
}

// putManifest also returns the answer's header.
func (c *Client) putManifest(ctx context.Context, repo, tag string, mt types.MediaType, raw []byte) (v1.Hash, http.Header, error) {
	d, err := describe(raw, mt)
	if err != nil {
		return v1.Hash{}, nil, err
	}
	ref := Reference{Repository: repo, Digest: d.Digest}
	if tag != "" {
		ref = ref.WithTag(tag)
	}
	header, err := c.put(ctx, ref, mt, raw)
	if err != nil {
		return v1.Hash{}, nil, fmt.Errorf("writing manifest %s: %w", ref, err)
	}
	return d.Digest, header, nil
}

func (c *Client) put(ctx context.Context, ref Reference, mt types.MediaType, raw []byte) (http.Header, error) {
	if ref.Tag != "" && !isTag(ref.Tag) {
		return nil, fmt.Errorf("%q is not a tag", clip(ref.Tag, maxErrorText))
	}
	id, err := identifier(ref)
	if err != nil {
		return nil, err
	}
	s, err := c.session(ctx, ref.Repository, transport.PushScope)
	if err != nil {
		return nil, err
	}
	_, resp, err := s.whole(ctx, request{method: http.MethodPut, path: "manifests/" + id, body: raw,
		header: map[string]string{"Content-Type": string(mt)},
		ok:     []int{http.StatusOK, http.StatusCreated, http.StatusAccepted}})
	if err != nil {
		return nil, err
	}
	return resp.Header, nil
}

// isTag reports whether s is a tag.
func isTag(s string) bool { return reference.TagRegexp.FindString(s) == s && s != "" }

// Delete removes a manifest by digest, or else a tag. ErrUnsupported: the
// registry does not delete; ErrNotFound: it was not there.
func (c *Client) Delete(ctx context.Context, ref Reference) error {
	if err := c.delete(ctx, ref); err != nil {
		return fmt.Errorf("deleting %s: %w", ref, err)
	}
	return nil
}

func (c *Client) delete(ctx context.Context, ref Reference) error {
	id, err := identifier(ref)
	if err != nil {
		return err
	}
	s, err := c.session(ctx, ref.Repository, transport.DeleteScope)
	if err != nil {
		return err
	}
	_, _, err = s.whole(ctx, request{method: http.MethodDelete, path: "manifests/" + id,
		ok: []int{http.StatusOK, http.StatusAccepted, http.StatusNoContent}})
	return err
}

// emptyConfig is the blob of the empty descriptor.
// https://github.com/opencontainers/image-spec/blob/v1.1.1/manifest.md#guidance-for-an-empty-descriptor
const (
	emptyConfig     = "{}"
	emptyConfigType = types.MediaType("application/vnd.oci.empty.v1+json")
)

// PutArtifact pushes an artifact under a tag. Equal input gives equal bytes.
func (c *Client) PutArtifact(ctx context.Context, repo, tag string, a Artifact) (v1.Descriptor, error) {
	raw, err := c.stageArtifact(ctx, repo, nil, a)
	if err != nil {
		return v1.Descriptor{}, err
	}
	if _, err := c.PutManifest(ctx, repo, tag, types.OCIManifestSchema1, raw); err != nil {
		return v1.Descriptor{}, err
	}
	return artifactDescriptor(raw, a)
}

// stageArtifact uploads the blobs of an artifact and returns its manifest.
func (c *Client) stageArtifact(ctx context.Context, repo string, subject *v1.Descriptor, a Artifact) ([]byte, error) {
	if a.Type == "" {
		return nil, errors.New("an artifact needs a type")
	}
	config, err := c.putEmptyConfig(ctx, repo)
	if err != nil {
		return nil, err
	}
	layer, err := c.PutBlob(ctx, repo, a.Data, types.MediaType(a.Type))
	if err != nil {
		return nil, err
	}
	return json.Marshal(v1.Manifest{
		SchemaVersion: 2,
		MediaType:     types.OCIManifestSchema1,
		ArtifactType:  a.Type,
		Config:        config,
		Layers:        []v1.Descriptor{layer},
		Subject:       subject,
		Annotations:   a.Annotations,
	})
}

// artifactDescriptor is what a list of referrers says about an artifact.
func artifactDescriptor(raw []byte, a Artifact) (v1.Descriptor, error) {
	d, err := describe(raw, types.OCIManifestSchema1)
	d.ArtifactType, d.Annotations = a.Type, a.Annotations
	return d, err
}

// Artifact reads back the single layer of an artifact manifest, of at most max
// bytes (0: 4 MiB).
func (c *Client) Artifact(ctx context.Context, repo string, h v1.Hash, max int64) (Artifact, error) {
	m, err := c.Manifest(ctx, Reference{Repository: repo, Digest: h}, 0)
	if err != nil {
		return Artifact{}, err
	}
	a, layer, err := parseArtifact(m)
	if err != nil {
		return Artifact{}, fmt.Errorf("artifact %s@%s: %w", repo, h, err)
	}
	a.Data, err = c.Blob(ctx, repo, layer, max)
	return a, err
}

// parseArtifact reads an artifact manifest but for its data.
func parseArtifact(m Manifest) (Artifact, v1.Descriptor, error) {
	d, err := decodeImage(m)
	if err != nil {
		return Artifact{}, v1.Descriptor{}, err
	}
	if len(d.Layers) != 1 {
		return Artifact{}, v1.Descriptor{}, fmt.Errorf("has %d layers, not one", len(d.Layers))
	}
	a := Artifact{Type: d.ArtifactType, Annotations: d.Annotations}
	if a.Type == "" {
		a.Type = string(d.Config.MediaType)
	}
	if t := d.Layers[0].MediaType; string(t) != a.Type {
		return Artifact{}, v1.Descriptor{}, fmt.Errorf("its type is %q but its layer's is %q", clip(a.Type, maxErrorText), clip(string(t), maxErrorText))
	}
	return a, d.Layers[0], nil
}

// putEmptyConfig uploads the empty config, once for each repository.
func (c *Client) putEmptyConfig(ctx context.Context, repo string) (v1.Descriptor, error) {
	if _, there := c.empty.Load(repo); there {
		return describe([]byte(emptyConfig), emptyConfigType)
	}
	d, err := c.PutBlob(ctx, repo, []byte(emptyConfig), emptyConfigType)
	if err == nil {
		c.empty.Store(repo, true)
	}
	return d, err
}
