package trust_test

import (
	"context"
	"testing"
	"time"

	"github.com/imgtrust/imgtrust/internal/testkit"
	"github.com/imgtrust/imgtrust/policy"
	"github.com/imgtrust/imgtrust/trust"
)

// TestTombstoneOfTheFuture: a date far ahead would keep revokers from undoing it.
func TestTombstoneOfTheFuture(t *testing.T) {
	v := testkit.NewVirtualTrust(t)
	d := v.List(v.Host+"/app/web", "v1", "one", "ci")
	draft, err := v.Reader("").NewDraft(context.Background(), v.Online)
	if err != nil {
		t.Fatal(err)
	}
	draft.Revoke(trust.Tombstone{Digest: d.Digest.String(), Date: v.Clock.Now().Add(time.Hour), Reason: "x"})
	if _, err := draft.Publish(context.Background()); err == nil {
		t.Fatal("published")
	}
	if err := v.Reader("").Refresh(context.Background()); trust.CodeOf(err) != policy.MetadataInvalid {
		t.Fatalf("%v", err)
	}
}
