package main

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/policy"
	"github.com/imgtrust/imgtrust/trust"
)

// initFlags are the flags of trust init.
type initFlags struct {
	rootKeys, targetsKeys            []string
	rootThreshold, targetsThreshold  int
	onlineKey, policy, output, inbox string
	out                              string
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
anything. With --out the keys may be public ones: the file is then signed by each
key holder with trust sign-change, and trust submit makes the repository.`,
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
	flags.StringVar(&f.out, "out", "", "write a change file for the key holders to sign, instead of making the repository; keys may be public ones")
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
	if f.out != "" {
		return a.stageInit(ctx, o, f)
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
	a.sayInitialized(o.Repository, made, f.output)
	a.progress("warning: every key was on this machine: keep the root and targets keys offline from now on; to leave them here is for a laptop")
	_, err = fmt.Fprintln(a.stdout, f.output)
	return err
}

// options checks the words of the command line.
func (f initFlags) options(repo string) (trust.InitOptions, error) {
	o := trust.InitOptions{RootThreshold: f.rootThreshold, TargetsThreshold: f.targetsThreshold, ExpectedImages: f.expectedImages}
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
	o.Expires, err = parseLifetimes(f.expires)
	return o, err
}

// parseLifetimes reads the words of --expires.
func parseLifetimes(lists []string) (map[string]time.Duration, error) {
	lifetimes := map[string]time.Duration{}
	for _, list := range lists {
		for word := range strings.SplitSeq(list, ",") {
			role, text, _ := strings.Cut(word, "=")
			life, err := time.ParseDuration(text)
			if err != nil {
				return nil, fmt.Errorf("--expires %q: want ROLE=DURATION, as root=8760h", word)
			}
			if _, known := trust.DefaultLifetimes()[role]; !known || life < time.Minute {
				return nil, fmt.Errorf("--expires %q: unknown role, or below one minute", word)
			}
			lifetimes[role] = life
		}
	}
	return lifetimes, nil
}

// stageInit writes the change file of a new repository, signed by those of the
// keys that are private ones.
func (a *app) stageInit(ctx context.Context, o trust.InitOptions, f initFlags) (err error) {
	if o.RootKeys, o.RootPublic, err = a.loadEither(ctx, f.rootKeys, f.keys); err != nil {
		return err
	}
	if o.TargetsKeys, o.TargetsPublic, err = a.loadEither(ctx, f.targetsKeys, f.keys); err != nil {
		return err
	}
	if o.OnlinePublic, err = a.loadPublic(ctx, f.onlineKey, f.keys); err != nil {
		return err
	}
	change, err := trust.NewChange(o)
	if err != nil {
		return err
	}
	checked, err := change.Check(nil)
	if err != nil {
		return err
	}
	a.sayChange(checked)
	a.sayNeeds(checked)
	return a.stage(change, f.out)
}

// loadEither reads keys of which some may be public: their holders sign later.
func (a *app) loadEither(ctx context.Context, paths []string, f keyFlags) (private []crypto.Signer, public []crypto.PublicKey, err error) {
	for _, path := range paths {
		data, err := readBounded(path, maxRootFile)
		if err != nil {
			return nil, nil, err
		}
		if key, err := attest.ParsePublicKey(data); err == nil {
			public = append(public, key)
			continue
		}
		keys, err := a.loadKeys(ctx, []string{path}, f)
		if err != nil {
			return nil, nil, err
		}
		private = append(private, keys...)
	}
	return private, public, nil
}

// sayInitialized tells who must run what by when.
func (a *app) sayInitialized(repository string, made trust.Initialized, output string) {
	a.progress("trust repository %s, ID %s, %d bins", repository, made.ID, made.Bins)
	for _, r := range made.Roles {
		who := "the publisher runs `imgtrust trust publish` before"
		if r.Role == "root" || r.Role == "targets" {
			who = fmt.Sprintf("%d of %d offline %s keys must renew it before", r.Threshold, len(r.KeyIDs), r.Role)
		}
		a.progress("  %-10s %s %s", r.Role, who, r.Expires.Format(time.DateOnly))
	}
	a.progress("give %s to every reader", output)
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
