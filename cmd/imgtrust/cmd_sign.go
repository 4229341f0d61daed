package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/imgtrust/imgtrust/internal/oci"
	"github.com/imgtrust/imgtrust/sign"
	"github.com/imgtrust/imgtrust/trust"
)

// signFlags are the flags of sign.
type signFlags struct {
	key          string
	keys         keyFlags
	trust, inbox string
	root         string
	publish      bool
	onlineKey    string
	state        string
	tags         []string
	annotations  []string
	expires      string
	cosignLegacy bool
	json         bool
	registry     registryFlags
}

func newSignCommand(a *app) *cobra.Command {
	var f signFlags
	cmd := &cobra.Command{
		Use:   "sign IMAGE@DIGEST... --key KEY --trust REPO",
		Short: "Sign images by digest, for the next publish",
		Long: `Sign images: attach the signed statements to each image, and put them into the
inbox, where the publisher of the trust repository finds them. Nothing is
overwritten.

Images are signed by digest only. The tag of REPOSITORY:TAG@DIGEST, or the tags
given with --tag, are named in the statement: only they may then be used to
fetch the image by tag.

The result on stdout is one REPOSITORY@DIGEST line for each image.`,
		Example: `  imgtrust sign registry.example.com/app:v1@sha256:... --key ci.key --trust registry.example.com/trust
  imgtrust sign "$(imgtrust build . -t registry.example.com/app:v1 --push)" --tag v1 --key ci.key --trust registry.example.com/trust`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.sign(cmd.Context(), args, f)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.key, "key", "", "private key file")
	f.keys.register(flags)
	flags.StringVar(&f.trust, "trust", "", "trust repository")
	flags.StringVar(&f.inbox, "inbox", "", "inbox repository (default: as --root names it, else the trust repository's REPO/inbox)")
	flags.StringVar(&f.root, "root", "", "bootstrap root.json of the trust repository")
	flags.BoolVar(&f.publish, "publish", false, "publish at once; needs --root and --online-key")
	flags.StringVar(&f.onlineKey, "online-key", "", "the publisher's key, with --publish")
	flags.StringVar(&f.state, "state", "", "the publisher's state directory, with --publish (default: below the user's state directory)")
	flags.StringArrayVar(&f.tags, "tag", nil, "tag to name in the statement (repeatable; default: the tag given with the image)")
	flags.StringArrayVarP(&f.annotations, "annotation", "a", nil, "annotation K=V in the statement (repeatable)")
	flags.StringVar(&f.expires, "expires", "", "when the statement ends to count: a date (2027-01-31, or RFC 3339) or a duration (90d, 36h)")
	flags.BoolVar(&f.cosignLegacy, "cosign-legacy", false, "also write the tag DIGEST.sig, which skopeo, podman and CRI-O read")
	flags.BoolVar(&f.json, "json", false, "print one JSON object for each image")
	f.registry.register(flags)
	return cmd
}

// sign reads the words of the command line, signs, and prints what was signed,
// also when some images were not.
func (a *app) sign(ctx context.Context, args []string, f signFlags) error {
	images, options, err := a.signOptions(args, f)
	if err != nil {
		return usageError{err}
	}
	if options.Inbox, err = a.inbox(ctx, f); err != nil {
		return err
	}
	options.Key, err = sign.LoadKey(ctx, f.key, sign.LoadOptions{Passphrase: a.passphrase(f.key, false), Plaintext: f.keys.plaintext})
	if err != nil {
		return err
	}
	options.Client = a.registryClient(f.registry)
	results, err := sign.Images(ctx, images, options)
	for _, r := range results {
		a.progress("signed %s, waiting in %s", r.Image, options.Inbox)
		if err := a.printSigned(r, f.json); err != nil {
			return err
		}
	}
	var noDigest *sign.DigestError
	if errors.As(err, &noDigest) {
		return usageError{err}
	}
	if err != nil || !f.publish {
		return err
	}
	return a.publishSigned(ctx, f, results)
}

// inbox is the repository that was named, else the one that the verified root
// names, else the usual one of the trust repository.
func (a *app) inbox(ctx context.Context, f signFlags) (string, error) {
	if f.root == "" || f.inbox != "" {
		repo, err := inboxOf(f.trust, f.inbox)
		if err != nil {
			return "", usageError{err}
		}
		return repo, nil
	}
	options, err := a.clientOptions(f.trustFlags(), "trust")
	if err != nil {
		return "", err
	}
	client, err := trust.Open(options)
	if err != nil {
		return "", a.untrusted(err)
	}
	if err := client.Refresh(ctx); err != nil {
		return "", a.untrusted(err)
	}
	return client.Inbox(), nil
}

// trustFlags are those of sign, in the form of the commands that read trust.
func (f signFlags) trustFlags() trustFlags {
	return trustFlags{repository: f.trust, root: f.root, registry: f.registry}
}

