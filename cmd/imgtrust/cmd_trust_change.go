package main

import (
	"context"
	"crypto"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/trust"
)

// maxChangeFile bounds a change file read from disk, in bytes.
const maxChangeFile = 64 << 20

// changeFlags are the flags of every command that changes the offline roles: at
// once with all keys at hand, or staged.
type changeFlags struct {
	trustFlags
	keys          []string
	onlineKey     string
	output        string
	expectVersion int64
	yes           bool
	keyFlags      keyFlags
}

func (f *changeFlags) register(flags *pflag.FlagSet) {
	f.trustFlags.register(flags, true)
	flags.StringArrayVar(&f.keys, "key", nil, "offline key that signs the change (repeatable)")
	flags.StringVar(&f.onlineKey, "online-key", "", "the publisher's key, after the change: publishes it at once")
	flags.StringVar(&f.output, "out", "", "write the change to this file, for others to sign, instead of publishing it")
	flags.Int64Var(&f.expectVersion, "expect-version", 0, "refuse unless the trust index has this version: for runs without state")
	flags.BoolVar(&f.yes, "yes", false, "do not ask")
	f.keyFlags.register(flags)
}

// rotateFlags are the flags of trust rotate.
type rotateFlags struct {
	changeFlags
	add, remove    []string
	threshold      int
	expires        []string
	expectedImages int
	inbox          string
}

func newTrustRotateCommand(a *app) *cobra.Command {
	var f rotateFlags
	cmd := &cobra.Command{
		Use:   "rotate root|targets|online --trust REPO --root root.json [--add KEY] [--remove KEY]",
		Short: "Change the keys, thresholds and lives of a trust repository",
		Long: `rotate proposes a change of the offline roles. "root" and "targets" change the
offline keys of these roles; without a change they are renewed, which moves their
expiry. "online" replaces the publisher's key, and every bin is signed anew.

With all keys at hand (--key, repeated, and --online-key) the change is published
at once. With --out it is written to a file, which the key holders sign one after
the other or each a copy, on machines that need no network:

  imgtrust trust rotate root --trust REPO --root root.json --add dora.pub --remove 4f1c22ab --out change.json
  imgtrust trust sign-change change.json --root root.json --key alice.key
  imgtrust trust sign-change change.json --root root.json --key bob.key
  imgtrust trust submit change.json --root root.json --online-key online.key

A new root needs the threshold of the present root and its own. A key that was
lost, or stolen alone, is removed by the others. Readers need nothing new: they
follow the roots from the root.json that they have.`,
		Example: `  imgtrust trust rotate online --trust registry.example.com/trust --root root.json --add new.pub --out change.json`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.trustRotate(cmd.Context(), args[0], f)
		},
	}
	flags := cmd.Flags()
	f.register(flags)
	flags.StringArrayVar(&f.add, "add", nil, "key to add, a public or private key file (repeatable)")
	flags.StringArrayVar(&f.remove, "remove", nil, "key to remove, a key file or the first 8 and more digits of its ID (repeatable)")
	flags.IntVar(&f.threshold, "threshold", 0, "signatures that the role needs from now on")
	flags.StringArrayVar(&f.expires, "expires", nil, "lifetime ROLE=DURATION of root, targets, bins, snapshot or timestamp (repeatable, or comma-separated)")
	flags.IntVar(&f.expectedImages, "expected-images", 0, "images that will be listed: changes the number of bins")
	flags.StringVar(&f.inbox, "inbox", "", "repository where signers leave statements from now on")
	return cmd
}

func (a *app) trustRotate(ctx context.Context, role string, f rotateFlags) error {
	p, err := a.proposal(ctx, role, f)
	if err != nil {
		return err
	}
	options, err := a.clientOptions(f.trustFlags, "trust")
	if err != nil {
		return err
	}
	change, err := trust.Propose(ctx, options, p)
	if err != nil {
		return a.untrusted(err)
	}
	return a.carryOut(ctx, change, options, f.changeFlags)
}

