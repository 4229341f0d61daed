package main

import (
	"fmt"
	"io"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/cobra"

	"github.com/imgtrust/imgtrust/internal/oci"
	"github.com/imgtrust/imgtrust/policy"
)

func newPolicyCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Check and explain a policy file",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newPolicyCheckCommand(a), newPolicyExplainCommand(a))
	return cmd
}

func newPolicyCheckCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "Check a policy file",
		Long: `check reads a policy as strictly as publisher and nodes do and names the first
fault as FILE:LINE:COLUMN. It needs no registry.`,
		Example: `  imgtrust policy check policy.yaml`,
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			p, err := readPolicy(args[0])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.stdout, "%s ok: %d rules, %d signers\n", args[0], len(p.Rules()), len(p.Signers()))
			return err
		},
	}
}

func newPolicyExplainCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "explain FILE REF",
		Short: "Tell which rule decides about an image and who must sign it",
		Long: `explain prints the canonical name of REF, the rule that decides about it and what
the rule asks for. It looks at the name, and at the digest if there is one, but
not at the image, and needs no registry. The exit code is 3 when the policy
refuses the image whoever signs it.`,
		Example: `  imgtrust policy explain policy.yaml registry.example.com/payments/api:v1`,
		Args:    cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			p, err := readPolicy(args[0])
			if err != nil {
				return err
			}
			ref, err := oci.ParseReference(args[1])
			if err != nil {
				return usageError{err}
			}
			return a.explainPolicy(p, ref)
		},
	}
}

// explainPolicy prints one line.
func (a *app) explainPolicy(p *policy.Policy, ref oci.Reference) error {
	text, refused := explanation(p, ref)
	if _, err := fmt.Fprintf(a.stdout, "%s: %s\n", ref, text); err != nil {
		return err
	}
	if refused {
		return refusal{}
	}
	return nil
}

func explanation(p *policy.Policy, ref oci.Reference) (text string, refused bool) {
	if ref.Digest != (v1.Hash{}) {
		if digest, denied := p.Denied(ref.Digest.String()); denied {
			return fmt.Sprintf("%s, %s is under deny", policy.Denied, digest), true
		}
	}
	rule, pattern, ok := p.Match(ref.Repository)
	if !ok {
		return fmt.Sprintf("%s, no rule matches", policy.NoRule), true
	}
	return fmt.Sprintf("%s %s: %s", rule.Name, pattern, rule), false
}

// readPolicy parses a policy file; the parser bounds its size.
func readPolicy(file string) (*policy.Policy, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, policy.MaxDocument+1))
	if err != nil {
		return nil, err
	}
	return policy.Parse(file, data)
}
