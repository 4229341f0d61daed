package main

import (
	"archive/tar"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/rogpeppe/go-internal/testscript"
)

// scriptCommands are the scripts' commands about images and registries:
//
//	prepare HOST [REPO@DIGEST]       make keys root, targets, online, ci, security
//	                                 and mallory, not encrypted since that takes
//	                                 a second each time, and policy.yaml:
//	                                 HOST/app/** signed by ci, HOST/two/** by ci
//	                                 and security, HOST/legacy/** audited only;
//	                                 this digest denied
//	pushimage VAR REPO:TAG CONTENT   push a small image, the same for the same
//	                                 content; $VAR becomes REPO@DIGEST
//	pushindex VAR REPO:TAG CONTENT   the same for two platforms; $VAR_CHILD
//	                                 becomes REPO@DIGEST of linux/amd64
//	savelayout DIR REF               copy an image from a registry to an OCI layout
//	flipbyte DIR config|layer        flip one bit in a blob of a layout
//	hostile VAR KIND PATH BACKEND    serve BACKEND on $VAR, but answer requests
//	                                 whose path contains PATH in a hostile way
//	within DURATION CODE PROGRAM …   as exits, and no longer than that
//	isolated CODE PROGRAM …          as exits, in a network namespace of its own
//	fetch NAME PATH FILE             GET PATH where NAME, started before, says on
//	                                 stderr that it serves metrics; 200 into FILE
func scriptCommands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){
		"prepare":    prepare,
		"pushimage":  pushImage,
		"pushindex":  pushIndex,
		"savelayout": saveLayout,
		"flipbyte":   flipByte,
		"hostile":    hostile,
		"within":     within,
		"fetch":      fetch,
		"isolated":   isolated,
	}
}

// merged is every command of both sets.
func merged(sets ...map[string]func(*testscript.TestScript, bool, []string)) map[string]func(*testscript.TestScript, bool, []string) {
	all := map[string]func(*testscript.TestScript, bool, []string){}
	for _, set := range sets {
		maps.Copy(all, set)
	}
	return all
}

// need ends the script unless a command has exactly its arguments.
func need(ts *testscript.TestScript, neg bool, args []string, usage string) {
	if neg || len(args) != len(strings.Fields(usage))-1 {
		ts.Fatalf("usage: %s", usage)
	}
}

func prepare(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 || len(args) > 2 {
		ts.Fatalf("usage: prepare HOST [REPO@DIGEST]")
	}
	keys := map[string]string{}
	for _, name := range []string{"root", "targets", "online", "ci", "security", "mallory"} {
		keys[name] = newKey(ts, name)
	}
	ts.Setenv("IMGTRUST_INSECURE_PLAINTEXT_KEY", "true")
	deny := ""
	for _, image := range args[1:] {
		_, digest, _ := strings.Cut(image, "@")
		deny += fmt.Sprintf("deny: [%q]\n", digest)
	}
	text := fmt.Sprintf(`apiVersion: imgtrust.dev/v1
kind: Policy
signers:
  ci:
    key: |
%s
  security:
    key: |
%s
%srules:
  - images: ["%[4]s/app/**"]
    signatures: {threshold: 1, from: [ci]}
  - images: ["%[4]s/two/**"]
    signatures: {threshold: 2, from: [ci, security]}
  - images: ["%[4]s/legacy/**"]
    audit: true
    signatures: {threshold: 1, from: [ci]}
`, keys["ci"], keys["security"], deny, args[0])
	ts.Check(os.WriteFile(ts.MkAbs("policy.yaml"), []byte(text), 0o644))
}

// newKey writes NAME.key and NAME.pub and returns the public key as it stands in
// a policy.
func newKey(ts *testscript.TestScript, name string) string {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	ts.Check(err)
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	ts.Check(err)
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})
	ts.Check(os.WriteFile(ts.MkAbs(name+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs(name+".pub"), text, 0o644))
	return "      " + strings.ReplaceAll(strings.TrimSpace(string(text)), "\n", "\n      ")
}

// smallImage holds one file with the content.
func smallImage(content, architecture string) (v1.Image, error) {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := w.WriteHeader(&tar.Header{Name: "content", Mode: 0o644, Size: int64(len(content))}); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(w, content); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.AppendLayers(base, static.NewLayer(layer.Bytes(), types.OCIUncompressedLayer))
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", architecture
	return mutate.ConfigFile(img, config)
}

func pushImage(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, "pushimage VAR REPO:TAG CONTENT")
	img, err := smallImage(args[2], "amd64")
	ts.Check(err)
	ts.Check(crane.Push(img, args[1]))
	setDigest(ts, args[0], args[1], img)
}

// setDigest sets a variable to the reference of what was pushed, by digest.
func setDigest(ts *testscript.TestScript, name, ref string, what interface{ Digest() (v1.Hash, error) }) {
	h, err := what.Digest()
	ts.Check(err)
	ts.Setenv(name, ref[:strings.LastIndexByte(ref, ':')]+"@"+h.String())
}

