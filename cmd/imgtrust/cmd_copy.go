package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/cobra"

	"github.com/imgtrust/imgtrust/internal/oci"
	"github.com/imgtrust/imgtrust/policy"
	"github.com/imgtrust/imgtrust/trust"
	"github.com/imgtrust/imgtrust/verify"
)

// copyFlags are the flags of copy.
type copyFlags struct {
	trustFlags
	as   string
	json bool
}

func newCopyCommand(a *app) *cobra.Command {
	var f copyFlags
	cmd := &cobra.Command{
		Use:   "copy SRC DST [--trust REPO --root root.json]",
		Short: "Copy an image with everything that belongs to it",
		Long: `copy copies an image or index under the same digest: every platform, every blob,
everything that refers to any of its manifests (signatures, SBOMs, provenance), and
the tags in which cosign once kept signatures. SRC and DST are registry references
or oci:DIR, so that a disk can carry images to where there is no network. What is
there already is not sent again.

Afterwards the destination is asked for all of it; whatever was left behind is an
error. With --trust and --root the image is then verified at the destination: every
byte is read back, and the decision is made under the image's own name, that of SRC
or --as. A copy keeps its name: readers map it with "mirrors" in their settings.

The result on stdout is DST with its digest.`,
		Example: `  imgtrust copy registry.example.com/app@sha256:… oci:disk/app
  imgtrust copy oci:disk/app mirror.example.net/app:v1`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.copyImage(cmd.Context(), args[0], args[1], f)
		},
	}
	f.register(cmd.Flags(), true)
	cmd.Flags().BoolVar(&f.offline, "offline", false, "verify from the state alone")
	cmd.Flags().StringVar(&f.as, "as", "", "trusted name REPO[:TAG] under which the copy is verified (default: that of SRC)")
	cmd.Flags().BoolVar(&f.json, "json", false, "print one JSON object")
	return cmd
}

// copyResult is what copy --json prints.
type copyResult struct {
	Image    string      `json:"image"`
	Copied   oci.Copied  `json:"copied"`
	Verified bool        `json:"verified"` // the destination was decided on: allowed
	Code     policy.Code `json:"code,omitempty"`
}

func (a *app) copyImage(ctx context.Context, from, to string, f copyFlags) error {
	src, dst, err := parseCopy(from, to)
	if err != nil {
		return usageError{err}
	}
	name, err := f.name(src)
	if err != nil {
		return usageError{err}
	}
	copied, d, err := a.registryClient(f.registry).Copy(ctx, src, dst)
	if err != nil {
		return err
	}
	dst.Reference.Digest = d.Digest
	result := copyResult{Image: dst.String(), Copied: copied}
	a.progress("copied %d manifests and %d blobs, %d bytes; %d referrers, %d legacy tags", copied.Manifests, copied.Blobs, copied.Bytes, copied.Referrers, copied.Legacy)
	refused := a.verifyCopy(ctx, &result, dst, name, f)
	if refused != nil && !errors.As(refused, &refusal{}) {
		return refused
	}
	if refused == nil {
		if err := a.printCopy(result, f.json); err != nil {
			return err
		}
	}
	return refused
}

func (a *app) printCopy(r copyResult, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(a.stdout).Encode(r)
	}
	_, err := fmt.Fprintln(a.stdout, r.Image)
	return err
}

func parseCopy(from, to string) (src, dst oci.Location, err error) {
	if src, err = oci.ParseLocation(from); err != nil {
		return src, dst, err
	}
	if dst, err = oci.ParseLocation(to); err != nil {
		return src, dst, err
	}
	if src.Layout == "" && src.Reference.Tag == "" && src.Reference.Digest == (v1.Hash{}) {
		return src, dst, fmt.Errorf("%s names neither a tag nor a digest", from)
	}
	return src, dst, nil
}

// name is the trusted name of what is copied; none when nothing is verified.
func (f copyFlags) name(src oci.Location) (oci.Reference, error) {
	switch {
	case f.root == "" && f.repository == "":
		return oci.Reference{}, nil
	case f.as != "":
		return oci.ParseReference(f.as)
	case src.Layout != "":
		return oci.Reference{}, errors.New("a layout has no trusted name: say under which the copy is verified, with --as REPO[:TAG]")
	}
	return oci.Reference{Repository: src.Reference.Repository, Tag: src.Reference.Tag}, nil
}

