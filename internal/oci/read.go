package oci

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// manifestTypes is the Accept header for manifests.
var manifestTypes = strings.Join([]string{
	string(types.OCIImageIndex), string(types.OCIManifestSchema1),
	string(types.DockerManifestList), string(types.DockerManifestSchema2),
}, ", ")

// identifier is the digest of ref, else its tag.
func identifier(ref Reference) (string, error) {
	switch {
	case ref.Digest.Hex != "":
		h, err := parseDigest(ref.Digest.String())
		return h.String(), err
	case ref.Tag != "":
		return ref.Tag, nil
	}
	return "", errNoIdentifier
}

// Resolve asks (HEAD, or GET where HEAD does not work) for what a digest, or
// else a tag, is. After HEAD the answer is the registry's word, checked against
// ref's digest only: read the manifest before believing it.
func (c *Client) Resolve(ctx context.Context, ref Reference) (v1.Descriptor, error) {
	d, err := c.head(ctx, ref)
	if errors.Is(err, errNoHead) {
		m, err := c.Manifest(ctx, ref, 0)
		return m.Descriptor(), err
	}
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("resolving %s: %w", ref, err)
	}
	return d, nil
}

// errNoHead is a HEAD that says too little.
var errNoHead = errors.New("HEAD does not work")

func (c *Client) head(ctx context.Context, ref Reference) (v1.Descriptor, error) {
	if dir, ok := c.layouts[ref.Repository]; ok {
		return layoutSource{dir: dir}.resolve(ref)
	}
	id, err := identifier(ref)
	if err != nil {
		return v1.Descriptor{}, err
	}
	s, err := c.session(ctx, ref.Repository, transport.PullScope)
	if err != nil {
		return v1.Descriptor{}, err
	}
	_, resp, err := s.whole(ctx, request{method: http.MethodHead, path: "manifests/" + id,
		header: map[string]string{"Accept": manifestTypes}, ok: []int{http.StatusOK}})
	var no *statusError
	if errors.As(err, &no) && (errors.Is(err, ErrUnsupported) || no.status == http.StatusBadRequest) {
		return v1.Descriptor{}, errNoHead
	}
	if err != nil {
		return v1.Descriptor{}, err
	}
	return headDescriptor(resp, ref)
}

func headDescriptor(resp *http.Response, ref Reference) (v1.Descriptor, error) {
	mt, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || resp.ContentLength <= 0 {
		return v1.Descriptor{}, errNoHead
	}
	h, err := parseDigest(resp.Header.Get("Docker-Content-Digest"))
	if err != nil {
		return v1.Descriptor{}, errNoHead
	}
	if ref.Digest.Hex != "" && h != ref.Digest {
		return v1.Descriptor{}, fmt.Errorf("%w: the registry has %s", ErrContentMismatch, h)
	}
	if t := types.MediaType(mt); t.IsIndex() || t.IsImage() {
		return v1.Descriptor{MediaType: t, Digest: h, Size: resp.ContentLength}, nil
	}
	return v1.Descriptor{}, errNoHead
}

// Manifest GETs by digest, or else by tag: one request. It reads at most max
// bytes; 0: 4 MiB.
func (c *Client) Manifest(ctx context.Context, ref Reference, max int64) (Manifest, error) {
	m, err := c.manifest(ctx, ref, max)
	if err != nil {
		return Manifest{}, fmt.Errorf("reading manifest %s: %w", ref, err)
	}
	return m, nil
}

func (c *Client) manifest(ctx context.Context, ref Reference, max int64) (Manifest, error) {
	if max <= 0 {
		max = maxManifest
	}
	id, err := identifier(ref)
	if err != nil {
		return Manifest{}, err
	}
	if dir, ok := c.layouts[ref.Repository]; ok {
		return layoutSource{dir: dir}.fetch(ref, max)
	}
	s, err := c.session(ctx, ref.Repository, transport.PullScope)
	if err != nil {
		return Manifest{}, err
	}
	raw, _, err := s.whole(ctx, request{method: http.MethodGet, path: "manifests/" + id, max: max,
		header: map[string]string{"Accept": manifestTypes}, ok: []int{http.StatusOK}})
	if err != nil {
		return Manifest{}, err
	}
	return checkManifest(raw, ref.Digest)
}

