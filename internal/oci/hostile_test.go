package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

const goodManifest = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.empty.v1+json","size":2,"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"},"layers":[]}`

// answering serves the ping honestly and everything else with f.
func answering(f http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/" {
			return
		}
		f(w, r)
	})
}

func says(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		w.WriteHeader(status)
		io.WriteString(w, body)
	}
}

func raw(answer string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		if answer == "" {
			conn.(*net.TCPConn).SetLinger(0) // a reset
		}
		io.WriteString(conn, answer)
		conn.Close()
	}
}

func TestHostileManifests(t *testing.T) {
	h, _, err := v1.SHA256(strings.NewReader(goodManifest))
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		summary string
		answer  http.HandlerFunc
		is      error  // nil: any error
		text    string // in the error
		hint    string // in its advice
	}{
		{"another manifest", says(200, strings.Replace(goodManifest, "[]", "[ ]", 1)), ErrContentMismatch, "want sha256:", ""},
		{"an empty body", says(200, ""), ErrContentMismatch, "got sha256:e3b0c442", ""},
		{"a body without end", func(w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
		}, ErrTooLarge, "", ""},
		{"a length beyond the bound", raw("HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n"), ErrTooLarge, "99999999 bytes", ""},
		{"a truncated body", raw("HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n" + goodManifest[:50]), io.ErrUnexpectedEOF, "", ""},
		{"a body longer than its length", raw(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(goodManifest)-1, goodManifest)), ErrContentMismatch, "", ""},
		{"a truncated body without a length", raw("HTTP/1.0 200 OK\r\n\r\n" + goodManifest[:50]), ErrContentMismatch, "", ""},
		{"a reset", raw(""), nil, "reading manifest ", ""},
		{"nonsense", raw("SSH-2.0-OpenSSH\r\n"), nil, "malformed HTTP", ""},
		{"401", says(401, `{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}`), ErrUnauthorized, "UNAUTHORIZED: who are you", "docker login 127.0.0.1:"},
		{"403", says(403, `{"errors":[{"code":"DENIED"}]}`), ErrUnauthorized, "HTTP 403", "docker login 127.0.0.1:"},
		{"404", says(404, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no"}]}`), ErrNotFound, "not found (HTTP 404): MANIFEST_UNKNOWN: no", ""},
		{"405", says(405, ``), ErrUnsupported, "HTTP 405", ""},
		{"429 for ever", says(429, `{"errors":[{"code":"TOOMANYREQUESTS","message":"later"}]}`), nil, "HTTP 429: TOOMANYREQUESTS", ""},
		{"429 for an hour", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(429)
		}, nil, "HTTP 429", ""},
		{"500 with a terminal's control bytes", says(500, "\x1b[31mpwned\nimgtrust: ok"), nil, "HTTP 500: [31mpwned imgtrust: ok", ""},
		{"a redirect loop", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		}, nil, "redirects", ""},
		{"a redirect to plain http elsewhere", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://registry.example.com/", http.StatusTemporaryRedirect)
		}, errPlainHTTP, "registry.example.com does not speak https", "--insecure-http"},
	} {
		t.Run(row.summary, func(t *testing.T) {
			repo, c := serve(t, answering(row.answer), Options{})
			m, err := c.Manifest(context.Background(), Reference{Repository: repo, Digest: h}, 0)
			if err == nil || m.Bytes != nil {
				t.Fatalf("accepted %q", m.Bytes)
			}
			if row.is != nil && !errors.Is(err, row.is) {
				t.Errorf("not %v: %v", row.is, err)
			}
			if !strings.HasPrefix(err.Error(), "reading manifest "+repo+"@sha256:") || !strings.Contains(err.Error(), row.text) || strings.Contains(err.Error(), "\n") {
				t.Errorf("text: %v", err)
			}
			if got := hintOf(err); !strings.Contains(got, row.hint) || (row.hint == "" && got != "") {
				t.Errorf("hint %q, want %q", got, row.hint)
			}
		})
	}
}

