package trust

import (
	"context"
	"errors"
	"fmt"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/imgtrust/imgtrust/internal/oci"
)

// Status is what `trust status` shows.
type Status struct {
	Repository string     `json:"repository"`
	ID         string     `json:"id"`
	Roles      []RoleInfo `json:"roles"` // root, timestamp, snapshot, targets
	Bins       int        `json:"bins"`
	Written    int        `json:"written"` // bins that a publish has changed since init
	Revoked    int        `json:"revoked"` // tombstones
	Inbox      int        `json:"inbox"`   // entries, those listed by the last publish among them
}

// Status reads the state of the repository as the client verified it, and counts
// the inbox up to 20,000, which needs the right to read it: -1 when it could not.
func (c *Client) Status(ctx context.Context) (Status, error) {
	v, err := c.current(ctx)
	if err != nil {
		return Status{}, err
	}
	s := Status{Repository: c.opts.Repository, ID: c.id.Repository, Bins: 1 << v.bits, Revoked: len(v.revoked)}
	if s.Roles, err = c.Chain(ctx); err != nil {
		return s, err
	}
	for name, meta := range v.set.Snapshot.Signed.Meta {
		if name != metadata.TARGETS+".json" && meta.Version > 1 {
			s.Written++
		}
	}
	s.Inbox, err = c.inboxLength(ctx)
	return s, err
}

func (c *Client) inboxLength(ctx context.Context) (int, error) {
	if c.opts.Offline {
		return -1, nil
	}
	tags, err := c.opts.Registry.Tags(ctx, c.Inbox(), maxInboxEntries)
	switch {
	case errors.Is(err, oci.ErrNotFound):
		return 0, nil
	case errors.Is(err, oci.ErrTooLarge) && len(tags) > 0:
		return len(tags), nil
	case errors.Is(err, oci.ErrUnauthorized), errors.Is(err, oci.ErrTooLarge):
		return -1, nil
	case err != nil:
		return -1, fmt.Errorf("listing the inbox %s: %w", c.Inbox(), err)
	}
	return len(tags), nil
}
