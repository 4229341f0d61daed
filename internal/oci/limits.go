package oci

import "time"

// Every bound of this package. What a registry, a layout or a reference says
// is read up to these and refused beyond them; Options and the arguments of
// single calls narrow or widen only where their doc comments say so.
const (
	// maxReference is the longest reference or location, in bytes.
	maxReference = 1024
	// maxManifest is the largest manifest or index, in bytes, where the
	// caller names no bound. Registries are asked to accept 4 MiB at least:
	// https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pushing-manifests
	maxManifest = 4 << 20
	// maxAnswer is the largest body of any other answer (pings, tokens,
	// uploads) and of one page of tags or referrers, in bytes.
	maxAnswer = 4 << 20
	// maxErrorBody is how much of an error's body is read, in bytes.
	maxErrorBody = 8 << 10
	// maxErrorText is how much of a registry's own words an error repeats, in bytes.
	maxErrorText = 256

	// defaultTags is the number of tags listed where the caller names no bound.
	defaultTags = 10_000
	// defaultReferrers is the number of referrers of one subject listed where
	// the caller names no bound, and the most that a fallback tag may hold.
	defaultReferrers = 1_000
	// maxListed is the number of descriptors on one page of referrers, of any type.
	maxListed = 10_000
	// pageSize is how many tags one request asks for; some registries refuse more.
	pageSize = 1_000
	// maxPages is the number of pages followed in one listing.
	maxPages = 1_000

	// defaultTimeout bounds one request, or one stall of a stream.
	defaultTimeout = 60 * time.Second
	// minProgress is what a stream must deliver within one timeout spent
	// waiting for it, in bytes; less is a stall.
	minProgress = 16 << 10
	// maxRedirects is the number of redirects followed for one request.
	maxRedirects = 5

	// maxAttempts is how often one request is sent: once, and again after
	// 408, 429, 500, 502, 503, 504 or a connection that broke.
	maxAttempts = 3
	// retryDelay is the wait before the second attempt; each next is three times longer.
	retryDelay = 250 * time.Millisecond
	// maxRetryAfter is the longest Retry-After that is waited for; a longer one is a failure at once.
	maxRetryAfter = 10 * time.Second

	// attachAttempts is how often a fallback tag is read, changed and read back.
	attachAttempts = 16
	// minSettle and maxSettle bound the wait before a fallback tag is read back.
	minSettle = 20 * time.Millisecond
	maxSettle = 2 * time.Second

	// maxLayoutDepth is how deep indexes in a layout may nest below index.json.
	maxLayoutDepth = 4
	// maxLayoutManifests is how many descriptors a layout is searched for a digest.
	maxLayoutManifests = 10_000
)
