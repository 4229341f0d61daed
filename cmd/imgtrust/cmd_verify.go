package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/imgtrust/imgtrust/internal/oci"
	"github.com/imgtrust/imgtrust/policy"
	"github.com/imgtrust/imgtrust/trust"
	"github.com/imgtrust/imgtrust/verify"
)

// verifyFlags are the flags of verify.
type verifyFlags struct {
	trustFlags
	as            string
	explain, json bool
}

func newVerifyCommand(a *app) *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use:   "verify IMAGE... --trust REPO --root root.json",
		Short: "Decide whether images may run",
		Long: `Decide whether images may run: each must be listed in the trust repository and
signed as its policy wants. IMAGE is a reference by tag or digest, an index, a
child of a signed index, or oci:DIR[@DIGEST] together with --as.

An allowed image is printed on stdout as one REPOSITORY@DIGEST line; run it by
that, not by its tag. The exit code is 0 when every image is allowed, 3 when one
is refused, and 1 when one could not be told.`,
		Example: `  imgtrust verify registry.example.com/app:v1 --trust registry.example.com/trust --root root.json
  imgtrust verify oci:build/app --as registry.example.com/app:v1 --trust registry.example.com/trust --root root.json`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.verify(cmd.Context(), args, f)
		},
	}
	flags := cmd.Flags()
	f.register(flags, true)
	flags.StringVar(&f.as, "as", "", "trusted name REPO[:TAG] under which an oci: layout is judged")
	flags.BoolVar(&f.offline, "offline", false, "answer from the state alone, with no connection at all")
	flags.BoolVar(&f.explain, "explain", false, "show the chain from root to the signatures")
	flags.BoolVar(&f.json, "json", false, "print one JSON decision for each image")
	return cmd
}

// verify decides on each image and prints the decisions.
func (a *app) verify(ctx context.Context, args []string, f verifyFlags) error {
	locations, as, err := verifyNames(args, f.as)
	if err != nil {
		return usageError{err}
	}
	options, err := a.clientOptions(f.trustFlags, "trust")
	if err != nil {
		return err
	}
	client, err := trust.Open(options)
	if err != nil {
		return a.untrusted(err)
	}
	var worst error
	for _, l := range locations {
		r, err := verify.Image(ctx, l, verify.Options{Trust: client, Registry: options.Registry, As: as})
		if err != nil {
			return usageError{err}
		}
		if err := a.printDecision(r, f); err != nil {
			return err
		}
		worst = worse(worst, r)
	}
	return worst
}

// verifyNames parses the images and the trusted name of layouts.
func verifyNames(args []string, as string) (locations []oci.Location, name oci.Reference, err error) {
	if as != "" {
		if name, err = oci.ParseReference(as); err != nil {
			return nil, name, fmt.Errorf("--as: %w", err)
		}
	}
	for _, arg := range args {
		l, err := oci.ParseLocation(arg)
		switch {
		case err != nil:
			return nil, name, err
		case l.Layout != "" && as == "":
			return nil, name, fmt.Errorf("%s has no trusted name: say under which it is judged, with --as REPO[:TAG]", arg)
		case l.Layout == "" && as != "":
			return nil, name, fmt.Errorf("--as is for oci: layouts: %s has its own name", arg)
		case l.Layout == "" && l.Reference.Tag == "" && l.Reference.Digest.Hex == "":
			return nil, name, fmt.Errorf("%s names neither a tag nor a digest", arg)
		}
		locations = append(locations, l)
	}
	return locations, name, nil
}

// untrusted gives an error of the trust repository its exit code: a refusal is
// "no", what could not be told is a failure.
func (a *app) untrusted(err error) error {
	if trust.CodeOf(err) == policy.Unavailable {
		return err
	}
	return refusal{fmt.Errorf("%s: %w", trust.CodeOf(err), err)}
}

// worse keeps the error that decides the exit code: a "no" before a "could not
// tell" before none. Both have been printed.
func worse(so error, r verify.Result) error {
	switch code := r.Decision().Code; {
	case r.Allowed():
		return so
	case code != policy.Unavailable:
		return refusal{}
	case so == nil:
		return silent{fmt.Errorf("%s", code)}
	}
	return so
}

// printDecision prints the result on stdout and the talk about it on stderr.
func (a *app) printDecision(r verify.Result, f verifyFlags) error {
	d := r.Decision()
	if f.explain {
		a.explain(d)
	}
	if !d.Allowed {
		a.progress("refused %s: %s: %s", d.Image, d.Code, strings.Join(d.Reasons, "; "))
		if r.Hint() != "" {
			a.progress("hint: %s", r.Hint())
		}
	} else if d.Audit && d.Code != policy.Allowed {
		a.progress("warning: %s is allowed by an audit rule only: %s: %s", d.Image, d.Code, strings.Join(d.Reasons, "; "))
	}
	if d.Allowed && !d.Evidence.RollbackProtected {
		a.progress("warning: no state is kept: an older trust index could not be told from the newest")
	}
	if f.json {
		return json.NewEncoder(a.stdout).Encode(d)
	}
	if d.Allowed {
		_, err := fmt.Fprintln(a.stdout, d.Image)
		return err
	}
	return nil
}

// explain prints the chain of the decision from root to the signatures.
func (a *app) explain(d verify.Decision) {
	e := d.Evidence
	a.progress("trust repository %s, ID %s", e.TrustRepository, e.TrustID)
	for _, r := range e.Roles {
		a.progress("  %-16s version %-4d expires %s  %d of key %s", r.Role, r.Version, r.Expires.Format(time.RFC3339), r.Threshold, shortIDs(r.KeyIDs))
	}
	if e.Tag != "" {
		a.progress("  tag %s is listed for it, by statements of %s", e.Tag, e.TagTime.Format(time.RFC3339))
	}
	if !e.Listed.IsZero() {
		a.progress("  listed %s", e.Listed.Format(time.RFC3339))
	}
	if e.Index != "" {
		a.progress("  through the signed index %s", e.Index)
	}
	if d.Rule != "" {
		a.progress("  rule %s", d.Rule)
	}
	for _, s := range e.Signers {
		a.progress("  signed by %s with key %.16s on %s", s.Name, s.KeyID, s.Created.Format(time.RFC3339))
	}
	a.progress("  %s %s, valid until %s", d.Code, d.Image, e.Until.Format(time.RFC3339))
}

func shortIDs(ids []string) string {
	short := make([]string, len(ids))
	for i, id := range ids {
		short[i] = fmt.Sprintf("%.16s", id)
	}
	return strings.Join(short, ", ")
}