// proposal reads the words of trust rotate.
func (a *app) proposal(ctx context.Context, role string, f rotateFlags) (trust.Proposal, error) {
	p := trust.Proposal{ExpectedImages: f.expectedImages}
	keys, err := a.keyChange(ctx, f)
	if err != nil {
		return p, err
	}
	switch role {
	case "root":
		p.Root, p.RenewRoot = keys, true
	case "targets":
		p.Targets, p.RenewTargets = keys, true
	case "online":
		if len(keys.Add) != 1 || len(keys.Remove) > 0 || keys.Threshold != 0 {
			return p, usageError{errors.New("rotate online takes one --add KEY, which replaces the online key")}
		}
		p.Online = keys.Add[0]
	case "snapshot", "timestamp", "bins":
		return p, usageError{fmt.Errorf("%s is signed by the online key: rotate online", role)}
	default:
		return p, usageError{fmt.Errorf("role %q: want root, targets or online", role)}
	}
	if f.inbox != "" {
		if p.Inbox, err = parseRepository("--inbox", f.inbox); err != nil {
			return p, usageError{err}
		}
	}
	if p.Expires, err = parseLifetimes(f.expires); err != nil {
		return p, usageError{err}
	}
	return p, nil
}

func (a *app) keyChange(ctx context.Context, f rotateFlags) (trust.KeyChange, error) {
	k := trust.KeyChange{Threshold: f.threshold}
	if f.threshold < 0 || f.expectedImages < 0 {
		return k, usageError{errors.New("a threshold or number of images below 0")}
	}
	for _, path := range f.add {
		public, err := a.loadPublic(ctx, path, f.keyFlags)
		if err != nil {
			return k, err
		}
		k.Add = append(k.Add, public)
	}
	for _, word := range f.remove {
		id := word
		if _, err := os.Stat(word); err == nil {
			public, err := a.loadPublic(ctx, word, f.keyFlags)
			if err != nil {
				return k, err
			}
			if id, err = trust.KeyID(public); err != nil {
				return k, fmt.Errorf("key %s: %w", word, err)
			}
		}
		k.Remove = append(k.Remove, id)
	}
	return k, nil
}

// loadPublic reads the public half of a key: of a public or a private key file.
func (a *app) loadPublic(ctx context.Context, path string, f keyFlags) (crypto.PublicKey, error) {
	data, err := readBounded(path, maxRootFile)
	if err == nil {
		if block, _ := pem.Decode(data); block != nil && block.Type == "PUBLIC KEY" {
			public, err := attest.ParsePublicKey(data)
			if err != nil {
				return nil, fmt.Errorf("key %s: %w", path, err)
			}
			return public, nil
		}
	}
	keys, err := a.loadKeys(ctx, []string{path}, f)
	if err != nil {
		return nil, err
	}
	return keys[0].Public(), nil
}

// carryOut signs a change with the keys at hand, then stages or publishes it.
func (a *app) carryOut(ctx context.Context, change trust.Change, o trust.ClientOptions, f changeFlags) error {
	if f.output == "" && f.onlineKey == "" {
		return usageError{errors.New("missing --online-key KEY, to publish the change, or --out FILE, to have others sign it")}
	}
	keys, err := a.loadKeys(ctx, f.keys, f.keyFlags)
	if err != nil {
		return err
	}
	checked, err := change.Check(o.Root)
	if err != nil {
		return a.untrusted(err)
	}
	a.sayChange(checked)
	if len(keys) > 0 && f.output == "" {
		if err := a.confirm("sign and publish this?", f.yes); err != nil {
			return err
		}
	}
	for _, key := range keys {
		if checked, err = signChange(checked, key, o.Root); err != nil {
			return a.untrusted(err)
		}
	}
	a.sayNeeds(checked)
	if f.output != "" {
		return a.stage(checked.Change, f.output)
	}
	return a.publishChange(ctx, checked.Change, o, f)
}

func signChange(k trust.CheckedChange, key crypto.Signer, root []byte) (trust.CheckedChange, error) {
	signed, err := k.Sign(key)
	if err != nil {
		return k, err
	}
	return signed.Check(root)
}

func (a *app) sayChange(k trust.CheckedChange) {
	for _, line := range k.Words() {
		a.progress("  %s", line)
	}
}

func (a *app) sayNeeds(k trust.CheckedChange) {
	for _, n := range k.Needs() {
		a.progress("signed: %s", n.Text())
	}
}

