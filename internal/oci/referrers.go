package oci

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Referrers lists the descriptors of manifests whose subject is h, filtered by
// artifactType ("": all), from the referrers API, else from the fallback tag.
// More than max (0: 1,000) of the type are ErrTooLarge. A subject without
// referrers gives an empty list. The descriptors are the registry's word.
// https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#listing-referrers
func (c *Client) Referrers(ctx context.Context, repo string, h v1.Hash, artifactType string, max int) ([]v1.Descriptor, error) {
	if max <= 0 {
		max = defaultReferrers
	}
	list, err := c.referrers(ctx, repo, h, artifactType, max)
	if err != nil {
		return nil, fmt.Errorf("listing referrers of %s@%s: %w", repo, h, err)
	}
	return list, nil
}

func (c *Client) referrers(ctx context.Context, repo string, h v1.Hash, artifactType string, max int) ([]v1.Descriptor, error) {
	if _, err := parseDigest(h.String()); err != nil {
		return nil, err
	}
	list, err := c.referrersAPI(ctx, repo, h, artifactType, max)
	if !errors.Is(err, errNoReferrersAPI) {
		return list, err
	}
	index, err := c.fallback(ctx, repo, h)
	if errors.Is(err, errNotAList) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return c.gather(ctx, repo, nil, index.Manifests, artifactType, max)
}

// errNoReferrersAPI is a registry without the referrers API.
var errNoReferrersAPI = errors.New("no referrers API")

func (c *Client) referrersAPI(ctx context.Context, repo string, h v1.Hash, artifactType string, max int) ([]v1.Descriptor, error) {
	s, err := c.session(ctx, repo, transport.PullScope)
	if err != nil {
		return nil, err
	}
	r := request{method: http.MethodGet, path: "referrers/" + h.String(), ok: []int{http.StatusOK},
		header: map[string]string{"Accept": string(types.OCIImageIndex)}}
	if artifactType != "" {
		r.query = url.Values{"artifactType": {artifactType}}
	}
	var all []v1.Descriptor
	for range maxPages {
		page, next, err := s.referrersPage(ctx, r)
		if err != nil {
			return nil, err
		}
		if all, err = c.gather(ctx, repo, all, page, artifactType, max); err != nil || next == nil {
			return all, err
		}
		if len(page) == 0 {
			return nil, errors.New("an empty page leads to another")
		}
		r.at = next
	}
	return nil, fmt.Errorf("%w: more than %d pages", ErrTooLarge, maxPages)
}

func (s *session) referrersPage(ctx context.Context, r request) ([]v1.Descriptor, *url.URL, error) {
	raw, resp, err := s.whole(ctx, r)
	if noReferrersAPI(err) {
		return nil, nil, errNoReferrersAPI
	}
	if err != nil {
		return nil, nil, err
	}
	if mt, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); mt != string(types.OCIImageIndex) {
		return nil, nil, errNoReferrersAPI
	}
	m, err := newManifest(raw)
	if err != nil {
		return nil, nil, err
	}
	index, err := decodeIndex(m)
	if err != nil {
		return nil, nil, err
	}
	next, err := nextPage(resp)
	return index.Manifests, next, err
}

// noReferrersAPI reports whether an answer is one that registries without the
// API have been seen to give.
func noReferrersAPI(err error) bool {
	var no *statusError
	return errors.Is(err, ErrNotFound) || errors.Is(err, ErrUnsupported) ||
		errors.As(err, &no) && (no.status == http.StatusBadRequest || no.status == http.StatusNotAcceptable)
}

// gather appends what is of the type and not there yet.
func (c *Client) gather(ctx context.Context, repo string, all, page []v1.Descriptor, artifactType string, max int) ([]v1.Descriptor, error) {
	if len(page) > maxListed {
		return nil, fmt.Errorf("%w: %d on one page", ErrTooLarge, len(page))
	}
	for _, d := range page {
		d, err := c.typed(ctx, repo, d)
		if err != nil {
			return nil, err
		}
		if artifactType != "" && d.ArtifactType != artifactType || lists(all, d.Digest) {
			continue
		}
		if len(all) == max {
			return nil, fmt.Errorf("%w: more than %d", ErrTooLarge, max)
		}
		all = append(all, d)
	}
	return all, nil
}

// typed is d with its artifact type. Lists made before artifactType was a
// property of manifests have none, or the config's media type, which for an
// artifact says nothing; then the manifest is read.
func (c *Client) typed(ctx context.Context, repo string, d v1.Descriptor) (v1.Descriptor, error) {
	if d.ArtifactType != "" && d.ArtifactType != string(emptyConfigType) || !d.MediaType.IsImage() {
		return d, nil
	}
	m, err := c.Manifest(ctx, Reference{Repository: repo, Digest: d.Digest}, 0)
	if errors.Is(err, ErrNotFound) {
		return d, nil
	}
	if err != nil {
		return d, err
	}
	image, err := decodeImage(m)
	if err != nil {
		return d, err
	}
	d.ArtifactType = cmp.Or(image.ArtifactType, string(image.Config.MediaType))
	return d, nil
}

func lists(all []v1.Descriptor, h v1.Hash) bool {
	return slices.ContainsFunc(all, func(d v1.Descriptor) bool { return d.Digest == h })
}

