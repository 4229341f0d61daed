package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/imgtrust/imgtrust/internal/oci"
)

func newTrustDoctorCommand(a *app) *cobra.Command {
	var f struct {
		registry registryFlags
		json     bool
	}
	cmd := &cobra.Command{
		Use:   "doctor REGISTRY[/PREFIX]",
		Short: "Probe what a registry really does, and tell how it will be used",
		Long: `doctor tries what a registry does, rather than what it says: it writes small
manifests into a repository of its own, PREFIX/imgtrust-doctor-…, and deletes them
again where the registry deletes. It touches nothing else.

The exit code is 3 when the registry cannot hold a trust repository, and 1 when
that could not be told.`,
		Example: `  imgtrust trust doctor registry.example.com/team`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.trustDoctor(cmd.Context(), args[0], f.registry, f.json)
		},
	}
	f.registry.register(cmd.Flags())
	cmd.Flags().BoolVar(&f.json, "json", false, "print one JSON object")
	return cmd
}

// diagnosis is what trust doctor --json prints.
type diagnosis struct {
	Registry string        `json:"registry"`
	Findings []oci.Finding `json:"findings"`
	Strategy []string      `json:"strategy"` // how it will be used
	Problems []string      `json:"problems"` // why it cannot hold a trust repository
	Doubts   []string      `json:"doubts"`   // what could not be told and matters
}

func (a *app) trustDoctor(ctx context.Context, prefix string, f registryFlags, asJSON bool) error {
	if ref, err := oci.ParseReference(prefix + "/x"); err != nil || ref.Repository != prefix+"/x" {
		return usageError{fmt.Errorf("%q: want HOST or HOST/PREFIX: %w", prefix, err)}
	}
	findings, err := a.registryClient(f).Probe(ctx, prefix)
	if err != nil {
		return err
	}
	d := diagnose(prefix, findings)
	if asJSON {
		err = json.NewEncoder(a.stdout).Encode(d)
	} else {
		err = a.printDiagnosis(d)
	}
	switch {
	case err != nil:
		return err
	case len(d.Problems) > 0:
		return refusal{errors.New(d.Problems[0])}
	case len(d.Doubts) > 0:
		return errors.New(d.Doubts[0])
	}
	return nil
}

// diagnose tells what follows from the findings.
func diagnose(registry string, findings []oci.Finding) diagnosis {
	d := diagnosis{Registry: registry, Findings: findings, Strategy: []string{}, Problems: []string{}, Doubts: []string{}}
	for _, f := range findings {
		c, known := consequences()[f.Name]
		switch {
		case !known:
		case f.Answer == oci.Yes:
			d.Strategy = appendText(d.Strategy, c.yes)
		case f.Answer == oci.No && c.needed:
			d.Problems = append(d.Problems, c.no+": "+f.Detail)
		case f.Answer == oci.No:
			d.Strategy = appendText(d.Strategy, c.no)
		case c.needed:
			d.Doubts = append(d.Doubts, fmt.Sprintf("%s: could not be told: %s", f.Name, f.Detail))
		default:
			d.Strategy = appendText(d.Strategy, f.Name+": could not be told")
		}
	}
	return d
}

func appendText(list []string, text string) []string {
	if text == "" {
		return list
	}
	return append(list, text)
}

// consequence is what imgtrust does where a registry does something, and where it
// does not; needed tells that it cannot do without.
type consequence struct {
	yes, no string
	needed  bool
}

func consequences() map[string]consequence {
	return map[string]consequence{
		oci.ProbeReadBack: {needed: true, no: "what was written cannot be read back at once: a publish could not be confirmed"},
		oci.ProbeMove:     {needed: true, no: "tags cannot be moved: a trust repository is switched by moving the tag \"tuf\""},
		oci.ProbeMissing:  {no: "a missing tag looks like a forbidden one: a wrong name is reported as a lack of rights, and copies of old signature tags fail"},
		oci.ProbeReferrers: {
			yes: "signatures are found by the referrers API: signers never wait for each other",
			no:  "signatures are listed under the tag sha256-HEX: signers of one image read back and try again",
		},
		oci.ProbeFallback:    {no: "the tag sha256-HEX is not free: without the referrers API nothing can be attached to images; the inbox works all the same"},
		oci.ProbePages:       {no: "tags are not listed in pages: an inbox of more tags than come at once is worked off as they come"},
		oci.ProbeSize:        {no: "manifests of 4 MiB are refused: keep --expected-images below a million"},
		oci.ProbeConditional: {yes: "a wrong If-Match is refused; imgtrust looks before it switches the tag, and reads back, as everywhere", no: "no precondition protects the switch of the tag: imgtrust looks before it, and reads back"},
		oci.ProbeDelete: {
			yes: "the inbox is pruned, and replaced parts are deleted after an hour",
			no:  "nothing is pruned: the inbox grows, and is passed over; the registry's retention rules must spare what the tag \"tuf\" reaches",
		},
	}
}

func (a *app) printDiagnosis(d diagnosis) error {
	w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
	for _, f := range d.Findings {
		fmt.Fprintf(w, "%s\t%s\t%s\n", f.Name, f.Answer, f.Detail)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, s := range d.Strategy {
		a.progress("%s", s)
	}
	return nil
}