// stage writes a change file, never over another.
func (a *app) stage(change trust.Change, path string) error {
	data, err := change.Encode()
	if err != nil {
		return err
	}
	if err := refuseFile(path); err != nil {
		return err
	}
	file, err := createFile(path)
	if err != nil {
		return err
	}
	defer file.discard()
	if err := file.finish(data); err != nil {
		return err
	}
	_, err = fmt.Fprintln(a.stdout, path)
	return err
}

// publishChange hands a signed change to the publisher.
func (a *app) publishChange(ctx context.Context, change trust.Change, o trust.ClientOptions, f changeFlags) error {
	online, err := a.loadKeys(ctx, []string{f.onlineKey}, f.keyFlags)
	if err != nil {
		return err
	}
	if f.state == "" {
		if o.State, err = a.stateDir("publisher"); err != nil {
			return err
		}
	}
	p, err := trust.OpenPublisher(trust.PublisherOptions{ClientOptions: o, OnlineKey: online[0], ExpectVersion: f.expectVersion})
	if err != nil {
		return err
	}
	done, err := p.Submit(ctx, change)
	if err != nil {
		return a.untrusted(err)
	}
	a.progress("published %s version %d, fresh until %s", o.Repository, done.Version, done.Expires.Format("2006-01-02T15:04:05Z07:00"))
	return nil
}

func newTrustSignChangeCommand(a *app) *cobra.Command {
	var root string
	var keyPaths []string
	var yes bool
	var keys keyFlags
	cmd := &cobra.Command{
		Use:   "sign-change FILE --root root.json --key KEY",
		Short: "Sign a change of the offline roles, as one of their key holders",
		Long: `sign-change shows in words what a change changes, asks, and adds the signatures of
a key to the file. It needs no network: the machine that holds the key may have
none.

What the file says there is, it verifies from the key holder's own root.json, so
that nobody who carries the file can choose what is shown. Only the making of a
new repository has no root.json yet.`,
		Example: `  imgtrust trust sign-change change.json --root root.json --key alice.key`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.trustSignChange(cmd.Context(), args[0], root, keyPaths, yes, keys)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&root, "root", "", "the key holder's own root.json")
	flags.StringArrayVar(&keyPaths, "key", nil, "offline key (repeatable)")
	flags.BoolVar(&yes, "yes", false, "do not ask")
	keys.register(flags)
	return cmd
}

func (a *app) trustSignChange(ctx context.Context, path, rootFile string, keyPaths []string, yes bool, f keyFlags) error {
	if len(keyPaths) == 0 {
		return usageError{errors.New("missing --key KEY")}
	}
	change, root, err := a.readChange([]string{path}, rootFile)
	if err != nil {
		return err
	}
	checked, err := change.Check(root)
	if err != nil {
		return a.untrusted(err)
	}
	a.sayChange(checked)
	a.sayNeeds(checked)
	if err := a.confirm("sign this?", yes); err != nil {
		return err
	}
	keys, err := a.loadKeys(ctx, keyPaths, f)
	if err != nil {
		return err
	}
	for _, key := range keys {
		if checked, err = signChange(checked, key, root); err != nil {
			return err
		}
	}
	a.sayNeeds(checked)
	return rewriteChange(checked.Change, path)
}

// rewriteChange replaces a change file as a whole or not at all.
func rewriteChange(change trust.Change, path string) error {
	data, err := change.Encode()
	if err != nil {
		return err
	}
	return replaceFile(path, data)
}

// readChange reads copies of one change, merged, and the root file if it is
// about a repository that is there.
func (a *app) readChange(paths []string, rootFile string) (change trust.Change, root []byte, err error) {
	for i, path := range paths {
		data, err := readBounded(path, maxChangeFile)
		if err != nil {
			return change, nil, err
		}
		next, err := trust.ParseChange(data)
		if err != nil {
			return change, nil, fmt.Errorf("change file %s: %w", path, err)
		}
		if i == 0 {
			change = next
		} else if change, err = change.Merge(next); err != nil {
			return change, nil, fmt.Errorf("%s and %s: %w", paths[0], path, err)
		}
	}
	if change.New() && rootFile != "" {
		return change, nil, refusal{errors.New("the change makes a new trust repository, and does not change the one of your root.json")}
	}
	if change.New() {
		return change, nil, nil
	}
	if rootFile == "" {
		return change, nil, usageError{errors.New("missing --root FILE: your own root.json, by which the change file is checked")}
	}
	if root, err = readBounded(rootFile, maxRootFile); err != nil {
		return change, nil, fmt.Errorf("--root: %w", err)
	}
	return change, root, nil
}

