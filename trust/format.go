package trust

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/policy"
)

const (
	// ArtifactType marks the index and the manifests of a trust repository.
	ArtifactType = "application/vnd.imgtrust.tuf.v1"

	metadataType = types.MediaType("application/vnd.tuf.metadata+json")
	targetType   = types.MediaType("application/vnd.tuf.target")
	emptyType    = types.MediaType("application/vnd.oci.empty.v1+json")
	compressed   = "+zstd" // follows the type of a file that is stored compressed

	filenameKey = "tuf.io/filename"    // annotation of a layer: the TUF file name
	binsKey     = "dev.imgtrust.bins"  // annotation of a bins manifest: "FIRST-LAST", hex
	topKey      = "dev.imgtrust.roles" // annotation of the top manifest: "top"
	binPrefix   = "releases"
	policyName  = "policy.yaml"
)

// manifest is an OCI manifest or index as this package writes it: only the
// fields that carry something.
type manifest struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     types.MediaType `json:"mediaType"`
	ArtifactType  string          `json:"artifactType"`
	Config        *v1.Descriptor  `json:"config,omitempty"`
	Manifests     []v1.Descriptor `json:"manifests,omitempty"`
	Layers        []v1.Descriptor `json:"layers,omitempty"`
}

// copyAdvice is what to do about a copy that lacks parts of the index.
const copyAdvice = "a copy must carry the whole index: `crane copy`, `skopeo copy --all` (not without --all), and no --platform"

// decodeManifest reads a manifest or index of the trust repository. Fields that
// copying tools may add are ignored; duplicates and trailing data are not.
func decodeManifest(data []byte, want types.MediaType) (manifest, error) {
	var m manifest
	if err := attest.UnmarshalStrict(data, &m, true); err != nil {
		return m, invalid("trust index: %w", err)
	}
	if want == types.OCIImageIndex && m.MediaType == types.OCIManifestSchema1 && m.ArtifactType == ArtifactType {
		return m, &Error{Code: policy.MetadataInvalid, Err: errors.New("one part of a trust index stands where the index should be"), Advice: copyAdvice}
	}
	// skopeo 1.9 writes the index anew without its artifact type. Nothing rests
	// on that: the parts are named by annotations, and signed.
	dropped := m.ArtifactType == "" && want == types.OCIImageIndex
	if m.SchemaVersion != 2 || m.MediaType != want || m.ArtifactType != ArtifactType && !dropped {
		return m, invalid("not a trust index: media type %.80q, artifact type %.80q", m.MediaType, m.ArtifactType)
	}
	return m, nil
}

// file is a TUF file as it is stored: the exact signed bytes, perhaps compressed.
type file struct {
	name   string
	media  types.MediaType
	stored []byte
}

// newFile prepares the exact bytes of a TUF file for storage.
func newFile(name string, media types.MediaType, data []byte) (file, error) {
	if len(data) <= compressAbove {
		return file{name, media, data}, nil
	}
	// The fastest level makes the smallest files here: of hex digests, longer
	// searches find only matches that cost more than they save (docs/scale.md).
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return file{}, err
	}
	defer enc.Close()
	return file{name, media + compressed, enc.EncodeAll(data, nil)}, nil
}

// descriptor describes the stored bytes, and holds them when they are at most
// inline.
func (f file) descriptor(inline int) v1.Descriptor {
	d := describe(f.media, f.stored)
	d.Annotations = map[string]string{filenameKey: f.name}
	if len(f.stored) <= inline {
		d.Data = f.stored
	}
	return d
}

func describe(media types.MediaType, data []byte) v1.Descriptor {
	h, _, err := v1.SHA256(bytes.NewReader(data))
	if err != nil {
		panic(err) // reading from memory does not fail
	}
	return v1.Descriptor{MediaType: media, Size: int64(len(data)), Digest: h}
}

// open turns stored bytes back into the signed bytes, at most max of them.
func open(media types.MediaType, stored []byte, max int64) ([]byte, error) {
	switch media {
	case metadataType, targetType:
		if int64(len(stored)) > max {
			return nil, fmt.Errorf("larger than %d bytes", max)
		}
		return stored, nil
	case metadataType + compressed, targetType + compressed:
		return decompress(stored, max)
	default:
		return nil, fmt.Errorf("unknown media type %.80q", media)
	}
}

