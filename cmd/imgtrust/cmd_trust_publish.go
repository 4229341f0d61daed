package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/imgtrust/imgtrust/trust"
)

// publishFlags are the flags of trust publish.
type publishFlags struct {
	trustFlags
	onlineKey     string
	expectVersion int64
	adopt         bool
	json          bool
	keys          keyFlags
	watchFlags
}

func (f *publishFlags) registerKeys(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.onlineKey, "online-key", "", "the publisher's key")
}

func newTrustPublishCommand(a *app) *cobra.Command {
	var f publishFlags
	cmd := &cobra.Command{
		Use:   "publish REPO --root root.json --online-key KEY",
		Short: "List what waits in the inbox and renew the online roles",
		Long: `List what waits in the inbox: each statement is checked against the current
policy exactly as a node would, and what is allowed is listed. Snapshot and
timestamp are renewed in any case. One publisher at a time writes a repository.

With --watch it goes on until it is interrupted, and publishes when a statement
arrives or when the online roles, which then live a day, are past half of their
life. Idle, it makes two requests an interval. A publish in progress is finished.

Two publishers that collide repair it by themselves. An index that is older than
the last that this publisher saw is refused: it may be an attack. --adopt goes on
from it, with versions above both, when the registry was put back by its owner.

The result on stdout is one REPOSITORY@DIGEST line for each image listed.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.repository = args[0]
			if f.watch {
				return a.trustWatch(cmd.Context(), f)
			}
			if f.interval != 0 || f.metricsAddr != "" {
				return usageError{errors.New("--interval and --metrics-addr belong to --watch")}
			}
			return a.trustPublish(cmd.Context(), f)
		},
	}
	f.register(cmd.Flags(), false)
	f.registerKeys(cmd)
	cmd.Flags().Int64Var(&f.expectVersion, "expect-version", 0, "refuse unless the trust index has this version: for runs without state")
	cmd.Flags().BoolVar(&f.adopt, "adopt", false, "go on from an index that is older than the last seen: gives up rollback protection once")
	cmd.Flags().BoolVar(&f.watch, "watch", false, "go on publishing until interrupted")
	cmd.Flags().DurationVar(&f.interval, "interval", 0, "with --watch: time between two looks at the inbox (default 30s)")
	cmd.Flags().StringVar(&f.metricsAddr, "metrics-addr", "", "with --watch: loopback address to serve /healthz and /metrics on")
	cmd.Flags().BoolVar(&f.json, "json", false, "print one JSON object")
	f.keys.register(cmd.Flags())
	return cmd
}

func (a *app) trustPublish(ctx context.Context, f publishFlags) error {
	out, repo, err := a.publishOnce(ctx, f)
	if out.Version == 0 {
		return err
	}
	a.sayPublication(repo, out)
	return errors.Join(err, a.printPublication(out, f.json))
}

func (a *app) printPublication(p trust.Publication, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(a.stdout).Encode(p)
	}
	for _, image := range p.Listed {
		if _, err := fmt.Fprintln(a.stdout, image); err != nil {
			return err
		}
	}
	return nil
}

// publishOnce runs the publisher once and names the repository that it wrote.
func (a *app) publishOnce(ctx context.Context, f publishFlags) (out trust.Publication, repo string, err error) {
	p, options, err := a.openPublisher(ctx, f)
	if err != nil {
		return out, "", err
	}
	out, err = p.Publish(ctx)
	return out, options.Repository, err
}

func (a *app) openPublisher(ctx context.Context, f publishFlags) (*trust.Publisher, trust.ClientOptions, error) {
	if f.onlineKey == "" {
		return nil, trust.ClientOptions{}, usageError{errors.New("missing --online-key KEY")}
	}
	options, err := a.clientOptions(f.trustFlags, "publisher")
	if err != nil {
		return nil, options, err
	}
	keys, err := a.loadKeys(ctx, []string{f.onlineKey}, f.keys)
	if err != nil {
		return nil, options, err
	}
	if f.adopt {
		a.progress("warning: --adopt goes on from whatever index the registry serves, however old")
	}
	p, err := trust.OpenPublisher(trust.PublisherOptions{ClientOptions: options, OnlineKey: keys[0], ExpectVersion: f.expectVersion, Adopt: f.adopt})
	return p, options, err
}

// sayPublication tells what was done beside listing, and why not all was.
func (a *app) sayPublication(repo string, p trust.Publication) {
	for _, r := range p.Waiting {
		a.progress("waiting %s: %s", r.Image, r.Reason)
	}
	for _, r := range p.Refused {
		a.progress("refused %s %s: %s", r.Entry, r.Image, r.Reason)
	}
	for _, r := range p.Revoked {
		what := "revoked"
		if r.Undone {
			what = "no longer revoked:"
		}
		a.progress("%s %s: %s", what, r.Subject, r.Reason)
	}
	for _, image := range p.Listed {
		a.progress("listed %s", image)
	}
	for _, tag := range p.Tags {
		a.progress("listed the tag %s", tag)
	}
	if p.Repaired {
		a.progress("warning: the index before was not the one that this publisher remembers; this one is above both")
	}
	a.progress("published %s version %d, fresh until %s", repo, p.Version, p.Expires.Format(time.RFC3339))
}
