// Package testdata carries the service that the demo builds and runs, so that
// an installed program can do so anywhere. Its folder is the example of the
// README, too.
package testdata

import "embed"

// Service is the build context in the folder service.
//
//go:embed service
var Service embed.FS