// checkManifest hashes first: what does not match is not looked at.
func checkManifest(raw []byte, want v1.Hash) (Manifest, error) {
	if want.Hex != "" {
		if err := checkContent(raw, v1.Descriptor{Digest: want, Size: int64(len(raw))}); err != nil {
			return Manifest{}, err
		}
	}
	return newManifest(raw)
}

func checkContent(raw []byte, d v1.Descriptor) error {
	_, err := io.Copy(io.Discard, verifying(io.NopCloser(bytes.NewReader(raw)), d))
	return err
}

// Blob reads a whole blob of at most max bytes (0: 4 MiB) with one request and
// checks its digest (and d.Size when > 0).
func (c *Client) Blob(ctx context.Context, repo string, d v1.Descriptor, max int64) ([]byte, error) {
	b, err := c.blob(ctx, repo, d, max)
	if err != nil {
		return nil, fmt.Errorf("reading blob %s@%s: %w", repo, d.Digest, err)
	}
	return b, nil
}

func (c *Client) blob(ctx context.Context, repo string, d v1.Descriptor, max int64) ([]byte, error) {
	if max <= 0 {
		max = maxAnswer
	}
	if d.Size > max {
		return nil, fmt.Errorf("%d bytes: %w, at most %d are read", d.Size, ErrTooLarge, max)
	}
	if d.Size > 0 {
		max = d.Size
	}
	if dir, ok := c.layouts[repo]; ok {
		return layoutSource{dir: dir}.small(d, max)
	}
	s, err := c.session(ctx, repo, transport.PullScope)
	if err != nil {
		return nil, err
	}
	raw, _, err := s.whole(ctx, blobRequest(d.Digest, max))
	if err != nil {
		if d.Size > 0 && errors.Is(err, ErrTooLarge) {
			return nil, fmt.Errorf("%w: longer than %d bytes", ErrContentMismatch, d.Size)
		}
		return nil, err
	}
	if d.Size <= 0 {
		d.Size = int64(len(raw))
	}
	return raw, checkContent(raw, d)
}

func blobRequest(h v1.Hash, max int64) request {
	return request{method: http.MethodGet, path: "blobs/" + h.String(), max: max, ok: []int{http.StatusOK}}
}

// Open resolves a location and returns its source and descriptor. A layout
// with several manifests needs a digest.
func (c *Client) Open(ctx context.Context, l Location) (Source, v1.Descriptor, error) {
	if l.Layout != "" {
		return openLayout(l)
	}
	d, err := c.Resolve(ctx, l.Reference)
	if err != nil {
		return nil, v1.Descriptor{}, err
	}
	return c.Source(l.Reference.Repository), d, nil
}

// Source reads from one canonical repository.
func (c *Client) Source(repo string) Source { return repoSource{c, repo} }

type repoSource struct {
	c    *Client
	repo string
}

func (s repoSource) Manifest(ctx context.Context, h v1.Hash) (Manifest, error) {
	return s.c.Manifest(ctx, Reference{Repository: s.repo, Digest: h}, 0)
}

func (s repoSource) Blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	b, err := s.blob(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("reading blob %s@%s: %w", s.repo, d.Digest, err)
	}
	return b, nil
}

func (s repoSource) blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	if err := checkDescriptors([]v1.Descriptor{d}); err != nil {
		return nil, err
	}
	at, err := s.c.session(ctx, s.repo, transport.PullScope)
	if err != nil {
		return nil, err
	}
	// One byte more than the blob has, so that a longer one is a mismatch.
	r := blobRequest(d.Digest, d.Size+1)
	r.stream = true
	resp, err := at.do(ctx, r)
	if err != nil {
		return nil, err
	}
	return verifying(resp.Body, d), nil
}

// verifying is a reader that returns ErrContentMismatch in place of io.EOF
// when the bytes were not those of the descriptor.
func verifying(r io.ReadCloser, d v1.Descriptor) io.ReadCloser {
	return &verifier{ReadCloser: r, want: d, hash: sha256.New()}
}

type verifier struct {
	io.ReadCloser
	want v1.Descriptor
	hash hash.Hash
	got  int64
	err  error // sticky
}

