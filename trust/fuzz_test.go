package trust

import (
	"encoding/json"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// FuzzIndex: whatever the registry serves as an index, its parts are in range
// or it is refused.
func FuzzIndex(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","artifactType":"application/vnd.imgtrust.tuf.v1","manifests":[` +
		`{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":2,"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","data":"e30=","annotations":{"dev.imgtrust.roles":"top"}},` +
		`{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":2,"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","annotations":{"dev.imgtrust.bins":"00-3f"}}]}`))
	f.Add([]byte(`{"manifests":[{"annotations":{"dev.imgtrust.bins":"3f-00"}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := decodeManifest(data, types.OCIImageIndex)
		if err != nil {
			return
		}
		_, groups, err := m.parts()
		if err != nil {
			return
		}
		for _, g := range groups {
			if g.first < 0 || g.last < g.first || g.last >= 1<<maxBinBits {
				t.Fatalf("range %d-%d", g.first, g.last)
			}
		}
		_, _ = m.layers()
	})
}

// FuzzListing: a target that decodes keeps the bounds and encodes again.
func FuzzListing(f *testing.F) {
	f.Add([]byte(`{"listed":"2026-06-01T12:00:00Z","envelopes":[{"payload":"{}","signatures":[{"keyid":"k","sig":"AA=="}]}]}`))
	f.Add([]byte(`{"listed":"2026-06-01T12:00:00Z","indexes":["sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"]}`))
	f.Fuzz(func(t *testing.T, custom []byte) {
		raw := json.RawMessage(custom)
		target := &metadata.TargetFiles{Length: 1, Hashes: metadata.Hashes{"sha256": make([]byte, 32)}, Custom: &raw}
		l, e, err := listing("host.example/app:1", target)
		if err != nil {
			return
		}
		if len(l.Envelopes) > maxEnvelopes || len(l.Indexes) > maxIndexes {
			t.Fatal("out of bounds")
		}
		if _, err := e.target(l.Digest, l.Size); err != nil {
			t.Fatalf("decoded, but does not encode: %v", err)
		}
	})
}

// FuzzStored: stored bytes never open to more than the bound.
func FuzzStored(f *testing.F) {
	small, err := newFile("a", metadataType, make([]byte, 64<<10))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(small.stored, true)
	f.Add([]byte("{}"), false)
	f.Fuzz(func(t *testing.T, stored []byte, zstd bool) {
		const max = 16 << 10
		media := metadataType
		if zstd {
			media += compressed
		}
		if data, err := open(media, stored, max); err == nil && len(data) > max {
			t.Fatalf("%d bytes", len(data))
		}
	})
}

// FuzzParseChange: a change file that is read is written back the same, and
// checking it never panics.
func FuzzParseChange(f *testing.F) {
	f.Add([]byte(`{"format":1,"repository":"host.example/trust","roots":["{}"],"targets":"{}","policy":"","nextTargets":"{}"}`))
	f.Add([]byte(`{"format":1,"repository":"host.example/trust","roots":[],"targets":"","policy":"","nextRoot":"{}","nextTargets":"{}","nextPolicy":"x"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseChange(data)
		if err != nil {
			return
		}
		_, _ = c.Check(nil)
		text, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseChange(text)
		if err != nil || again.NextRoot != c.NextRoot || again.NextTargets != c.NextTargets {
			t.Fatalf("%v", err)
		}
	})
}

// FuzzParseBootstrap: what is read has a root and no version below 0.
func FuzzParseBootstrap(f *testing.F) {
	f.Add([]byte(`{"format":1,"root":"{}","timestamp":3,"snapshot":3,"targets":1}`))
	f.Add([]byte(`{"signed":{},"signatures":[]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := parseBootstrap(data)
		if err == nil && (b.Root == "" || b.Timestamp < 0 || b.Snapshot < 0 || b.Targets < 0) {
			t.Fatalf("%+v", b)
		}
	})
}