// decompress decodes zstd with its window and its output bounded by max.
func decompress(stored []byte, max int64) ([]byte, error) {
	dec, err := zstd.NewReader(bytes.NewReader(stored), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(uint64(max)+1<<20))
	if err != nil {
		return nil, err
	}
	defer dec.Close()
	data, err := io.ReadAll(io.LimitReader(dec, max+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > max {
		return nil, fmt.Errorf("decompresses to more than %d bytes", max)
	}
	return data, nil
}

// encodeManifest writes a manifest with the empty config and the given layers.
func encodeManifest(layers []v1.Descriptor) ([]byte, error) {
	config := describe(emptyType, []byte("{}"))
	return json.Marshal(manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: ArtifactType,
		Config: &config, Layers: layers,
	})
}

// encodeIndex writes the trust index over the top manifest and the groups.
func encodeIndex(top []byte, groups []v1.Descriptor) ([]byte, error) {
	d := describe(types.OCIManifestSchema1, top)
	d.Annotations = map[string]string{topKey: "top"}
	if len(top) <= maxTopData {
		d.Data = top
	}
	return json.Marshal(manifest{
		SchemaVersion: 2, MediaType: types.OCIImageIndex, ArtifactType: ArtifactType,
		Manifests: append([]v1.Descriptor{d}, groups...),
	})
}

// layers indexes the layers of a manifest by TUF file name.
func (m manifest) layers() (map[string]v1.Descriptor, error) {
	byName := make(map[string]v1.Descriptor, len(m.Layers))
	for _, l := range m.Layers {
		name := l.Annotations[filenameKey]
		if _, dup := byName[name]; dup || name == "" {
			return nil, invalid("trust index: layer %s has a missing or repeated file name %.80q", l.Digest, name)
		}
		byName[name] = l
	}
	return byName, nil
}

// parts splits a trust index into its top manifest and its groups of bins.
func (m manifest) parts() (top v1.Descriptor, groups []group, err error) {
	found := false
	for _, d := range m.Manifests {
		if d.Annotations[topKey] == "top" && !found {
			top, found = d, true
			continue
		}
		g, err := parseGroup(d)
		if err != nil {
			return top, nil, err
		}
		groups = append(groups, g)
	}
	if !found {
		return top, nil, invalid("trust index: no top manifest")
	}
	return top, groups, nil
}

// group is a bins manifest and the range of bins that it holds.
type group struct {
	descriptor  v1.Descriptor
	first, last int
}

func parseGroup(d v1.Descriptor) (group, error) {
	low, high, ok := strings.Cut(d.Annotations[binsKey], "-")
	first, err1 := strconv.ParseUint(low, 16, 32)
	last, err2 := strconv.ParseUint(high, 16, 32)
	if !ok || err1 != nil || err2 != nil || last < first || last >= 1<<maxBinBits {
		return group{}, invalid("trust index: manifest %s has no valid range of bins: %.40q", d.Digest, d.Annotations[binsKey])
	}
	return group{d, int(first), int(last)}, nil
}

// checkGroups checks that the groups hold each of 2^b bins once, in order.
func checkGroups(groups []group, b int) error {
	next := 0
	for _, g := range groups {
		if g.first != next {
			return invalid("trust index: bin %d is held by no manifest or by two", next)
		}
		next = g.last + 1
	}
	if next != 1<<b {
		return invalid("trust index: it holds %d bins instead of %d", next, 1<<b)
	}
	return nil
}

// groupOf finds the group that holds a bin, by the ranges of the descriptors.
func groupOf(groups []group, bin int) (group, error) {
	i := slices.IndexFunc(groups, func(g group) bool { return g.first <= bin && bin <= g.last })
	if i < 0 {
		return group{}, invalid("trust index: no manifest holds bin %d", bin)
	}
	return groups[i], nil
}

// binBits chooses the number of bins, as a power of two, for the number of
// images expected: about 60 images a bin, which balances the bytes of a cold
// look-up (snapshot, index, bin) as measured in docs/scale.md.
func binBits(expected int) int {
	if expected <= 5000 {
		return 6
	}
	return min(max(bits.Len(uint((expected-1)/64)), 6), maxBinBits)
}

// groupSize is the number of bins a manifest holds, for a repository of 2^b bins.
func groupSize(b int) int { return 1 << max((b-1)/2, 2) }

func binName(bin, b int) string { return fmt.Sprintf("%s-%0*x", binPrefix, (b+3)/4, bin) }

func rangeText(first, last, b int) string {
	return fmt.Sprintf("%0*x-%0*x", (b+3)/4, first, (b+3)/4, last)
}

func versioned(version int64, role string) string { return fmt.Sprintf("%d.%s.json", version, role) }
