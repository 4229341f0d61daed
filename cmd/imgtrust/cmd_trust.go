package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/imgtrust/imgtrust/policy"
	"github.com/imgtrust/imgtrust/trust"
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
	cmd.AddCommand(newTrustInitCommand(a), newTrustPublishCommand(a), newTrustStatusCommand(a))
	return cmd
}

// initFlags are the flags of trust init.
type initFlags struct {
	rootKeys, targetsKeys            []string
	rootThreshold, targetsThreshold  int
	onlineKey, policy, output, inbox string
	expectedImages                   int
	expires                          []string
	keys                             keyFlags
	registry                         registryFlags
}

func newTrustInitCommand(a *app) *cobra.Command {
	var f initFlags
	cmd := &cobra.Command{
		Use:   "init REPO --root-key K... --targets-key K... --online-key K --policy FILE -o root.json",
		Short: "Make a trust repository",
		Long: `Make a trust repository: root and targets are signed by offline keys, the
hash bins, snapshot and timestamp by the publisher's online key. The root.json
that this writes is what every reader must be given, by a person or by
configuration.

Keeping all keys on one machine is for a laptop: whoever takes it can sign
anything.`,
		Example: `  imgtrust trust init registry.example.com/trust --root-key alice.key --root-key bob.key --root-threshold 2 \
    --targets-key carol.key --online-key online.key --policy policy.yaml -o root.json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.trustInit(cmd.Context(), args[0], f)
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&f.rootKeys, "root-key", nil, "offline root key (repeatable)")
	flags.IntVar(&f.rootThreshold, "root-threshold", 0, "root keys that must sign a new root (default: all)")
	flags.StringArrayVar(&f.targetsKeys, "targets-key", nil, "offline targets key (repeatable)")
	flags.IntVar(&f.targetsThreshold, "targets-threshold", 0, "targets keys that must sign a new policy (default: all)")
	flags.StringVar(&f.onlineKey, "online-key", "", "the publisher's key")
	flags.StringVar(&f.policy, "policy", "", "policy file")
	flags.StringVarP(&f.output, "output", "o", "root.json", "file to write root.json to")
	flags.IntVar(&f.expectedImages, "expected-images", 0, "images that will be listed, which fixes the number of bins (default: up to 5,000)")
	flags.StringArrayVar(&f.expires, "expires", nil, "lifetime ROLE=DURATION of root, targets, bins, snapshot or timestamp, as root=8760h (repeatable, or comma-separated)")
	flags.StringVar(&f.inbox, "inbox", "", "repository where signers leave statements (default: REPO/inbox)")
	f.keys.register(flags)
	f.registry.register(flags)
	return cmd
}

func (a *app) trustInit(ctx context.Context, repo string, f initFlags) error {
	o, err := f.options(repo)
	if err != nil {
		return usageError{err}
	}
	if o.Policy, err = readBounded(f.policy, maxRootFile); err != nil {
		return fmt.Errorf("--policy: %w", err)
	}
	if _, err := policy.Parse(f.policy, o.Policy); err != nil {
		return err
	}
	if err := refuseFile(f.output); err != nil {
		return err
	}
	if o.RootKeys, err = a.loadKeys(ctx, f.rootKeys, f.keys); err != nil {
		return err
	}
	if o.TargetsKeys, err = a.loadKeys(ctx, f.targetsKeys, f.keys); err != nil {
		return err
	}
	online, err := a.loadKeys(ctx, []string{f.onlineKey}, f.keys)
	if err != nil {
		return err
	}
	o.OnlineKey, o.Registry = online[0], a.registryClient(f.registry)
	// The file first: a repository whose root.json is lost is of no use.
	file, err := createFile(f.output)
	if err != nil {
		return err
	}
	defer file.discard()
	made, err := trust.Init(ctx, o)
	if err != nil {
		return err
	}
	if err := file.finish(made.Root); err != nil {
		return err
	}
	a.sayInitialized(o, made, f)
	_, err = fmt.Fprintln(a.stdout, f.output)
	return err
}

// options checks the words of the command line.
func (f initFlags) options(repo string) (trust.InitOptions, error) {
	o := trust.InitOptions{RootThreshold: f.rootThreshold, TargetsThreshold: f.targetsThreshold, ExpectedImages: f.expectedImages, Expires: map[string]time.Duration{}}
	var err error
	if o.Repository, err = parseRepository("REPO", repo); err != nil {
		return o, err
	}
	required := []struct {
		flag  string
		given bool
	}{
		{"--root-key", len(f.rootKeys) > 0}, {"--targets-key", len(f.targetsKeys) > 0},
		{"--online-key", f.onlineKey != ""}, {"--policy", f.policy != ""},
	}
	for _, r := range required {
		if !r.given {
			return o, fmt.Errorf("missing %s", r.flag)
		}
	}
	if f.rootThreshold < 0 || f.targetsThreshold < 0 || f.expectedImages < 0 {
		return o, errors.New("a threshold or number of images below 0")
	}
	if f.inbox != "" {
		if o.Inbox, err = parseRepository("--inbox", f.inbox); err != nil {
			return o, err
		}
	}
	for _, list := range f.expires {
		for word := range strings.SplitSeq(list, ",") {
			role, text, _ := strings.Cut(word, "=")
			if o.Expires[role], err = time.ParseDuration(text); err != nil {
				return o, fmt.Errorf("--expires %q: want ROLE=DURATION, as root=8760h", word)
			}
		}
	}
	return o, nil
}

// sayInitialized tells who must run what by when.
func (a *app) sayInitialized(o trust.InitOptions, made trust.Initialized, f initFlags) {
	a.progress("trust repository %s, ID %s, %d bins", o.Repository, made.ID, made.Bins)
	for _, r := range made.Roles {
		who := "the publisher runs `imgtrust trust publish` before"
		if r.Role == "root" || r.Role == "targets" {
			who = fmt.Sprintf("%d of %d offline %s keys must renew it before", r.Threshold, len(r.KeyIDs), r.Role)
		}
		a.progress("  %-10s %s %s", r.Role, who, r.Expires.Format(time.DateOnly))
	}
	a.progress("give %s to every reader", f.output)
	a.progress("warning: every key was on this machine: keep the root and targets keys offline from now on; to leave them here is for a laptop")
}

func refuseFile(path string) error {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s exists already: another repository may depend on it", path)
	}
	return nil
}

// newFile is a file that appears whole or not at all, and never over another.
type newFile struct {
	path string
	temp *os.File // beside it
}

func createFile(path string) (newFile, error) {
	temp, err := os.CreateTemp(filepath.Dir(path), ".imgtrust-*")
	if err != nil {
		return newFile{}, fmt.Errorf("creating %s: %w", path, err)
	}
	return newFile{path, temp}, nil
}

// finish gives the file its content and its name.
func (f newFile) finish(data []byte) error {
	_, err := f.temp.Write(data)
	if err == nil {
		err = f.temp.Chmod(0o644)
	}
	if err == nil {
		err = f.temp.Sync()
	}
	if err == nil {
		err = os.Link(f.temp.Name(), f.path) // fails when the file exists
	}
	return err
}

// discard removes what finish has not named.
func (f newFile) discard() {
	_ = f.temp.Close()
	_ = os.Remove(f.temp.Name())
}

// publishFlags are the flags of trust publish.
type publishFlags struct {
	trustFlags
	onlineKey     string
	expectVersion int64
	json          bool
	keys          keyFlags
}

func (f *publishFlags) registerKeys(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.onlineKey, "online-key", "", "the publisher's key")
}

func newTrustPublishCommand(a *app) *cobra.Command {
	var f publishFlags
	cmd := &cobra.Command{
		Use:   "publish REPO --root root.json --online-key KEY",
		Short: "List what waits in the inbox and renew the online roles",
		Long: `List what waits in the inbox: each statement is checked against the current
policy exactly as a node would, and what is allowed is listed. Snapshot and
timestamp are renewed in any case. One publisher at a time writes a repository.

The result on stdout is one REPOSITORY@DIGEST line for each image listed.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.repository = args[0]
			return a.trustPublish(cmd.Context(), f)
		},
	}
	f.register(cmd.Flags(), false)
	f.registerKeys(cmd)
	cmd.Flags().Int64Var(&f.expectVersion, "expect-version", 0, "refuse unless the trust index has this version: for runs without state")
	cmd.Flags().BoolVar(&f.json, "json", false, "print one JSON object")
	f.keys.register(cmd.Flags())
	return cmd
}