func newTrustSubmitCommand(a *app) *cobra.Command {
	var f changeFlags
	var rootOutput string
	cmd := &cobra.Command{
		Use:   "submit FILE... --root root.json --online-key KEY",
		Short: "Publish a change of the offline roles that is signed by enough",
		Long: `submit publishes a change that enough key holders have signed, one after the other
in one file or each in a copy. It runs where the publisher runs, with the online
key that holds after the change. A change that was made for other roles than the
present ones is refused.

A change that makes a new trust repository needs no --root, and writes root.json
with -o.`,
		Example: `  imgtrust trust submit change.json --root root.json --online-key online.key`,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.trustSubmit(cmd.Context(), args, f, rootOutput)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.root, "root", "", "bootstrap root.json, as imgtrust trust init wrote it")
	flags.StringVar(&f.state, "state", "", "directory that remembers what was seen (default: below the user's state directory)")
	flags.StringVar(&f.onlineKey, "online-key", "", "the publisher's key, after the change")
	flags.Int64Var(&f.expectVersion, "expect-version", 0, "refuse unless the trust index has this version: for runs without state")
	flags.StringVarP(&rootOutput, "output", "o", "root.json", "file to write the root.json of a new repository to")
	f.registry.register(flags)
	f.keyFlags.register(flags)
	return cmd
}

func (a *app) trustSubmit(ctx context.Context, paths []string, f changeFlags, rootOutput string) error {
	if f.onlineKey == "" {
		return usageError{errors.New("missing --online-key KEY")}
	}
	change, _, err := a.readChange(paths, f.root)
	if err != nil {
		return err
	}
	if change.New() {
		return a.submitNew(ctx, change, f, rootOutput)
	}
	f.repository = change.Repository
	options, err := a.clientOptions(f.trustFlags, "publisher")
	if err != nil {
		return err
	}
	checked, err := change.Check(options.Root)
	if err != nil {
		return a.untrusted(err)
	}
	a.sayChange(checked)
	return a.publishChange(ctx, change, options, f)
}

// submitNew makes the repository of a staged trust init.
func (a *app) submitNew(ctx context.Context, change trust.Change, f changeFlags, rootOutput string) error {
	online, err := a.loadKeys(ctx, []string{f.onlineKey}, f.keyFlags)
	if err != nil {
		return err
	}
	if err := refuseFile(rootOutput); err != nil {
		return err
	}
	file, err := createFile(rootOutput)
	if err != nil {
		return err
	}
	defer file.discard()
	made, err := trust.Create(ctx, change, trust.CreateOptions{Registry: a.registryClient(f.registry), OnlineKey: online[0]})
	if err != nil {
		return a.untrusted(err)
	}
	if err := file.finish(made.Root); err != nil {
		return err
	}
	a.sayInitialized(change.Repository, made, rootOutput)
	_, err = fmt.Fprintln(a.stdout, rootOutput)
	return err
}

// notConfirmed is a question that was answered with no, or that nobody could be
// asked.
type notConfirmed struct{ question string }

func (e notConfirmed) Error() string { return "not confirmed: " + e.question }
func (e notConfirmed) Hint() string  { return "where nobody can be asked, --yes answers yes" }

// confirm asks on the terminal. Where there is none, only yes answers.
func (a *app) confirm(question string, yes bool) error {
	if yes {
		return nil
	}
	if !isTerminal(a.stdin) {
		return usageError{notConfirmed{question}}
	}
	fmt.Fprintf(a.stderr, "imgtrust: %s [y/N] ", question)
	var answer string
	_, _ = fmt.Fscanln(a.stdin, &answer)
	if !slices.Contains([]string{"y", "yes"}, strings.ToLower(answer)) {
		return refusal{notConfirmed{question}}
	}
	return nil
}
