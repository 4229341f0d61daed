package oci

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
)

// TestProbe: each peculiarity is found, and only that.
func TestProbe(t *testing.T) {
	usual := map[string]Answer{
		ProbeWrite: Yes, ProbeReadBack: Yes, ProbeMissing: Yes, ProbeMove: Yes, ProbeReferrers: Yes,
		ProbeFallback: Yes, ProbeSize: Yes, ProbeConditional: No, ProbeDelete: Yes,
	}
	tests := []struct {
		summary string
		odd     func(next http.Handler) http.HandlerFunc
		want    map[string]Answer // beside the usual
	}{
		{"a usual one", func(next http.Handler) http.HandlerFunc { return next.ServeHTTP }, nil},
		{"immutable tags", immutableTags, map[string]Answer{ProbeMove: No}},
		{"a tag that silently stays", silentTags, map[string]Answer{ProbeMove: No}},
		{"403 for a missing tag", onMissing(http.StatusForbidden), map[string]Answer{ProbeMissing: No}},
		{"500 for a missing tag", onMissing(http.StatusInternalServerError), map[string]Answer{ProbeMissing: Unknown}},
		{"no deletion", refusing(http.MethodDelete, "", http.StatusMethodNotAllowed), map[string]Answer{ProbeDelete: No}},
		{"preconditions", preconditions, map[string]Answer{ProbeConditional: Yes}},
		{"small manifests", smallManifests, map[string]Answer{ProbeSize: No}},
		{"sha256-HEX is the digest, no referrers API", digestTags, map[string]Answer{ProbeFallback: No, ProbeReferrers: No}},
	}
	for _, test := range tests {
		t.Run(test.summary, func(t *testing.T) {
			repo, c := serve(t, test.odd(memory(true)), Options{})
			host, _, _ := strings.Cut(repo, "/")
			findings := must[[]Finding](t, "probe")(c.Probe(context.Background(), host+"/team"))
			for _, f := range findings {
				want, checked := usual[f.Name]
				if odd, ok := test.want[f.Name]; ok {
					want, checked = odd, true
				}
				if checked && f.Answer != want {
					t.Errorf("%s: %s (%s), want %s", f.Name, f.Answer, f.Detail, want)
				}
			}
			if len(findings) != 10 {
				t.Errorf("%d findings", len(findings))
			}
		})
	}
	t.Run("nothing can be written", func(t *testing.T) {
		repo, c := serve(t, refusing(http.MethodPost, "", http.StatusForbidden)(memory(true)), Options{})
		host, _, _ := strings.Cut(repo, "/")
		if _, err := c.Probe(context.Background(), host); err == nil || !strings.Contains(err.Error(), "nothing can be written") {
			t.Errorf("%v", err)
		}
	})
}

// isTagPath tells whether a request is about a manifest by a tag.
func isTagPath(r *http.Request) bool {
	return strings.Contains(r.URL.Path, "/manifests/") && !strings.Contains(r.URL.Path, "/manifests/sha256:")
}

func refusing(method, path string, status int) func(http.Handler) http.HandlerFunc {
	return func(next http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Method == method && strings.Contains(r.URL.Path, path) {
				w.WriteHeader(status)
				return
			}
			next.ServeHTTP(w, r)
		}
	}
}

func onMissing(status int) func(http.Handler) http.HandlerFunc {
	return func(next http.Handler) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/manifests/missing") {
				w.WriteHeader(status)
				return
			}
			next.ServeHTTP(w, r)
		}
	}
}

// once lets each tag be written once and answers further ones itself.
func once(next http.Handler, again int) http.HandlerFunc {
	var mu sync.Mutex
	tags := map[string]bool{}
	return func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen := tags[r.URL.Path]
		if r.Method == http.MethodPut && isTagPath(r) {
			tags[r.URL.Path] = true
		}
		mu.Unlock()
		if seen && r.Method == http.MethodPut && r.Header.Get("If-Match") == "" {
			_, _ = io.Copy(io.Discard, r.Body)
			w.WriteHeader(again)
			return
		}
		next.ServeHTTP(w, r)
	}
}

func immutableTags(next http.Handler) http.HandlerFunc { return once(next, http.StatusBadRequest) }
func silentTags(next http.Handler) http.HandlerFunc    { return once(next, http.StatusCreated) }

func preconditions(next http.Handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("If-Match") != "" {
			w.WriteHeader(http.StatusPreconditionFailed)
			return
		}
		next.ServeHTTP(w, r)
	}
}

func smallManifests(next http.Handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/") && r.ContentLength > 1<<20 {
			_, _ = io.Copy(io.Discard, r.Body)
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			return
		}
		next.ServeHTTP(w, r)
	}
}

// digestTags answers the tag sha256-HEX with the manifest of that digest.
func digestTags(next http.Handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/referrers/") {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		r = r.Clone(r.Context())
		r.URL.Path = strings.Replace(r.URL.Path, "/manifests/sha256-", "/manifests/sha256:", 1)
		next.ServeHTTP(w, r)
	}
}
