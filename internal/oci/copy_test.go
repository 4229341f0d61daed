package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// TestCopy: what refers to an image, what refers to that, and cosign's old tags
// arrive, between registries of both kinds and over a layout.
func TestCopy(t *testing.T) {
	ctx := context.Background()
	for _, row := range []struct {
		summary  string
		from, to bool // with the referrers API
	}{
		{"with the referrers API", true, true}, {"to a registry without it", true, false},
		{"from a registry without it", false, true}, {"neither has it", false, false},
	} {
		t.Run(row.summary, func(t *testing.T) {
			from, c := serve(t, memory(row.from), Options{})
			to, _ := serve(t, memory(row.to), Options{})
			d := subjectOf(t, c, from)
			first := must[v1.Descriptor](t, "attach")(c.Attach(ctx, from, d, note))
			second := must[v1.Descriptor](t, "attach")(c.Attach(ctx, from, first, Artifact{Type: "application/vnd.test.reply", Data: []byte("reply")}))
			legacy := must[v1.Descriptor](t, "legacy")(c.PutArtifact(ctx, from, fallbackTag(d.Digest)+".sig", Artifact{Type: "application/vnd.test.sig", Data: []byte("sig")}))
			src := Location{Reference: Reference{Repository: from, Tag: "v1"}}
			disk := Location{Layout: filepath.Join(t.TempDir(), "disk")}
			dst := Location{Reference: Reference{Repository: to, Tag: "v2"}}
			for _, step := range []struct{ src, dst Location }{{src, disk}, {disk, dst}, {src, dst}} {
				got, is, err := c.Copy(ctx, step.src, step.dst)
				if err != nil || is.Digest != d.Digest || got.Manifests != 4 || got.Referrers != 2 || got.Legacy != 1 {
					t.Fatalf("%+v %v %v", got, is, err)
				}
			}
			tagged := must[v1.Descriptor](t, "tag")(c.Resolve(ctx, Reference{Repository: to, Tag: "v2"}))
			old := must[v1.Descriptor](t, "legacy tag")(c.Resolve(ctx, Reference{Repository: to, Tag: fallbackTag(d.Digest) + ".sig"}))
			if tagged.Digest != d.Digest || old.Digest != legacy.Digest {
				t.Errorf("the tags point to %s and %s", tagged.Digest, old.Digest)
			}
			for subject, want := range map[v1.Hash]v1.Hash{d.Digest: first.Digest, first.Digest: second.Digest} {
				list := must[[]v1.Descriptor](t, "referrers")(c.Referrers(ctx, to, subject, "", 0))
				if len(list) != 1 || list[0].Digest != want {
					t.Errorf("referrers of %s: %v", subject, list)
				}
			}
		})
	}
}

// TestCopyOfAHostileSource is bounded and says why it ends.
func TestCopyOfAHostileSource(t *testing.T) {
	ctx := context.Background()
	push := func(t *testing.T, c *Client, repo string, index v1.IndexManifest) v1.Descriptor {
		t.Helper()
		index.SchemaVersion, index.MediaType = 2, types.OCIImageIndex
		raw := must[[]byte](t, "index")(json.Marshal(index))
		h := must[v1.Hash](t, "put")(c.PutManifest(ctx, repo, "v1", types.OCIImageIndex, raw))
		return v1.Descriptor{MediaType: types.OCIImageIndex, Digest: h, Size: int64(len(raw))}
	}
	for _, row := range []struct {
		summary string
		prepare func(t *testing.T, c *Client, repo string)
		hide    string // requests whose path contains this are not found
		want    error
	}{
		{"indexes in indexes without end", func(t *testing.T, c *Client, repo string) {
			d := subjectOf(t, c, repo)
			for range maxCopyDepth + 2 {
				d = push(t, c, repo, v1.IndexManifest{Manifests: []v1.Descriptor{d}})
			}
		}, "", ErrTooLarge},
		{"a child that is missing", func(t *testing.T, c *Client, repo string) {
			d := subjectOf(t, c, repo)
			push(t, c, repo, v1.IndexManifest{Manifests: []v1.Descriptor{d}})
		}, "blobs/sha256:", ErrNotFound},
		{"referrers of referrers without end", func(t *testing.T, c *Client, repo string) {
			d := subjectOf(t, c, repo)
			for i := range maxCopyDepth + 3 {
				d = must[v1.Descriptor](t, "attach")(c.Attach(ctx, repo, d, Artifact{Type: "application/vnd.test.note", Data: fmt.Append(nil, i)}))
			}
		}, "", ErrTooLarge},
	} {
		t.Run(row.summary, func(t *testing.T) {
			backend, hidden := memory(true), ""
			from, c := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if hidden != "" && r.Method == http.MethodGet && strings.Contains(r.URL.Path, hidden) {
					http.NotFound(w, r)
					return
				}
				backend.ServeHTTP(w, r)
			}), Options{})
			to, _ := serve(t, memory(true), Options{})
			row.prepare(t, c, from)
			hidden = row.hide
			_, _, err := c.Copy(ctx, Location{Reference: Reference{Repository: from, Tag: "v1"}}, Location{Reference: Reference{Repository: to, Tag: "v1"}})
			if !errors.Is(err, row.want) {
				t.Fatalf("got %v, want %v", err, row.want)
			}
			if _, err := c.Resolve(ctx, Reference{Repository: to, Tag: "v1"}); !errors.Is(err, ErrNotFound) {
				t.Errorf("the tag was set all the same: %v", err)
			}
		})
	}
}

// TestCopyThatIsIncomplete: a destination that forgets a manifest is found out.
func TestCopyThatIsIncomplete(t *testing.T) {
	ctx := context.Background()
	from, c := serve(t, memory(true), Options{})
	d := subjectOf(t, c, from)
	lost := must[v1.Descriptor](t, "attach")(c.Attach(ctx, from, d, note))
	backend := memory(true)
	to, _ := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, lost.Digest.String()) {
			w.WriteHeader(http.StatusCreated) // and nothing else
			return
		}
		backend.ServeHTTP(w, r)
	}), Options{})
	_, _, err := c.Copy(ctx, Location{Reference: Reference{Repository: from, Tag: "v1"}}, Location{Reference: Reference{Repository: to, Tag: "v1"}})
	if err == nil || !strings.Contains(err.Error(), "left behind: "+lost.Digest.String()) {
		t.Fatalf("%v", err)
	}
}
