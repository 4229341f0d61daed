package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCosignLegacy: what sign --cosign-legacy writes is what podman, CRI-O and skopeo
// demand under a sigstoreSigned policy with its usual rule for names, and what cosign
// reads.
func TestCosignLegacy(t *testing.T) {
	kinds := map[string]func(t *testing.T) string{
		"referrers API": func(t *testing.T) string { return withReferrers(t, nil) },
		"fallback tags": func(t *testing.T) string { return (actor{home: tempDir(t)}).withoutReferrers(t) },
	}
	for name, start := range kinds {
		t.Run(name, func(t *testing.T) {
			c := newChain(t, start(t))
			image := c.push(t, "team/app", "v1")
			unsigned := c.push(t, "team/other", "v1")
			c.must(t, "sign", image, "--tag", "v1", "--key", "ci.key", "--trust", c.host+"/trust", "--cosign-legacy")
			// Another signer adds, and so does the same one once more.
			c.must(t, "sign", image, "--tag", "v1", "--key", "mallory.key", "--trust", c.host+"/trust", "--cosign-legacy")
			c.must(t, "sign", image, "--tag", "v2", "--key", "ci.key", "--trust", c.host+"/trust", "--cosign-legacy")
			rows := []struct {
				summary, image, key string
				ok                  bool
			}{
				{"by digest", image, "ci.pub", true},
				{"by its tag", c.host + "/team/app:v1", "ci.pub", true},
				{"by the other signer's key", image, "mallory.pub", true},
				{"by a key that did not sign", image, "targets.pub", false},
				{"an image that nobody signed", unsigned, "ci.pub", false},
			}
			for _, row := range rows {
				t.Run(row.summary, func(t *testing.T) {
					out, ok, all := c.demandSignature(t, row.image, row.key)
					if ok != row.ok {
						t.Errorf("accepted: %v, want %v: %s%s", ok, row.ok, out, all)
					}
					if !ok && !strings.Contains(all, "ignature") {
						t.Errorf("refused for another reason: %s", all)
					}
				})
			}
			t.Run("cosign", func(t *testing.T) {
				_, ok, all := c.peer(t, tool(t, "cosign"), "verify", "--key", "ci.pub", "--insecure-ignore-tlog", "--new-bundle-format=false", "--allow-http-registry", image)
				if !ok {
					t.Error(all)
				}
				_, ok, all = c.peer(t, tool(t, "cosign"), "verify", "--key", "targets.pub", "--insecure-ignore-tlog", "--new-bundle-format=false", "--allow-http-registry", image)
				if ok {
					t.Errorf("accepted by a key that did not sign: %s", all)
				}
			})
		})
	}
}

// demandSignature asks the library behind podman, CRI-O and skopeo whether an image
// may run under a policy that wants it signed.
func (c chain) demandSignature(t *testing.T, image, key string) (string, bool, string) {
	t.Helper()
	dir := t.TempDir()
	policy := fmt.Sprintf(`{"default":[{"type":"reject"}],"transports":{"docker":{%q:[{"type":"sigstoreSigned","keyPath":%q}]}}}`, c.host, filepath.Join(c.home, key))
	lookaside := fmt.Sprintf("docker:\n  %s:\n    use-sigstore-attachments: true\n", c.host)
	for name, text := range map[string]string{"policy.json": policy, "registries.d/host.yaml": lookaside} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return c.peer(t, tool(t, "policycheck"), filepath.Join(dir, "policy.json"), filepath.Join(dir, "registries.d"), image)
}
