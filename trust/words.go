package trust

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/imgtrust/imgtrust/policy"
)

// Words tells what the change changes, one line each, for the person who is to
// sign it.
func (k CheckedChange) Words() []string {
	lines := []string{fmt.Sprintf("trust repository %s, ID %s", k.Repository, k.next.id.Repository)}
	if k.New() {
		lines = append(lines, "a new trust repository")
	}
	if k.NextRoot != "" {
		lines = append(lines, k.rootWords()...)
	}
	if k.NextTargets != "" {
		lines = append(lines, k.targetsWords()...)
	}
	return lines
}

func (k CheckedChange) rootWords() []string {
	next := k.next.root.Signed
	lines := []string{fmt.Sprintf("root version %d, until %s", next.Version, next.Expires.Format(time.DateOnly))}
	old := metadata.RootType{}
	if k.present.root != nil {
		old = k.present.root.Signed
	}
	for _, role := range []string{metadata.ROOT, metadata.TARGETS, metadata.SNAPSHOT, metadata.TIMESTAMP} {
		lines = append(lines, roleWords(role, old.Roles[role], next.Roles[role])...)
	}
	return append(lines, identityWords(k.present.id, k.next.id)...)
}

// roleWords tells of the keys and the threshold of one role.
func roleWords(name string, old, next *metadata.Role) []string {
	if old == nil {
		return []string{fmt.Sprintf("%s: %d of %d keys must sign: %s", name, next.Threshold, len(next.KeyIDs), shortKeys(next.KeyIDs))}
	}
	var lines []string
	for _, id := range next.KeyIDs {
		if !slices.Contains(old.KeyIDs, id) {
			lines = append(lines, fmt.Sprintf("%s: key %.12s is added", name, id))
		}
	}
	for _, id := range old.KeyIDs {
		if !slices.Contains(next.KeyIDs, id) {
			lines = append(lines, fmt.Sprintf("%s: key %.12s is removed", name, id))
		}
	}
	if len(lines) > 0 || old.Threshold != next.Threshold {
		lines = append(lines, fmt.Sprintf("%s: %d of %d keys had to sign, now %d of %d", name, old.Threshold, len(old.KeyIDs), next.Threshold, len(next.KeyIDs)))
	}
	return lines
}

func identityWords(old, next identity) []string {
	var lines []string
	for _, kind := range slices.Sorted(maps.Keys(next.Lifetimes)) {
		if old.Lifetimes[kind] != next.Lifetimes[kind] {
			lines = append(lines, fmt.Sprintf("%s: lives %s, at most %s", kind, next.lifetime(kind), 2*next.lifetime(kind)))
		}
	}
	if old.Inbox != next.Inbox {
		lines = append(lines, "the inbox is "+next.Inbox)
	}
	return lines
}

func (k CheckedChange) targetsWords() []string {
	next := k.next.targets.Signed
	lines := []string{fmt.Sprintf("targets version %d, until %s", next.Version, next.Expires.Format(time.DateOnly))}
	by := next.Delegations.SuccinctRoles
	var keys []string
	bits := 0
	if k.present.targets != nil {
		old := k.present.targets.Signed.Delegations.SuccinctRoles
		keys, bits = old.KeyIDs, old.BitLength
	}
	if !slices.Equal(keys, by.KeyIDs) {
		lines = append(lines, fmt.Sprintf("bins: signed by the online key %s", shortKeys(by.KeyIDs)))
	}
	if bits != by.BitLength {
		lines = append(lines, fmt.Sprintf("bins: %d of them", 1<<by.BitLength))
	}
	for _, line := range policy.Diff(k.old, k.new) {
		lines = append(lines, "policy: "+line)
	}
	if k.NextPolicy != "" && len(policy.Diff(k.old, k.new)) == 0 {
		lines = append(lines, "policy: decides as before")
	}
	return lines
}

// Text tells what a need is, and who may still fill it.
func (n Need) Text() string {
	text := fmt.Sprintf("%s: %d of %d signatures by keys of %s", n.Role, len(n.Signed), n.Threshold, n.Of)
	if n.Missing() > 0 {
		text += fmt.Sprintf("; %d more of %s", n.Missing(), strings.TrimSpace(shortKeys(n.Open)))
	}
	return text
}
