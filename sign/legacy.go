package sign

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/options"

	"github.com/imgtrust/imgtrust/internal/oci"
)

// The form in which cosign kept signatures before its bundles, which skopeo,
// podman and CRI-O read:
// https://github.com/sigstore/cosign/blob/v2.6.1/specs/SIGNATURE_SPEC.md
const (
	simpleSigning     = types.MediaType("application/vnd.dev.cosign.simplesigning.v1+json")
	legacySignature   = "dev.cosignproject.cosign/signature" // annotation of a layer: base64
	maxLegacyManifest = 1 << 20                              // bytes of the manifest of all signatures
	legacyAttempts    = 8
)

// simplePayload is what is signed: which digest, under which reference.
type simplePayload struct {
	Critical struct {
		Identity struct {
			Reference string `json:"docker-reference"`
		} `json:"identity"`
		Image struct {
			Digest string `json:"docker-manifest-digest"`
		} `json:"image"`
		Type string `json:"type"`
	} `json:"critical"`
	Optional map[string]string `json:"optional"`
}

// attachLegacy adds signatures to the tag DIGEST.sig of an image: one under the
// repository, for those who run the image by digest, and one under each tag, since
// a reader that is given a tag wants to find that tag. What others have put there
// stays: the tag is read back, and written again where another writer came between.
func attachLegacy(ctx context.Context, image oci.Reference, tags []string, o Options) error {
	references := []string{image.Repository}
	for _, tag := range tags {
		references = append(references, image.Repository+":"+tag)
	}
	var ours []v1.Descriptor
	for _, reference := range references {
		layer, err := legacyLayer(ctx, image, reference, o)
		if err != nil {
			return err
		}
		ours = append(ours, layer)
	}
	tag := oci.Reference{Repository: image.Repository, Tag: image.Digest.Algorithm + "-" + image.Digest.Hex + ".sig"}
	for range legacyAttempts {
		there, err := addLegacy(ctx, tag, ours, o)
		if err != nil || there {
			return err
		}
		select {
		case <-time.After(20*time.Millisecond + rand.N(100*time.Millisecond)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return fmt.Errorf("%s kept changing under %d attempts; sign again", tag, legacyAttempts)
}

// legacyLayer signs the payload for one reference and uploads it.
func legacyLayer(ctx context.Context, image oci.Reference, reference string, o Options) (v1.Descriptor, error) {
	var p simplePayload
	p.Critical.Identity.Reference, p.Critical.Image.Digest, p.Critical.Type = reference, image.Digest.String(), "cosign container image signature"
	payload, err := json.Marshal(p)
	if err != nil {
		return v1.Descriptor{}, err
	}
	sig, err := o.Key.Signer().SignMessage(bytes.NewReader(payload), options.WithContext(ctx))
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("signing: %w", err)
	}
	verifier, err := signature.LoadDefaultVerifier(o.Key.Public())
	if err != nil {
		return v1.Descriptor{}, err
	}
	if err := verifier.VerifySignature(bytes.NewReader(sig), bytes.NewReader(payload)); err != nil {
		return v1.Descriptor{}, fmt.Errorf("verifying the own signature: %w", err)
	}
	d, err := o.Client.PutBlob(ctx, image.Repository, payload, simpleSigning)
	d.Annotations = map[string]string{legacySignature: base64.StdEncoding.EncodeToString(sig)}
	return d, err
}

// addLegacy tells whether the tag holds all of ours; if not it writes it with them.
func addLegacy(ctx context.Context, tag oci.Reference, ours []v1.Descriptor, o Options) (bool, error) {
	layers, err := legacyLayers(ctx, tag, o.Client)
	if err != nil {
		return false, err
	}
	missing := slices.DeleteFunc(slices.Clone(ours), func(d v1.Descriptor) bool {
		return slices.ContainsFunc(layers, func(l v1.Descriptor) bool {
			return l.Digest == d.Digest && l.Annotations[legacySignature] == d.Annotations[legacySignature]
		})
	})
	if len(missing) == 0 {
		return true, nil
	}
	layers = append(layers, missing...)
	var diffs []v1.Hash
	for _, l := range layers {
		diffs = append(diffs, l.Digest)
	}
	config, err := json.Marshal(v1.ConfigFile{RootFS: v1.RootFS{Type: "layers", DiffIDs: diffs}})
	if err != nil {
		return false, err
	}
	d, err := o.Client.PutBlob(ctx, tag.Repository, config, types.OCIConfigJSON)
	if err != nil {
		return false, err
	}
	raw, err := json.Marshal(v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: d, Layers: layers})
	if err != nil {
		return false, err
	}
	_, err = o.Client.PutManifest(ctx, tag.Repository, tag.Tag, types.OCIManifestSchema1, raw)
	return false, err
}

// legacyLayers are the signatures that the tag holds; none when there is no tag.
func legacyLayers(ctx context.Context, tag oci.Reference, client *oci.Client) ([]v1.Descriptor, error) {
	m, err := client.Manifest(ctx, tag, maxLegacyManifest)
	if errors.Is(err, oci.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	image, err := v1.ParseManifest(bytes.NewReader(m.Bytes))
	if err != nil || m.MediaType != types.OCIManifestSchema1 {
		return nil, fmt.Errorf("%s: %w: it does not hold cosign's signatures, and is not overwritten", tag, oci.ErrMalformed)
	}
	return image.Layers, nil
}
