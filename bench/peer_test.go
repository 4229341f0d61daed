package bench_test

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/imgtrust/imgtrust/internal/testkit"
	"github.com/imgtrust/imgtrust/sign"
	"github.com/imgtrust/imgtrust/trust"
)

// program finds what make build and make tools have made.
func program(b *testing.B, name string) string {
	b.Helper()
	path, err := filepath.Abs(filepath.Join("..", "bin", name))
	if err != nil {
		b.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		b.Skipf("SKIPPED: %v: run make build tools", err)
	}
	return path
}

// keyFile writes a signer's key so that both programs read it.
func keyFile(b *testing.B, v *testkit.VirtualTrust, signer string) (private, public string) {
	b.Helper()
	key, err := sign.NewKey(v.Signers[signer])
	if err != nil {
		b.Fatal(err)
	}
	prefix := filepath.Join(b.TempDir(), signer)
	if err := key.Save(prefix, []byte("secret")); err != nil {
		b.Fatal(err)
	}
	return prefix + ".key", prefix + ".pub"
}

// run runs a program to its end and gives its processor time.
func run(b *testing.B, path string, args ...string) time.Duration {
	b.Helper()
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "COSIGN_PASSWORD=secret", "IMGTRUST_PASSWORD=secret", "HOME="+b.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil {
		b.Fatalf("%s %s: %v\n%s", filepath.Base(path), strings.Join(args, " "), err, out)
	}
	u := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkSign500 signs 500 digests in one call, against `cosign sign --key` of 20
// of them, one call each, in the same registry; the ratio is that of the wall time
// of an image. The registry is in this process and shares the processors.
func BenchmarkSign500(b *testing.B) {
	cosign, imgtrust := program(b, "cosign"), program(b, "imgtrust")
	const images, peers = 500, 20
	v := testkit.NewVirtualTrust(b)
	private, _ := keyFile(b, v, "ci")
	var refs []string
	for i := range images {
		d := testkit.Push(b, v.Client, v.Host+"/app/web", "", testkit.Image(b, fmt.Sprint("image ", i)))
		refs = append(refs, v.Host+"/app/web@"+d.Digest.String())
	}
	var ours, theirs time.Duration
	for b.Loop() {
		start := time.Now()
		run(b, imgtrust, append([]string{"sign", "--key", private, "--trust", v.Repository}, refs...)...)
		ours += time.Since(start)
		b.StopTimer()
		start = time.Now()
		for _, ref := range refs[:peers] {
			run(b, cosign, "sign", "--key", private, "--tlog-upload=false", "--use-signing-config=false", "--allow-http-registry", "--yes", ref)
		}
		theirs += time.Since(start) * images / peers
		b.StartTimer()
	}
	b.ReportMetric(ours.Seconds()/float64(b.N), "s/500")
	b.ReportMetric(theirs.Seconds()/float64(b.N), "cosign-s/500")
	b.ReportMetric(theirs.Seconds()/ours.Seconds(), "x-faster")
}

// BenchmarkVerify verifies one digest with warm state, against `cosign verify --key`
// of the same image in the same registry: processor time of the whole process, and
// requests to the registry beside pings.
func BenchmarkVerify(b *testing.B) {
	cosign, imgtrust := program(b, "cosign"), program(b, "imgtrust")
	v := testkit.NewVirtualTrust(b, func(o *trust.InitOptions) { o.Now = time.Now })
	private, public := keyFile(b, v, "ci")
	d := testkit.Push(b, v.Client, v.Host+"/app/web", "v1", testkit.Image(b, "one"))
	ref := v.Host + "/app/web@" + d.Digest.String()
	run(b, imgtrust, "sign", ref, "--key", private, "--trust", v.Repository)
	dir := b.TempDir()
	root, online, state := filepath.Join(dir, "root.json"), filepath.Join(dir, "online.key"), filepath.Join(dir, "state")
	der, err := x509.MarshalPKCS8PrivateKey(v.Online)
	if err != nil {
		b.Fatal(err)
	}
	for file, data := range map[string][]byte{root: v.RootJSON, online: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})} {
		if err := os.WriteFile(file, data, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	run(b, imgtrust, "trust", "publish", v.Repository, "--root", root, "--online-key", online, "--insecure-plaintext-key")
	var requests atomic.Int64
	v.Intercept(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/v2/" {
			requests.Add(1)
		}
		return false
	})
	verify := func() time.Duration {
		return run(b, imgtrust, "verify", ref, "--trust", v.Repository, "--root", root, "--state", state)
	}
	verify() // warm
	var ours, theirs time.Duration
	var asked, askedBy int64
	for b.Loop() {
		requests.Store(0)
		ours += verify()
		asked += requests.Swap(0)
		b.StopTimer()
		theirs += run(b, cosign, "verify", "--key", public, "--insecure-ignore-tlog", "--allow-http-registry", ref)
		askedBy += requests.Swap(0)
		b.StartTimer()
	}
	n := float64(b.N)
	b.ReportMetric(float64(ours.Microseconds())/1000/n, "cpu-ms/op")
	b.ReportMetric(float64(theirs.Microseconds())/1000/n, "cosign-cpu-ms/op")
	b.ReportMetric(ours.Seconds()/theirs.Seconds(), "of-cosign")
	b.ReportMetric(float64(asked)/n, "requests/op")
	b.ReportMetric(float64(askedBy)/n, "cosign-requests/op")
}
