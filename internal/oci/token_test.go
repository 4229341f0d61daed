package oci

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// A registry with tokens whose blobs lie elsewhere: one ping, one token for a
// repository, also when many ask at once, and the token stays with the registry.
func TestTokens(t *testing.T) {
	ctx := context.Background()
	d := must[v1.Descriptor](t, "describe")(describe([]byte("0123456789"), "text/plain"))
	storage := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if got := r.Header.Get("Authorization"); got != "" {
			t.Errorf("the storage got %q", got)
		}
		io.WriteString(w, "0123456789")
	}))
	defer storage.Close()
	var mu sync.Mutex
	seen := map[string]int{}
	repo, c := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen[strings.Split(r.URL.Path, "/")[1]+r.URL.Query().Get("scope")]++
		mu.Unlock()
		switch {
		case r.URL.Path == "/token":
			io.WriteString(w, `{"access_token":"secret"}`)
		case r.Header.Get("Authorization") != "Bearer secret":
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test"`, r.Host))
			w.WriteHeader(http.StatusUnauthorized)
		default:
			http.Redirect(w, r, storage.URL, http.StatusTemporaryRedirect)
		}
	}), Options{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := c.Blob(ctx, repo, d, 0); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(seen) != 2 || seen["v2"] != 9 || seen["tokenrepository:team/app:pull"] != 1 {
		t.Errorf("requests: %v, want one ping, eight blobs and one token", seen)
	}
}
