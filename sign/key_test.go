package sign_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/sign"
)

func word(s string) func() ([]byte, error) {
	return func() ([]byte, error) { return []byte(s), nil }
}

func write(t testing.TB, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// names lists a directory, so that nothing is left behind unseen.
func names(t testing.TB, dir string) []string {
	t.Helper()
	var all []string
	for _, e := range must[[]os.DirEntry](t)(os.ReadDir(dir)) {
		all = append(all, e.Name())
	}
	return all
}

func TestKeysOfEveryType(t *testing.T) {
	for _, kind := range sign.KeyTypes() {
		t.Run(string(kind), func(t *testing.T) {
			prefix := filepath.Join(t.TempDir(), "ci")
			key := must[*sign.Key](t)(sign.GenerateKey(kind))
			if err := key.Save(prefix, []byte("secret")); err != nil {
				t.Fatal(err)
			}
			if got := names(t, filepath.Dir(prefix)); strings.Join(got, " ") != "ci.key ci.pub" {
				t.Errorf("the directory holds %v", got)
			}
			if mode := must[fs.FileInfo](t)(os.Stat(prefix + ".key")).Mode(); mode != 0o600 {
				t.Errorf("mode %v", mode)
			}
			asked := 0
			back := must[*sign.Key](t)(sign.LoadKey(ctx, prefix+".key", sign.LoadOptions{Passphrase: func() ([]byte, error) {
				asked++
				return []byte("secret"), nil
			}}))
			public := must[crypto.PublicKey](t)(attest.ParsePublicKey(must[[]byte](t)(os.ReadFile(prefix + ".pub"))))
			if back.ID() != key.ID() || back.ID() != must[string](t)(attest.KeyID(public)) || asked != 1 {
				t.Errorf("key ID %s, want %s; asked %d times", back.ID(), key.ID(), asked)
			}
			payload := must[[]byte](t)(attest.EncodeCosignSign("sha256:" + strings.Repeat("a", 64)))
			data := must[[]byte](t)(sign.Statement(ctx, payload, back))
			if err := must[attest.Bundle](t)(attest.DecodeBundle(data)).Envelope.Verify(public); err != nil {
				t.Error(err)
			}
		})
	}
	if _, err := sign.GenerateKey("dsa"); err == nil {
		t.Error("a DSA key was made")
	}
}

// A key pair made by cosign 3.1.3 generate-key-pair with the passphrase "vector".
func TestCosignKey(t *testing.T) {
	private := must[[]byte](t)(os.ReadFile("testdata/cosign.key"))
	public := must[crypto.PublicKey](t)(attest.ParsePublicKey(must[[]byte](t)(os.ReadFile("testdata/cosign.pub"))))
	for _, label := range []string{"ENCRYPTED SIGSTORE PRIVATE KEY", "ENCRYPTED COSIGN PRIVATE KEY"} {
		path := write(t, "cosign.key", bytes.ReplaceAll(private, []byte("ENCRYPTED SIGSTORE PRIVATE KEY"), []byte(label)))
		key := must[*sign.Key](t)(sign.LoadKey(ctx, path, sign.LoadOptions{Passphrase: word("vector")}))
		if !key.Public().(*ecdsa.PublicKey).Equal(public) {
			t.Errorf("%s: another public key", label)
		}
	}
}

func TestLoadKeyRefuses(t *testing.T) {
	key := newKey(t)
	encrypted := must[[]byte](t)(key.MarshalEncrypted([]byte("secret")))
	public := must[[]byte](t)(attest.MarshalPublicKey(key.Public()))
	plain := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must[[]byte](t)(x509.MarshalPKCS8PrivateKey(key.Private()))})
	p521 := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))
	block := func(label string, data []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: label, Bytes: data})
	}
	rows := []struct {
		summary string
		file    []byte
		options sign.LoadOptions
		want    string
		hint    bool
	}{
		{"wrong passphrase", encrypted, sign.LoadOptions{Passphrase: word("other")}, "wrong passphrase for FILE", false},
		{"empty passphrase", encrypted, sign.LoadOptions{Passphrase: word("")}, "wrong passphrase for FILE", false},
		{"no passphrase", encrypted, sign.LoadOptions{}, "FILE is encrypted, and there is no passphrase", false},
		{"a passphrase that cannot be had", encrypted, sign.LoadOptions{Passphrase: func() ([]byte, error) { return nil, errors.New("no terminal") }}, "no terminal", false},
		{"not encrypted", plain, sign.LoadOptions{Passphrase: word("secret")}, "key FILE is not encrypted", true},
		{"a public key", public, sign.LoadOptions{Passphrase: word("secret"), Plaintext: true}, "key FILE is a public key", true},
		{"a certificate", block("CERTIFICATE", []byte("x")), sign.LoadOptions{Plaintext: true}, `PEM block "CERTIFICATE"`, false},
		{"openssl's encryption", block("ENCRYPTED PRIVATE KEY", []byte("x")), sign.LoadOptions{Plaintext: true}, "not supported", false},
		{"empty", nil, sign.LoadOptions{}, "FILE is not one PEM block", false},
		{"not PEM", []byte("secret"), sign.LoadOptions{}, "FILE is not one PEM block", false},
		{"cut short", encrypted[:200], sign.LoadOptions{}, "FILE is not one PEM block", false},
		{"two keys", append(bytes.Clone(plain), plain...), sign.LoadOptions{Plaintext: true}, "FILE is not one PEM block", false},
		{"malformed box", block("ENCRYPTED SIGSTORE PRIVATE KEY", []byte("{")), sign.LoadOptions{Passphrase: word("secret")}, "key FILE is malformed", false},
		{"expensive box", block("ENCRYPTED SIGSTORE PRIVATE KEY", []byte(`{"kdf":{"name":"scrypt","params":{"N":1073741824,"r":8,"p":1},"salt":""},"cipher":{"name":"nacl/secretbox","nonce":""},"ciphertext":""}`)), sign.LoadOptions{Passphrase: word("secret")}, "key FILE is malformed", false},
		{"malformed key", block("PRIVATE KEY", []byte("x")), sign.LoadOptions{Plaintext: true}, "key FILE: malformed private key", false},
		{"an unsupported curve", block("EC PRIVATE KEY", must[[]byte](t)(x509.MarshalECPrivateKey(p521))), sign.LoadOptions{Plaintext: true}, "unsupported key type", false},
		{"too large", append(bytes.Clone(encrypted), make([]byte, 64<<10)...), sign.LoadOptions{}, "larger than 65536 bytes", false},
	}
	for _, row := range rows {
		path := write(t, "ci.key", row.file)
		got, err := sign.LoadKey(ctx, path, row.options)
		want := strings.ReplaceAll(row.want, "FILE", path)
		if got != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", row.summary, err, want)
		}
		var hinted interface{ Hint() string }
		if hint := errors.As(err, &hinted) && hinted.Hint() != ""; hint != row.hint {
			t.Errorf("%s: hint %v, want %v", row.summary, hint, row.hint)
		}
		if wrong := strings.HasPrefix(row.want, "wrong"); errors.Is(err, sign.ErrPassphrase) != wrong {
			t.Errorf("%s: ErrPassphrase is not %v", row.summary, wrong)
		}
	}
	if _, err := sign.LoadKey(ctx, "awskms:///alias/ci", sign.LoadOptions{}); err == nil || !strings.Contains(err.Error(), "no program") {
		t.Errorf("a KMS key: %v", err)
	}
	if _, err := sign.LoadKey(ctx, filepath.Join(t.TempDir(), "none"), sign.LoadOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

func TestPlaintextKeysWhenAllowed(t *testing.T) {
	ec := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	rsaKey := must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 2048))
	for label, der := range map[string][]byte{
		"PRIVATE KEY":     must[[]byte](t)(x509.MarshalPKCS8PrivateKey(ec)),
		"EC PRIVATE KEY":  must[[]byte](t)(x509.MarshalECPrivateKey(ec)),
		"RSA PRIVATE KEY": x509.MarshalPKCS1PrivateKey(rsaKey),
	} {
		path := write(t, "plain.key", pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der}))
		if _, err := sign.LoadKey(ctx, path, sign.LoadOptions{}); err == nil {
			t.Errorf("%s: accepted without being allowed", label)
		}
		if _, err := sign.LoadKey(ctx, path, sign.LoadOptions{Plaintext: true}); err != nil {
			t.Errorf("%s: %v", label, err)
		}
	}
}

