package trust

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"
	"golang.org/x/sync/errgroup"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/internal/oci"
)

const (
	scaleTeams    = 20
	scaleServices = 10 // repositories of a team
	perImage      = 4  // targets: the digest, the tag, two children

	lookedUp  = 16 // images that the benchmarks look up
	published = 64 // images that they publish in addition
)

// fleet is a number of listed images, each the same every time it is asked for:
// an index of two platforms with provenance and SBOM, one tag, signed by its
// team and, with two signers, by security.
type fleet struct {
	images  int
	signers int
	teams   []*ecdsa.PrivateKey
	second  *ecdsa.PrivateKey
	start   time.Time
	bits    int
	bins    [][]uint32 // per bin its targets: image*perImage + kind
	touched []bool     // the bins that a benchmark reads
}

// newFleet spreads the targets of the images over 2^b bins.
func newFleet(tb testing.TB, images, signers, b int) *fleet {
	f := &fleet{images: images, signers: signers, second: scaleKey(tb), bits: b,
		start: time.Date(2024, 6, 1, 0, 0, 0, 0, time.UTC), bins: make([][]uint32, 1<<b), touched: make([]bool, 1<<b)}
	for range scaleTeams {
		f.teams = append(f.teams, scaleKey(tb))
	}
	for i := range images {
		for kind := range perImage {
			n := binOf(f.name(i, kind), b)
			f.bins[n] = append(f.bins[n], uint32(i*perImage+kind))
		}
	}
	for kind := range perImage {
		for i := range lookedUp {
			f.touched[binOf(f.name(i, kind), b)] = true
		}
		for i := range published {
			f.touched[binOf(f.name(images+i, kind), b)] = true
		}
	}
	return f
}

func scaleKey(tb testing.TB) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(tb, err)
	return k
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// digest is the i-th image's digest number k: 0 the index, 1 and 2 its
// children, 3 and 4 their configs, 5 provenance, 6 SBOM.
func (f *fleet) digest(i, k int) v1.Hash {
	var seed [16]byte
	binary.BigEndian.PutUint64(seed[:], uint64(i))
	binary.BigEndian.PutUint64(seed[8:], uint64(k))
	return v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", sha256.Sum256(seed[:]))}
}

func (f *fleet) repository(i int) string {
	r := i % (scaleTeams * scaleServices)
	return fmt.Sprintf("registry.example.com/team-%02d/service-%02d", r%scaleTeams, r/scaleTeams)
}

func (f *fleet) tag(i int) string {
	n := i / (scaleTeams * scaleServices)
	return fmt.Sprintf("v%d.%d.%d", n/400+1, n/20%20, n%20)
}

// name is the target of an image: kind 0 is its digest, 1 its tag, 2 and 3 its
// children.
func (f *fleet) name(i, kind int) string {
	if kind == 1 {
		return TagTarget(f.repository(i), f.tag(i))
	}
	return DigestTarget(f.repository(i), f.digest(i, max(kind-1, 0)))
}

func (f *fleet) created(i int) time.Time { return f.start.Add(time.Duration(i) * time.Minute) }

func (f *fleet) size(i, k int) int64 {
	return 856 + int64(binary.BigEndian.Uint16([]byte(f.digest(i, k).Hex)))%2000*int64(min(k, 1))
}

func (f *fleet) release(i int) attest.ReleaseStatement {
	child := func(k int, platform string) attest.Manifest {
		return attest.Manifest{MediaType: string(types.OCIManifestSchema1), Digest: f.digest(i, k).String(),
			Size: f.size(i, k), Platform: platform, Config: f.digest(i, k+2).String()}
	}
	return attest.ReleaseStatement{Digest: f.digest(i, 0).String(), Release: attest.Release{
		Repository: f.repository(i), Tags: []string{f.tag(i)}, Created: f.created(i),
		Manifests: []attest.Manifest{
			{MediaType: string(types.OCIImageIndex), Digest: f.digest(i, 0).String(), Size: f.size(i, 0)},
			child(1, "linux/amd64"), child(2, "linux/arm64"),
		},
		Config:     &attest.Config{User: "65532", Entrypoint: []string{"/service"}, ImageSize: 12_000_000 + 37*f.size(i, 1)*f.size(i, 2), Layers: 3 + i%9},
		Provenance: f.digest(i, 5).String(), SBOM: f.digest(i, 6).String(),
	}}
}

