package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/cobra"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/internal/oci"
	"github.com/imgtrust/imgtrust/policy"
	"github.com/imgtrust/imgtrust/sign"
	"github.com/imgtrust/imgtrust/trust"
)

// revokeFlags are the flags of trust revoke.
type revokeFlags struct {
	publishFlags
	key, reason   string
	signer, since string
	undo          bool
}

func newTrustRevokeCommand(a *app) *cobra.Command {
	var f revokeFlags
	cmd := &cobra.Command{
		Use:   "revoke IMAGE@DIGEST... --reason TEXT --trust REPO --root root.json (--key REVOKER | --online-key KEY)",
		Short: "Revoke images or a signer",
		Long: `revoke makes every reader refuse a digest after its next refresh: in every
repository, with the manifests and configs that its signed statements name, and as
a child of another index. --signer NAME --since TIME revokes instead what the
publisher has listed at TIME or later on the word of one signer.

With --key, a revoker of the policy leaves a statement in the inbox; when enough
revokers have, the next publish makes it hold. With --online-key the publisher's
operator publishes it at once.

--undo takes a revocation back, which takes the same authority. Readers that have
seen what the operator revoked keep it until revokers take it back.`,
		Example: `  imgtrust trust revoke registry.example.com/app@sha256:… --reason CVE-2026-1 --trust registry.example.com/trust --root root.json --key security.key
  imgtrust trust revoke --signer ci --since 2026-06-01T00:00:00Z --reason "key stolen" --trust registry.example.com/trust --root root.json --online-key online.key`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.trustRevoke(cmd.Context(), args, f)
		},
	}
	flags := cmd.Flags()
	f.register(flags, true)
	f.registerKeys(cmd)
	flags.StringVar(&f.key, "key", "", "key of a revoker of the policy")
	flags.StringVar(&f.reason, "reason", "", "why, for people: 1 to 512 bytes")
	flags.StringVar(&f.signer, "signer", "", "revoke a signer of the policy instead of images")
	flags.StringVar(&f.since, "since", "", "with --signer: RFC 3339 time since which its listings do not count")
	flags.BoolVar(&f.undo, "undo", false, "take a revocation back")
	flags.Int64Var(&f.expectVersion, "expect-version", 0, "refuse unless the trust index has this version: for runs without state")
	f.keys.register(flags)
	return cmd
}

func (a *app) trustRevoke(ctx context.Context, images []string, f revokeFlags) error {
	subjects, err := f.subjects(images)
	if err != nil {
		return usageError{err}
	}
	if f.onlineKey != "" {
		return a.revokeAsOperator(ctx, subjects, f)
	}
	return a.revokeAsRevoker(ctx, subjects, f)
}

// subjects reads the words of the command line: what is revoked.
func (f revokeFlags) subjects(images []string) ([]trust.OperatorRevocation, error) {
	switch {
	case (f.key == "") == (f.onlineKey == ""):
		return nil, errors.New("want --key REVOKER or --online-key KEY")
	case f.reason == "" || len(f.reason) > attest.MaxReason:
		return nil, fmt.Errorf("--reason: want 1 to %d bytes", attest.MaxReason)
	case (f.signer == "") == (len(images) == 0):
		return nil, errors.New("want images with their digests, or --signer NAME")
	case (f.signer == "") != (f.since == ""):
		return nil, errors.New("--signer and --since belong together")
	}
	if f.signer != "" {
		since, err := time.Parse(time.RFC3339, f.since)
		if err != nil {
			return nil, fmt.Errorf("--since %q: want a time as 2026-06-01T00:00:00Z", f.since)
		}
		t := trust.Tombstone{Signer: f.signer, Since: since.UTC().Truncate(time.Second), Reason: f.reason}
		return []trust.OperatorRevocation{{Tombstone: t, Undo: f.undo}}, nil
	}
	var all []trust.OperatorRevocation
	for _, image := range images {
		ref, err := oci.ParseReference(image)
		if err != nil {
			return nil, err
		}
		if ref.Digest == (v1.Hash{}) {
			return nil, fmt.Errorf("%s has no digest: a tag may mean another image by the time it is revoked", image)
		}
		t := trust.Tombstone{Digest: ref.Digest.String(), Reason: f.reason}
		all = append(all, trust.OperatorRevocation{Repository: ref.Repository, Tombstone: t, Undo: f.undo})
	}
	return all, nil
}

