package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/imgtrust/imgtrust/internal/registry"
)

func newRegistryCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "registry",
		Short: "Run a development registry",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newRegistryServeCommand(a))
	return cmd
}

func newRegistryServeCommand(a *app) *cobra.Command {
	var o registry.Options
	var debug bool
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve images on loopback, from memory or a directory",
		Long: `serve runs an OCI registry until it is interrupted. Once it accepts connections
it prints its address as one line.

Without --dir the images live in memory and end with the program. With --dir they
stay, and an upload that a restart interrupts goes on where it was.

The registry asks for no credentials, so it listens on loopback only. It is meant
for development and tests.`,
		Example: `  imgtrust registry serve
  imgtrust registry serve --addr 127.0.0.1:0 --dir ./images`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if debug {
				o.Log = slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
			}
			return a.serveRegistry(cmd.Context(), o)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Addr, "addr", "127.0.0.1:5000", "address to listen on; port 0 is any free port")
	flags.StringVar(&o.Dir, "dir", "", "directory that keeps the images (default memory)")
	flags.BoolVar(&o.InsecureListen, "insecure-listen", false, "allow an address beyond loopback: whoever reaches it may read, replace and delete every image")
	flags.BoolVar(&debug, "debug", false, "log every request to stderr")
	return cmd
}

func (a *app) serveRegistry(ctx context.Context, o registry.Options) error {
	s, err := registry.Start(ctx, o)
	if errors.Is(err, context.Canceled) {
		return nil // interrupted before it began
	}
	if err != nil {
		return listenError(err)
	}
	if _, err := fmt.Fprintln(a.stdout, s.Addr()); err != nil {
		return errors.Join(fmt.Errorf("printing the address: %w", err), s.Close())
	}
	return s.Wait()
}

// listenError gives the errors that a flag would have avoided their hint.
func listenError(err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return hintedError{err, "choose another port with --addr; port 0 is any free one"}
	case errors.Is(err, registry.ErrNotLoopback):
		return hintedError{usageError{err}, "only this machine should reach it; --insecure-listen allows more"}
	default:
		return err
	}
}

// hintedError is an error with advice in the words of the command line.
type hintedError struct {
	error
	hint string
}

func (e hintedError) Hint() string  { return e.hint }
func (e hintedError) Unwrap() error { return e.error }
