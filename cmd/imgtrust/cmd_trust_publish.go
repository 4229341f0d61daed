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
	json          bool
	keys          keyFlags
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

The result on stdout is one REPOSITORY@DIGEST line for each image listed.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.repository = args[0]
			return a.trustPublish(cmd.Context(), f)
		},
	}
	f.register(cmd.Flags(), false)
	f.registerKeys(cmd)
	cmd.Flags().Int64Var(&f.expectVersion, "expect-version", 0, "refuse unless the trust index has this version: for runs without state")
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
	if f.onlineKey == "" {
		return out, "", usageError{errors.New("missing --online-key KEY")}
	}
	options, err := a.clientOptions(f.trustFlags, "publisher")
	if err != nil {
		return out, "", err
	}
	keys, err := a.loadKeys(ctx, []string{f.onlineKey}, f.keys)
	if err != nil {
		return out, "", err
	}
	p, err := trust.OpenPublisher(trust.PublisherOptions{ClientOptions: options, OnlineKey: keys[0], ExpectVersion: f.expectVersion})
	if err != nil {
		return out, "", err
	}
	out, err = p.Publish(ctx)
	return out, options.Repository, err
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
	a.progress("published %s version %d, fresh until %s", repo, p.Version, p.Expires.Format(time.RFC3339))
}