func (a *app) trustPublish(ctx context.Context, f publishFlags) error {
	out, repo, err := a.publishOnce(ctx, f)
	if out.Version == 0 {
		return err
	}
	a.sayPublication(repo, out)
	return errors.Join(err, a.printPublication(out, f.json))
}

func (a *app) printPublication(p trust.Publication, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(a.stdout).Encode(p)
	}
	for _, image := range p.Listed {
		if _, err := fmt.Fprintln(a.stdout, image); err != nil {
			return err
		}
	}
	return nil
}

// publishOnce runs the publisher once and names the repository that it wrote.
func (a *app) publishOnce(ctx context.Context, f publishFlags) (out trust.Publication, repo string, err error) {
	if f.onlineKey == "" {
		return out, "", usageError{errors.New("missing --online-key KEY")}
	}
	options, err := a.clientOptions(f.trustFlags, "publisher")
	if err != nil {
		return out, "", err
	}
	keys, err := a.loadKeys(ctx, []string{f.onlineKey}, f.keys)
	if err != nil {
		return out, "", err
	}
	p, err := trust.OpenPublisher(trust.PublisherOptions{ClientOptions: options, OnlineKey: keys[0], ExpectVersion: f.expectVersion})
	if err != nil {
		return out, "", err
	}
	out, err = p.Publish(ctx)
	return out, options.Repository, err
}

// sayPublication tells what was done beside listing, and why not all was.
func (a *app) sayPublication(repo string, p trust.Publication) {
	for _, r := range p.Waiting {
		a.progress("waiting %s: %s", r.Image, r.Reason)
	}
	for _, r := range p.Refused {
		a.progress("refused %s %s: %s", r.Entry, r.Image, r.Reason)
	}
	for _, image := range p.Listed {
		a.progress("listed %s", image)
	}
	for _, tag := range p.Tags {
		a.progress("listed the tag %s", tag)
	}
	a.progress("published %s version %d, fresh until %s", repo, p.Version, p.Expires.Format(time.RFC3339))
}

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