func (v *verifier) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	n, err := v.ReadCloser.Read(p)
	v.got += int64(n)
	v.hash.Write(p[:n])
	switch {
	case v.got > v.want.Size:
		n, err = 0, fmt.Errorf("%w: longer than %d bytes", ErrContentMismatch, v.want.Size)
	case err == io.EOF:
		err = v.check()
	}
	v.err = err
	return n, err
}

func (v *verifier) check() error {
	sum := hex.EncodeToString(v.hash.Sum(nil))
	switch {
	case v.got != v.want.Size:
		return fmt.Errorf("%w: %d bytes of %d", ErrContentMismatch, v.got, v.want.Size)
	case v.want.Digest.Algorithm != "sha256" || sum != v.want.Digest.Hex:
		return fmt.Errorf("%w: want %s, got sha256:%s", ErrContentMismatch, v.want.Digest, sum)
	}
	return io.EOF
}

// Tags lists the tags of a repository in the registry's order, following its
// pages. Where there are more than max (0: 10,000), the first max come with
// ErrTooLarge. A repository without tags may be ErrNotFound.
func (c *Client) Tags(ctx context.Context, repo string, max int) ([]string, error) {
	if max <= 0 {
		max = defaultTags
	}
	tags, err := c.tags(ctx, repo, max)
	if err != nil {
		return tags, fmt.Errorf("listing tags of %s: %w", repo, err)
	}
	return tags, nil
}

func (c *Client) tags(ctx context.Context, repo string, max int) ([]string, error) {
	s, err := c.session(ctx, repo, transport.PullScope)
	if err != nil {
		return nil, err
	}
	var all []string
	seen := map[string]bool{}
	r := request{method: http.MethodGet, path: "tags/list", ok: []int{http.StatusOK},
		query: url.Values{"n": {strconv.Itoa(pageSize)}}}
	for range maxPages {
		page, next, err := s.tagsPage(ctx, r)
		if err != nil {
			return nil, err
		}
		fresh := 0
		for _, t := range page {
			if !seen[t] {
				seen[t] = true
				all = append(all, t)
				fresh++
			}
		}
		if len(all) > max {
			return all[:max], fmt.Errorf("%w: more than %d", ErrTooLarge, max)
		}
		switch {
		case next != nil && fresh == 0:
			return nil, errors.New("a page leads to nothing new")
		case next != nil:
			r = request{method: http.MethodGet, at: next, ok: r.ok}
		case len(page) >= pageSize && fresh > 0:
			// A full page without a link: some registries stop without saying so.
			r = request{method: http.MethodGet, path: r.path, ok: r.ok,
				query: url.Values{"n": {strconv.Itoa(pageSize)}, "last": {page[len(page)-1]}}}
		default:
			return all, nil
		}
	}
	return nil, fmt.Errorf("%w: more than %d pages", ErrTooLarge, maxPages)
}

// tagsPage reads one page and the address of the next, nil at the end.
func (s *session) tagsPage(ctx context.Context, r request) ([]string, *url.URL, error) {
	raw, resp, err := s.whole(ctx, r)
	if err != nil {
		return nil, nil, err
	}
	var page struct {
		Tags []string `json:"tags"`
	}
	if err := json.Unmarshal(raw, &page); err != nil {
		return nil, nil, fmt.Errorf("the list: %w", err)
	}
	for _, t := range page.Tags {
		if !isTag(t) {
			return nil, nil, fmt.Errorf("the list: %q is not a tag", clip(t, maxErrorText))
		}
	}
	next, err := nextPage(resp)
	return page.Tags, next, err
}

// nextPage is the address in the Link header with rel="next": on the same
// registry, nil when there is none.
// https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#listing-tags
func nextPage(resp *http.Response) (*url.URL, error) {
	link := resp.Header.Get("Link")
	if link == "" {
		return nil, nil
	}
	target, params, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(link), "<"), ">")
	if !ok || !strings.Contains(strings.ReplaceAll(params, `"`, ""), "rel=next") {
		return nil, nil
	}
	u, err := resp.Request.URL.Parse(target)
	if err != nil || u.Host != resp.Request.URL.Host {
		return nil, fmt.Errorf("the next page is elsewhere: %q", clip(target, maxErrorText))
	}
	return u, nil
}