func hintOf(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

// What bytes say they are counts, and only if they say one thing.
func TestManifestMediaType(t *testing.T) {
	for _, row := range []struct{ summary, body, want string }{
		{"an image", goodManifest, "application/vnd.oci.image.manifest.v1+json"},
		{"an index without a media type", `{"schemaVersion":2,"manifests":[]}`, "application/vnd.oci.image.index.v1+json"},
		{"both", `{"schemaVersion":2,"manifests":[],"layers":[]}`, ""},
		{"an index that says image", `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","manifests":[]}`, ""},
		{"layers twice", `{"schemaVersion":2,"layers":[],"layers":[]}`, ""},
		{"layers twice in two cases", `{"schemaVersion":2,"layers":[],"Layers":[]}`, ""},
		{"annotations in two cases", `{"schemaVersion":2,"layers":[],"annotations":{"a":"1","A":"2"}}`, "application/vnd.oci.image.manifest.v1+json"},
		{"trailing data", `{"schemaVersion":2,"layers":[]}{}`, ""},
		{"schema 1", `{"schemaVersion":1,"fsLayers":[]}`, ""},
		{"not an object", `[]`, ""},
		{"not JSON", `<html>`, ""},
		{"cut off", goodManifest[:100], ""},
	} {
		t.Run(row.summary, func(t *testing.T) {
			got, err := mediaType([]byte(row.body))
			if string(got) != row.want || (err == nil) != (row.want != "") {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

func TestHostileBlobs(t *testing.T) {
	d := must[v1.Descriptor](t, "describe")(describe([]byte("0123456789"), "text/plain"))
	for _, row := range []struct {
		summary string
		answer  http.HandlerFunc
		is      error
	}{
		{"the blob", says(200, "0123456789"), nil},
		{"other bytes", says(200, "012345678X"), ErrContentMismatch},
		{"fewer", says(200, "012345678"), ErrContentMismatch},
		{"more", says(200, "0123456789X"), ErrContentMismatch},
		{"truncated", raw("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n01234"), io.ErrUnexpectedEOF},
		{"not there", says(404, ""), ErrNotFound},
	} {
		t.Run(row.summary, func(t *testing.T) {
			ctx := context.Background()
			repo, c := serve(t, answering(row.answer), Options{})
			if _, err := c.Blob(ctx, repo, d, 0); !errors.Is(err, row.is) {
				t.Errorf("whole: %v", err)
			}
			body, err := c.Source(repo).Blob(ctx, d)
			if err == nil {
				_, err = io.ReadAll(body)
				body.Close()
			}
			if !errors.Is(err, row.is) {
				t.Errorf("streamed: %v", err)
			}
		})
	}
	repo, c := serve(t, answering(says(200, "0123456789")), Options{})
	if _, err := c.Blob(context.Background(), repo, d, 9); !errors.Is(err, ErrTooLarge) {
		t.Errorf("above the caller's bound: %v", err)
	}
	if _, err := c.Blob(context.Background(), repo, v1.Descriptor{Digest: d.Digest}, 9); !errors.Is(err, ErrTooLarge) {
		t.Errorf("of unknown size above the caller's bound: %v", err)
	}
}

func TestStalls(t *testing.T) {
	drip := func(w http.ResponseWriter, r *http.Request) {
		for {
			io.WriteString(w, "x")
			if http.NewResponseController(w).Flush() != nil || r.Context().Err() != nil {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	silent := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	for summary, answer := range map[string]http.HandlerFunc{"dripping": drip, "silent": silent} {
		t.Run(summary, func(t *testing.T) {
			repo, c := serve(t, answering(answer), Options{Timeout: 100 * time.Millisecond})
			h, _, _ := v1.SHA256(strings.NewReader(""))
			if _, err := c.Manifest(context.Background(), Reference{Repository: repo, Tag: "v1"}, 0); !errors.Is(err, ErrStalled) {
				t.Errorf("manifest: %v", err)
			}
			body, err := c.Source(repo).Blob(context.Background(), v1.Descriptor{Digest: h, Size: 1 << 30})
			if err == nil {
				_, err = io.ReadAll(body)
				body.Close()
			}
			if !errors.Is(err, ErrStalled) {
				t.Errorf("stream: %v", err)
			}
		})
	}
}

func TestTemporaryFailuresAreRepeated(t *testing.T) {
	failures := 2
	inner := memory(true)
	repo, c := serve(t, answering(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && failures > 0 {
			failures--
			io.Copy(io.Discard, r.Body)
			w.WriteHeader(503)
			return
		}
		inner.ServeHTTP(w, r)
	}), Options{})
	subjectOf(t, c, repo)
	if failures != 0 {
		t.Errorf("%d failures left", failures)
	}
}

func TestPlainHTTP(t *testing.T) {
	var hosts []string
	spy := roundTripper(func(req *http.Request) (*http.Response, error) {
		hosts = append(hosts, req.URL.Scheme+"://"+req.URL.Hostname())
		return nil, errors.New("no network here")
	})
	for _, row := range []struct {
		host     string
		insecure bool
		want     bool // http is spoken
	}{
		{"127.0.0.1:5000", false, true},
		{"127.8.9.10:5000", false, true},
		{"localhost:5000", false, true},
		{"[::1]:5000", false, true},
		{"10.0.0.1:5000", false, false},
		{"192.168.1.1", false, false},
		{"printer.local:5000", false, false},
		{"registry.localhost:5000", false, false},
		{"registry.example.com", false, false},
		{"10.0.0.1:5000", true, true},
		{"registry.example.com", true, true},
	} {
		t.Run(fmt.Sprint(row.host, row.insecure), func(t *testing.T) {
			hosts = nil
			c := New(Options{Transport: spy, InsecureHTTP: row.insecure})
			_, err := c.Manifest(context.Background(), Reference{Repository: row.host + "/a", Tag: "v1"}, 0)
			if err == nil {
				t.Fatal("no error")
			}
			if got := strings.Contains(strings.Join(hosts, " "), "http://"); got != row.want {
				t.Errorf("spoken with: %v", hosts)
			}
			if !strings.Contains(strings.Join(hosts, " "), "https://") {
				t.Errorf("https was not tried: %v", hosts)
			}
		})
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func TestConnectionRefused(t *testing.T) {
	l := must[net.Listener](t, "listen")(net.Listen("tcp", "127.0.0.1:0"))
	host := l.Addr().String()
	l.Close()
	_, err := New(Options{}).Resolve(context.Background(), Reference{Repository: host + "/a", Tag: "v1"})
	if err == nil || !strings.Contains(err.Error(), host+": connection refused") || !strings.Contains(hintOf(err), host) {
		t.Errorf("%v (%s)", err, hintOf(err))
	}
}

func TestTagsFollowPages(t *testing.T) {
	page := func(w http.ResponseWriter, next, tags string) {
		if next != "" {
			w.Header().Set("Link", "<"+next+`>; rel="next"`)
		}
		fmt.Fprintf(w, `{"name":"team/app","tags":[%s]}`, tags)
	}
	for _, row := range []struct {
		summary string
		answer  http.HandlerFunc
		want    string
		fails   bool
	}{
		{"two pages", func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("last") == "b" {
				page(w, "", `"c"`)
				return
			}
			page(w, "/v2/team/app/tags/list?n=2&last=b", `"a","b"`)
		}, "a b c", false},
		{"pages without end", func(w http.ResponseWriter, r *http.Request) { page(w, r.URL.Path, `"a"`) }, "", true},
		{"a next page elsewhere", func(w http.ResponseWriter, _ *http.Request) { page(w, "https://evil.example.com/", `"a"`) }, "", true},
		{"more than the bound", func(w http.ResponseWriter, _ *http.Request) { page(w, "", `"a","b","c","d","e"`) }, "a b c d", true},
		{"what is no tag", func(w http.ResponseWriter, _ *http.Request) { page(w, "", `"../a"`) }, "", true},
		{"none", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"tags":null}`) }, "", false},
	} {
		t.Run(row.summary, func(t *testing.T) {
			repo, c := serve(t, answering(row.answer), Options{})
			tags, err := c.Tags(context.Background(), repo, 4)
			if strings.Join(tags, " ") != row.want || (err != nil) != row.fails {
				t.Errorf("%v, %v", tags, err)
			}
		})
	}
}
