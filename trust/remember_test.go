package trust

import (
	"testing"
	"time"
)

// TestRememberedTombstones: the online key may write a tombstone anew, and a
// reader that has seen the old one keeps all that it revoked.
func TestRememberedTombstones(t *testing.T) {
	day := func(n int) time.Time { return time.Date(2026, 6, n, 0, 0, 0, 0, time.UTC) }
	const index, child, other = "sha256:aa", "sha256:bb", "sha256:cc"
	seen := []Tombstone{{Digest: index, Also: []string{child}, Date: day(5), By: Revokers}}
	tests := []struct {
		summary  string
		snapshot []Tombstone
		covered  []string
		date     time.Time // of the tombstone of index
	}{
		{"the same", seen, []string{index, child}, day(5)},
		{"taken out", nil, []string{index, child}, day(5)},
		{"written to cover less", []Tombstone{{Digest: index, Date: day(5)}}, []string{index, child}, day(5)},
		{"written to cover something else", []Tombstone{{Digest: index, Also: []string{other}, Date: day(5)}}, []string{index, child, other}, day(5)},
		{"dated back, so that an old undo would count", []Tombstone{{Digest: index, Date: day(1)}}, []string{index, child}, day(5)},
		{"revoked again", []Tombstone{{Digest: index, Date: day(9)}}, []string{index, child}, day(9)},
		{"undone by nobody", []Tombstone{{Digest: index, Date: day(9), Undone: []storedEnvelope{{Payload: "{}"}}}}, []string{index, child}, day(5)},
		{"one more", []Tombstone{{Digest: other, Date: day(6)}}, []string{index, child, other}, day(5)},
	}
	for _, test := range tests {
		t.Run(test.summary, func(t *testing.T) {
			v := &view{revoked: test.snapshot}
			got := v.remember(seen, day(10))
			for _, digest := range test.covered {
				covered := false
				for _, tomb := range got {
					covered = covered || tomb.Covers(digest)
				}
				if !covered {
					t.Errorf("%s is no longer revoked: %+v", digest, got)
				}
			}
			for _, tomb := range got {
				if tomb.Digest == index && !tomb.Date.Equal(test.date) {
					t.Errorf("dated %s, want %s", tomb.Date, test.date)
				}
			}
			if again := v.remember(got, day(10)); len(again) != len(got) {
				t.Errorf("remembered twice: %+v, then %+v", got, again)
			}
		})
	}
	if v := (&view{}); len(v.remember(nil, day(10))) != 0 {
		t.Error("something is revoked where nothing was")
	}
}
