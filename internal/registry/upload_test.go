package registry_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgtrust/imgtrust/internal/registry"
)

// send makes one request of the upload protocol,
// https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pushing-a-blob-in-chunks
func send(t *testing.T, method, url string, body []byte) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	req.Close = true // or a request could go to the connection of a stopped server
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return resp
}

// location makes the request and returns the URL that the next one goes to.
func location(t *testing.T, method, url string, body []byte) string {
	t.Helper()
	resp := send(t, method, url, body)
	if resp.StatusCode != http.StatusAccepted {
		t.Fatalf("%s: status %d, want 202", method, resp.StatusCode)
	}
	u, err := resp.Location()
	if err != nil {
		t.Fatal(err)
	}
	return u.String()
}

func TestUploadOverARestart(t *testing.T) {
	half := bytes.Repeat([]byte("imgtrust"), 10_000)
	digest := fmt.Sprintf("sha256:%x", sha256.Sum256(append(half[:len(half):len(half)], half...)))

	for _, c := range []struct {
		summary string
		dir     string
		want    int // status of the chunk after the restart
	}{
		{"on disk the upload goes on", t.TempDir(), http.StatusAccepted},
		{"in memory it is gone", "", http.StatusNotFound},
	} {
		t.Run(c.summary, func(t *testing.T) {
			first := start(t, registry.Options{Dir: c.dir})
			begun := location(t, "POST", "http://"+first.Addr()+"/v2/app/blobs/uploads/", nil)
			next := location(t, "PATCH", begun, half)
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			second := start(t, registry.Options{Addr: first.Addr(), Dir: c.dir})

			resp := send(t, "PATCH", next, half)
			if resp.StatusCode != c.want {
				t.Fatalf("status %d, want %d", resp.StatusCode, c.want)
			}
			if c.want != http.StatusAccepted {
				return
			}
			last := resp.Header.Get("Location") + "&digest=" + digest
			if resp := send(t, "PUT", last, nil); resp.StatusCode != http.StatusCreated {
				t.Fatalf("PUT: status %d, want 201", resp.StatusCode)
			}
			blob, err := http.Get("http://" + second.Addr() + "/v2/app/blobs/" + digest)
			if err != nil {
				t.Fatal(err)
			}
			defer blob.Body.Close()
			got, err := io.ReadAll(blob.Body)
			if err != nil || !bytes.Equal(got, append(half[:len(half):len(half)], half...)) {
				t.Errorf("got %d bytes, %v; want both halves", len(got), err)
			}
		})
	}
}

// A body that ends early is a failed request, and what arrived of it stays.
func TestBodyCutShort(t *testing.T) {
	s := start(t, registry.Options{Dir: t.TempDir()})
	begun := location(t, "POST", "http://"+s.Addr()+"/v2/app/blobs/uploads/", nil)

	conn, err := net.Dial("tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	path := strings.TrimPrefix(begun, "http://"+s.Addr())
	fmt.Fprintf(conn, "PATCH %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 100\r\n\r\n%s", path, s.Addr(), strings.Repeat("x", 40))
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode < 400 {
		t.Errorf("a body of 40 of 100 bytes: status %d", resp.StatusCode)
	}
	if got := send(t, "GET", begun, nil).Header.Get("Range"); got != "0-39" {
		t.Errorf("the upload has Range %q, want 0-39", got)
	}
}

func TestSecretFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "http.secret")
	var secrets []string
	for range 2 {
		s := start(t, registry.Options{Dir: dir})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		secrets = append(secrets, string(b))
	}
	if secrets[0] != secrets[1] || len(secrets[0]) != 65 {
		t.Errorf("secrets %q, want the same 64 hex digits and a newline twice", secrets)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o600 {
		t.Errorf("mode %o, want 600", got)
	}
	left, err := filepath.Glob(filepath.Join(dir, ".http.secret*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestDamagedSecret(t *testing.T) {
	for _, c := range []struct{ summary, content string }{
		{"empty", ""},
		{"too short", "0123456789abcdef\n"},
		{"not hex", strings.Repeat("z", 64) + "\n"},
		{"trailing data", strings.Repeat("0", 64) + "\nmore"},
	} {
		t.Run(c.summary, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "http.secret"), []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := registry.Start(t.Context(), registry.Options{Dir: dir})
			var hinted interface{ Hint() string }
			if !errors.As(err, &hinted) || hinted.Hint() == "" {
				t.Fatalf("%v; want an error with a hint", err)
			}
			if err := os.Remove(filepath.Join(dir, "http.secret")); err != nil {
				t.Fatal(err)
			}
			start(t, registry.Options{Dir: dir}) // the hint helps, and the lock was released
		})
	}
}