// statements are the signed statements about an image; a second signer makes
// its own, some minutes later.
func (f *fleet) statements(i int) ([]attest.Envelope, error) {
	var all []attest.Envelope
	for n, k := range []*ecdsa.PrivateKey{f.teams[i%scaleTeams], f.second}[:f.signers] {
		r := f.release(i)
		r.Created = r.Created.Add(time.Duration(n*(60+i%900)) * time.Second)
		payload, err := attest.EncodeRelease(r)
		if err != nil {
			return nil, err
		}
		signer, err := signature.LoadECDSASigner(k, crypto.SHA256)
		if err != nil {
			return nil, err
		}
		e, err := attest.Sign(context.Background(), payload, signer)
		if err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	return all, nil
}

func (f *fleet) target(i, kind int) (*metadata.TargetFiles, error) {
	e := entry{Listed: f.created(i).Add(2 * time.Minute)}
	k := max(kind-1, 0)
	if k > 0 {
		e.addIndex(f.digest(i, 0).String())
		return e.target(f.digest(i, k), f.size(i, k))
	}
	statements, err := f.statements(i)
	if err != nil {
		return nil, err
	}
	if err := e.setEnvelopes(statements); err != nil {
		return nil, err
	}
	return e.target(f.digest(i, 0), f.size(i, 0))
}

// bin is a bin with all of its targets, not signed yet. In a large fleet the
// bins that no benchmark reads stay empty, as nothing of them but their versions
// and digests is ever sent: IMGTRUST_SCALE_FULL fills them, too.
func (f *fleet) bin(n int) (*metadata.Metadata[metadata.TargetsType], error) {
	m := metadata.Targets(f.start)
	if !f.touched[n] && f.images > 10_000 && os.Getenv("IMGTRUST_SCALE_FULL") == "" {
		return m, nil
	}
	for _, t := range f.bins[n] {
		i, kind := int(t/perImage), int(t%perImage)
		file, err := f.target(i, kind)
		if err != nil {
			return nil, err
		}
		m.Signed.Targets[f.name(i, kind)] = file
	}
	return m, nil
}

// version is the version of a bin when every image was published by itself.
func (f *fleet) version(n int) int64 { return 1 + int64(len(f.bins[n])) }

// policy gives each team its own repositories.
func (f *fleet) policy(tb testing.TB) []byte {
	var signers, rules strings.Builder
	name := func(k *ecdsa.PrivateKey, name string) {
		text, err := attest.MarshalPublicKey(k.Public())
		must(tb, err)
		fmt.Fprintf(&signers, "  %s:\n    key: |\n      %s\n", name, strings.ReplaceAll(strings.TrimSpace(string(text)), "\n", "\n      "))
	}
	name(f.second, "security")
	for n, k := range f.teams {
		name(k, fmt.Sprintf("team-%02d", n))
		from := fmt.Sprintf("[team-%02d, security]", n)
		fmt.Fprintf(&rules, "  - images: [\"registry.example.com/team-%02d/**\"]\n    signatures: {threshold: %d, from: %s}\n", n, f.signers, from)
	}
	return []byte("apiVersion: imgtrust.dev/v1\nkind: Policy\nsigners:\n" + signers.String() + "rules:\n" + rules.String())
}

// scaleRepository is a trust repository of a fleet in a registry on disk.
type scaleRepository struct {
	*fleet
	tb      testing.TB
	host    string
	traffic *traffic
	client  *oci.Client
	root    []byte
	online  *ecdsa.PrivateKey
	now     time.Time
}

// newScaleRepository lists the fleet with the package's own encoders, a group of
// bins at a time: memory does not grow with the number of images.
func newScaleRepository(tb testing.TB, f *fleet, groupSize int) *scaleRepository {
	blobs := registry.NewDiskBlobHandler(tb.TempDir())
	server := httptest.NewServer(registry.New(registry.WithBlobHandler(blobs), registry.Logger(log.New(io.Discard, "", 0))))
	tb.Cleanup(server.Close)
	r := &scaleRepository{fleet: f, tb: tb, host: strings.TrimPrefix(server.URL, "http://"), traffic: &traffic{}, online: scaleKey(tb)}
	r.client = r.newRegistryClient()
	r.now = f.created(f.images).Add(time.Hour)
	ctx := context.Background()
	change, err := NewChange(InitOptions{
		Repository: r.host + "/trust", Registry: r.client, Policy: f.policy(tb), Now: func() time.Time { return r.now },
		RootKeys: []crypto.Signer{scaleKey(tb), scaleKey(tb), scaleKey(tb)}, RootThreshold: 2,
		TargetsKeys: []crypto.Signer{scaleKey(tb), scaleKey(tb)}, OnlineKey: r.online, bits: f.bits,
	})
	must(tb, err)
	c, err := newCreation(change, CreateOptions{Registry: r.client, OnlineKey: r.online, Now: func() time.Time { return r.now }})
	must(tb, err)
	r.root = []byte(change.NextRoot)
	top := map[string]v1.Descriptor{}
	must(tb, c.writeOffline(ctx, top))
	groups := r.writeBins(ctx, c, groupSize)
	must(tb, c.writeOnline(ctx, top))
	_, err = c.writer.finish(ctx, top, groups)
	must(tb, err)
	return r
}

func (r *scaleRepository) newRegistryClient() *oci.Client {
	return oci.New(oci.Options{Transport: r.traffic, Mirrors: map[string]string{"registry.example.com": r.host}})
}

func (r *scaleRepository) writeBins(ctx context.Context, c *creation, size int) []v1.Descriptor {
	groups := make([]v1.Descriptor, (1<<r.bits)/size)
	var g errgroup.Group
	g.SetLimit(2)
	for i := range groups {
		g.Go(func() (err error) {
			groups[i], err = r.writeGroup(ctx, c, i*size, size)
			return err
		})
	}
	must(r.tb, g.Wait())
	for n := range 1 << r.bits {
		c.meta[binName(n, r.bits)+".json"] = metadata.MetaFile(r.version(n))
	}
	return groups
}

func (r *scaleRepository) writeGroup(ctx context.Context, c *creation, first, size int) (v1.Descriptor, error) {
	w := newWriter(c.Registry, c.Repository, v1.Hash{})
	layers := map[string]v1.Descriptor{}
	for n := first; n < first+size; n++ {
		bin, err := r.bin(n)
		if err != nil {
			return v1.Descriptor{}, err
		}
		f, err := signBin(bin, c.id, binName(n, r.bits), r.version(n), c.now, c.OnlineKey)
		if err != nil {
			return v1.Descriptor{}, err
		}
		layers[f.name] = w.add(ctx, f, notInline)
	}
	d, err := w.addGroup(layers, rangeText(first, first+size-1, r.bits))
	if err != nil {
		return d, err
	}
	if err := w.uploads.Wait(); err != nil {
		return d, err
	}
	return d, w.uploadManifests(ctx)
}

// open starts a reader with a state directory, as a new process would.
func (r *scaleRepository) open(state string) *Client {
	c, err := Open(ClientOptions{Repository: r.host + "/trust", Root: r.root, State: state, Registry: r.newRegistryClient(),
		Now: func() time.Time { return r.now }})
	must(r.tb, err)
	return c
}

// traffic counts the bytes of bodies and the requests, pings left out.
type traffic struct{ requests, up, down atomic.Int64 }

func (t *traffic) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Path != "/v2/" {
		t.requests.Add(1)
	}
	t.up.Add(max(req.ContentLength, 0))
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err == nil {
		resp.Body = &counted{resp.Body, &t.down}
	}
	return resp, err
}

