package demo

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/internal/oci"
	"github.com/imgtrust/imgtrust/internal/registry"
	"github.com/imgtrust/imgtrust/policy"
	"github.com/imgtrust/imgtrust/sign"
	"github.com/imgtrust/imgtrust/trust"
	"github.com/imgtrust/imgtrust/verify"
)

// keyNames are the keys of the demo. No policy names mallory.
var keyNames = [...]string{"root-1", "root-2", "targets", "online", "ci", "security", "mallory"}

// world is everything that the demo has set up.
type world struct {
	Options
	dir      string // temporary
	registry *registry.Server
	wire     *wire  // what lies between the registry and everybody else
	host     string // of the wire: the registry's name
	client   *oci.Client
	keys     map[string]*sign.Key
	root     []byte        // root.json
	skew     time.Duration // how far the reader's clock is ahead

	image oci.Reference // HOST/shop/web:v1@digest, by one signer
	both  oci.Reference // HOST/release/web:v1@digest, the same image where two must sign

	first  oci.Manifest // the trust index as it was made, with nothing listed
	honest oci.Manifest // the trust index that the honest publisher wrote last
}

// newWorld makes the temporary directory and starts the registry. The caller
// closes it.
func newWorld(ctx context.Context, o Options) (*world, error) {
	dir, err := os.MkdirTemp("", "imgtrust-demo-")
	if err != nil {
		return nil, err
	}
	w := &world{Options: o, dir: dir, client: oci.New(oci.Options{})}
	if err := w.serve(ctx); err != nil {
		return nil, errors.Join(err, w.close())
	}
	w.say("a registry listens on %s, everything is in %s", w.host, dir)
	return w, nil
}

func (w *world) serve(ctx context.Context) (err error) {
	o := registry.Options{Dir: filepath.Join(w.dir, "registry")}
	if w.memory {
		o.Dir = ""
	}
	// The registry outlives ctx until close, for a clean end of what uses it.
	w.registry, err = registry.Start(context.WithoutCancel(ctx), o)
	if err != nil {
		return err
	}
	w.wire, err = newWire(w.registry.Addr())
	if err != nil {
		return err
	}
	w.host = w.wire.addr()
	return nil
}

func (w *world) close() error {
	var errs []error
	if w.wire != nil {
		errs = append(errs, w.wire.close())
	}
	if w.registry != nil {
		errs = append(errs, w.registry.Close())
	}
	if w.Keep {
		w.say("kept %s; the registry again: imgtrust registry serve --dir %s --addr %s", w.dir, filepath.Join(w.dir, "registry"), w.host)
		return errors.Join(errs...)
	}
	return errors.Join(append(errs, os.RemoveAll(w.dir))...)
}

func (w *world) say(format string, args ...any) {
	if w.Say != nil {
		w.Say(fmt.Sprintf(format, args...))
	}
}

// now is the clock of readers.
func (w *world) now() time.Time { return time.Now().Add(w.skew) }

func (w *world) trustRepository() string { return w.host + "/trust" }

// makeTrust makes the keys and the trust repository.
func (w *world) makeTrust(ctx context.Context) error {
	w.keys = map[string]*sign.Key{}
	for _, name := range keyNames {
		key, err := sign.GenerateKey("")
		if err != nil {
			return err
		}
		w.keys[name] = key
	}
	text, err := w.policy()
	if err != nil {
		return err
	}
	made, err := trust.Init(ctx, trust.InitOptions{
		Repository: w.trustRepository(), Registry: w.client, Policy: text,
		RootKeys:    []crypto.Signer{w.keys["root-1"].Private(), w.keys["root-2"].Private()},
		TargetsKeys: []crypto.Signer{w.keys["targets"].Private()},
		OnlineKey:   w.keys["online"].Private(),
	})
	if err != nil {
		return fmt.Errorf("making the trust repository: %w", err)
	}
	w.root = made.Root
	if w.first, err = w.trustIndex(ctx); err != nil {
		return err
	}
	w.honest = w.first
	w.say("made %d keys and the trust repository %s: 2 root keys, %d hash bins", len(w.keys), w.trustRepository(), made.Bins)
	return w.writeFiles(map[string][]byte{"root.json": made.Root, "policy.yaml": text})
}

