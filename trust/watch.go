package trust

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"
)

const (
	defaultInterval = 30 * time.Second
	longestBackoff  = 10 * time.Minute
	finishTime      = time.Minute    // that a publish in progress has after Watch was told to stop
	watchedLife     = 24 * time.Hour // of a timestamp that a watching publisher signs
)

// WatchOptions configure Watch.
type WatchOptions struct {
	// Interval between two looks at the inbox, give or take a tenth; 0 is 30 s.
	Interval time.Duration
	// Report is told of each turn, one after the other. nil tells nobody.
	Report func(Turn)
}

// Turn is one look of a watching publisher.
type Turn struct {
	Published   bool        // it had something to publish
	Publication Publication // when Published, as far as it got
	Inbox       int         // entries that it saw
	Roles       []RoleInfo  // the top-level roles after it; nil when they could not be read
	Err         error       // why the turn failed; the next is tried after a growing pause
}

// Watch publishes whenever there is something to publish, until ctx ends: when the
// inbox holds an entry that no turn before has dealt with, or when timestamp or
// snapshot is past half of its life. Its timestamps live a day, or less where root
// says so. A turn that finds nothing makes two requests and writes nothing.
//
// A turn that fails is reported and tried again, at first after the interval, then
// after up to ten minutes. When ctx ends, a publish in progress has a minute to
// finish. Watch returns nil.
func (p *Publisher) Watch(ctx context.Context, o WatchOptions) error {
	if o.Interval <= 0 {
		o.Interval = defaultInterval
	}
	if o.Report == nil {
		o.Report = func(Turn) {}
	}
	p.timestampLife = watchedLife
	pause := time.Duration(0)
	for failures := 0; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		turn := p.turn(ctx)
		if ctx.Err() != nil && !turn.Published {
			return nil
		}
		o.Report(turn)
		failures++
		if turn.Err == nil {
			failures = 0
		}
		pause = backoff(o.Interval, failures)
	}
}

// backoff doubles the pause with each failure and spreads it by a tenth.
func backoff(interval time.Duration, failures int) time.Duration {
	pause := interval << min(failures, 10)
	if failures > 0 {
		pause = min(pause, max(longestBackoff, interval))
	}
	return pause - pause/10 + rand.N(pause/5+1)
}

// turn looks once, and publishes when there is something to.
func (p *Publisher) turn(ctx context.Context) (t Turn) {
	due, tags, err := p.due(ctx)
	t.Inbox = len(tags)
	if err != nil {
		t.Err = err
		return t
	}
	if due {
		t.Published = true
		t.Publication, t.Err = p.finishing(ctx)
		if t.Err == nil {
			p.dealtWith = tags
		}
	}
	if v := p.client.last(); v != nil {
		t.Roles, _ = p.client.Chain(ctx)
	}
	return t
}

// finishing publishes, and goes on for a while when ctx ends meanwhile.
func (p *Publisher) finishing(ctx context.Context) (Publication, error) {
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(finishTime, cancel) })
	defer stop()
	return p.Publish(own)
}

// due tells whether there is something to publish, and which entries are in the
// inbox.
func (p *Publisher) due(ctx context.Context) (bool, []string, error) {
	unlock, err := p.lock(ctx)
	if err != nil {
		return false, nil, err
	}
	defer unlock()
	if err := p.client.refresh(ctx, p.accept); err != nil {
		return false, nil, err
	}
	v, now := p.client.last(), p.client.Now()
	tags, err := p.inboxTags(ctx)
	fresh := slices.ContainsFunc(tags, func(t string) bool { return !slices.Contains(p.dealtWith, t) })
	if err != nil && !p.aging(v, now) {
		return false, nil, err
	}
	return fresh || v.lost != nil || p.aging(v, now), tags, nil
}

// aging tells whether timestamp or snapshot has lived half of its life.
func (p *Publisher) aging(v *view, now time.Time) bool {
	half := func(expires time.Time) bool { return expires.Sub(now) < expires.Sub(v.published)/2 }
	return half(v.set.Timestamp.Signed.Expires) || half(v.set.Snapshot.Signed.Expires) ||
		v.set.Timestamp.Signed.Expires.Sub(now) < min(p.timestampLife, v.id.lifetime("timestamp"))/2
}
