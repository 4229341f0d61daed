package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/imgtrust/imgtrust/build"
	"github.com/imgtrust/imgtrust/internal/demo"
)

func newDemoCommand(a *app) *cobra.Command {
	o := demo.Options{Say: func(s string) { a.progress("%s", s) }}
	var contexts []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "demo [DIR]",
		Short: "Build, sign, list, verify and run an image, and try to get past the verifier",
		Long: `demo runs the whole chain on this machine: it starts a registry and BuildKit,
makes keys and a trust repository, builds an image, pushes, signs and lists it,
verifies it, fetches it with every byte hashed, and runs it with runc. Then it
tries to get past the verifier, and prints what each attempt was refused with.
It exits with 1 when one was not.

Without DIR the image is a small HTTP service, compiled inside BuildKit with the
Go SDK of this machine; no network is needed. With DIR it is built from the
Dockerfile in DIR. When that image EXPOSEs a port it must serve HTTP on $PORT of
$HOST and is asked once; any other image is run to its end. It runs on the host's
network without capabilities, /sys and name service.

It needs Linux, runc, and root or a user namespace, which it enters by itself
(package uidmap). Everything but the build cache is in a temporary directory and
removed at the end.`,
		Example: `  imgtrust demo
  imgtrust demo ./web --build-context debian=oci:./debian-layout
  imgtrust demo --json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if o.Context = ""; len(args) == 1 {
				o.Context = args[0]
			}
			if o.Contexts, err = keyValues("--build-context", contexts); err != nil {
				return err
			}
			return a.demo(cmd.Context(), o, asJSON)
		},
	}
	s := cmd.Flags()
	s.StringArrayVar(&contexts, "build-context", nil, "named context NAME=DIRECTORY, NAME=oci:DIR[@digest] or NAME=IMAGE")
	s.BoolVar(&asJSON, "json", false, "print the report as one JSON object")
	s.BoolVar(&o.Keep, "keep", false, "leave the temporary directory with the registry and the trust root")
	s.StringVar(&o.StateDir, "state", "", "the embedded builder's cache (default in the user's state directory)")
	s.StringVar(&o.Runc, "runc", "", "runc to build and run with (default from PATH)")
	return cmd
}

// demo is the whole command: privileges, demo, table.
func (a *app) demo(ctx context.Context, o demo.Options, asJSON bool) (err error) {
	if o.StateDir == "" {
		if o.StateDir, err = a.stateDir("buildkit"); err != nil {
			return err
		}
	}
	if isTerminal(a.stderr) {
		o.Progress = a.stderr
	}
	inside, err := a.enterUserNamespace(ctx, o.Runc)
	if inside == nil {
		return err
	}
	report, err := demo.Run(inside, o)
	var usage *build.UsageError
	if errors.As(err, &usage) {
		return usageError{err}
	}
	if err != nil && !errors.Is(err, demo.ErrThrough) {
		return err
	}
	return errors.Join(a.printDemo(report, asJSON), err)
}

func (a *app) printDemo(report demo.Report, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(a.stdout).Encode(report)
	}
	return printAttempts(a.stdout, report)
}

func printAttempts(out io.Writer, report demo.Report) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ATTEMPT\tTRIES\tCODE\tREFUSED")
	for _, o := range report.Attempts {
		refused := "yes"
		if !o.Refused {
			refused = "NO"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", o.Name, o.Tries, o.Code, refused)
	}
	return t.Flush()
}
