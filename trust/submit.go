package trust

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/imgtrust/imgtrust/policy"
)

// errSameKey is an online key that is an offline one as well: a theft of the
// publisher would then be a theft of everything.
var errSameKey = errors.New("the online key is a root or targets key as well: whoever takes the publisher would have everything")

// Submit publishes a change that is signed as it must be. The publisher's online
// key is that of the roles after the change; when it is a new one, every bin is
// signed anew. A change that was made for other roles than the present ones is
// refused: nobody has agreed to what would come of it.
func (p *Publisher) Submit(ctx context.Context, change Change) (Published, error) {
	unlock, err := p.lock(ctx)
	if err != nil {
		return Published{}, err
	}
	defer unlock()
	checked, err := change.Check(p.client.opts.Root)
	if err != nil {
		return Published{}, err
	}
	if err := checked.refuseIncomplete(); err != nil {
		return Published{}, err
	}
	if err := p.client.refresh(ctx, p.acceptExpired); err != nil {
		return Published{}, err
	}
	if err := p.sameBase(ctx, change); err != nil {
		return Published{}, err
	}
	d, err := p.client.newDraft(ctx, p.opts.OnlineKey, checked.turnover())
	if err != nil {
		return Published{}, err
	}
	return d.Publish(ctx)
}

// refuseIncomplete names the signatures that are missing.
func (k CheckedChange) refuseIncomplete() error {
	var missing []string
	for _, n := range k.Needs() {
		if n.Missing() > 0 {
			missing = append(missing, fmt.Sprintf("%s by %d more of %s (%s)", n.Role, n.Missing(), n.Of, shortKeys(n.Open)))
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return &Error{Code: policy.ThresholdNotMet, Err: fmt.Errorf("not signed by enough: %s", strings.Join(missing, "; ")),
		Advice: "pass the file to the holders of these keys: `imgtrust trust sign-change`"}
}

func shortKeys(ids []string) string {
	short := make([]string, len(ids))
	for i, id := range ids {
		short[i] = id[:min(len(id), 12)]
	}
	return strings.Join(short, ", ")
}

// sameBase refuses a change of roles that have changed since it was made.
func (p *Publisher) sameBase(ctx context.Context, change Change) error {
	v := p.client.last()
	chain, err := p.client.rootChain(ctx, v)
	if err != nil {
		return err
	}
	if change.New() || change.Roots[len(change.Roots)-1] != chain[len(chain)-1] || change.Targets != v.raw.Targets {
		return &Error{Code: policy.MetadataInvalid, Err: errors.New("root or targets have changed since this change was made"), Advice: "make it anew, from what there is now"}
	}
	return nil
}