type counted struct {
	io.ReadCloser
	n *atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// cost is what one step moved over the wire.
type cost struct{ requests, up, down int64 }

func (r *scaleRepository) measure(step func()) cost {
	r.traffic.requests.Store(0)
	r.traffic.up.Store(0)
	r.traffic.down.Store(0)
	step()
	return cost{r.traffic.requests.Load(), r.traffic.up.Load(), r.traffic.down.Load()}
}

// lookup decides nothing: it finds the entry of image i and checks that it is
// the one that was listed.
func (r *scaleRepository) lookup(c *Client, i int, tag bool) {
	ctx := context.Background()
	if !tag {
		l, err := c.LookupDigest(ctx, r.repository(i), r.digest(i, 0))
		must(r.tb, err)
		r.checkListing(l, i)
		return
	}
	d, err := r.client.Resolve(ctx, oci.Reference{Repository: r.repository(i), Tag: r.tag(i)})
	must(r.tb, err)
	l, err := c.LookupTag(ctx, r.repository(i), r.tag(i))
	must(r.tb, err)
	r.checkListing(l, i)
	if d.Size == 0 {
		r.tb.Fatal("the tag has no manifest")
	}
}

func (r *scaleRepository) checkListing(l Listing, i int) {
	if l.Digest != r.digest(i, 0) || len(l.Envelopes) != r.signers {
		r.tb.Fatalf("image %d is listed as %s with %d statements", i, l.Digest, len(l.Envelopes))
	}
	if err := l.Envelopes[0].Verify(r.teams[i%scaleTeams].Public()); err != nil {
		r.tb.Fatal(err)
	}
}

// tagged puts something under the tag of image i, for the HEAD that a tag
// look-up begins with.
func (r *scaleRepository) tagged(i int) {
	_, err := r.client.PutManifest(context.Background(), r.repository(i), r.tag(i), types.OCIImageIndex,
		[]byte(`{"schemaVersion":2,"mediaType":"`+string(types.OCIImageIndex)+`","manifests":[]}`))
	must(r.tb, err)
}

// list publishes one more tagged image.
func (r *scaleRepository) list(c *Client, i int) {
	ctx := context.Background()
	d, err := c.NewDraft(ctx, r.online)
	must(r.tb, err)
	statements, err := r.statements(i)
	must(r.tb, err)
	must(r.tb, d.ListDigest(ctx, r.repository(i), r.digest(i, 0), r.size(i, 0), statements))
	must(r.tb, d.ListTag(ctx, r.repository(i), r.tag(i), r.digest(i, 0), r.size(i, 0), statements))
	for k := 1; k <= 2; k++ {
		must(r.tb, d.ListChild(ctx, r.repository(i), r.digest(i, k), r.size(i, k), r.digest(i, 0)))
	}
	_, err = d.Publish(ctx)
	must(r.tb, err)
}

// TestScaleRequests holds the number of requests at a small size; the bytes at
// all sizes are in docs/scale.md, by BenchmarkScale.
func TestScaleRequests(t *testing.T) {
	r := newScaleRepository(t, newFleet(t, 1000, 2, binBits(1000)), groupSize(binBits(1000)))
	r.tagged(7)
	state := t.TempDir()
	rows := []struct {
		summary            string
		step               func()
		requests, up, down int64 // at most
	}{
		{"a cold look-up of a digest", func() { r.lookup(r.open(t.TempDir()), 3, false) }, 4, 0, 200_000},
		{"a cold look-up of a tag, with its HEAD", func() { r.lookup(r.open(state), 7, true) }, 5, 0, 300_000},
		{"a warm look-up, nothing changed", func() { r.lookup(r.open(state), 7, false) }, 3, 0, 100_000},
		{"the same again", func() { r.lookup(r.open(state), 7, false) }, 1, 0, 0},
		{"listing one more image", func() { r.list(r.open(t.TempDir()), 1000) }, 60, 500_000, 500_000},
		{"finding that image", func() { r.lookup(r.open(state), 1000, false) }, 5, 0, 200_000},
	}
	for _, row := range rows {
		got := r.measure(row.step)
		t.Logf("%s: %+v", row.summary, got)
		if got.requests > row.requests || got.up > row.up || got.down > row.down {
			t.Errorf("%s: %+v, want at most %d requests, %d bytes up, %d bytes down", row.summary, got, row.requests, row.up, row.down)
		}
	}
}

// BenchmarkScale measures look-ups and a publication at the sizes of
// IMGTRUST_SCALE, numbers of images with commas between them.
func BenchmarkScale(b *testing.B) {
	for _, images := range scales(b) {
		for signers := 1; signers <= 2; signers++ {
			bits := binBits(images)
			b.Run(fmt.Sprintf("images=%d/signers=%d", images, signers), func(b *testing.B) {
				r := newScaleRepository(b, newFleet(b, images, signers, bits), groupSize(bits))
				r.bench(b)
			})
		}
	}
}

func scales(b *testing.B) (images []int) {
	for _, text := range strings.Split(cmp.Or(os.Getenv("IMGTRUST_SCALE"), "1000,10000"), ",") {
		n, err := strconv.Atoi(text)
		must(b, err)
		images = append(images, n)
	}
	return images
}

// BenchmarkBins compares numbers of bins around the one that binBits chooses, by
// what a cold look-up of a digest reads beside the top manifest.
func BenchmarkBins(b *testing.B) {
	for _, images := range scales(b) {
		for signers := 1; signers <= 2; signers++ {
			for bits := binBits(images) - 1; bits <= binBits(images)+1; bits++ {
				b.Run(fmt.Sprintf("images=%d/signers=%d/bins=%d", images, signers, 1<<bits), func(b *testing.B) {
					f := newFleet(b, images, signers, bits)
					for b.Loop() {
						f.reportBins(b)
					}
				})
			}
		}
	}
}

func (f *fleet) reportBins(b *testing.B) {
	const sample = 8 // bins
	key, id := scaleKey(b), identity{Repository: strings.Repeat("0123456789abcdef", 2)}
	var bins int
	for n := range sample {
		f.touched[n] = true
		m, err := f.bin(n)
		must(b, err)
		stored, err := signBin(m, id, binName(n, f.bits), f.version(n), f.start, key)
		must(b, err)
		bins += len(stored.stored)
	}
	meta := map[string]*metadata.MetaFiles{"targets.json": metadata.MetaFile(1)}
	for n := range 1 << f.bits {
		meta[binName(n, f.bits)+".json"] = metadata.MetaFile(f.version(n))
	}
	_, data, err := signSnapshot(id, int64(f.images), meta, nil, f.start, key)
	must(b, err)
	snapshot, err := newFile("snapshot.json", metadataType, data)
	must(b, err)
	const descriptor = 207 // bytes of one in the index or in a bins manifest
	manifests := descriptor * (groupSize(f.bits) + 1<<f.bits/groupSize(f.bits))
	b.ReportMetric(float64(bins)/sample, "bin-B")
	b.ReportMetric(float64(len(snapshot.stored)), "snapshot-B")
	b.ReportMetric(float64(manifests), "manifests-B")
	b.ReportMetric(float64(bins/sample+len(snapshot.stored)+manifests), "sum-B")
}

func (r *scaleRepository) bench(b *testing.B) {
	for i := range lookedUp {
		r.tagged(i)
	}
	state, publisher, next := b.TempDir(), b.TempDir(), 0
	publish := func() {
		r.list(r.open(publisher), r.images+next%published)
		next++
	}
	publish()
	r.lookup(r.open(state), 0, false)
	r.run(b, "cold-digest", nil, func(n int) { r.lookup(r.open(b.TempDir()), n%lookedUp, false) })
	r.run(b, "cold-tag", nil, func(n int) { r.lookup(r.open(b.TempDir()), n%lookedUp, true) })
	r.run(b, "warm", nil, func(int) { r.lookup(r.open(state), 0, false) })
	r.run(b, "list-one", nil, func(int) { publish() })
	r.run(b, "warm-changed", publish, func(int) { r.lookup(r.open(state), 0, false) })
}

// run measures step alone: its time, its traffic, and the processor time of
// this process, which serves the registry, too.
func (r *scaleRepository) run(b *testing.B, name string, prepare func(), step func(n int)) {
	b.Run(name, func(b *testing.B) {
		r.tb = b
		var total cost
		var busy time.Duration
		for n := 0; b.Loop(); n++ {
			if prepare != nil {
				b.StopTimer()
				prepare()
				b.StartTimer()
			}
			before := processorTime(b)
			c := r.measure(func() { step(n) })
			busy += processorTime(b) - before
			total = cost{total.requests + c.requests, total.up + c.up, total.down + c.down}
		}
		b.ReportMetric(float64(total.requests)/float64(b.N), "requests/op")
		b.ReportMetric(float64(total.down)/float64(b.N), "down-B/op")
		b.ReportMetric(float64(total.up)/float64(b.N), "up-B/op")
		b.ReportMetric(float64(busy.Milliseconds())/float64(b.N), "cpu-ms/op")
	})
}

func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
