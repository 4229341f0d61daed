package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/imgtrust/imgtrust/sign"
)

func newKeyCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Make signing keys",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newKeyGenerateCommand(a))
	return cmd
}

func newKeyGenerateCommand(a *app) *cobra.Command {
	var prefix, kind string
	cmd := &cobra.Command{
		Use:   "generate -o PREFIX",
		Short: "Make a key: PREFIX.key (encrypted) and PREFIX.pub",
		Long: `Make a key pair and write the private key to PREFIX.key, encrypted under a
passphrase, and the public key to PREFIX.pub. Existing files are never
overwritten. cosign reads both files; to verify by an ecdsa-p384 key it needs
--signature-digest-algorithm=sha384.

The passphrase comes from IMGTRUST_PASSWORD, else COSIGN_PASSWORD, else from a
prompt. The result on stdout is the name of the public key's file.`,
		Example: "  imgtrust key generate -o ci",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return a.generateKey(prefix, sign.KeyType(kind))
		},
	}
	cmd.Flags().StringVarP(&prefix, "output", "o", "", "write PREFIX.key and PREFIX.pub")
	cmd.Flags().StringVar(&kind, "type", string(sign.ECDSAP256), fmt.Sprintf("type of the key: one of %v", sign.KeyTypes()))
	return cmd
}

func (a *app) generateKey(prefix string, kind sign.KeyType) error {
	if prefix == "" {
		return usageError{errors.New("missing -o PREFIX")}
	}
	for _, file := range []string{prefix + ".key", prefix + ".pub"} {
		if _, err := os.Lstat(file); err == nil {
			return fmt.Errorf("%s: %w; keys are never overwritten", file, fs.ErrExist)
		}
	}
	word, err := a.passphrase(prefix+".key", true)()
	if err != nil {
		return err
	}
	key, err := sign.GenerateKey(kind)
	if err != nil {
		return usageError{err}
	}
	if err := key.Save(prefix, word); err != nil {
		return err
	}
	a.progress("key ID %s", key.ID())
	fmt.Fprintf(a.stdout, "%s.pub\n", prefix)
	return nil
}