// verifyCopy decides on what the destination holds now, under its trusted name.
func (a *app) verifyCopy(ctx context.Context, result *copyResult, dst oci.Location, name oci.Reference, f copyFlags) error {
	if name.Repository == "" {
		a.progress("every digest was compared; whether the image is trusted was not asked: --trust and --root do")
		return nil
	}
	options, err := a.clientOptions(f.trustFlags, "trust")
	if err != nil {
		return err
	}
	client, err := trust.Open(options)
	if err != nil {
		return a.untrusted(err)
	}
	// Read back as a copy with no name of its own, every byte hashed.
	source, err := a.readBack(ctx, dst, f)
	if err != nil {
		return err
	}
	if err := verify.Content(ctx, source, dst.Reference.Digest); err != nil {
		return refusal{fmt.Errorf("%s: reading %s back: %w", policy.ContentMismatch, dst, err)}
	}
	question := oci.Location{Reference: oci.Reference{Repository: name.Repository, Digest: dst.Reference.Digest}}
	r, err := verify.Image(ctx, question, verify.Options{Trust: client, Registry: options.Registry})
	if err != nil {
		return err
	}
	result.Verified, result.Code = r.Allowed(), r.Decision().Code
	if r.Allowed() {
		a.progress("verified as %s: %s", question.Reference, r.Decision().Reasons[0])
		return nil
	}
	return worseThanCopied(r, dst)
}

func worseThanCopied(r verify.Result, dst oci.Location) error {
	d := r.Decision()
	err := fmt.Errorf("copied to %s, and refused: %s: %s", dst, d.Code, d.Reasons[0])
	if d.Code == policy.Unavailable {
		return err
	}
	return refusal{err}
}

func (a *app) readBack(ctx context.Context, dst oci.Location, f copyFlags) (oci.Source, error) {
	source, _, err := a.registryClient(f.registry).Open(ctx, dst)
	return source, err
}

func newTrustCopyCommand(a *app) *cobra.Command {
	var f trustFlags
	cmd := &cobra.Command{
		Use:   "copy SRC DST --root root.json",
		Short: "Copy a trust repository, to a mirror or to a disk",
		Long: `copy copies a trust repository as a whole: the index and all parts, the tag last.
SRC and DST are repositories or oci:DIR. The copy is verified where it is then. A
destination that holds a newer index, or another trust repository, is not
overwritten. The inbox is not copied: statements are left where the publisher is.

A reader takes the copy with --trust DST, and from a disk with --trust oci:DIR.`,
		Example: `  imgtrust trust copy registry.example.com/trust oci:disk/trust --root root.json`,
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.trustCopy(cmd.Context(), args[0], args[1], f)
		},
	}
	f.register(cmd.Flags(), false)
	return cmd
}

func (a *app) trustCopy(ctx context.Context, from, to string, f trustFlags) error {
	src, err := trustLocation(from)
	if err != nil {
		return usageError{err}
	}
	dst, err := trustLocation(to)
	if err != nil {
		return usageError{err}
	}
	source, err := a.trustVersion(ctx, from, f)
	if err != nil {
		return a.untrusted(err)
	}
	present, err := a.trustVersion(ctx, to, f)
	switch {
	case errors.Is(err, oci.ErrNotFound):
	case err != nil:
		return a.untrusted(fmt.Errorf("what %s holds is not overwritten: %w", dst, err))
	case present > source:
		return refusal{fmt.Errorf("%s: %s holds version %d, newer than %d of %s", policy.RolledBack, dst, present, source, src)}
	}
	if src.Layout != "" {
		if src.Reference.Digest, err = a.trustDigest(ctx, from, f); err != nil {
			return err
		}
	}
	copied, _, err := a.registryClient(f.registry).Copy(ctx, src, dst)
	if err != nil {
		return err
	}
	now, err := a.trustVersion(ctx, to, f)
	if err != nil {
		return a.untrusted(fmt.Errorf("verifying the copy: %w", err))
	}
	a.progress("copied %d manifests and %d blobs, %d bytes; version %d, verified", copied.Manifests, copied.Blobs, copied.Bytes, now)
	_, err = fmt.Fprintln(a.stdout, to)
	return err
}

// trustLocation is where the index of a trust repository is.
func trustLocation(name string) (oci.Location, error) {
	l, err := oci.ParseLocation(name)
	if err != nil {
		return l, err
	}
	if l.Layout == "" && (l.Reference.Tag != "" || l.Reference.Digest != (v1.Hash{})) {
		return l, fmt.Errorf("%s: want the repository alone", name)
	}
	l.Reference.Tag = trust.Tag
	return l, nil
}

// trustVersion verifies a trust repository, without state, and gives its version;
// roles that have expired are copied as they are.
func (a *app) trustVersion(ctx context.Context, repository string, f trustFlags) (int64, error) {
	f.repository = repository
	options, err := a.clientOptions(f, "trust")
	if err != nil {
		return 0, err
	}
	options.State = ""
	return trust.Version(ctx, options)
}

// trustDigest is the digest of the index in a layout.
func (a *app) trustDigest(ctx context.Context, repository string, f trustFlags) (v1.Hash, error) {
	f.repository = repository
	options, err := a.clientOptions(f, "trust")
	if err != nil {
		return v1.Hash{}, err
	}
	d, err := options.Registry.Resolve(ctx, oci.Reference{Repository: options.Repository, Tag: trust.Tag})
	return d.Digest, err
}
