package trust_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgtrust/imgtrust/internal/testkit"
	"github.com/imgtrust/imgtrust/policy"
	"github.com/imgtrust/imgtrust/trust"
)

// TestDamagedCache: a damaged file of the cache is fetched anew, and said; offline
// it is an error, and never an answer.
func TestDamagedCache(t *testing.T) {
	ctx := context.Background()
	v := testkit.NewVirtualTrust(t)
	d := v.List(v.Host+"/app/web", "v1", "one", "ci")
	o := v.ClientOptions(t.TempDir())
	var said []string
	o.Warn = func(text string) { said = append(said, text) }
	lookup := func(offline bool) error {
		o.Offline = offline
		c, err := trust.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.LookupDigest(ctx, v.Host+"/app/web", d.Digest)
		return err
	}
	if err := lookup(false); err != nil || len(said) > 0 {
		t.Fatal(err, said)
	}
	blobs, err := filepath.Glob(filepath.Join(o.State, "*", "blobs", "*"))
	if err != nil || len(blobs) == 0 {
		t.Fatal(err, blobs)
	}
	damage := func() {
		for _, b := range blobs {
			if err := os.WriteFile(b, []byte("damaged"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	damage()
	if err := lookup(true); trust.CodeOf(err) != policy.Unavailable || !strings.Contains(err.Error(), "is damaged") {
		t.Errorf("offline: %v", err)
	}
	if err := lookup(false); err != nil || len(said) != len(blobs) {
		t.Errorf("%v, said %q", err, said)
	}
	said = nil
	if err := lookup(true); err != nil || len(said) > 0 {
		t.Errorf("after it was fetched anew: %v %q", err, said)
	}
}

// TestFullDisk: where the state cannot be written the answer is an error, and what
// was there is still there.
func TestFullDisk(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	smallDisk(t, dir)
	v := testkit.NewVirtualTrust(t)
	v.Publish()
	old := index(t, v).Bytes
	state := filepath.Join(dir, "state")
	if err := v.Reader(state).Refresh(ctx); err != nil {
		t.Fatal(err)
	}
	fill, err := os.Create(filepath.Join(dir, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = fill.Write(make([]byte, 4096))
	}
	_ = fill.Close()
	v.Publish()
	if err := v.Reader(state).Refresh(ctx); trust.CodeOf(err) != policy.Unavailable {
		t.Errorf("on a full disk: %v", err)
	}
	if err := os.Remove(fill.Name()); err != nil {
		t.Fatal(err)
	}
	if err := v.Reader(state).Refresh(ctx); err != nil {
		t.Errorf("with room again: %v", err)
	}
	putIndex(t, v, old)
	if err := v.Reader(state).Refresh(ctx); trust.CodeOf(err) != policy.RolledBack {
		t.Errorf("an older index afterwards: %v", err)
	}
	temporary, err := filepath.Glob(filepath.Join(state, "*", ".*"))
	if err != nil || len(temporary) > 0 {
		t.Errorf("left behind: %q %v", temporary, err)
	}
}