func TestSaveOverwritesNothing(t *testing.T) {
	for _, existing := range []string{"ci.key", "ci.pub"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, existing), []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
		err := newKey(t).Save(filepath.Join(dir, "ci"), []byte("secret"))
		if !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s exists: %v", existing, err)
		}
		if got := names(t, dir); len(got) != 1 || got[0] != existing {
			t.Errorf("%s exists: the directory now holds %v", existing, got)
		}
		if data := must[[]byte](t)(os.ReadFile(filepath.Join(dir, existing))); string(data) != "mine" {
			t.Errorf("%s was overwritten", existing)
		}
	}
	if err := newKey(t).Save(filepath.Join(t.TempDir(), "none", "ci"), []byte("secret")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

func FuzzLoadKey(f *testing.F) {
	key := newKey(f)
	f.Add(must[[]byte](f)(key.MarshalEncrypted([]byte("secret"))))
	f.Add(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must[[]byte](f)(x509.MarshalPKCS8PrivateKey(key.Private()))}))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := write(t, "fuzz.key", data)
		got, err := sign.LoadKey(ctx, path, sign.LoadOptions{Passphrase: word("secret"), Plaintext: true})
		if (got == nil) == (err == nil) {
			t.Fatalf("%v, %v", got, err)
		}
	})
}
