package oci

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

func TestAttach(t *testing.T) {
	for _, row := range []struct {
		summary   string
		referrers bool
		clients   int
	}{
		{"a registry with the referrers API", true, 1},
		{"a registry without it", false, 1},
		{"two clients, a registry without it", false, 2},
	} {
		t.Run(row.summary, func(t *testing.T) {
			ctx := context.Background()
			h := memory(row.referrers)
			repo, first := serve(t, h, Options{})
			clients := []*Client{first}
			for len(clients) < row.clients {
				clients = append(clients, New(Options{}))
			}
			subject := subjectOf(t, first, repo)
			list := must[[]v1.Descriptor](t, "before")(first.Referrers(ctx, repo, subject.Digest, "", 0))
			if len(list) != 0 {
				t.Fatalf("before: %v", list)
			}
			var wg sync.WaitGroup
			var digests sync.Map
			for i := range 20 {
				wg.Go(func() {
					d, err := clients[i%len(clients)].Attach(ctx, repo, subject, Artifact{Type: "application/vnd.test.note", Data: fmt.Append(nil, i)})
					if err != nil {
						t.Error(err)
					}
					digests.Store(d.Digest, true)
				})
			}
			wg.Wait()
			list = must[[]v1.Descriptor](t, "after")(first.Referrers(ctx, repo, subject.Digest, "application/vnd.test.note", 0))
			if len(list) != 20 {
				t.Errorf("%d of 20 are listed", len(list))
			}
			for _, d := range list {
				if _, ok := digests.Load(d.Digest); !ok {
					t.Errorf("%s was never attached", d.Digest)
				}
			}
			if list, err := first.Referrers(ctx, repo, subject.Digest, "other", 0); err != nil || len(list) != 0 {
				t.Errorf("another type: %v, %v", list, err)
			}
			if _, err := first.Referrers(ctx, repo, subject.Digest, "", 19); !errors.Is(err, ErrTooLarge) {
				t.Errorf("with a bound of 19: %v", err)
			}
			_, err := first.Resolve(ctx, Reference{Repository: repo, Tag: fallbackTag(subject.Digest)})
			if row.referrers != errors.Is(err, ErrNotFound) {
				t.Errorf("the fallback tag: %v", err)
			}
		})
	}
}

func TestAttachingTwiceChangesNothing(t *testing.T) {
	ctx := context.Background()
	repo, c := serve(t, memory(false), Options{})
	subject := subjectOf(t, c, repo)
	one := must[v1.Descriptor](t, "attach")(c.Attach(ctx, repo, subject, note))
	two := must[v1.Descriptor](t, "attach again")(c.Attach(ctx, repo, subject, note))
	list := must[[]v1.Descriptor](t, "list")(c.Referrers(ctx, repo, subject.Digest, "", 0))
	if one.Digest != two.Digest || len(list) != 1 || list[0].ArtifactType != note.Type || list[0].Annotations["a"] != "b" {
		t.Errorf("%s, %s, listed %+v", one.Digest, two.Digest, list)
	}
	a := must[Artifact](t, "read back")(c.Artifact(ctx, repo, list[0].Digest, 0))
	if string(a.Data) != "hello" || a.Annotations["a"] != "b" {
		t.Errorf("read back %+v", a)
	}
}

// The fallback tag of some registries is the subject itself, which may even be an index.
func TestFallbackTagThatIsNoList(t *testing.T) {
	ctx := context.Background()
	index := []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`)
	for _, row := range []struct {
		summary string
		put     func(t *testing.T, c *Client, repo string) v1.Descriptor
	}{
		{"the subject is an image", subjectOf},
		{"the subject is an index", func(t *testing.T, c *Client, repo string) v1.Descriptor {
			h := must[v1.Hash](t, "index")(c.PutManifest(ctx, repo, "v1", types.OCIImageIndex, index))
			return v1.Descriptor{MediaType: types.OCIImageIndex, Digest: h, Size: int64(len(index))}
		}},
	} {
		t.Run(row.summary, func(t *testing.T) {
			repo, c := serve(t, memory(false), Options{})
			subject := row.put(t, c, repo)
			m := must[Manifest](t, "subject")(c.Manifest(ctx, Reference{Repository: repo, Tag: "v1"}, 0))
			tag := fallbackTag(subject.Digest)
			must[v1.Hash](t, "alias")(c.PutManifest(ctx, repo, tag, m.MediaType, m.Bytes))

			list, err := c.Referrers(ctx, repo, subject.Digest, "", 0)
			if err != nil || len(list) != 0 {
				t.Errorf("listed %v, %v", list, err)
			}
			if _, err := c.Attach(ctx, repo, subject, note); !errors.Is(err, ErrUnsupported) {
				t.Errorf("attach: %v", err)
			}
			if d, err := c.Resolve(ctx, Reference{Repository: repo, Tag: tag}); err != nil || d.Digest != subject.Digest {
				t.Errorf("the tag was overwritten: %v, %v", d.Digest, err)
			}
		})
	}
}

func TestReferrersFollowPages(t *testing.T) {
	const item = `{"mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":"%s","size":1,"digest":"sha256:%064d"}`
	for _, row := range []struct {
		summary string
		pages   []string // each links to the next; the last to itself if endless
		endless bool
		max     int
		want    int
		is      error
	}{
		{"two pages", []string{fmt.Sprintf(item, "a", 1), fmt.Sprintf(item, "a", 2)}, false, 2, 2, nil},
		{"a registry that does not filter", []string{fmt.Sprintf(item, "b", 1), fmt.Sprintf(item, "a", 2)}, false, 1, 1, nil},
		{"the same one twice", []string{fmt.Sprintf(item, "a", 1), fmt.Sprintf(item, "a", 1)}, false, 2, 1, nil},
		{"more than the bound", []string{fmt.Sprintf(item, "a", 1), fmt.Sprintf(item, "a", 2)}, false, 1, 0, ErrTooLarge},
		{"pages without end", []string{fmt.Sprintf(item, "a", 1)}, true, 5, 0, ErrTooLarge},
	} {
		t.Run(row.summary, func(t *testing.T) {
			repo, c := serve(t, answering(func(w http.ResponseWriter, r *http.Request) {
				n := min(len(r.URL.Query().Get("page")), len(row.pages)-1)
				w.Header().Set("Content-Type", string(types.OCIImageIndex))
				if n+1 < len(row.pages) || row.endless {
					w.Header().Set("Link", fmt.Sprintf(`<%s?page=%s>; rel="next"`, r.URL.Path, r.URL.Query().Get("page")+"x"))
				}
				fmt.Fprintf(w, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[%s]}`, row.pages[n])
			}), Options{})
			h, _, _ := v1.SHA256(strings.NewReader("subject"))
			list, err := c.Referrers(context.Background(), repo, h, "a", row.max)
			if len(list) != row.want || !errors.Is(err, row.is) {
				t.Errorf("%d, %v", len(list), err)
			}
		})
	}
}
