package attest

import (
	"strings"
	"time"
)

// isDigest tells whether s is "sha256:" and 64 lower-case hex digits, see
// https://github.com/opencontainers/image-spec/blob/v1.1.1/descriptor.md#sha-256.
func isDigest(s string) bool {
	hex, ok := strings.CutPrefix(s, "sha256:")
	return ok && len(hex) == 64 && only(hex, func(c rune) bool { return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' })
}

// isTag tells whether s matches [a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}, see
// https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pulling-manifests.
func isTag(s string) bool {
	return s != "" && len(s) <= 128 && s[0] != '.' && s[0] != '-' && only(s, isNameRune)
}

// isPlatform tells whether s is OS/ARCH or OS/ARCH/VARIANT.
func isPlatform(s string) bool {
	parts := strings.Split(s, "/")
	if len(s) > MaxWord || len(parts) < 2 || len(parts) > 3 {
		return false
	}
	for _, part := range parts {
		if part == "" || !only(part, isNameRune) {
			return false
		}
	}
	return true
}

// isWord tells whether s is 1 to MaxWord printable ASCII characters without
// spaces.
func isWord(s string) bool {
	return s != "" && len(s) <= MaxWord && only(s, func(c rune) bool { return ' ' < c && c < 0x7f })
}

func isNameRune(c rune) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_' || c == '.' || c == '-'
}

func only(s string, ok func(rune) bool) bool {
	for _, c := range s {
		if !ok(c) {
			return false
		}
	}
	return true
}

// wholeUTC tells whether t has no fraction of a second and no zone offset.
func wholeUTC(t time.Time) bool {
	_, offset := t.Zone()
	return offset == 0 && t.Nanosecond() == 0
}
