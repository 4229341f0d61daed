package trust_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/imgtrust/imgtrust/internal/testkit"
	"github.com/imgtrust/imgtrust/policy"
	"github.com/imgtrust/imgtrust/trust"
)

func TestStatusTellsWhatIsDue(t *testing.T) {
	const day = 24 * time.Hour
	tests := []struct {
		summary      string
		after        time.Duration
		due, expired []string
	}{
		{"fresh", 0, nil, nil},
		{"before half of a week", 3 * day, nil, nil},
		{"after half of a week", 4 * day, []string{"snapshot", "timestamp"}, nil},
		{"after a week", 8 * day, []string{"snapshot", "timestamp"}, []string{"snapshot", "timestamp"}},
		{"after half of targets' life", 46 * day, []string{"targets", "snapshot", "timestamp"}, []string{"snapshot", "timestamp"}},
		{"after a year", 366 * day, []string{"root", "targets", "snapshot", "timestamp", "bins"}, []string{"root", "targets", "snapshot", "timestamp", "bins"}},
	}
	for _, test := range tests {
		t.Run(test.summary, func(t *testing.T) {
			v := testkit.NewVirtualTrust(t)
			published := v.Clock.Now()
			v.Clock.Add(test.after)
			s, _, err := trust.ReadStatus(context.Background(), v.ClientOptions(""))
			if err != nil {
				t.Fatal(err)
			}
			var due, expired []string
			for _, r := range s.Roles {
				if r.Due {
					due = append(due, r.Role)
				}
				if r.Expired {
					expired = append(expired, r.Role)
				}
			}
			if !slices.Equal(due, test.due) || !slices.Equal(expired, test.expired) {
				t.Errorf("due %q, expired %q; want %q, %q", due, expired, test.due, test.expired)
			}
			if !s.Published.Equal(published) {
				t.Errorf("published %s, want %s", s.Published, published)
			}
		})
	}
}

// TestBootstrap: a reader without state refuses what is older than its bootstrap
// document, and one with nothing but root.json cannot tell.
func TestBootstrap(t *testing.T) {
	ctx := context.Background()
	v := testkit.NewVirtualTrust(t)
	old := index(t, v)
	v.List(v.Host+"/app/web", "v1", "one", "ci")
	c := v.Reader("")
	if err := c.Refresh(ctx); err != nil {
		t.Fatal(err)
	}
	b, err := c.Bootstrap()
	if err != nil {
		t.Fatal(err)
	}
	o := v.ClientOptions("")
	if o.Root, err = b.Encode(); err != nil {
		t.Fatal(err)
	}
	refresh := func(o trust.ClientOptions) error {
		c, err := trust.Open(o)
		if err != nil {
			return err
		}
		return c.Refresh(ctx)
	}
	if err := refresh(o); err != nil {
		t.Fatalf("the current index is refused: %v", err)
	}
	putIndex(t, v, old.Bytes)
	if err := refresh(o); trust.CodeOf(err) != policy.RolledBack {
		t.Errorf("an older index: %v", err)
	}
	if err := refresh(v.ClientOptions("")); err != nil {
		t.Errorf("without a bootstrap document: %v", err)
	}
}
