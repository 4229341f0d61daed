package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/imgtrust/imgtrust/policy"
	"github.com/imgtrust/imgtrust/trust"
)

func newTrustPolicyCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Show or replace the policy of a trust repository",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newTrustPolicyPushCommand(a), newTrustPolicyShowCommand(a))
	return cmd
}

func newTrustPolicyPushCommand(a *app) *cobra.Command {
	var f changeFlags
	cmd := &cobra.Command{
		Use:   "push FILE --trust REPO --root root.json (--key KEY... --online-key KEY | --out FILE)",
		Short: "Replace the policy",
		Long: `push checks a policy strictly, says in words what it changes and which of the
listed images would stop running, and proposes it to the holders of the targets
keys: at once with their keys at hand (--key, repeated, and --online-key), or
staged with --out, as trust rotate does.

When images would stop running, --key asks before it signs; where nobody can be
asked, --yes says that this is meant.`,
		Example: `  imgtrust trust policy push policy.yaml --trust registry.example.com/trust --root root.json --out change.json`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.trustPolicyPush(cmd.Context(), args[0], f)
		},
	}
	f.register(cmd.Flags())
	return cmd
}

func (a *app) trustPolicyPush(ctx context.Context, path string, f changeFlags) error {
	data, err := readBounded(path, policy.MaxDocument)
	if err != nil {
		return err
	}
	next, err := policy.Parse(path, data)
	if err != nil {
		return err
	}
	options, err := a.clientOptions(f.trustFlags, "trust")
	if err != nil {
		return err
	}
	change, err := trust.Propose(ctx, options, trust.Proposal{Policy: data})
	if err != nil {
		return a.untrusted(err)
	}
	if err := a.sayImpact(ctx, options, next); err != nil {
		return err
	}
	return a.carryOut(ctx, change, options, f)
}

// sayImpact tells which listed images would stop running.
func (a *app) sayImpact(ctx context.Context, o trust.ClientOptions, next *policy.Policy) error {
	client, err := trust.Open(o)
	if err != nil {
		return a.untrusted(err)
	}
	impact, err := client.Impact(ctx, next)
	if trust.CodeOf(err) == policy.MetadataExpired {
		a.progress("warning: which images would stop running cannot be told: %v", err)
		return nil
	}
	if err != nil {
		return a.untrusted(err)
	}
	a.progress("of %d listed digests and tags %d would stop running, %d would start to", impact.Listed, impact.Stops, impact.Starts)
	for _, s := range impact.First {
		a.progress("  stops: %s: %s: %s", s.Image, s.Code, s.Reason)
	}
	if more := impact.Stops - len(impact.First); more > 0 {
		a.progress("  and %d more", more)
	}
	return nil
}

func newTrustPolicyShowCommand(a *app) *cobra.Command {
	var f trustFlags
	cmd := &cobra.Command{
		Use:   "show --trust REPO --root root.json",
		Short: "Print the policy that holds",
		Long: `show prints the policy as the targets keys signed it, byte for byte, after the
whole chain from root.json to it was verified.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.trustPolicyShow(cmd.Context(), f)
		},
	}
	f.register(cmd.Flags(), true)
	cmd.Flags().BoolVar(&f.offline, "offline", false, "answer from the state alone, with no connection at all")
	return cmd
}

func (a *app) trustPolicyShow(ctx context.Context, f trustFlags) error {
	options, err := a.clientOptions(f, "trust")
	if err != nil {
		return err
	}
	client, err := trust.Open(options)
	if err != nil {
		return a.untrusted(err)
	}
	data, by, err := client.PolicyFile(ctx)
	if err != nil {
		return a.untrusted(err)
	}
	a.progress("targets version %d, until %s, %d of keys %s", by.Version, by.Expires.Format("2006-01-02"), by.Threshold, shortIDs(by.KeyIDs))
	_, err = fmt.Fprint(a.stdout, string(data))
	return err
}
