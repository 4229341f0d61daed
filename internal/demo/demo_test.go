package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgtrust/imgtrust/internal/oci"
	"github.com/imgtrust/imgtrust/policy"
)

// released is a world in which an image made in memory is signed and listed.
func released(t *testing.T) *world {
	t.Helper()
	w, err := newWorld(t.Context(), Options{memory: true, Say: func(s string) { t.Log(s) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(w.dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", w.dir, err)
		}
	})
	w.image = oci.Reference{Repository: w.host + "/shop/web", Tag: "v1"}
	for _, act := range []func(context.Context) error{w.makeTrust, w.push, w.release, w.verify} {
		if err := act(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// push stands in for the build.
func (w *world) push(ctx context.Context) error {
	layer := static.NewLayer(bytes.Repeat([]byte("content "), 1000), types.OCIUncompressedLayer)
	img, err := mutate.AppendLayers(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), layer)
	if err != nil {
		return err
	}
	ref, err := name.ParseReference(w.image.String(), name.Insecure)
	if err != nil {
		return err
	}
	if w.image.Digest, err = img.Digest(); err != nil {
		return err
	}
	return remote.Write(ref, img, remote.WithContext(ctx))
}

func TestAttempts(t *testing.T) {
	w := released(t)
	outcomes, err := w.attack(t.Context(), attempts())
	if err != nil {
		t.Error(err)
	}
	if len(outcomes) != len(attempts()) {
		t.Errorf("%d outcomes of %d attempts", len(outcomes), len(attempts()))
	}
	names := map[string]bool{}
	for i, o := range outcomes {
		if want := attempts()[i]; o.Name != want.name || o.Code != want.want || !o.Refused || o.Tries == "" || strings.Contains(o.Tries, "\n") {
			t.Errorf("outcome %+v, want code %s", o, want.want)
		}
		names[o.Name] = true
	}
	if len(names) != len(outcomes) {
		t.Error("two attempts have one name")
	}
}

func TestAttemptThatGetsThrough(t *testing.T) {
	w := released(t)
	for _, tt := range []struct {
		summary string
		attempt attempt
		report  Outcome
	}{{
		summary: "the verifier allows what it should refuse",
		attempt: attempt{"honest image", "asks for the signed image", policy.NotListed, func(s *scene, ctx context.Context) (policy.Code, error) {
			return s.ask(ctx, s.tagged())
		}},
		report: Outcome{Name: "honest image", Code: policy.Allowed, Refused: false},
	}, {
		summary: "it is refused for another reason",
		attempt: attempt{"unsigned image", "wants another code", policy.BadSignature, (*scene).unsigned},
		report:  Outcome{Name: "unsigned image", Code: policy.NotListed, Refused: true},
	}, {
		summary: "the fetch finds nothing wrong",
		attempt: attempt{"honest bytes", "fetches what was signed", policy.ContentMismatch, (*scene).pull},
		report:  Outcome{Name: "honest bytes", Code: policy.Allowed, Refused: false},
	}} {
		t.Run(tt.summary, func(t *testing.T) {
			outcomes, err := w.attack(t.Context(), []attempt{tt.attempt})
			if !errors.Is(err, ErrThrough) || !strings.Contains(err.Error(), tt.attempt.name) {
				t.Errorf("error %v", err)
			}
			if len(outcomes) != 1 {
				t.Fatalf("outcomes %+v", outcomes)
			}
			got := outcomes[0]
			if got.Name != tt.report.Name || got.Code != tt.report.Code || got.Refused != tt.report.Refused {
				t.Errorf("outcome %+v, want %+v", got, tt.report)
			}
		})
	}
}

// What an attempt leaves behind must not hide behind its refusal.
func TestDamageThatStaysIsAnError(t *testing.T) {
	w := released(t)
	_, err := w.attack(t.Context(), []attempt{{"vandal", "deletes the signed image", policy.NotListed, func(s *scene, ctx context.Context) (policy.Code, error) {
		return policy.NotListed, s.client.Delete(ctx, s.image.AtDigest(s.image.Digest))
	}}})
	if err == nil || errors.Is(err, ErrThrough) || !strings.Contains(err.Error(), "restoring") {
		t.Errorf("error %v", err)
	}
}

func TestReportJSON(t *testing.T) {
	text, err := json.Marshal(Report{Image: "a@b", Allowed: true, Attempts: []Outcome{{Name: "n", Code: policy.NotListed, Refused: true, Tries: "t", Want: "w"}}})
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"image":"a@b","allowed":true,"attempts":[{"name":"n","code":"not-listed","refused":true}]}`
	if string(text) != want {
		t.Errorf("got  %s\nwant %s", text, want)
	}
}
