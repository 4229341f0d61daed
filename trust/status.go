package trust

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/imgtrust/imgtrust/internal/oci"
)

// Status is what `trust status` shows.
type Status struct {
	Repository string       `json:"repository"`
	ID         string       `json:"id"`
	Published  time.Time    `json:"published"` // when the timestamp was signed
	Roles      []RoleStatus `json:"roles"`     // root, timestamp, snapshot, targets, bins
	Bins       int          `json:"bins"`
	Written    int          `json:"written"` // bins that were signed anew since they were made
	Filled     int          `json:"filled"`  // bins with targets, of those that were looked at
	Looked     int          `json:"looked"`  // bins that were looked at, at most 64
	Revoked    int          `json:"revoked"` // tombstones that hold
	Inbox      int          `json:"inbox"`   // entries, those listed by the last publish among them; -1 when it could not be read
}

// RoleStatus is how long a role has to live. The bins are one role, with the
// earliest expiry of those that were looked at.
type RoleStatus struct {
	RoleInfo
	Life    time.Duration `json:"-"`       // that it was signed for, or would be today
	Left    time.Duration `json:"-"`       // below 0 when it has expired
	Days    float64       `json:"days"`    // Left
	Due     bool          `json:"due"`     // past half of its life
	Expired bool          `json:"expired"` // nothing may be believed any more
	Renew   string        `json:"renew"`   // who renews it, and how
}

// ReadStatus reads the state of a repository, also when roles of it have expired.
// It counts the inbox up to 20,000, which needs the right to read it.
func ReadStatus(ctx context.Context, o ClientOptions) (Status, *Client, error) {
	o.expired = true
	c, err := Open(o)
	if err != nil {
		return Status{}, nil, err
	}
	if err := c.Refresh(ctx); err != nil {
		return Status{}, c, err
	}
	v := c.last()
	s := Status{Repository: o.Repository, ID: c.id.Repository, Bins: 1 << v.bits, Published: v.published}
	for _, t := range v.revoked {
		if t.Active() {
			s.Revoked++
		}
	}
	for name, meta := range v.set.Snapshot.Signed.Meta {
		if name != metadata.TARGETS+".json" && meta.Version > 1 {
			s.Written++
		}
	}
	for _, role := range []string{metadata.ROOT, metadata.TARGETS, metadata.SNAPSHOT, metadata.TIMESTAMP} {
		s.Roles = append(s.Roles, c.roleStatus(v, v.roleInfo(role), role))
	}
	if err := c.lookAtBins(ctx, v, &s); err != nil {
		return s, c, err
	}
	s.Inbox, err = c.inboxLength(ctx)
	return s, c, err
}

// roleStatus tells how long a role has to live. The online roles were signed when
// the timestamp says; the others say nothing of it, and are held against the life
// that they would get today.
func (c *Client) roleStatus(v *view, info RoleInfo, kind string) RoleStatus {
	r := RoleStatus{RoleInfo: info, Life: v.id.lifetime(kind), Left: info.Expires.Sub(c.Now())}
	r.Renew = "the publisher: imgtrust trust publish"
	switch kind {
	case metadata.SNAPSHOT, metadata.TIMESTAMP:
		r.Life = min(r.Life, info.Expires.Sub(v.published))
	case metadata.ROOT, metadata.TARGETS:
		r.Renew = fmt.Sprintf("%d of the %d key holders of %s: imgtrust trust rotate %s", info.Threshold, len(info.KeyIDs), kind, kind)
	}
	r.Days, r.Due, r.Expired = r.Left.Hours()/24, r.Left < r.Life/2, r.Left <= 0
	return r
}

// lookAtBins reads up to 64 bins, those that the next publish looks at first.
func (c *Client) lookAtBins(ctx context.Context, v *view, s *Status) error {
	by := v.set.Targets[metadata.TARGETS].Signed.Delegations.SuccinctRoles
	info := RoleInfo{Role: "bins", KeyIDs: by.KeyIDs, Threshold: by.Threshold}
	if c.opts.Offline {
		return nil
	}
	for i := range min(s.Bins, renewSlice) {
		n := int((v.set.Timestamp.Signed.Version*renewSlice + int64(i)) % int64(s.Bins))
		bin, err := c.bin(ctx, v, n)
		if err != nil {
			return err
		}
		s.Looked++
		if len(bin.Signed.Targets) > 0 {
			s.Filled++
		}
		info.Version = max(info.Version, bin.Signed.Version)
		if info.Expires.IsZero() || bin.Signed.Expires.Before(info.Expires) {
			info.Expires = bin.Signed.Expires
		}
	}
	row := c.roleStatus(v, info, "bins")
	row.Due = row.Left < row.Life/4 // the publisher renews them from half of their life on, a slice at a time
	s.Roles = append(s.Roles, row)
	return nil
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
	case ctx.Err() != nil:
		return -1, context.Cause(ctx)
	case err != nil: // a mirror's reader may not reach it
		return -1, nil
	}
	return len(tags), nil
}
