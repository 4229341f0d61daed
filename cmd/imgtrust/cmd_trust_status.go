package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/imgtrust/imgtrust/trust"
)

func newTrustStatusCommand(a *app) *cobra.Command {
	var f struct {
		trustFlags
		json bool
	}
	cmd := &cobra.Command{
		Use:   "status REPO --root root.json",
		Short: "Show the roles of a trust repository and how long they live",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.repository = args[0]
			return a.trustStatus(cmd.Context(), f.trustFlags, f.json)
		},
	}
	f.register(cmd.Flags(), false)
	cmd.Flags().BoolVar(&f.json, "json", false, "print one JSON object")
	cmd.Flags().BoolVar(&f.offline, "offline", false, "answer from the state alone, with no connection at all")
	return cmd
}

func (a *app) trustStatus(ctx context.Context, f trustFlags, asJSON bool) error {
	options, err := a.clientOptions(f, "trust")
	if err != nil {
		return err
	}
	client, err := trust.Open(options)
	if err != nil {
		return a.untrusted(err)
	}
	s, err := client.Status(ctx)
	if err != nil {
		return a.untrusted(err)
	}
	if asJSON {
		return json.NewEncoder(a.stdout).Encode(s)
	}
	return a.printStatus(s)
}

func (a *app) printStatus(s trust.Status) error {
	w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "ROLE\tVERSION\tEXPIRES\tDAYS LEFT\tTHRESHOLD\tKEYS")
	for _, r := range s.Roles {
		days := int(time.Until(r.Expires).Hours() / 24)
		fmt.Fprintf(w, "%s\t%d\t%s\t%d\t%d of %d\t%s\n", r.Role, r.Version, r.Expires.Format(time.DateOnly), days, r.Threshold, len(r.KeyIDs), shortIDs(slices.Clone(r.KeyIDs)))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	inbox := fmt.Sprint(s.Inbox)
	if s.Inbox < 0 {
		inbox = "could not be read"
	}
	a.progress("ID %s, %d of %d bins written, %d tombstones, inbox %s", s.ID, s.Written, s.Bins, s.Revoked, inbox)
	return nil
}
