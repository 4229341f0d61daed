package trust_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgtrust/imgtrust/internal/oci"
	"github.com/imgtrust/imgtrust/internal/testkit"
	"github.com/imgtrust/imgtrust/policy"
	"github.com/imgtrust/imgtrust/trust"
)

// TestSiblingsAreRepaired: two publishers with states of their own have written
// the same version, and both believe that theirs stands. The next publish of
// either goes on above both, nothing signed is lost, and readers of both sides
// follow.
func TestSiblingsAreRepaired(t *testing.T) {
	for _, summary := range []string{"by the publisher whose index was lost", "by the one whose index stands"} {
		t.Run(summary, func(t *testing.T) {
			ctx := context.Background()
			v := testkit.NewVirtualTrust(t)
			v.Publish() // both have seen this
			base := index(t, v).Bytes
			lostState, standingState := v.State, t.TempDir()
			v.State = standingState
			v.Publish()
			putIndex(t, v, base)
			v.State = lostState
			first := v.List(v.Host+"/app/first", "1", "first", "ci")
			readers := map[string]*trust.Client{"of the lost index": v.Reader(t.TempDir())}
			refreshes(t, readers)
			putIndex(t, v, base)
			v.State = t.TempDir()
			second := v.List(v.Host+"/app/second", "1", "second", "ci")
			readers["of the index that stands"] = v.Reader(t.TempDir())
			if err := readers["of the index that stands"].Refresh(ctx); err != nil {
				t.Fatal(err)
			}
			if err := readers["of the lost index"].Refresh(ctx); trust.CodeOf(err) != policy.MetadataInvalid {
				t.Fatalf("a sibling is not noticed: %v", err)
			}
			if strings.HasPrefix(summary, "by the publisher whose") {
				v.State = lostState
			}
			v.Publish()
			if strings.HasPrefix(summary, "by the one") {
				v.State = lostState // the other comes later
				v.Publish()
			}
			for name, c := range readers {
				if err := c.Refresh(ctx); err != nil {
					t.Errorf("a reader %s: %v", name, err)
					continue
				}
				for repo, d := range map[string]v1.Descriptor{"/app/first": first, "/app/second": second} {
					if _, err := c.LookupDigest(ctx, v.Host+repo, d.Digest); err != nil {
						t.Errorf("a reader %s: %s: %v", name, repo, err)
					}
				}
			}
		})
	}
}

func refreshes(t *testing.T, readers map[string]*trust.Client) {
	t.Helper()
	for name, c := range readers {
		if err := c.Refresh(context.Background()); err != nil {
			t.Fatalf("a reader %s: %v", name, err)
		}
	}
}

// TestAdopt: an index that was put back by the registry's owner is gone on from
// only when that is said, and then above what was lost.
func TestAdopt(t *testing.T) {
	ctx := context.Background()
	v := testkit.NewVirtualTrust(t)
	old := index(t, v).Bytes
	v.List(v.Host+"/app/web", "1", "web", "ci")
	reader := map[string]*trust.Client{"with state": v.Reader(t.TempDir())}
	refreshes(t, reader)
	putIndex(t, v, old)
	publish := func(adopt bool) (trust.Publication, error) {
		p, err := trust.OpenPublisher(trust.PublisherOptions{ClientOptions: v.ClientOptions(v.State), OnlineKey: v.Online, Adopt: adopt})
		if err != nil {
			t.Fatal(err)
		}
		return p.Publish(ctx)
	}
	if _, err := publish(false); trust.CodeOf(err) != policy.RolledBack {
		t.Fatalf("an older index: %v", err)
	}
	out, err := publish(true)
	if err != nil || !out.Repaired || out.Version != 3 {
		t.Fatalf("%+v %v", out, err)
	}
	refreshes(t, reader)
	if out, err = publish(false); err != nil || out.Repaired {
		t.Fatalf("afterwards: %+v %v", out, err)
	}
}

// TestSupersededPartsArePruned: an hour after they were replaced, and not before.
func TestSupersededPartsArePruned(t *testing.T) {
	ctx := context.Background()
	v := testkit.NewVirtualTrust(t)
	v.Publish()
	old := index(t, v)
	there := func() bool {
		_, err := v.Client.Manifest(ctx, oci.Reference{Repository: v.Repository, Digest: old.Digest}, 4<<20)
		if err != nil && !errors.Is(err, oci.ErrNotFound) {
			t.Fatal(err)
		}
		return err == nil
	}
	v.List(v.Host+"/app/web", "1", "web", "ci")
	v.Clock.Add(59 * time.Minute)
	v.Publish()
	if !there() {
		t.Fatal("pruned within the hour")
	}
	v.Clock.Add(2 * time.Minute)
	v.Publish()
	if there() {
		t.Fatal("not pruned after an hour")
	}
	for range 3 {
		v.Clock.Add(2 * time.Hour)
		v.Publish()
	}
	if _, err := v.Reader("").LookupTag(ctx, v.Host+"/app/web", "1"); err != nil {
		t.Fatalf("what is current was pruned: %v", err)
	}
}

// TestWatch publishes when something waits, renews what ages, and is idle else.
func TestWatch(t *testing.T) {
	v := testkit.NewVirtualTrust(t)
	p, err := trust.OpenPublisher(trust.PublisherOptions{ClientOptions: v.ClientOptions(v.State), OnlineKey: v.Online})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	turns := make(chan trust.Turn, 1000)
	ended := make(chan error, 1)
	go func() {
		ended <- p.Watch(ctx, trust.WatchOptions{Interval: time.Millisecond, Report: func(t trust.Turn) { turns <- t }})
	}()
	next := func(what string, want func(trust.Turn) bool) {
		t.Helper()
		deadline := time.After(20 * time.Second)
		for {
			select {
			case turn := <-turns:
				if want(turn) {
					return
				}
			case <-deadline:
				t.Fatalf("no turn %s", what)
			}
		}
	}
	idle := func(t trust.Turn) bool { return t.Err == nil && !t.Published }
	next("without anything to do", idle)
	d := testkit.Push(t, v.Client, v.Host+"/app/web", "", testkit.Image(t, "one"))
	v.Submit("ci", v.Release(v.Host+"/app/web", d, "v1"))
	next("that lists", func(t trust.Turn) bool { return t.Published && len(t.Publication.Listed) == 1 })
	next("without anything to do", idle)
	v.Requests()
	next("without anything to do", idle)
	next("without anything to do", idle)
	for _, r := range v.Requests() {
		if !strings.HasPrefix(r, "HEAD ") && !strings.HasSuffix(r, "/tags/list") {
			t.Errorf("an idle turn asks %s", r)
		}
	}
	v.Clock.Add(13 * time.Hour)
	next("that renews", func(t trust.Turn) bool {
		return t.Published && t.Publication.Expires.Equal(v.Clock.Now().Add(24*time.Hour))
	})
	var down atomic.Bool
	down.Store(true)
	v.Intercept(func(w http.ResponseWriter, _ *http.Request) bool {
		if down.Load() {
			w.WriteHeader(http.StatusForbidden)
		}
		return down.Load()
	})
	next("that fails", func(t trust.Turn) bool { return t.Err != nil })
	down.Store(false)
	next("that works again", idle)
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}
