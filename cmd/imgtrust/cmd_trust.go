package main

import (
	"github.com/spf13/cobra"
)

func newTrustCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "trust",
		Short: "Make and keep a trust repository",
		Long: `A trust repository is an OCI repository that holds TUF metadata: which digests
are listed, under which policy, and until when that may be believed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		newTrustInitCommand(a),
		newTrustPublishCommand(a),
		newTrustStatusCommand(a),
		newTrustRevokeCommand(a),
		newTrustCopyCommand(a),
		newTrustDoctorCommand(a),
		newTrustPolicyCommand(a),
		newTrustRotateCommand(a),
		newTrustSignChangeCommand(a),
		newTrustSubmitCommand(a),
	)
	return cmd
}
