//go:build !linux

package trust_test

import "testing"

func smallDisk(t *testing.T, _ string) {
	t.Helper()
	t.Skip("SKIPPED: a small disk is mounted on Linux only")
}
