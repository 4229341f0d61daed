package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"unicode"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// statusError is an answer that says no.
type statusError struct {
	status int
	code   string // the registry's error code, such as MANIFEST_UNKNOWN; may be empty
	text   string // the registry's own words, shortened
	host   string // the address that answered
}

func (e *statusError) Error() string {
	s := fmt.Sprintf("HTTP %d", e.status)
	if kind := e.kind(); kind != nil {
		s = kind.Error() + " (" + s + ")"
	}
	if e.code != "" {
		s += ": " + e.code
	}
	if e.text != "" {
		s += ": " + e.text
	}
	return s
}

// Unwrap is the sentinel that the answer means, if any.
func (e *statusError) Unwrap() error { return e.kind() }

func (e *statusError) kind() error {
	switch {
	case e.code == string(transport.UnsupportedErrorCode),
		e.status == http.StatusMethodNotAllowed, e.status == http.StatusNotImplemented:
		return ErrUnsupported
	case e.status == http.StatusNotFound:
		return ErrNotFound
	case e.status == http.StatusUnauthorized, e.status == http.StatusForbidden:
		return ErrUnauthorized
	case e.status == http.StatusRequestEntityTooLarge:
		return ErrTooLarge
	}
	return nil
}

// Hint tells how to get in.
func (e *statusError) Hint() string {
	if e.kind() != ErrUnauthorized {
		return ""
	}
	host := e.host
	if strings.HasSuffix(host, "docker.io") {
		host = ""
	}
	return strings.TrimSpace("log in with: docker login "+host) + "\nsome registries also answer so for what does not exist"
}

// newStatusError reads what the registry says about its refusal.
// https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#error-codes
func newStatusError(resp *http.Response) error {
	e := &statusError{status: resp.StatusCode, host: resp.Request.URL.Host}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	var said transport.Error
	if json.Unmarshal(body, &said) == nil && len(said.Errors) > 0 {
		e.say(said.Errors)
	} else {
		e.text = clip(string(body), maxErrorText)
	}
	return e
}

func (e *statusError) say(d []transport.Diagnostic) {
	e.code = clip(string(d[0].Code), maxErrorText)
	e.text = clip(d[0].Message, maxErrorText)
}

// advised is an error with a hint.
type advised struct {
	error
	hint string
}

func (e advised) Unwrap() error { return e.error }
func (e advised) Hint() string  { return e.hint }

// errPlainHTTP is a request that was not sent.
var errPlainHTTP = errors.New("plain http is for loopback registries only")

// tidy rewrites an error of the HTTP client: no address beyond the host (the
// query of a redirect may hold a secret), and advice where there is some.
func tidy(err error, host string) error {
	var refused *transport.Error
	host = asked(err, host)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refused):
		e := &statusError{status: refused.StatusCode, host: host}
		if len(refused.Errors) > 0 {
			e.say(refused.Errors)
		}
		return e
	case errors.Is(err, syscall.ECONNREFUSED):
		return advised{fmt.Errorf("%s: %w", host, syscall.ECONNREFUSED), "is a registry listening on " + host + "?"}
	case errors.Is(err, errPlainHTTP), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return advised{fmt.Errorf("%s does not speak https: %w", host, errPlainHTTP), "--insecure-http allows it, and gives up privacy and, for tags, integrity"}
	}
	return withoutURL(err, host)
}

// asked is the host that the failed request went to.
func asked(err error, host string) string {
	var at *url.Error
	if errors.As(err, &at) {
		if u, e := url.Parse(at.URL); e == nil && u.Host != "" {
			return u.Host
		}
	}
	return host
}

func withoutURL(err error, host string) error {
	var at *url.Error
	if errors.As(err, &at) {
		err = at.Err
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return advised{fmt.Errorf("%s: %w", host, err), "check the name and this machine's network"}
	}
	return fmt.Errorf("%s: %w", host, err)
}

// clip makes foreign text fit for one line of an error.
func clip(s string, limit int) string {
	cut := ""
	if len(s) > limit {
		s, cut = s[:limit], "..."
	}
	s = strings.ToValidUTF8(s, "?")
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
	return strings.Join(strings.Fields(s), " ") + cut
}