// writeFiles leaves files for who asks for --keep.
func (w *world) writeFiles(files map[string][]byte) error {
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(w.dir, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// policy names ci and security, and wants both for what is released.
func (w *world) policy() ([]byte, error) {
	var b strings.Builder
	b.WriteString("apiVersion: imgtrust.dev/v1\nkind: Policy\nsigners:\n")
	for _, name := range []string{"ci", "security"} {
		text, err := attest.MarshalPublicKey(w.keys[name].Public())
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "  %s:\n    key: |\n", name)
		for line := range strings.Lines(string(text)) {
			b.WriteString("      " + line)
		}
	}
	fmt.Fprintf(&b, `rules:
  - images: [%q]
    signatures: {threshold: 2, from: [ci, security]}
  - images: [%q]
    signatures: {threshold: 1, from: [ci]}
`, w.host+"/release/**", w.host+"/shop/**")
	return []byte(b.String()), nil
}

func (w *world) trustIndex(ctx context.Context) (oci.Manifest, error) {
	return w.client.Manifest(ctx, oci.Reference{Repository: w.trustRepository(), Tag: trust.Tag}, 0)
}

// release signs the image, and a copy of it where two must sign, and lists both.
func (w *world) release(ctx context.Context) (err error) {
	if w.both, err = w.copyTo(ctx, w.image, w.host+"/release/web"); err != nil {
		return err
	}
	for _, s := range []struct {
		image  oci.Reference
		signer string
	}{{w.image, "ci"}, {w.both, "ci"}, {w.both, "security"}} {
		if _, err := w.sign(ctx, s.signer, s.image); err != nil {
			return err
		}
		w.say("signed %s:%s as %s", s.image.Repository, s.image.Tag, s.signer)
	}
	p, err := w.publish(ctx)
	if err != nil {
		return err
	}
	if len(p.Listed) != 2 || len(p.Refused) > 0 {
		return fmt.Errorf("the publisher listed %d of 2 images: %v", len(p.Listed), p.Refused)
	}
	w.say("published: %d images listed, trust index version %d of %d bytes", len(p.Listed), p.Version, len(w.honest.Bytes))
	return nil
}

// copyTo copies an image to another repository of the registry.
func (w *world) copyTo(ctx context.Context, image oci.Reference, repository string) (oci.Reference, error) {
	target := oci.Reference{Repository: repository, Tag: image.Tag, Digest: image.Digest}
	from, options, err := w.client.Remote(image.AtDigest(image.Digest))
	if err != nil {
		return target, err
	}
	to, _, err := w.client.Remote(oci.Reference{Repository: repository, Tag: image.Tag})
	if err != nil {
		return target, err
	}
	options = append(options, remote.WithContext(ctx))
	content, err := remote.Image(from, options...)
	if err == nil {
		err = remote.Write(to, content, options...)
	}
	if err != nil {
		return target, fmt.Errorf("copying %s to %s: %w", image, repository, err)
	}
	return target, nil
}

// sign signs an image and leaves the statement in the inbox.
func (w *world) sign(ctx context.Context, signer string, image oci.Reference) (sign.Result, error) {
	results, err := sign.Images(ctx, []oci.Reference{image}, sign.Options{
		Key: w.keys[signer], Client: w.client, Inbox: w.trustRepository() + "/inbox",
	})
	if err != nil {
		return sign.Result{}, err
	}
	return results[0], nil
}

// clientOptions are those of a reader of the trust repository.
func (w *world) clientOptions(state string) trust.ClientOptions {
	return trust.ClientOptions{Repository: w.trustRepository(), Root: w.root, State: state, Registry: w.client, Now: w.now}
}

func (w *world) publisherState() string { return filepath.Join(w.dir, "publisher") }
func (w *world) readerState() string    { return filepath.Join(w.dir, "reader") }

// publish runs the honest publisher once.
func (w *world) publish(ctx context.Context) (trust.Publication, error) {
	p, err := trust.OpenPublisher(trust.PublisherOptions{
		ClientOptions: w.clientOptions(w.publisherState()), OnlineKey: w.keys["online"].Private(),
	})
	if err != nil {
		return trust.Publication{}, err
	}
	out, err := p.Publish(ctx)
	if err != nil {
		return out, fmt.Errorf("publishing: %w", err)
	}
	w.honest, err = w.trustIndex(ctx)
	return out, err
}

// decide asks the verifier, as a reader that remembers in state.
func (w *world) decide(ctx context.Context, image oci.Reference, state string) (verify.Result, error) {
	c, err := trust.Open(w.clientOptions(state))
	if err != nil {
		return verify.Result{}, err
	}
	return verify.Image(ctx, oci.Location{Reference: image}, verify.Options{Trust: c, Registry: w.client, Now: w.now})
}

// verify asks about both images, as a node would that has only root.json.
func (w *world) verify(ctx context.Context) error {
	for _, image := range []oci.Reference{w.image, w.both} {
		asked := oci.Reference{Repository: image.Repository, Tag: image.Tag}
		d, err := w.mustAllow(ctx, asked)
		if err != nil {
			return err
		}
		var names []string
		for _, s := range d.Evidence.Signers {
			names = append(names, s.Name)
		}
		w.say("verified %s: %s, signed by %s", asked, d.Code, strings.Join(names, " and "))
	}
	return nil
}

// mustAllow verifies with the reader's own state; a refusal is an error.
func (w *world) mustAllow(ctx context.Context, image oci.Reference) (verify.Decision, error) {
	r, err := w.decide(ctx, image, w.readerState())
	if err != nil {
		return verify.Decision{}, err
	}
	d := r.Decision()
	if d.Code != policy.Allowed {
		return d, fmt.Errorf("%s was refused: %s: %s", image, d.Code, strings.Join(d.Reasons, "; "))
	}
	return d, nil
}
