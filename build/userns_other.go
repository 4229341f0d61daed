//go:build !linux

package build

import "context"

// EnterUserNamespace is for Linux, where the embedded daemon runs; elsewhere it
// gives back ctx, and Image says what is missing.
func EnterUserNamespace(ctx context.Context, _ Namespace) (inside context.Context, code int, err error) {
	return ctx, 0, nil
}
