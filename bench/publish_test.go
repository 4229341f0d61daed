// Package bench_test measures what users wait for, by make bench. What a look-up
// moves over the wire at a million images is measured inside package trust
// (BenchmarkScale), which can make such a repository; docs/scale.md has both.
package bench_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/internal/testkit"
)

// BenchmarkPublish folds an inbox of IMGTRUST_STATEMENTS (1,000) statements, each
// about a new tagged image of two platforms, in one publish.
func BenchmarkPublish(b *testing.B) {
	n := 1000
	if text := os.Getenv("IMGTRUST_STATEMENTS"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			b.Fatal(err)
		}
	}
	var uploaded int64
	var busy time.Duration
	for b.Loop() {
		b.StopTimer()
		v := testkit.NewVirtualTrustIn(b, testkit.NewDistribution(b))
		for i := range n {
			v.Submit("ci", release(v, i))
		}
		before := processorTime(b)
		b.StartTimer()
		p := v.Publish()
		busy += processorTime(b) - before
		uploaded += p.Bytes
		if len(p.Listed) != n || len(p.Tags) != n {
			b.Fatalf("%d digests and %d tags listed, want %d: %v", len(p.Listed), len(p.Tags), n, p.Refused)
		}
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "statements/s")
	b.ReportMetric(float64(uploaded)/float64(b.N), "up-B/op")
	b.ReportMetric(float64(busy.Milliseconds())/float64(b.N), "cpu-ms/op")
}

// processorTime is what this process has used so far, its registry included.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// release is the statement about the i-th image.
func release(v *testkit.VirtualTrust, i int) attest.ReleaseStatement {
	repository := fmt.Sprintf("%s/app/service-%02d", v.Host, i%20)
	s := v.Release(repository, v1.Descriptor{MediaType: types.OCIImageIndex, Size: 856, Digest: digest(i, "index")}, fmt.Sprintf("v1.%d.%d", i/100, i/20%5))
	s.Manifests[0].Platform = ""
	for _, platform := range []string{"linux/amd64", "linux/arm64"} {
		s.Manifests = append(s.Manifests, attest.Manifest{MediaType: string(types.OCIManifestSchema1), Platform: platform, Size: 1234,
			Digest: digest(i, platform).String(), Config: digest(i, platform+" config").String()})
	}
	s.Provenance, s.SBOM = digest(i, "provenance").String(), digest(i, "sbom").String()
	return s
}

func digest(i int, of string) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", sha256.Sum256(fmt.Appendf(nil, "%d %s", i, of)))}
}