func pushIndex(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, "pushindex VAR REPO:TAG CONTENT")
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, architecture := range []string{"amd64", "arm64"} {
		img, err := smallImage(args[2], architecture)
		ts.Check(err)
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{
			Platform: &v1.Platform{OS: "linux", Architecture: architecture}}})
		if architecture == "amd64" {
			setDigest(ts, args[0]+"_CHILD", args[1], img)
		}
	}
	ref, err := name.ParseReference(args[1])
	ts.Check(err)
	ts.Check(remote.WriteIndex(ref, index))
	setDigest(ts, args[0], args[1], index)
}

func saveLayout(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, "savelayout DIR REF")
	img, err := crane.Pull(args[1])
	ts.Check(err)
	path, err := layout.Write(ts.MkAbs(args[0]), empty.Index)
	ts.Check(err)
	ts.Check(path.AppendImage(img))
}

func flipByte(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, "flipbyte DIR config|layer")
	index, err := layout.ImageIndexFromPath(ts.MkAbs(args[0]))
	ts.Check(err)
	manifest, err := index.IndexManifest()
	ts.Check(err)
	img, err := index.Image(manifest.Manifests[0].Digest)
	ts.Check(err)
	m, err := img.Manifest()
	ts.Check(err)
	blob := m.Config
	if args[1] == "layer" {
		blob = m.Layers[0]
	}
	file := filepath.Join(ts.MkAbs(args[0]), "blobs", blob.Digest.Algorithm, blob.Digest.Hex)
	data, err := os.ReadFile(file)
	ts.Check(err)
	data[len(data)/2] ^= 1
	ts.Check(os.WriteFile(file, data, 0o644))
}

func hostile(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, "hostile VAR KIND PATH BACKEND")
	answer := hostileAnswers()[args[1]]
	if answer == nil {
		ts.Fatalf("hostile: no kind %q", args[1])
	}
	honest := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: args[3]})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, args[2]) {
			answer(w, r)
			return
		}
		honest.ServeHTTP(w, r)
	}))
	ts.Defer(server.Close)
	ts.Setenv(args[0], strings.TrimPrefix(server.URL, "http://"))
}

// hostileAnswers are what a broken or hostile registry may answer. A HEAD gets
// the same headers.
func hostileAnswers() map[string]http.HandlerFunc {
	const manifest = "application/vnd.oci.image.index.v1+json"
	return map[string]http.HandlerFunc{
		"endless": func(w http.ResponseWriter, _ *http.Request) { // 100 MB, of no declared length
			w.Header().Set("Content-Type", manifest)
			for range 100 {
				if _, err := w.Write(bytes.Repeat([]byte(" "), 1<<20)); err != nil {
					return
				}
			}
		},
		"huge": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", manifest)
			w.Header().Set("Content-Length", strconv.Itoa(100<<20))
		},
		"truncated": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", manifest)
			w.Header().Set("Content-Length", "4000")
			io.WriteString(w, `{"schemaVersion":2,"manifests":[`)
		},
		"cut": func(w http.ResponseWriter, _ *http.Request) { // whole by its headers
			w.Header().Set("Content-Type", manifest)
			io.WriteString(w, `{"schemaVersion":2,"manifests":[`)
		},
		"garbage": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			io.WriteString(w, "<html>\n<body>\x1b[31mplease log in</body></html>\n")
		},
		"loop": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) },
		"fails": func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "disk\nimgtrust: error: \x1b[31mfull", 500)
		},
		"reset": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	}
}

func within(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 3 {
		ts.Fatalf("usage: within DURATION CODE PROGRAM ARGS...")
	}
	limit, err := time.ParseDuration(args[0])
	ts.Check(err)
	start := time.Now()
	exits(ts, neg, args[1:])
	if took := time.Since(start); took > limit {
		ts.Fatalf("took %v, longer than %v", took, limit)
	}
}

func fetch(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, "fetch NAME PATH FILE")
	_, rest, ok := strings.Cut(ts.ReadFile(args[0]+".stderr"), "metrics on ")
	base, _, _ := strings.Cut(rest, "/metrics\n")
	if !ok {
		ts.Fatalf("%s does not say where it serves metrics", args[0])
	}
	client := http.Client{Timeout: 10 * time.Second}
	res, err := client.Get(base + args[1])
	ts.Check(err)
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	ts.Check(err)
	if res.StatusCode != http.StatusOK {
		ts.Fatalf("%s: %s: %s", args[1], res.Status, data)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), data, 0o644))
}

// isolated says loudly where it cannot be done, and fails there in CI.
func isolated(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: isolated CODE PROGRAM ARGS...")
	}
	if out, err := exec.Command("unshare", "-rn", "true").CombinedOutput(); err != nil {
		if os.Getenv("CI") == "true" {
			ts.Fatalf("a network namespace: %v: %s", err, out)
		}
		ts.Logf("SKIPPED: no network namespace can be made here: %v: %s", err, out)
		return
	}
	exits(ts, false, append([]string{args[0], "unshare", "-rn"}, args[1:]...))
}
