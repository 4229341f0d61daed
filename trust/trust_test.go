package trust_test

import (
	"bytes"
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/internal/oci"
	"github.com/imgtrust/imgtrust/internal/testkit"
	"github.com/imgtrust/imgtrust/policy"
	"github.com/imgtrust/imgtrust/trust"
)

// index reads the trust index that the tag points to now.
func index(t *testing.T, v *testkit.VirtualTrust) oci.Manifest {
	t.Helper()
	m, err := v.Client.Manifest(context.Background(), oci.Reference{Repository: v.Repository, Tag: trust.Tag}, 0)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// putIndex points the tag to other index bytes, as anyone who may write the
// registry can.
func putIndex(t *testing.T, v *testkit.VirtualTrust, raw []byte) {
	t.Helper()
	if _, err := v.Client.PutManifest(context.Background(), v.Repository, trust.Tag, types.OCIImageIndex, raw); err != nil {
		t.Fatal(err)
	}
}

// rewrite changes the layers of one manifest of the index and puts the index
// back: what someone without keys can do. The manifest is chosen by a
// prefix of one of its annotations' values.
func rewrite(t *testing.T, v *testkit.VirtualTrust, which string, change func(layers []any) []any) {
	t.Helper()
	ctx := context.Background()
	var idx map[string]any
	if err := json.Unmarshal(index(t, v).Bytes, &idx); err != nil {
		t.Fatal(err)
	}
	for _, item := range idx["manifests"].([]any) {
		d := item.(map[string]any)
		found := false
		for _, a := range d["annotations"].(map[string]any) {
			found = found || strings.HasPrefix(a.(string), which)
		}
		if !found {
			continue
		}
		h, err := v1.NewHash(d["digest"].(string))
		if err != nil {
			t.Fatal(err)
		}
		m, err := v.Client.Manifest(ctx, oci.Reference{Repository: v.Repository, Digest: h}, 0)
		if err != nil {
			t.Fatal(err)
		}
		var manifest map[string]any
		if err := json.Unmarshal(m.Bytes, &manifest); err != nil {
			t.Fatal(err)
		}
		manifest["layers"] = change(manifest["layers"].([]any))
		raw, err := json.Marshal(manifest)
		if err != nil {
			t.Fatal(err)
		}
		put, err := v.Client.PutManifest(ctx, v.Repository, "", types.OCIManifestSchema1, raw)
		if err != nil {
			t.Fatal(err)
		}
		d["digest"], d["size"] = put.String(), len(raw)
		delete(d, "data")
	}
	raw, err := json.Marshal(idx)
	if err != nil {
		t.Fatal(err)
	}
	putIndex(t, v, raw)
}

func fileName(layer any) string {
	return layer.(map[string]any)["annotations"].(map[string]any)["tuf.io/filename"].(string)
}

// TestAttacks plays what someone can do who writes the registry, and in some
// rows also holds the online key, and names the word that the reader answers.
func TestAttacks(t *testing.T) {
	attacks := []struct {
		summary string
		// attack runs after a reader with state has accepted version 2, which lists app/web:1.
		attack func(t *testing.T, v *testkit.VirtualTrust, before oci.Manifest)
		code   policy.Code
	}{{
		summary: "rollback: an older trust index is put back",
		attack: func(t *testing.T, v *testkit.VirtualTrust, before oci.Manifest) {
			putIndex(t, v, before.Bytes)
		},
		code: policy.RolledBack,
	}, {
		summary: "freeze: the index is not refreshed any more",
		attack: func(t *testing.T, v *testkit.VirtualTrust, _ oci.Manifest) {
			v.Clock.Add(7*24*time.Hour + time.Second)
		},
		code: policy.MetadataExpired,
	}, {
		summary: "mix and match: an older timestamp with the newer snapshot",
		attack: func(t *testing.T, v *testkit.VirtualTrust, before oci.Manifest) {
			old := layersOf(t, v, before, "top")
			rewrite(t, v, "top", func(layers []any) []any {
				for i, l := range layers {
					if fileName(l) == "timestamp.json" {
						layers[i] = old["timestamp.json"]
					}
				}
				return layers
			})
		},
		code: policy.RolledBack,
	}, {
		summary: "the data inlined in a descriptor differs from its blob",
		attack: func(t *testing.T, v *testkit.VirtualTrust, _ oci.Manifest) {
			rewrite(t, v, "top", func(layers []any) []any {
				for _, l := range layers {
					if fileName(l) == "timestamp.json" {
						l.(map[string]any)["data"] = "e30="
					}
				}
				return layers
			})
		},
		code: policy.MetadataInvalid,
	}, {
		summary: "the snapshot is left out",
		attack: func(t *testing.T, v *testkit.VirtualTrust, _ oci.Manifest) {
			rewrite(t, v, "top", func(layers []any) []any {
				var kept []any
				for _, l := range layers {
					if !strings.Contains(fileName(l), "snapshot") {
						kept = append(kept, l)
					}
				}
				return kept
			})
		},
		code: policy.MetadataInvalid,
	}, {
		summary: "an unknown role file repeats a name",
		attack: func(t *testing.T, v *testkit.VirtualTrust, _ oci.Manifest) {
			rewrite(t, v, "top", func(layers []any) []any { return append(layers, layers[0]) })
		},
		code: policy.MetadataInvalid,
	}, {
		summary: "the index of another trust repository that shares every key",
		attack: func(t *testing.T, v *testkit.VirtualTrust, _ oci.Manifest) {
			other := v.Host + "/other-trust"
			_, err := trust.Init(context.Background(), trust.InitOptions{
				Repository: other, Registry: v.Client, Now: v.Clock.Now, OnlineKey: v.Online,
				RootKeys: []crypto.Signer{v.Root[0], v.Root[1]}, TargetsKeys: []crypto.Signer{v.Targets[0]},
				Policy: []byte(testkit.Policy(t, v.Host, v.Signers)),
			})
			if err != nil {
				t.Fatal(err)
			}
			copyRepository(t, v, other)
		},
		// Its timestamp has version 1 and ours 2: seen as a rollback before anything else.
		code: policy.RolledBack,
	}, {
		summary: "the registry is down",
		attack: func(t *testing.T, v *testkit.VirtualTrust, _ oci.Manifest) {
			v.Intercept(func(w http.ResponseWriter, _ *http.Request) bool {
				w.WriteHeader(http.StatusForbidden)
				return true
			})
		},
		code: policy.Unavailable,
	}, {
		summary: "not a trust index at all",
		attack: func(t *testing.T, v *testkit.VirtualTrust, _ oci.Manifest) {
			putIndex(t, v, []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`))
		},
		code: policy.MetadataInvalid,
	}, {
		summary: "a duplicate key in the index",
		attack: func(t *testing.T, v *testkit.VirtualTrust, _ oci.Manifest) {
			raw := index(t, v).Bytes
			putIndex(t, v, bytes.Replace(raw, []byte(`{"schemaVersion":2,`), []byte(`{"schemaVersion":2,"schemaVersion":2,`), 1))
		},
		code: policy.MetadataInvalid,
	}}
	for _, a := range attacks {
		t.Run(a.summary, func(t *testing.T) {
			v := testkit.NewVirtualTrust(t)
			before := index(t, v)
			v.List(v.Host+"/app/web", "1", "web", "ci")
			t.Setenv("STATE", t.TempDir())
			if err := v.Reader(stateOf(t)).Refresh(context.Background()); err != nil {
				t.Fatal(err)
			}
			a.attack(t, v, before)
			err := v.Reader(stateOf(t)).Refresh(context.Background())
			if err == nil {
				t.Fatal("accepted")
			}
			if got := trust.CodeOf(err); got != a.code {
				t.Errorf("code %s, want %s: %v", got, a.code, err)
			}
		})
	}
}

func stateOf(*testing.T) string { return os.Getenv("STATE") }

// layersOf returns the layers of a manifest of an index by file name.
func layersOf(t *testing.T, v *testkit.VirtualTrust, m oci.Manifest, which string) map[string]any {
	t.Helper()
	parsed, err := v1.ParseIndexManifest(bytes.NewReader(m.Bytes))
	if err != nil {
		t.Fatal(err)
	}
	layers := map[string]any{}
	for _, d := range parsed.Manifests {
		for _, a := range d.Annotations {
			if !strings.HasPrefix(a, which) {
				continue
			}
			m, err := v.Client.Manifest(context.Background(), oci.Reference{Repository: v.Repository, Digest: d.Digest}, 0)
			if err != nil {
				t.Fatal(err)
			}
			var manifest map[string]any
			if err := json.Unmarshal(m.Bytes, &manifest); err != nil {
				t.Fatal(err)
			}
			for _, l := range manifest["layers"].([]any) {
				layers[fileName(l)] = l
			}
		}
	}
	return layers
}

// copyRepository copies a trust index and all its parts over ours.
func copyRepository(t *testing.T, v *testkit.VirtualTrust, from string) {
	t.Helper()
	ctx := context.Background()
	m, err := v.Client.Manifest(ctx, oci.Reference{Repository: from, Tag: trust.Tag}, 0)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := v1.ParseIndexManifest(bytes.NewReader(m.Bytes))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range parsed.Manifests {
		part, err := v.Client.Manifest(ctx, oci.Reference{Repository: from, Digest: d.Digest}, 0)
		if err != nil {
			t.Fatal(err)
		}
		manifest, err := v1.ParseManifest(bytes.NewReader(part.Bytes))
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range append(manifest.Layers, manifest.Config) {
			data, err := v.Client.Blob(ctx, from, l, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := v.Client.PutBlob(ctx, v.Repository, data, l.MediaType); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := v.Client.PutManifest(ctx, v.Repository, "", part.MediaType, part.Bytes); err != nil {
			t.Fatal(err)
		}
	}
	putIndex(t, v, m.Bytes)
}

// TestClockSetBack: the reference time never goes back before the last refresh,
// and neither does the floor that later processes read.
func TestClockSetBack(t *testing.T) {
	v := testkit.NewVirtualTrust(t)
	d := v.List(v.Host+"/app/web", "1", "web", "ci")
	state := t.TempDir()
	v.Clock.Add(6 * 24 * time.Hour)
	seen := v.Clock.Now()
	if err := v.Reader(state).Refresh(context.Background()); err != nil {
		t.Fatal(err)
	}
	v.Clock.Add(-30 * 24 * time.Hour)
	for range 2 {
		c := v.Reader(state)
		if _, err := c.LookupDigest(context.Background(), v.Host+"/app/web", d.Digest); err != nil {
			t.Fatal(err)
		}
		if c.Now().Before(seen) {
			t.Errorf("the reference time went back to %s", c.Now())
		}
	}
}

// TestClockAhead: a clock that was ahead for a while leaves nothing that keeps a
// reader from fresh metadata afterwards.
func TestClockAhead(t *testing.T) {
	ctx := context.Background()
	v := testkit.NewVirtualTrust(t)
	v.List(v.Host+"/app/web", "1", "web", "ci")
	o := v.ClientOptions(t.TempDir())
	refresh := func(ahead time.Duration) error {
		o.Now = func() time.Time { return v.Clock.Now().Add(ahead) }
		c, err := trust.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		return c.Refresh(ctx)
	}
	if err := refresh(10 * 365 * 24 * time.Hour); trust.CodeOf(err) != policy.MetadataExpired {
		t.Errorf("ten years ahead: %v", err)
	}
	if err := refresh(0); err != nil {
		t.Errorf("set right again: %v", err)
	}
	if err := refresh(5 * 24 * time.Hour); err != nil {
		t.Errorf("five days ahead, within the timestamp's life: %v", err)
	}
	v.Clock.Add(time.Hour)
	v.Publish()
	if err := refresh(0); err != nil {
		t.Errorf("set right again, after the next publish: %v", err)
	}
}

// TestLongLivedClient: a client that is kept does not answer from metadata that
// has expired since; it refreshes by itself, and shows what was revoked.
func TestLongLivedClient(t *testing.T) {
	ctx := context.Background()
	v := testkit.NewVirtualTrust(t)
	d := v.List(v.Host+"/app/web", "1", "web", "ci")
	c := v.Reader("")
	if err := c.Refresh(ctx); err != nil {
		t.Fatal(err)
	}
	v.Clock.Add(8 * 24 * time.Hour)
	if _, err := c.LookupDigest(ctx, v.Host+"/app/web", d.Digest); trust.CodeOf(err) != policy.MetadataExpired || err == nil {
		t.Errorf("after the timestamp has expired: %v", err)
	}
	v.Publish()
	v.Force(func(_ context.Context, draft *trust.Draft) {
		draft.Revoke(trust.Tombstone{Digest: d.Digest.String(), Date: v.Clock.Now(), Reason: "CVE"})
	})
	if revoked, err := c.Revoked(ctx); err != nil || len(revoked) != 1 {
		t.Errorf("after a renewal: %v %v", revoked, err)
	}
}

// TestNothingInlined: an index whose descriptors lost their data, as a registry
// may do, is read by a client that keeps nothing on disk.
func TestNothingInlined(t *testing.T) {
	v := testkit.NewVirtualTrust(t)
	d := v.List(v.Host+"/app/web", "1", "web", "ci")
	rewrite(t, v, "top", func(layers []any) []any {
		for _, l := range layers {
			delete(l.(map[string]any), "data")
		}
		return layers
	})
	if _, err := v.Reader("").LookupDigest(context.Background(), v.Host+"/app/web", d.Digest); err != nil {
		t.Error(err)
	}
}

// TestGroupMissing: an index that lost some of its bins is refused whole: a
// publisher must not build on it.
func TestGroupMissing(t *testing.T) {
	v := testkit.NewVirtualTrust(t)
	var idx map[string]any
	if err := json.Unmarshal(index(t, v).Bytes, &idx); err != nil {
		t.Fatal(err)
	}
	manifests := idx["manifests"].([]any)
	idx["manifests"] = manifests[:len(manifests)-1]
	raw, err := json.Marshal(idx)
	if err != nil {
		t.Fatal(err)
	}
	putIndex(t, v, raw)
	if err := v.Reader("").Refresh(context.Background()); trust.CodeOf(err) != policy.MetadataInvalid || err == nil {
		t.Errorf("got %v", err)
	}
}

// TestBoundsWhenWriting: what no reader would take is not written.
func TestBoundsWhenWriting(t *testing.T) {
	ctx := context.Background()
	v := testkit.NewVirtualTrust(t)
	draft, err := v.Reader("").NewDraft(ctx, v.Online)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 4097 {
		draft.Revoke(trust.Tombstone{Signer: fmt.Sprint("signer-", i), Date: v.Clock.Now(), Since: v.Clock.Now(), Reason: "stolen"})
	}
	if _, err := draft.Publish(ctx); err == nil {
		t.Error("more tombstones than a reader takes are published")
	}
	if err := v.Reader("").Refresh(ctx); err != nil {
		t.Errorf("and they reached the registry: %v", err)
	}
}

// TestStatelessPublisher: one that cannot know whether an expired index is the
// newest does not renew it, unless it is told.
func TestStatelessPublisher(t *testing.T) {
	v := testkit.NewVirtualTrust(t)
	v.List(v.Host+"/app/web", "1", "web", "ci")
	v.Clock.Add(30 * 24 * time.Hour)
	state := t.TempDir() // one for all: trying again does not make it good
	for _, row := range []struct {
		expect int64
		code   policy.Code
	}{{0, policy.MetadataExpired}, {7, policy.RolledBack}, {0, policy.MetadataExpired}, {2, ""}} {
		p, err := trust.OpenPublisher(trust.PublisherOptions{ClientOptions: v.ClientOptions(state), OnlineKey: v.Online, ExpectVersion: row.expect})
		if err != nil {
			t.Fatal(err)
		}
		_, err = p.Publish(context.Background())
		if row.code == "" && err != nil || row.code != "" && (err == nil || trust.CodeOf(err) != row.code) {
			t.Errorf("--expect-version %d: %v", row.expect, err)
		}
	}
}

// TestRevokedSigner: the publisher does not move a tag for a signer who was
// revoked, and a reader does not count what was listed for one since then.
func TestRevokedSigner(t *testing.T) {
	v := testkit.NewVirtualTrust(t)
	repo := v.Host + "/app/web"
	good := v.List(repo, "1", "good", "ci")
	v.Clock.Add(time.Hour)
	v.Force(func(_ context.Context, d *trust.Draft) {
		d.Revoke(trust.Tombstone{Signer: "ci", Since: v.Clock.Now(), Date: v.Clock.Now(), Reason: "stolen"})
	})
	v.Clock.Add(time.Hour)
	v.List(repo, "1", "evil", "ci")
	l, err := v.Reader("").LookupTag(context.Background(), repo, "1")
	if err != nil || l.Digest != good.Digest {
		t.Errorf("the tag moved for a revoked signer: %v %v", l.Digest, err)
	}
}

// TestSettles: no statement stays in the inbox without a reason.
func TestSettles(t *testing.T) {
	v := testkit.NewVirtualTrust(t)
	repo := v.Host + "/app/web"
	d := testkit.Push(t, v.Client, repo, "1", testkit.Image(t, "web"))
	v.Submit("ci", v.Release(repo, d, "1"))
	v.Submit("ci", v.Release(repo, d, "2")) // in the same second
	future := v.Release(repo, d, "3")
	future.Created = future.Created.AddDate(3, 0, 0)
	v.Submit("ci", future)
	if p := v.Publish(); len(p.Listed) != 1 || len(p.Tags) != 2 || len(p.Refused) != 1 {
		t.Fatalf("first: %+v", p)
	}
	if p := v.Publish(); p.Pruned != 2 || len(p.Listed)+len(p.Waiting)+len(p.Refused) != 0 {
		t.Fatalf("second: %+v", p)
	}
	if p := v.Publish(); p.Pruned+len(p.Listed)+len(p.Waiting)+len(p.Refused) != 0 {
		t.Fatalf("third: %+v", p)
	}
}

// TestSharedRootKey: metadata of another repository made with the very same
// keys is refused by its ID, by a reader that has seen nothing yet.
func TestSharedRootKey(t *testing.T) {
	v := testkit.NewVirtualTrust(t)
	other := v.Host + "/other-trust"
	if _, err := trust.Init(context.Background(), trust.InitOptions{
		Repository: other, Registry: v.Client, Now: v.Clock.Now, OnlineKey: v.Online,
		RootKeys: []crypto.Signer{v.Root[0], v.Root[1]}, TargetsKeys: []crypto.Signer{v.Targets[0]},
		Policy: []byte(testkit.Policy(t, v.Host, v.Signers)),
	}); err != nil {
		t.Fatal(err)
	}
	copyRepository(t, v, other)
	err := v.Reader("").Refresh(context.Background())
	if trust.CodeOf(err) != policy.MetadataInvalid || !strings.Contains(err.Error(), "belongs to trust repository") {
		t.Errorf("got %s: %v", trust.CodeOf(err), err)
	}
}

// TestBins: a bin from an older index, and a bin under another bin's name.
func TestBins(t *testing.T) {
	v := testkit.NewVirtualTrust(t)
	repo := v.Host + "/app/web"
	before := index(t, v)
	d := v.List(repo, "1", "web", "ci")
	old := map[string]any{}
	for _, prefix := range []string{"0", "1", "2", "3"} {
		for name, l := range layersOf(t, v, before, prefix) {
			old[strings.TrimPrefix(name, "1.")] = l
		}
	}
	attacks := []struct {
		summary string
		layer   func(layers []any, i int) any
	}{
		{"a bin from an older index", func(layers []any, i int) any { return old[strings.TrimPrefix(fileName(layers[i]), "2.")] }},
		{"a bin under another bin's name", func(layers []any, i int) any { return layers[(i+1)%len(layers)] }},
	}
	for _, a := range attacks {
		t.Run(a.summary, func(t *testing.T) {
			honest := index(t, v).Bytes
			defer putIndex(t, v, honest)
			for _, prefix := range []string{"0", "1", "2", "3"} {
				rewrite(t, v, prefix, func(layers []any) []any { return swap(layers, a.layer) })
			}
			_, err := v.Reader("").LookupDigest(context.Background(), repo, d.Digest)
			if err == nil || trust.CodeOf(err) != policy.MetadataInvalid {
				t.Errorf("got %v", err)
			}
		})
	}
}

// swap puts another layer in place of each layer of version 2, under its name.
func swap(layers []any, other func([]any, int) any) []any {
	swapped := append([]any{}, layers...)
	for i, l := range layers {
		if !strings.HasPrefix(fileName(l), "2.") {
			continue
		}
		from, ok := other(layers, i).(map[string]any)
		if !ok {
			continue
		}
		fake := map[string]any{}
		for k, value := range from {
			fake[k] = value
		}
		fake["annotations"] = map[string]any{"tuf.io/filename": fileName(l)}
		swapped[i] = fake
	}
	return swapped
}

// TestIncompleteCopy: a copy of the index alone is recognised and named.
func TestIncompleteCopy(t *testing.T) {
	v := testkit.NewVirtualTrust(t)
	d := v.List(v.Host+"/app/web", "1", "web", "ci")
	v.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		missing := strings.Contains(r.URL.Path, "/manifests/sha256:")
		if missing {
			w.WriteHeader(http.StatusNotFound)
		}
		return missing
	})
	_, err := v.Reader("").LookupDigest(context.Background(), v.Host+"/app/web", d.Digest)
	var hinted interface{ Hint() string }
	if err == nil || !strings.Contains(err.Error(), "lacks its parts") || !errors.As(err, &hinted) || !strings.Contains(hinted.Hint(), "--all") {
		t.Errorf("got %v", err)
	}
}

// TestState: what persisted state does to a reader when it is damaged.
func TestState(t *testing.T) {
	damage := []struct {
		summary string
		act     func(t *testing.T, dir string)
		fails   bool
	}{
		{"untouched", func(*testing.T, string) {}, false},
		{"a cached blob is damaged: it is fetched again", func(t *testing.T, dir string) {
			blobs, err := filepath.Glob(filepath.Join(dir, "blobs", "*"))
			if err != nil || len(blobs) == 0 {
				t.Fatalf("no cached blobs: %v", err)
			}
			for _, b := range blobs {
				if err := os.WriteFile(b, []byte("damaged"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}, false},
		{"the metadata is cut short: starting over would give up protection", func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, "metadata.json"), 100); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"the memory of tags is not JSON", func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, "seen.json"), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"the directory is a symbolic link", func(t *testing.T, dir string) {
			if err := os.Rename(dir, dir+".real"); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(dir+".real", dir); err != nil {
				t.Fatal(err)
			}
		}, true},
	}
	for _, d := range damage {
		t.Run(d.summary, func(t *testing.T) {
			v := testkit.NewVirtualTrust(t)
			repo, state := v.Host+"/app/web", t.TempDir()
			img := v.List(repo, "1", "web", "ci")
			if _, err := v.Reader(state).LookupDigest(context.Background(), repo, img.Digest); err != nil {
				t.Fatal(err)
			}
			d.act(t, filepath.Join(state, v.Reader("").ID()))
			_, err := v.Reader(state).LookupDigest(context.Background(), repo, img.Digest)
			if d.fails != (err != nil) {
				t.Errorf("got %v", err)
			}
			if err != nil && trust.CodeOf(err) != policy.Unavailable {
				t.Errorf("code %s", trust.CodeOf(err))
			}
		})
	}
}

// TestPublish tells what becomes of the statements of the inbox.
func TestPublish(t *testing.T) {
	ctx := context.Background()
	v := testkit.NewVirtualTrust(t)
	two, app := v.Host+"/two/web", v.Host+"/app/web"
	d := testkit.Push(t, v.Client, two, "1", testkit.Image(t, "two"))
	v.Submit("ci", v.Release(two, d, "1"))
	if p := v.Publish(); len(p.Waiting) != 1 || len(p.Listed) != 0 {
		t.Fatalf("one of two signers must wait: %+v", p)
	}
	v.Submit("security", v.Release(two, d, "1"))
	if p := v.Publish(); len(p.Listed) != 1 || len(p.Tags) != 1 || len(p.Waiting) != 0 {
		t.Fatalf("two of two signers must be listed: %+v", p)
	}
	if p := v.Publish(); p.Pruned != 2 || len(p.Listed) != 0 {
		t.Fatalf("a later publish must prune what is listed, and list nothing again: %+v", p)
	}
	evil := testkit.Push(t, v.Client, app, "1", testkit.Image(t, "evil"))
	v.Submit("mallory", v.Release(app, evil, "1"))
	v.Submit("security", v.Release(app, evil, "1"))
	if _, err := v.Client.PutArtifact(ctx, v.Repository+"/inbox", "s-"+strings.Repeat("0", 64), oci.Artifact{Type: attest.BundleMediaType, Data: []byte("{}")}); err != nil {
		t.Fatal(err)
	}
	p := v.Publish()
	if len(p.Listed) != 0 || len(p.Refused) < 2 {
		t.Fatalf("junk and unknown signers must be refused: %+v", p)
	}
	if _, err := v.Reader("").LookupDigest(ctx, app, evil.Digest); trust.CodeOf(err) != policy.NotListed {
		t.Errorf("what was refused is listed: %v", err)
	}
}

// TestPublisherRefusesOlderIndex: an old index is not laundered through the
// publisher, neither one with state nor one that is told the version.
func TestPublisherRefusesOlderIndex(t *testing.T) {
	v := testkit.NewVirtualTrust(t)
	before := index(t, v)
	v.List(v.Host+"/app/web", "1", "web", "ci")
	putIndex(t, v, before.Bytes)
	for _, o := range []trust.PublisherOptions{
		{ClientOptions: v.ClientOptions(v.State), OnlineKey: v.Online},
		{ClientOptions: v.ClientOptions(""), OnlineKey: v.Online, ExpectVersion: 2},
	} {
		p, err := trust.OpenPublisher(o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Publish(context.Background()); trust.CodeOf(err) != policy.RolledBack || err == nil {
			t.Errorf("got %v", err)
		}
	}
	if !bytes.Equal(index(t, v).Bytes, before.Bytes) {
		t.Error("a refused publish changed the index")
	}
}

// TestPublisherRenewsExpired: online roles that have expired are what a
// publisher is there for; offline ones are not.
func TestPublisherRenewsExpired(t *testing.T) {
	v := testkit.NewVirtualTrust(t)
	d := v.List(v.Host+"/app/web", "1", "web", "ci")
	v.Clock.Add(30 * 24 * time.Hour)
	v.Publish()
	if _, err := v.Reader("").LookupDigest(context.Background(), v.Host+"/app/web", d.Digest); err != nil {
		t.Errorf("after a renewal: %v", err)
	}
	v.Clock.Add(70 * 24 * time.Hour)
	p, err := trust.OpenPublisher(trust.PublisherOptions{ClientOptions: v.ClientOptions(v.State), OnlineKey: v.Online})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Publish(context.Background()); trust.CodeOf(err) != policy.MetadataExpired || err == nil {
		t.Errorf("targets have expired: %v", err)
	}
}

// TestBinsAreRenewed: bins that no statement touches live on while something
// is published at all.
func TestBinsAreRenewed(t *testing.T) {
	const day = 24 * time.Hour
	v := testkit.NewVirtualTrust(t, func(o *trust.InitOptions) {
		o.Expires = map[string]time.Duration{"root": 1000 * day, "targets": 1000 * day, "bins": 100 * day}
	})
	d := v.List(v.Host+"/app/web", "1", "web", "ci")
	for range 7 {
		v.Clock.Add(30 * day)
		v.Publish()
	}
	if _, err := v.Reader("").LookupDigest(context.Background(), v.Host+"/app/web", d.Digest); err != nil {
		t.Errorf("after 210 days: %v", err)
	}
}

// TestCollision: two publishers that build on the same index. The loser folds
// again on what the winner wrote, and nothing signed is lost.
func TestCollision(t *testing.T) {
	ctx := context.Background()
	v := testkit.NewVirtualTrust(t)
	base := index(t, v).Bytes
	winner := v.List(v.Host+"/app/winner", "1", "winner", "ci")
	won := index(t, v).Bytes
	putIndex(t, v, base)
	v.State = t.TempDir() // the second publisher has seen nothing of it
	wrote := false
	v.Intercept(func(_ http.ResponseWriter, r *http.Request) bool {
		tag := strings.HasSuffix(r.URL.Path, "/manifests/"+trust.Tag)
		switch {
		case tag && r.Method == http.MethodPut:
			wrote = true
		case tag && r.Method == http.MethodGet && wrote:
			v.Intercept(nil)
			putIndex(t, v, won) // between its write and its reading back
		}
		return false
	})
	loser := v.List(v.Host+"/app/loser", "1", "loser", "ci")
	if !wrote {
		t.Fatal("the collision did not happen")
	}
	for repo, d := range map[string]v1.Descriptor{"/app/winner": winner, "/app/loser": loser} {
		if _, err := v.Reader("").LookupDigest(ctx, v.Host+repo, d.Digest); err != nil {
			t.Errorf("%s: %v", repo, err)
		}
	}
	chain, err := v.Reader("").Chain(ctx)
	if err != nil || chain[1].Version != 3 {
		t.Errorf("timestamp version %d, want 3: one more than both: %v", chain[1].Version, err)
	}
}

// TestInit refuses what would make a repository that nobody can keep.
func TestInit(t *testing.T) {
	v := testkit.NewVirtualTrust(t)
	good := trust.InitOptions{
		Repository: v.Host + "/new", Registry: v.Client, OnlineKey: v.Online, Now: v.Clock.Now,
		RootKeys: []crypto.Signer{v.Root[0], v.Root[1]}, TargetsKeys: []crypto.Signer{v.Targets[0]},
		Policy: []byte(testkit.Policy(t, v.Host, v.Signers)),
	}
	rows := []struct {
		summary string
		change  func(*trust.InitOptions)
		want    string
	}{
		{"a threshold above the keys", func(o *trust.InitOptions) { o.RootThreshold = 3 }, "threshold 3 with 2 keys"},
		{"no targets key", func(o *trust.InitOptions) { o.TargetsKeys = nil }, "threshold 0 with 0 keys"},
		{"the online key is a root key", func(o *trust.InitOptions) { o.OnlineKey = v.Root[0] }, "the online key is a root"},
		{"one key twice", func(o *trust.InitOptions) { o.RootKeys[1] = o.RootKeys[0] }, "given twice"},
		{"a policy with an unknown field", func(o *trust.InitOptions) { o.Policy = append(o.Policy, "surprise: 1\n"...) }, "surprise"},
		{"an unknown role in the lifetimes", func(o *trust.InitOptions) { o.Expires = map[string]time.Duration{"mirror": time.Hour} }, "unknown role"},
		{"a repository that exists", func(o *trust.InitOptions) { o.Repository = v.Repository }, "exists already"},
	}
	for _, r := range rows {
		t.Run(r.summary, func(t *testing.T) {
			o := good
			o.RootKeys = append([]crypto.Signer{}, good.RootKeys...)
			r.change(&o)
			if _, err := trust.Init(context.Background(), o); err == nil || !strings.Contains(err.Error(), r.want) {
				t.Errorf("got %v, want %q", err, r.want)
			}
			if o.Repository != v.Repository {
				if _, err := v.Client.Resolve(context.Background(), oci.Reference{Repository: o.Repository, Tag: trust.Tag}); !errors.Is(err, oci.ErrNotFound) {
					t.Errorf("a refused init left something: %v", err)
				}
			}
		})
	}
}
