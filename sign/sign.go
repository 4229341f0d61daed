// Package sign says, by a signature, that an image is a release.
//
// The promise: for every image that Images is given, by digest, it signs two
// statements and only adds to what is there. Nothing is overwritten, nothing is
// published: whoever holds the key can do no more than append.
//
//	release       https://imgtrust.dev/release/v1, which policies count: the
//	              repository, the tags, the time, and for every manifest its
//	              digest, platform and config digest
//	cosign sign   https://sigstore.dev/cosign/sign/v1, so that cosign and what is
//	              built on it accept the image; it names no repository
//
// Both become Sigstore bundles, attached to the image as referrers. The bundle
// of the release is also put into the inbox, a repository of its own, under the
// tag "s-" and the SHA-256 of its bytes; there the publisher finds it.
package sign

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/internal/oci"
)

// defaultParallel is how many images are signed at a time.
const defaultParallel = 8

// Options of Images. Key, Client and Inbox are required; the zero value of
// everything else is the usual case.
type Options struct {
	Key    *Key        // signs all statements; may be used concurrently
	Client *oci.Client // reads the images, writes the bundles
	Inbox  string      // canonical repository where the publisher looks

	// Tags that the statements name. Nil: the tag that each image was given
	// with (REPOSITORY:TAG@DIGEST), or none.
	Tags        []string
	Annotations map[string]string // free words for policy conditions
	Created     time.Time         // rounded down to a second; zero: Now()
	Expires     time.Time         // rounded down to a second; zero: never
	// Provenance, SBOM and Slim are digests ("sha256:<hex>") of documents about
	// the image. Where the first two are empty, those that BuildKit attached to
	// the first platform of an index are named.
	Provenance, SBOM, Slim string

	// CosignLegacy writes signatures under the tag DIGEST.sig as well, which
	// skopeo, podman and CRI-O read.
	CosignLegacy bool

	Parallel int              // images at a time; 0: 8
	Now      func() time.Time // nil: time.Now
}

// Result is what Images did for one image.
type Result struct {
	Image    oci.Reference // repository@digest
	Bundles  []string      // digests ("sha256:<hex>") of the bundles: release, cosign sign
	InboxTag string        // tag of the release's bundle in the inbox
	Release  attest.ReleaseStatement
}

// Images signs each image. An image without a digest is a *DigestError, before
// anything is signed. An image that fails does not stop the others: Images
// returns the results of those that it signed, in the order given, and one
// joined error that names each image that it did not sign.
func Images(ctx context.Context, images []oci.Reference, o Options) ([]Result, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if err := requireDigests(ctx, o.Client, images); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	results, failures := make([]Result, len(images)), make([]error, len(images))
	var group errgroup.Group
	group.SetLimit(o.Parallel)
	for i, image := range images {
		group.Go(func() error {
			results[i], failures[i] = one(ctx, image, o)
			return nil
		})
	}
	_ = group.Wait() // failures are kept by image
	return collect(images, results, failures)
}

func (o Options) check() error {
	switch {
	case o.Key == nil:
		return errors.New("signing: no key")
	case o.Client == nil:
		return errors.New("signing: no registry client")
	case o.Inbox == "":
		return errors.New("signing: no inbox")
	}
	return nil
}

func (o Options) withDefaults() Options {
	if o.Parallel <= 0 {
		o.Parallel = defaultParallel
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Created.IsZero() {
		o.Created = o.Now()
	}
	o.Created = o.Created.UTC().Truncate(time.Second)
	if !o.Expires.IsZero() {
		o.Expires = o.Expires.UTC().Truncate(time.Second)
	}
	return o
}

func collect(images []oci.Reference, results []Result, failures []error) ([]Result, error) {
	var signed []Result
	var failed []error
	for i, err := range failures {
		if err != nil {
			failed = append(failed, fmt.Errorf("signing %s: %w", images[i], err))
			continue
		}
		signed = append(signed, results[i])
	}
	return signed, errors.Join(failed...)
}

// one signs one image: read it, say what it is, sign, attach, announce.
func one(ctx context.Context, image oci.Reference, o Options) (Result, error) {
	at := image.AtDigest(image.Digest)
	manifest, err := o.Client.Manifest(ctx, at, 0)
	if err != nil {
		return Result{}, err
	}
	release, err := describe(ctx, image, manifest, o)
	if err != nil {
		return Result{}, err
	}
	bundles, err := signBundles(ctx, release, o.Key)
	if err != nil {
		return Result{}, err
	}
	result := Result{Image: at, Release: release}
	for _, b := range bundles {
		if _, err := o.Client.Attach(ctx, at.Repository, manifest.Descriptor(), b.artifact()); err != nil {
			return Result{}, fmt.Errorf("attaching the bundle of %s: %w", b.predicateType, err)
		}
		result.Bundles = append(result.Bundles, b.digest())
	}
	if o.CosignLegacy {
		if err := attachLegacy(ctx, at, release.Tags, o); err != nil {
			return Result{}, fmt.Errorf("attaching the legacy signatures: %w", err)
		}
	}
	result.InboxTag = bundles[0].inboxTag()
	if _, err := o.Client.PutArtifact(ctx, o.Inbox, result.InboxTag, bundles[0].artifact()); err != nil {
		return Result{}, fmt.Errorf("writing to the inbox %s: %w", o.Inbox, err)
	}
	return result, nil
}

// DigestError is an image named by tag alone. A tag may mean another image by
// the time it is signed, so only digests are signed.
type DigestError struct {
	Image oci.Reference
	// Found is the image with the digest that its tag has now; zero when the
	// registry did not tell.
	Found oci.Reference
}

func (e *DigestError) Error() string {
	return fmt.Sprintf("%s has no digest: only digests are signed", e.Image)
}

// Hint names the digest to use.
func (e *DigestError) Hint() string {
	if e.Found.Repository == "" {
		return fmt.Sprintf("sign %s@sha256:… with the digest that the build printed", e.Image)
	}
	return fmt.Sprintf("sign %s if that is the digest that the build printed", e.Found)
}

// requireDigests refuses the first image that has no digest.
func requireDigests(ctx context.Context, client *oci.Client, images []oci.Reference) error {
	for _, image := range images {
		if image.Digest.Hex != "" {
			continue
		}
		refused := &DigestError{Image: image}
		if image.Tag == "" {
			return refused
		}
		if d, err := client.Resolve(ctx, image); err == nil {
			refused.Found = image
			refused.Found.Digest = d.Digest
		}
		return refused
	}
	return nil
}
