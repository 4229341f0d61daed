package build

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/solver/errdefs"
)

// ErrBusy is in the chain of the error when another build holds the state
// directory for longer than Options.Wait.
var ErrBusy = errors.New("another build uses the state directory")

// UsageError is a mistake in Options, found before anything is built.
type UsageError struct {
	Text   string
	Advice string
}

func (e *UsageError) Error() string { return e.Text }

// Hint is the advice for the user, "" when there is none.
func (e *UsageError) Hint() string { return e.Advice }

// FileError is a build that failed in a line of the Dockerfile.
type FileError struct {
	File string // as the builder names it: the base name of Options.Dockerfile
	Line int    // from 1
	Err  error
}

func (e *FileError) Error() string { return fmt.Sprintf("%s:%d: %v", e.File, e.Line, e.Err) }
func (e *FileError) Unwrap() error { return e.Err }

// hinted is an error with advice for the user.
type hinted struct {
	error
	hint string
}

func withHint(err error, hint string) error { return &hinted{err, hint} }

func (h *hinted) Hint() string  { return h.hint }
func (h *hinted) Unwrap() error { return h.error }

// cancelled is the error of a build whose context ended.
type cancelled struct{ cause error }

func (c *cancelled) Error() string {
	if errors.Is(c.cause, context.DeadlineExceeded) {
		return "time is up"
	}
	return "cancelled"
}
func (c *cancelled) Unwrap() error { return c.cause }

// plain makes one clear error of what a solve returned: cancelled, or the
// place in the Dockerfile and the cause without the layers it came through.
func plain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return &cancelled{ctx.Err()}
	}
	text := clean(err)
	for _, source := range errdefs.Sources(err) {
		if source.Info == nil || len(source.Ranges) == 0 || source.Ranges[0].Start == nil {
			continue
		}
		return &FileError{source.Info.Filename, int(source.Ranges[0].Start.Line), text}
	}
	var at *parser.LocationError
	if errors.As(err, &at) && len(at.Locations) > 0 && len(at.Locations[0]) > 0 {
		return &FileError{"Dockerfile", at.Locations[0][0].Start.Line, text}
	}
	return text
}

// noise are the words that BuildKit and gRPC put before each cause.
var noise = regexp.MustCompile(`(failed to solve: |rpc error: code = \w+ desc = |dockerfile parse error on line \d+: |failed to solve with frontend dockerfile\.v0: |failed to compute cache key: |failed to calculate checksum of ref \S+: )`)

// quieted is an error whose text lost the noise but whose chain is whole.
type quieted struct {
	error
	text string
}

func (q *quieted) Error() string { return q.text }
func (q *quieted) Unwrap() error { return q.error }

func clean(err error) error {
	text := strings.TrimSpace(noise.ReplaceAllString(err.Error(), ""))
	if text == err.Error() {
		return err
	}
	return &quieted{err, text}
}
