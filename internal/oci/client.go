package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Remote gives ref's name at the address that is asked, and options with this
// client's transport and credentials, for use with ggcr's remote package; the
// caller adds remote.WithContext. Bodies read so are bounded in stalls but not
// in size, ggcr does its own retries, and names in its errors are the address.
func (c *Client) Remote(ref Reference) (name.Reference, []remote.Option, error) {
	repo, err := c.address(ref.Repository)
	if err != nil {
		return nil, nil, err
	}
	opts := []remote.Option{remote.WithTransport(c.guard), remote.WithAuthFromKeychain(c.keychain), remote.WithUserAgent(userAgent)}
	switch {
	case ref.Digest.Hex != "":
		return repo.Digest(ref.Digest.String()), opts, nil
	case ref.Tag != "":
		return repo.Tag(ref.Tag), opts, nil
	}
	return nil, nil, fmt.Errorf("%s: %w", ref, errNoIdentifier)
}

const userAgent = "imgtrust"

var errNoIdentifier = errors.New("needs a tag or a digest")

// address is where a canonical repository is asked for.
func (c *Client) address(repo string) (name.Repository, error) {
	if err := parseRepository(repo); err != nil {
		return name.Repository{}, err
	}
	at := mirrored(repo, c.mirrors)
	if at != repo {
		if r, err := ParseReference(at); err != nil || r.Tag != "" || r.Digest.Hex != "" {
			return name.Repository{}, fmt.Errorf("mirror of %s: %q is not HOST/PATH", repo, clip(at, maxErrorText))
		}
	}
	host, path, _ := strings.Cut(at, "/")
	var opts []name.Option
	if c.insecure || isLoopback((&url.URL{Host: host}).Hostname()) {
		opts = append(opts, name.Insecure)
	}
	reg, err := name.NewRegistry(host, opts...)
	if err != nil {
		return name.Repository{}, err
	}
	return reg.Repo(path), nil
}

// ping is how a registry wants to be spoken with.
type ping struct {
	challenge *transport.Challenge
	scheme    string
}

// sessionKey names a token: one repository, one right (pull, push, delete).
type sessionKey struct{ repo, right string }

// session speaks with one repository.
type session struct {
	client *http.Client
	base   url.URL // scheme and host
	path   string  // repository at that host
	forget func()  // makes the next call authenticate again
}

// session returns the kept session for a canonical repository and right.
func (c *Client) session(ctx context.Context, repo, right string) (*session, error) {
	at, err := c.address(repo)
	if err != nil {
		return nil, err
	}
	ctx = withBound(ctx, maxAnswer, true)
	key := sessionKey{at.Name(), right}
	s, err := c.sessions.get(ctx, key, func() (*session, error) { return c.connect(ctx, at, right) })
	if err != nil {
		return nil, tidy(err, at.RegistryStr())
	}
	kept := *s
	kept.forget = func() { c.sessions.m.Delete(key) }
	return &kept, nil
}

// connect pings the registry, once, and gets a token for the repository.
func (c *Client) connect(ctx context.Context, repo name.Repository, right string) (*session, error) {
	p, err := c.pings.get(ctx, repo.RegistryStr(), func() (ping, error) { return c.ping(ctx, repo.Registry) })
	if err != nil {
		return nil, err
	}
	auth, err := authn.Resolve(ctx, c.keychain, repo)
	if err != nil {
		return nil, fmt.Errorf("finding credentials: %w", err)
	}
	t := &sameScheme{inner: transport.NewUserAgent(c.retry, userAgent), scheme: p.scheme, host: repo.RegistryStr()}
	token, err := exchange(ctx, repo, auth, t, right, p.challenge)
	if err != nil {
		return nil, err
	}
	tr, err := transport.FromToken(repo.Registry, auth, t, p.challenge, token)
	if err != nil {
		return nil, err
	}
	return &session{
		client: &http.Client{Transport: private{tr}, CheckRedirect: checkRedirect},
		base:   url.URL{Scheme: p.scheme, Host: repo.RegistryStr()},
		path:   repo.RepositoryStr(),
	}, nil
}

func (c *Client) ping(ctx context.Context, reg name.Registry) (ping, error) {
	challenge, err := transport.Ping(ctx, reg, c.retry)
	if err != nil {
		return ping{}, err
	}
	if challenge.Insecure {
		return ping{challenge, "http"}, nil
	}
	return ping{challenge, "https"}, nil
}

// exchange gets a token where the registry works with tokens.
func exchange(ctx context.Context, repo name.Repository, auth authn.Authenticator, t http.RoundTripper, right string, p *transport.Challenge) (*transport.Token, error) {
	if !strings.EqualFold(p.Scheme, "bearer") {
		return &transport.Token{}, nil
	}
	config, err := authn.Authorization(ctx, auth)
	if err != nil {
		return nil, fmt.Errorf("finding credentials: %w", err)
	}
	if config.RegistryToken != "" {
		return &transport.Token{Token: config.RegistryToken}, nil
	}
	token, err := transport.Exchange(ctx, repo.Registry, auth, t, []string{repo.Scope(right)}, p)
	if err == nil && token.AccessToken != "" {
		token.Token = token.AccessToken
	}
	return token, err
}

// request is one HTTP request of a session.
type request struct {
	method string
	path   string     // below /v2/REPOSITORY/
	query  url.Values // may be nil
	at     *url.URL   // in place of path and query
	header map[string]string
	body   []byte
	max    int64 // bytes of the answer's body; 0: maxAnswer
	stream bool  // the timeout is for stalls
	ok     []int // acceptable statuses
}

// do sends the request; the caller closes the answer's body.
func (s *session) do(ctx context.Context, r request) (*http.Response, error) {
	if r.max == 0 {
		r.max = maxAnswer
	}
	req, err := s.build(withBound(ctx, r.max, !r.stream), r)
	if err != nil {
		return nil, err
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, tidy(err, s.base.Host)
	}
	if slices.Contains(r.ok, resp.StatusCode) {
		return resp, nil
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusUnauthorized {
		s.forget()
	}
	return nil, newStatusError(resp)
}

func (s *session) build(ctx context.Context, r request) (*http.Request, error) {
	u := r.at
	if u == nil {
		at := s.base
		at.Path, at.RawQuery = "/v2/"+s.path+"/"+r.path, r.query.Encode()
		u = &at
	}
	var body io.Reader
	if r.body != nil {
		body = bytes.NewReader(r.body)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept-Encoding", "identity")
	for k, v := range r.header {
		req.Header.Set(k, v)
	}
	return req, nil
}

// whole sends the request and reads the answer's body.
func (s *session) whole(ctx context.Context, r request) ([]byte, *http.Response, error) {
	resp, err := s.do(ctx, r)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	if r.max > 0 && r.method != http.MethodHead && resp.ContentLength > r.max {
		return nil, nil, fmt.Errorf("%d bytes: %w, at most %d are read", resp.ContentLength, ErrTooLarge, r.max)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the answer: %w", err)
	}
	return b, resp, nil
}
