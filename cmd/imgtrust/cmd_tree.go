package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/cobra"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/internal/oci"
	"github.com/imgtrust/imgtrust/policy"
	"github.com/imgtrust/imgtrust/trust"
)

// Bounds on what tree reads of an image.
const (
	maxTreeDepth     = 4
	maxTreeReferrers = 200
	maxTreeBundle    = 64 << 10
)

func newTreeCommand(a *app) *cobra.Command {
	var f trustFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "tree IMAGE",
		Short: "Show an image with its children, referrers and what verifies",
		Long: `Show an image with its child manifests and what refers to them. With --trust and
--root the signatures among the referrers are checked against the policy, and
each names its signer; without, they are shown as not checked. tree decides
nothing: use verify for that.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.tree(cmd.Context(), args[0], f, asJSON)
		},
	}
	f.register(cmd.Flags(), true)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// treeNode is one manifest of the tree, as --json prints it.
type treeNode struct {
	Digest    string         `json:"digest"`
	MediaType string         `json:"mediaType"`
	Platform  string         `json:"platform,omitempty"`
	Size      int64          `json:"size"`
	Children  []treeNode     `json:"children,omitempty"`
	Referrers []treeReferrer `json:"referrers,omitempty"`
}

// treeReferrer is one manifest that refers to another.
type treeReferrer struct {
	Digest    string `json:"digest"`
	Type      string `json:"artifactType"`
	Predicate string `json:"predicate,omitempty"`
	Signer    string `json:"signer,omitempty"` // of the policy, whose signature verifies
	Problem   string `json:"problem,omitempty"`
}

func (a *app) tree(ctx context.Context, image string, f trustFlags, asJSON bool) error {
	l, err := oci.ParseLocation(image)
	if err != nil {
		return usageError{err}
	}
	t := treeReader{client: a.registryClient(f.registry), repository: l.Reference.Repository}
	if f.root != "" || f.repository != "" {
		if t.policy, err = a.trustedPolicy(ctx, f); err != nil {
			return err
		}
	}
	var d v1.Descriptor
	if t.source, d, err = t.client.Open(ctx, l); err != nil {
		return err
	}
	root, err := t.node(ctx, d, 0)
	if err != nil {
		return err
	}
	if asJSON {
		return json.NewEncoder(a.stdout).Encode(root)
	}
	return printTree(a.stdout, root, "", t.policy != nil)
}

// trustedPolicy reads the policy of a trust repository.
func (a *app) trustedPolicy(ctx context.Context, f trustFlags) (*policy.Policy, error) {
	options, err := a.clientOptions(f, "trust")
	if err != nil {
		return nil, err
	}
	c, err := trust.Open(options)
	if err != nil {
		return nil, a.untrusted(err)
	}
	p, err := c.Policy(ctx)
	if err != nil {
		return nil, a.untrusted(err)
	}
	return p, nil
}

// treeReader walks an image.
type treeReader struct {
	client     *oci.Client
	source     oci.Source
	repository string // empty for a layout, which has no referrers
	policy     *policy.Policy
}

func (t treeReader) node(ctx context.Context, d v1.Descriptor, depth int) (treeNode, error) {
	n := treeNode{Digest: d.Digest.String(), MediaType: string(d.MediaType), Size: d.Size}
	if d.Platform != nil {
		n.Platform = d.Platform.String()
	}
	if depth > maxTreeDepth {
		return n, fmt.Errorf("%s is nested more than %d deep", d.Digest, maxTreeDepth)
	}
	m, err := t.source.Manifest(ctx, d.Digest)
	if err != nil {
		return n, err
	}
	n.MediaType = string(m.MediaType)
	if m.MediaType.IsIndex() {
		index, err := v1.ParseIndexManifest(strings.NewReader(string(m.Bytes)))
		if err != nil {
			return n, fmt.Errorf("index %s: %w", d.Digest, err)
		}
		for _, child := range index.Manifests {
			c, err := t.node(ctx, child, depth+1)
			if err != nil {
				return n, err
			}
			n.Children = append(n.Children, c)
		}
	}
	n.Referrers, err = t.referrers(ctx, d.Digest)
	return n, err
}

func (t treeReader) referrers(ctx context.Context, h v1.Hash) ([]treeReferrer, error) {
	if t.repository == "" {
		return nil, nil
	}
	list, err := t.client.Referrers(ctx, t.repository, h, "", maxTreeReferrers)
	if err != nil {
		return nil, fmt.Errorf("referrers of %s: %w", h, err)
	}
	var found []treeReferrer
	for _, d := range list {
		r := treeReferrer{Digest: d.Digest.String(), Type: d.ArtifactType}
		if d.ArtifactType == attest.BundleMediaType {
			t.bundle(ctx, d.Digest, h, &r)
		}
		found = append(found, r)
	}
	return found, nil
}

// bundle reads a signature and says whose it is. A bad one is shown, it does
// not stop the tree.
func (t treeReader) bundle(ctx context.Context, digest, subject v1.Hash, r *treeReferrer) {
	artifact, err := t.client.Artifact(ctx, t.repository, digest, maxTreeBundle)
	if err != nil {
		r.Problem = err.Error()
		return
	}
	b, err := attest.DecodeBundle(artifact.Data)
	if err != nil {
		r.Problem = err.Error()
		return
	}
	s, err := attest.DecodeStatement(b.Envelope.Payload)
	if err != nil {
		r.Problem = err.Error()
		return
	}
	r.Predicate = s.PredicateType
	if s.Digest != subject.String() {
		r.Problem = "it is about another digest, " + s.Digest
		return
	}
	if t.policy == nil {
		return
	}
	if signer, ok := t.policy.Signer(b.Envelope); ok {
		r.Signer = signer.Name
	} else {
		r.Problem = "not signed by a signer of the policy"
	}
}

func printTree(w io.Writer, n treeNode, indent string, checked bool) error {
	line := n.Digest
	if n.Platform != "" {
		line += " " + n.Platform
	}
	if _, err := fmt.Fprintf(w, "%s%s %s\n", indent, line, n.MediaType); err != nil {
		return err
	}
	for _, r := range n.Referrers {
		if _, err := fmt.Fprintf(w, "%s  <- %s %s\n", indent, r.Digest, r.describe(checked)); err != nil {
			return err
		}
	}
	for _, c := range n.Children {
		if err := printTree(w, c, indent+"  ", checked); err != nil {
			return err
		}
	}
	return nil
}

func (r treeReferrer) describe(checked bool) string {
	what := r.Type
	if r.Predicate != "" {
		what = r.Predicate
	}
	switch {
	case r.Problem != "":
		return what + " (" + r.Problem + ")"
	case r.Signer != "":
		return what + " signed by " + r.Signer
	case r.Predicate != "" && !checked:
		return what + " (signature not checked)"
	}
	return what
}
