//go:build !linux

package build

import (
	"context"
	"errors"
)

// embed needs Linux: containers and overlay mounts are its parts.
func (p *plan) embed(context.Context) (*builder, error) {
	return nil, withHint(errors.New("the embedded builder runs on Linux only"),
		"--builder ADDR or BUILDKIT_HOST names a BuildKit daemon, such as docker-container://NAME")
}
