package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
)

// version is set by the linker (-X main.version=…); empty in a plain go build.
var version string

// app holds the effects of the process that commands may use.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	mirrors        map[string]string // from the user's configuration file
}

// usageError is a mistake in the words of the command line: exit code 2.
type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

// refusal is a decision "no": exit code 3. Its text has been printed already
// when err is nil.
type refusal struct{ err error }

func (r refusal) Error() string {
	if r.err == nil {
		return "refused"
	}
	return r.err.Error()
}

func (r refusal) Unwrap() error { return r.err }

// silent is a failure that has been reported already: exit code 1.
type silent struct{ error }

// execute runs the command that args name and returns the exit code.
func (a *app) execute(ctx context.Context, args []string) int {
	cmd := newRootCommand(a)
	cmd.SetArgs(args)
	cmd.SetIn(a.stdin)
	cmd.SetOut(a.stdout)
	cmd.SetErr(a.stderr)
	err := cmd.ExecuteContext(ctx)
	a.report(err)
	return exitCode(err)
}

func exitCode(err error) int {
	var usage usageError
	var no refusal
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		return 2
	case errors.As(err, &no):
		return 3
	default:
		return 1
	}
}

// report prints err as one error line and the hints found in its chain.
func (a *app) report(err error) {
	var no refusal
	var quiet silent
	if err == nil || errors.As(err, &quiet) || errors.As(err, &no) && no.err == nil {
		return
	}
	text := strings.TrimSpace(strings.ReplaceAll(err.Error(), "\n", "; "))
	fmt.Fprintf(a.stderr, "imgtrust: error: %s\n", text)
	var hinted interface{ Hint() string }
	if errors.As(err, &hinted) && hinted.Hint() != "" {
		for line := range strings.Lines(hinted.Hint()) {
			fmt.Fprintf(a.stderr, "imgtrust: hint: %s\n", strings.TrimSuffix(line, "\n"))
		}
	}
}

// progress prints one line of talk to stderr.
func (a *app) progress(format string, args ...any) {
	fmt.Fprintf(a.stderr, "imgtrust: "+format+"\n", args...)
}

func newRootCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "imgtrust",
		Short: "Build images, sign them, and verify before anything runs",
		Long: `imgtrust builds container images reproducibly, signs them, lists them in TUF
trust metadata kept in an ordinary OCI registry, and verifies that an image is
signed, listed and still the newest before anything runs it.`,
		Version:       versionText(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			return a.applySettings(cmd)
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cmd.Help()
		},
	}
	root.SetVersionTemplate("{{.Version}}\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w (see %s --help)", err, cmd.CommandPath())}
	})
	root.AddCommand(commands(a)...)
	root.InitDefaultCompletionCmd()
	root.InitDefaultHelpCmd()
	markUsageErrors(root)
	return root
}

// commands lists every command of the program, in the order of the help text.
func commands(a *app) []*cobra.Command {
	return []*cobra.Command{
		newBuildCommand(a),
		newKeyCommand(a),
		newSignCommand(a),
		newTrustCommand(a),
		newVerifyCommand(a),
		newPolicyCommand(a),
		newTreeCommand(a),
		newCopyCommand(a),
		newRegistryCommand(a),
		newDemoCommand(a),
	}
}

// markUsageErrors makes a wrong number of arguments a usage error everywhere.
func markUsageErrors(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return usageError{fmt.Errorf("%w (see %s --help)", err, c.CommandPath())}
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		markUsageErrors(sub)
	}
}

// versionText is the one line of --version: version, commit and Go version.
func versionText() string {
	name, commit := version, "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		if name == "" {
			name = info.Main.Version
		}
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				commit = s.Value
			}
		}
	}
	if name == "" || name == "(devel)" {
		name = "devel"
	}
	return fmt.Sprintf("imgtrust %s commit %s %s %s/%s", name, commit, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// isTerminal tells whether w is a terminal, for progress bars and prompts.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
