// Package demo runs the whole chain once on real parts, in one process: a
// registry, BuildKit, a trust repository, the verifier and runc; then it tries
// to get past the verifier.
//
// The promise: Run returns without an error only when the signed image was
// allowed, ran and answered, and every attempt in the table of [Run]'s report was
// refused with the code that it should be refused with. After each attempt the
// honest state is put back and the signed image must be allowed again, so that a
// refusal says something about the attempt.
//
// Everything but BuildKit's cache lives in one temporary directory, which is
// removed at the end, also after a cancellation. Private keys are in memory only.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/imgtrust/imgtrust/policy"
)

// Options of Run. StateDir is required; the zero value of everything else is
// the usual case.
type Options struct {
	// Context is the directory of a Dockerfile to use instead of the demo's
	// own service. An image that EXPOSEs a port must serve HTTP on $PORT of
	// $HOST; any other is run to its end.
	Context  string
	Contexts map[string]string // named contexts, as build.Options has them
	StateDir string            // of the embedded BuildKit: its cache outlives the demo
	Runc     string            // "": from PATH or the sbin directories
	Keep     bool              // leave the temporary directory

	Say      func(string) // one line of talk; nil: none
	Progress io.Writer    // the build's progress, for a terminal; nil: shown only when the build fails

	memory bool // the registry keeps nothing on disk; for tests with small images
}

// Report is what the demo has seen. Its JSON form is a contract.
type Report struct {
	Image    string    `json:"image"`   // repo@digest
	Allowed  bool      `json:"allowed"` // before the attempts
	Attempts []Outcome `json:"attempts"`
}

// Outcome is what became of one attempt.
type Outcome struct {
	Name    string      `json:"name"`
	Code    policy.Code `json:"code"`
	Refused bool        `json:"refused"`

	Tries string      `json:"-"` // one line for people
	Want  policy.Code `json:"-"` // the code that it should be refused with
}

// ok tells whether the attempt was refused for the right reason.
func (o Outcome) ok() bool { return o.Refused && o.Code == o.Want }

// ErrThrough is in the chain of the error when an attempt was not refused, or
// not with the right code. The report is complete then.
var ErrThrough = errors.New("not refused as it should be")

// Run is the demo: the acts in their order.
func Run(ctx context.Context, o Options) (report Report, err error) {
	if err := o.complete(ctx); err != nil {
		return report, cancelled(ctx, err)
	}
	w, err := newWorld(ctx, o)
	if err != nil {
		return report, err
	}
	defer func() { err = errors.Join(cancelled(ctx, err), w.close()) }()
	acts := []func(context.Context) error{
		w.makeTrust,
		w.build,
		w.release,
		w.verify,
		w.run,
	}
	for _, act := range acts {
		if err := act(ctx); err != nil {
			return report, err
		}
	}
	report.Image, report.Allowed = w.image.AtDigest(w.image.Digest).String(), true
	report.Attempts, err = w.attack(ctx, attempts())
	return report, err
}

// cancelled makes one short error of what a cancellation broke.
func cancelled(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("the demo was stopped: %w", context.Cause(ctx))
	}
	return err
}

// through is the error for outcomes that are not what they should be.
func through(outcomes []Outcome) error {
	var bad []string
	for _, o := range outcomes {
		if !o.ok() {
			bad = append(bad, fmt.Sprintf("%s (%s instead of %s)", o.Name, o.Code, o.Want))
		}
	}
	if len(bad) == 0 {
		return nil
	}
	return fmt.Errorf("%s: %w", strings.Join(bad, ", "), ErrThrough)
}
