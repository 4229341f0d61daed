package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/imgtrust/imgtrust/policy"
	"github.com/imgtrust/imgtrust/trust"
)

// statusFlags are the flags of trust status.
type statusFlags struct {
	trustFlags
	bootstrap string
	json      bool
}

func newTrustStatusCommand(a *app) *cobra.Command {
	var f statusFlags
	cmd := &cobra.Command{
		Use:   "status REPO --root root.json",
		Short: "Show the roles of a trust repository and how long they live",
		Long: `status shows every role of a trust repository: its version, its expiry, and whose
keys sign it. The exit code is 3 when a role is past half of its life, so that cron
can tell who must renew it long before readers refuse. Bins are renewed by each
publish, a slice at a time, and are due at a quarter of their life.

--bootstrap writes the newest root with the versions that are current. Given as
--root to a reader without state, it refuses everything older.`,
		Example: `  imgtrust trust status registry.example.com/trust --root root.json --bootstrap bootstrap.json`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.repository = args[0]
			return a.trustStatus(cmd.Context(), f)
		},
	}
	f.register(cmd.Flags(), false)
	cmd.Flags().BoolVar(&f.json, "json", false, "print one JSON object")
	cmd.Flags().BoolVar(&f.offline, "offline", false, "answer from the state alone, with no connection at all")
	cmd.Flags().StringVar(&f.bootstrap, "bootstrap", "", "write root.json with version floors to this file")
	return cmd
}

func (a *app) trustStatus(ctx context.Context, f statusFlags) error {
	options, err := a.clientOptions(f.trustFlags, "trust")
	if err != nil {
		return err
	}
	s, client, err := trust.ReadStatus(ctx, options)
	if err != nil {
		return a.untrusted(err)
	}
	if f.bootstrap != "" {
		if err := writeBootstrap(client, f.bootstrap); err != nil {
			return err
		}
	}
	if f.json {
		err = json.NewEncoder(a.stdout).Encode(s)
	} else {
		err = a.printStatus(s)
	}
	if err != nil {
		return err
	}
	return a.sayDue(s)
}

func writeBootstrap(client *trust.Client, path string) error {
	b, err := client.Bootstrap()
	if err != nil {
		return err
	}
	data, err := b.Encode()
	if err != nil {
		return err
	}
	return replaceFile(path, data)
}

// sayDue names the roles that must be renewed, and who must do it.
func (a *app) sayDue(s trust.Status) error {
	due := false
	for _, r := range s.Roles {
		switch {
		case r.Expired:
			a.progress("%s: %s expired %s: %s", policy.MetadataExpired, r.Role, r.Expires.Format(time.RFC3339), r.Renew)
		case r.Due:
			a.progress("%s is due before %s: %s", r.Role, r.Expires.Format(time.RFC3339), r.Renew)
		}
		due = due || r.Due
	}
	if due {
		return refusal{}
	}
	return nil
}

func (a *app) printStatus(s trust.Status) error {
	w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "ROLE\tVERSION\tEXPIRES\tLEFT\tTHRESHOLD\tKEYS")
	for _, r := range s.Roles {
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%d of %d\t%s\n", r.Role, r.Version, r.Expires.Format(time.DateOnly), left(r.Left), r.Threshold, len(r.KeyIDs), shortIDs(slices.Clone(r.KeyIDs)))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	inbox := fmt.Sprint(s.Inbox)
	if s.Inbox < 0 {
		inbox = "could not be read"
	}
	a.progress("ID %s, published %s, %d of %d bins written, %d of %d looked at filled, %d tombstones, inbox %s",
		s.ID, s.Published.Format(time.RFC3339), s.Written, s.Bins, s.Filled, s.Looked, s.Revoked, inbox)
	return nil
}

// left writes a time that is left in days, or in hours when it is below two days.
func left(d time.Duration) string {
	switch {
	case d <= 0:
		return "expired"
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
