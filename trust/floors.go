package trust

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/policy"
)

// Bootstrap is a root.json with what was current when it was written: a reader
// that has no state yet, and starts from it, refuses everything older.
type Bootstrap struct {
	Format    int    `json:"format"` // 1
	Root      string `json:"root"`   // root.json, as text
	Timestamp int64  `json:"timestamp"`
	Snapshot  int64  `json:"snapshot"`
	Targets   int64  `json:"targets"`
}

// Encode writes the document, which ClientOptions.Root takes in place of a
// root.json.
func (b Bootstrap) Encode() ([]byte, error) {
	b.Format = 1
	data, err := json.Marshal(b)
	return append(data, '\n'), err
}

// parseBootstrap reads a root.json, or a Bootstrap with one in it.
func parseBootstrap(data []byte) (Bootstrap, error) {
	var kind struct {
		Format *int `json:"format"`
	}
	if err := attest.UnmarshalStrict(data, &kind, true); err != nil {
		return Bootstrap{}, err
	}
	if kind.Format == nil {
		return Bootstrap{Root: string(data)}, nil
	}
	var b Bootstrap
	if err := attest.UnmarshalStrict(data, &b, false); err != nil {
		return b, err
	}
	if b.Format != 1 || b.Root == "" || b.Timestamp < 1 || b.Snapshot < 1 || b.Targets < 1 {
		return b, errors.New("a bootstrap document has format 1, a root, and the versions of timestamp, snapshot and targets")
	}
	return b, nil
}

// check refuses a view that is older than the bootstrap document.
func (b Bootstrap) check(v *view) error {
	for _, r := range []struct {
		role      string
		is, floor int64
	}{
		{metadata.TIMESTAMP, v.set.Timestamp.Signed.Version, b.Timestamp},
		{metadata.SNAPSHOT, v.set.Snapshot.Signed.Version, b.Snapshot},
		{metadata.TARGETS, v.set.Targets[metadata.TARGETS].Signed.Version, b.Targets},
	} {
		if r.is < r.floor {
			return &Error{Code: policy.RolledBack, Err: fmt.Errorf("%s: version %d, but the bootstrap document says that version %d was there", r.role, r.is, r.floor),
				Advice: "the registry serves an older trust index than there was"}
		}
	}
	return nil
}

// Bootstrap is the newest verified root with the versions that are current.
func (c *Client) Bootstrap() (Bootstrap, error) {
	v := c.last()
	if v == nil {
		return Bootstrap{}, errors.New("nothing was verified yet")
	}
	b := Bootstrap{
		Format: 1, Root: string(c.opts.Root), Timestamp: v.set.Timestamp.Signed.Version,
		Snapshot: v.set.Snapshot.Signed.Version, Targets: v.set.Targets[metadata.TARGETS].Signed.Version,
	}
	if n := len(v.raw.Roots); n > 0 {
		b.Root = v.raw.Roots[n-1]
	}
	return b, nil
}