func (a *app) revokeAsOperator(ctx context.Context, subjects []trust.OperatorRevocation, f revokeFlags) error {
	options, err := a.clientOptions(f.trustFlags, "publisher")
	if err != nil {
		return err
	}
	keys, err := a.loadKeys(ctx, []string{f.onlineKey}, f.publishFlags.keys)
	if err != nil {
		return err
	}
	p, err := trust.OpenPublisher(trust.PublisherOptions{ClientOptions: options, OnlineKey: keys[0], ExpectVersion: f.expectVersion})
	if err != nil {
		return err
	}
	done, err := p.Revoke(ctx, subjects)
	if err != nil {
		return a.untrusted(err)
	}
	if f.undo {
		a.progress("readers that have seen it keep it, until revokers of the policy take it back")
	}
	a.progress("published %s version %d", options.Repository, done.Version)
	return a.printRevoked(subjects)
}

func (a *app) printRevoked(subjects []trust.OperatorRevocation) error {
	for _, s := range subjects {
		text := s.Subject()
		if s.Repository != "" {
			text = s.Repository + "@" + text
		}
		if _, err := fmt.Fprintln(a.stdout, text); err != nil {
			return err
		}
	}
	return nil
}

// revokeAsRevoker leaves statements in the inbox.
func (a *app) revokeAsRevoker(ctx context.Context, subjects []trust.OperatorRevocation, f revokeFlags) error {
	options, err := a.clientOptions(f.trustFlags, "trust")
	if err != nil {
		return err
	}
	client, err := trust.Open(options)
	if err != nil {
		return a.untrusted(err)
	}
	p, err := client.Policy(ctx)
	if err != nil {
		return a.untrusted(err)
	}
	key, err := sign.LoadKey(ctx, f.key, sign.LoadOptions{Passphrase: a.passphrase(f.key, false), Plaintext: f.publishFlags.keys.plaintext})
	if err != nil {
		return err
	}
	for _, s := range subjects {
		if err := a.submitRevocation(ctx, client, p, key, s, options.Registry); err != nil {
			return err
		}
	}
	if threshold, _ := p.Revokers(); threshold > 1 {
		a.progress("%d revokers of the policy must sign this", threshold)
	}
	a.progress("it holds after the next `imgtrust trust publish %s`", options.Repository)
	return a.printRevoked(subjects)
}

func (a *app) submitRevocation(ctx context.Context, client *trust.Client, p *policy.Policy, key *sign.Key, s trust.OperatorRevocation, registry *oci.Client) error {
	r := attest.RevocationStatement{Repository: s.Repository, Digest: s.Digest, Revocation: attest.Revocation{
		Trust: client.ID(), Created: time.Now().UTC().Truncate(time.Second), Reason: s.Reason, Undo: s.Undo, Signer: s.Signer, Since: s.Since,
	}}
	payload, err := attest.EncodeRevocation(r)
	if err != nil {
		return err
	}
	bundle, err := sign.Statement(ctx, payload, key)
	if err != nil {
		return err
	}
	if err := isRevoker(p, bundle, r); err != nil {
		return err
	}
	sum := sha256.Sum256(bundle)
	_, err = registry.PutArtifact(ctx, client.Inbox(), "s-"+hex.EncodeToString(sum[:]), oci.Artifact{Type: attest.BundleMediaType, Data: bundle})
	if err != nil {
		return fmt.Errorf("writing to the inbox %s: %w", client.Inbox(), err)
	}
	return nil
}

// isRevoker refuses a statement that the policy would not count, before anything
// is written.
func isRevoker(p *policy.Policy, bundle []byte, r attest.RevocationStatement) error {
	b, err := attest.DecodeBundle(bundle)
	if err != nil {
		return err
	}
	about := policy.Revocations{Trust: r.Trust, Digest: r.Digest, Signer: r.Signer, Since: r.Since, Undo: r.Undo}
	if v := p.DecideRevocation([]attest.Envelope{b.Envelope}, about, r.Created); len(v.Signers) == 0 {
		return refusal{fmt.Errorf("%s: the key is not of a revoker of the policy: %s", policy.ThresholdNotMet, v.Why)}
	}
	return nil
}
