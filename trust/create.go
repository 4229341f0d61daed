package trust

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/imgtrust/imgtrust/internal/oci"
)

// CreateOptions say how a new trust repository is written.
type CreateOptions struct {
	Registry  *oci.Client
	OnlineKey crypto.Signer    // the one that the change names
	Now       func() time.Time // nil is time.Now
}

// Create writes a new trust repository from a change that all needed keys have
// signed: root and targets as they are, every bin empty, and the tag switched
// last.
func Create(ctx context.Context, change Change, o CreateOptions) (Initialized, error) {
	c, err := newCreation(change, o)
	if err != nil {
		return Initialized{}, err
	}
	if err := c.refuseExisting(ctx); err != nil {
		return Initialized{}, err
	}
	top, groups, err := c.write(ctx)
	if err != nil {
		return Initialized{}, c.writer.abandon(err)
	}
	if _, err := c.writer.finish(ctx, top, groups); err != nil {
		return Initialized{}, err
	}
	return c.result(ctx)
}

// creation is the state of one Create.
type creation struct {
	CreateOptions
	Change
	id     identity
	now    time.Time
	bits   int
	meta   map[string]*metadata.MetaFiles
	writer *writer
}

func newCreation(change Change, o CreateOptions) (*creation, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	checked, err := change.Check(nil)
	if err != nil {
		return nil, err
	}
	if !change.New() {
		return nil, errors.New("the change is about a trust repository that is there")
	}
	if err := checked.refuseIncomplete(); err != nil {
		return nil, err
	}
	bits, err := binsOf(checked.next.targets.Signed)
	if err != nil {
		return nil, err
	}
	next := offline{root: checked.next.root, targets: checked.next.targets, id: checked.next.id, bits: bits}
	if err := next.checkOnlineKey(o.OnlineKey); err != nil {
		return nil, err
	}
	return &creation{
		CreateOptions: o, Change: change, id: next.id, now: o.Now().UTC().Truncate(time.Second), bits: bits,
		meta:   map[string]*metadata.MetaFiles{"targets.json": metadata.MetaFile(1)},
		writer: newWriter(o.Registry, change.Repository, v1.Hash{}),
	}, nil
}

// refuseExisting keeps Create from replacing a repository that clients trust.
func (c *creation) refuseExisting(ctx context.Context) error {
	ref := oci.Reference{Repository: c.Repository, Tag: Tag}
	_, err := c.Registry.Resolve(ctx, ref)
	if errors.Is(err, oci.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking for an existing trust index: %w", err)
	}
	return &Error{Err: fmt.Errorf("%s exists already", ref),
		Advice: "use another repository name; an existing one changes by `imgtrust trust rotate` and `imgtrust trust policy push`"}
}

// write uploads the files of all roles.
func (c *creation) write(ctx context.Context) (top map[string]v1.Descriptor, groups []v1.Descriptor, err error) {
	top = map[string]v1.Descriptor{}
	if err := c.writeOffline(ctx, top); err != nil {
		return nil, nil, err
	}
	if groups, err = c.writeBins(ctx); err != nil {
		return nil, nil, err
	}
	return top, groups, c.writeOnline(ctx, top)
}

// writeOffline adds root, targets and policy as they were signed. A reader begins
// with a root and asks once for those that came after: it is not inlined.
func (c *creation) writeOffline(ctx context.Context, top map[string]v1.Descriptor) error {
	policy := policyEntry([]byte(c.NextPolicy))
	for _, f := range []offlineFile{
		{versioned(1, metadata.ROOT), metadataType, []byte(c.NextRoot), notInline},
		{versioned(1, metadata.TARGETS), metadataType, []byte(c.NextTargets), maxInline},
		{policyFileName(policy), targetType, []byte(c.NextPolicy), maxInlinePolicy},
	} {
		if err := c.writer.addTop(ctx, top, f); err != nil {
			return err
		}
	}
	return nil
}

// writeBins signs every bin empty: none is ever added later.
func (c *creation) writeBins(ctx context.Context) ([]v1.Descriptor, error) {
	var groups []v1.Descriptor
	size := groupSize(c.bits)
	for first := 0; first < 1<<c.bits; first += size {
		layers := map[string]v1.Descriptor{}
		for n := first; n < first+size; n++ {
			name := binName(n, c.bits)
			f, err := signBin(metadata.Targets(c.now), c.id, name, 1, c.now, c.OnlineKey)
			if err != nil {
				return nil, err
			}
			layers[f.name] = c.writer.add(ctx, f, notInline)
			c.meta[name+".json"] = metadata.MetaFile(1)
		}
		d, err := c.writer.addGroup(layers, rangeText(first, first+size-1, c.bits))
		if err != nil {
			return nil, err
		}
		groups = append(groups, d)
	}
	return groups, nil
}

func (c *creation) writeOnline(ctx context.Context, top map[string]v1.Descriptor) error {
	_, snapshot, err := signSnapshot(c.id, 1, c.meta, nil, c.now, c.OnlineKey)
	if err != nil {
		return err
	}
	_, timestamp, err := signTimestamp(c.id, 0, 1, 1, snapshot, c.now, c.OnlineKey)
	if err != nil {
		return err
	}
	if err := c.writer.addTop(ctx, top, offlineFile{versioned(1, metadata.SNAPSHOT), metadataType, snapshot, maxInline}); err != nil {
		return err
	}
	return c.writer.addTop(ctx, top, offlineFile{"timestamp.json", metadataType, timestamp, maxInline})
}

// result reads the new repository as a client would and describes it.
func (c *creation) result(ctx context.Context) (Initialized, error) {
	client, err := Open(ClientOptions{Repository: c.Repository, Root: []byte(c.NextRoot), Registry: c.Registry, Now: c.Now})
	if err != nil {
		return Initialized{}, err
	}
	roles, err := client.Chain(ctx)
	if err != nil {
		return Initialized{}, fmt.Errorf("verifying the new trust repository: %w", err)
	}
	return Initialized{ID: c.id.Repository, Root: []byte(c.NextRoot), Bins: 1 << c.bits, Roles: roles, Bytes: c.writer.bytes.Load()}, nil
}