// publishSigned runs the publisher once, for what was signed just now. That one
// of the statements was refused is a "no".
func (a *app) publishSigned(ctx context.Context, f signFlags, signed []sign.Result) error {
	p := publishFlags{trustFlags: f.trustFlags(), onlineKey: f.onlineKey, keys: f.keys}
	p.state = f.state
	out, repo, err := a.publishOnce(ctx, p)
	if out.Version != 0 {
		a.sayPublication(repo, out)
	}
	for _, refused := range out.Refused {
		if slices.ContainsFunc(signed, func(r sign.Result) bool { return r.InboxTag == refused.Entry }) {
			err = errors.Join(err, refusal{fmt.Errorf("the statement about %s was refused: %s", refused.Image, refused.Reason)})
		}
	}
	return err
}

func (a *app) signOptions(args []string, f signFlags) ([]oci.Reference, sign.Options, error) {
	o := sign.Options{Tags: f.tags, CosignLegacy: f.cosignLegacy}
	if f.key == "" {
		return nil, o, errors.New("missing --key KEY")
	}
	images, err := parseImages(args)
	if err != nil {
		return nil, o, err
	}
	if f.publish && (f.root == "" || f.onlineKey == "" || f.trust == "") {
		return nil, o, errors.New("--publish needs --trust, --root and --online-key")
	}
	if o.Annotations, err = parsePairs(f.annotations); err != nil {
		return nil, o, fmt.Errorf("--annotation %w", err)
	}
	if o.Expires, err = parseExpires(f.expires, time.Now()); err != nil {
		return nil, o, fmt.Errorf("--expires %w", err)
	}
	return images, o, nil
}

// parseImages reads registry references: what is attached to an image is
// attached in its repository.
func parseImages(args []string) ([]oci.Reference, error) {
	var images []oci.Reference
	for _, arg := range args {
		l, err := oci.ParseLocation(arg)
		if err != nil {
			return nil, err
		}
		if l.Layout != "" {
			return nil, fmt.Errorf("%s is a layout: push the image first, signatures name its repository", arg)
		}
		images = append(images, l.Reference)
	}
	return images, nil
}

// inboxOf is the inbox that was named, else the usual one of the trust repository.
func inboxOf(trust, inbox string) (string, error) {
	if inbox != "" {
		return parseRepository("--inbox", inbox)
	}
	if trust == "" {
		return "", errors.New("missing --trust REPO (or --inbox REPO)")
	}
	repo, err := parseRepository("--trust", trust)
	return repo + "/inbox", err
}

// parseRepository reads a repository given with a flag, in any of its spellings.
func parseRepository(flag, s string) (string, error) {
	r, err := oci.ParseReference(s)
	if err != nil {
		return "", fmt.Errorf("%s: %w", flag, err)
	}
	if r.Tag != "" || r.Digest.Hex != "" {
		return "", fmt.Errorf("%s: %s is a repository with a tag or digest, want the repository alone", flag, s)
	}
	return r.Repository, nil
}

// parsePairs reads K=V words; a key may be given once.
func parsePairs(words []string) (map[string]string, error) {
	pairs := map[string]string{}
	for _, word := range words {
		key, value, ok := strings.Cut(word, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("%q: want K=V", word)
		}
		if _, twice := pairs[key]; twice {
			return nil, fmt.Errorf("%q: %s is given twice", word, key)
		}
		pairs[key] = value
	}
	return pairs, nil
}

// parseExpires reads a date (its first second in UTC), an RFC 3339 time, or a
// duration from now, which may be given in days. Empty is the zero time.
func parseExpires(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if t, err := time.Parse(layout, s); err == nil {
			return future(t, s, now)
		}
	}
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n > 0 && n <= 36500 {
			return now.AddDate(0, 0, n), nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q: want a date such as 2027-01-31 or a duration such as 90d or 36h", s)
	}
	return future(now.Add(d), s, now)
}

func future(t time.Time, s string, now time.Time) (time.Time, error) {
	if !t.After(now) {
		return time.Time{}, fmt.Errorf("%q: is past", s)
	}
	return t, nil
}

// signedJSON is the result of sign for one image.
type signedJSON struct {
	Image    string   `json:"image"`
	Tags     []string `json:"tags"`
	Bundles  []string `json:"bundles"`
	InboxTag string   `json:"inboxTag"`
}

func (a *app) printSigned(r sign.Result, asJSON bool) error {
	if !asJSON {
		_, err := fmt.Fprintln(a.stdout, r.Image)
		return err
	}
	tags := append([]string{}, r.Release.Tags...)
	return json.NewEncoder(a.stdout).Encode(signedJSON{r.Image.String(), tags, r.Bundles, r.InboxTag})
}