// fallbackTag is the tag that lists the referrers of h where the registry does not.
// https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#referrers-tag-schema
func fallbackTag(h v1.Hash) string { return h.Algorithm + "-" + h.Hex }

// errNotAList is a fallback tag that is no list: GitLab answers it with the subject.
var errNotAList = fmt.Errorf("%w: the tag for referrers is not a list of them", ErrUnsupported)

// fallback reads the list under the fallback tag; it is empty when there is none.
func (c *Client) fallback(ctx context.Context, repo string, subject v1.Hash) (v1.IndexManifest, error) {
	empty := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{}}
	m, err := c.manifest(ctx, Reference{Repository: repo, Tag: fallbackTag(subject)}, maxManifest)
	switch {
	case errors.Is(err, ErrNotFound):
		return empty, nil
	case err != nil:
		return empty, err
	case m.Digest == subject || m.MediaType != types.OCIImageIndex:
		return empty, errNotAList
	}
	return decodeIndex(m)
}

// Attach pushes a one-layer artifact manifest with a subject, and adds it to
// the fallback tag where the registry lacks the referrers API. Equal input
// gives equal bytes, and attaching them again changes nothing.
//
// The fallback tag has no compare-and-swap: writers in one Client take turns,
// others are noticed by reading back, twice, and trying again. A writer that
// pauses between its read and its write for longer than two seconds can still
// drop an entry; a registry with the referrers API has no such window.
func (c *Client) Attach(ctx context.Context, repo string, subject v1.Descriptor, a Artifact) (v1.Descriptor, error) {
	if err := checkDescriptors([]v1.Descriptor{subject}); err != nil {
		return v1.Descriptor{}, fmt.Errorf("attaching to %s: subject: %w", repo, err)
	}
	// Only what identifies the subject: annotations and data are not ours to repeat.
	subject = v1.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size}
	raw, err := c.stageArtifact(ctx, repo, &subject, a)
	if err != nil {
		return v1.Descriptor{}, err
	}
	_, header, err := c.putManifest(ctx, repo, "", types.OCIManifestSchema1, raw)
	if err != nil {
		return v1.Descriptor{}, err
	}
	d, err := artifactDescriptor(raw, a)
	if err != nil {
		return v1.Descriptor{}, err
	}
	if err := c.list(ctx, repo, subject.Digest, d, header); err != nil {
		return v1.Descriptor{}, fmt.Errorf("attaching to %s@%s: %w", repo, subject.Digest, err)
	}
	return d, nil
}

// list makes sure that the new referrer is found. A registry that has listed it
// says so in a header; one that forgets the header is asked.
func (c *Client) list(ctx context.Context, repo string, subject v1.Hash, d v1.Descriptor, header http.Header) error {
	if header.Get("OCI-Subject") == subject.String() {
		return nil
	}
	host, _, _ := strings.Cut(repo, "/")
	if _, lists := c.listing.Load(host); lists {
		return nil
	}
	_, err := c.referrersAPI(ctx, repo, subject, d.ArtifactType, defaultReferrers)
	if err == nil {
		c.listing.Store(host, true) // what has the API lists by it, header or not
	}
	if !errors.Is(err, errNoReferrersAPI) {
		return err
	}
	_, unlock, err := c.attaching.lock(ctx, repo+"@"+subject.String())
	if err != nil {
		return err
	}
	defer unlock()
	return c.listUnderTag(ctx, repo, subject, d)
}

// listUnderTag adds d to the fallback tag until it is seen there twice in a row.
func (c *Client) listUnderTag(ctx context.Context, repo string, subject v1.Hash, d v1.Descriptor) error {
	seen := 0
	for range attachAttempts {
		start := time.Now()
		there, err := c.addToTag(ctx, repo, subject, d)
		if err != nil {
			return err
		}
		if !there {
			seen = 0
		} else if seen++; seen == 2 {
			return nil
		}
		if err := sleep(ctx, settle(time.Since(start))); err != nil {
			return err
		}
	}
	return fmt.Errorf("the list of referrers kept changing under %d attempts; attach again", attachAttempts)
}

// addToTag reports whether d was listed already; if not it writes the list with d.
func (c *Client) addToTag(ctx context.Context, repo string, subject v1.Hash, d v1.Descriptor) (bool, error) {
	index, err := c.fallback(ctx, repo, subject)
	if err != nil {
		return false, err
	}
	if lists(index.Manifests, d.Digest) {
		return true, nil
	}
	if len(index.Manifests) >= defaultReferrers {
		return false, fmt.Errorf("%w: %d referrers are listed", ErrTooLarge, len(index.Manifests))
	}
	index.Manifests = append(index.Manifests, d)
	index.MediaType = types.OCIImageIndex
	raw, err := json.Marshal(index)
	if err != nil {
		return false, err
	}
	_, err = c.PutManifest(ctx, repo, fallbackTag(subject), types.OCIImageIndex, raw)
	return false, err
}

// settle is how long a writer that read before our write may take to write:
// a few times what we took, and never the same for two.
func settle(took time.Duration) time.Duration {
	d := min(max(2*took, minSettle), maxSettle)
	return d + rand.N(d)
}
