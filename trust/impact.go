package trust

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgtrust/imgtrust/policy"
)

// maxStops is how many images an Impact names.
const maxStops = 20

// Impact is what another policy would do to the images that are listed.
type Impact struct {
	Listed int    `json:"listed"` // digests and tags that were looked at
	Stops  int    `json:"stops"`  // those that may run and then might not
	Starts int    `json:"starts"` // those that may not run and then might
	First  []Stop `json:"first"`  // the first of Stops, at most 20
}

// Stop is an image that would stop running.
type Stop struct {
	Image  string      `json:"image"`
	Code   policy.Code `json:"code"`
	Reason string      `json:"reason"`
}

// Impact decides about every listed digest and tag by the present policy and by
// another one. It reads every bin once.
func (c *Client) Impact(ctx context.Context, other *policy.Policy) (Impact, error) {
	impact := Impact{First: []Stop{}}
	present, err := c.Policy(ctx)
	if err != nil {
		return impact, err
	}
	revoked, err := c.Revoked(ctx)
	if err != nil {
		return impact, err
	}
	return impact, c.eachListing(ctx, func(l Listing) {
		facts, ok := factsOf(l)
		if !ok || len(l.Envelopes) == 0 {
			return // a child runs as long as its index does
		}
		was := present.Decide(WithoutRevoked(present, revoked, l.Envelopes, l.Listed), facts, c.Now())
		is := other.Decide(WithoutRevoked(other, revoked, l.Envelopes, l.Listed), facts, c.Now())
		impact.add(l.Target, was, is)
	})
}

func (i *Impact) add(target string, was, is policy.Verdict) {
	i.Listed++
	runs := func(v policy.Verdict) bool { return v.Code == policy.Allowed || v.Audit }
	switch {
	case runs(was) && !runs(is):
		i.Stops++
		if len(i.First) < maxStops {
			i.First = append(i.First, Stop{target, is.Code, firstReason(is)})
		}
	case !runs(was) && runs(is):
		i.Starts++
	}
}

// factsOf reads the name of a target back.
func factsOf(l Listing) (policy.Facts, bool) {
	f := policy.Facts{Digest: l.Digest.String(), Listed: l.Listed}
	if repository, digest, ok := strings.Cut(l.Target, "@"); ok {
		_, err := v1.NewHash(digest)
		f.Repository = repository
		return f, err == nil
	}
	i := strings.LastIndex(l.Target, ":")
	if i < 0 {
		return f, false
	}
	f.Repository, f.Tag = l.Target[:i], l.Target[i+1:]
	return f, true
}

// eachListing visits every target of every bin, a bin at a time.
func (c *Client) eachListing(ctx context.Context, visit func(Listing)) error {
	v, err := c.current(ctx)
	if err != nil {
		return err
	}
	for n := range 1 << v.bits {
		bin, err := c.bin(ctx, v, n)
		if err != nil {
			return fmt.Errorf("reading all that is listed: %w", err)
		}
		for _, name := range slices.Sorted(maps.Keys(bin.Signed.Targets)) {
			l, _, err := listing(name, bin.Signed.Targets[name])
			if err != nil {
				return err
			}
			visit(l)
		}
	}
	return nil
}
