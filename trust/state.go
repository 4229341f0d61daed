package trust

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gofrs/flock"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgtrust/imgtrust/internal/attest"
	"github.com/imgtrust/imgtrust/policy"
)

// saved is the persisted metadata: the exact bytes of one verified view. It is
// one file, so that it is replaced whole or not at all.
type saved struct {
	Format int       `json:"format"`
	Floor  time.Time `json:"floor"` // local clock at the last good refresh
	Index  []byte    `json:"index"`
	// RootVersion is that of the newest root seen, whatever the bootstrap was.
	RootVersion int64 `json:"rootVersion"`
	// OnlineKeys are the key IDs by which Timestamp and Snapshot were verified.
	OnlineKeys []string `json:"onlineKeys"`
	Roots      []string `json:"roots"` // after the bootstrap root, in order
	Timestamp  string   `json:"timestamp"`
	Snapshot   string   `json:"snapshot"`
	Targets    string   `json:"targets"`
	Policy     string   `json:"policy"`
}

// seen is the persisted memory that outlives any view: what must not be undone.
type seen struct {
	Format  int                `json:"format"`
	Tags    map[string]tagSeen `json:"tags"`
	Revoked []Tombstone        `json:"revoked"`
}

type tagSeen struct {
	Time   time.Time `json:"time"`
	Digest string    `json:"digest"`
}

// stateDir is the directory of one trust repository's state:
//
//	metadata.json  saved
//	seen.json      seen
//	blobs/HEX      a cache of bins and their manifests, by SHA-256
//	lock           held while the others change
//
// With an empty path it keeps everything in memory.
type stateDir struct {
	path string

	turn     chan struct{} // the lock, without a path: holds one
	mu       sync.Mutex    // guards what follows
	metadata saved
	memory   seen
	blobs    map[v1.Hash][]byte
}

func newStateDir(parent, id string) *stateDir {
	d := &stateDir{blobs: map[v1.Hash][]byte{}, turn: make(chan struct{}, 1)}
	if parent != "" {
		d.path = filepath.Join(parent, id)
	}
	return d
}

// lock keeps other processes and other calls out until unlock.
func (d *stateDir) lock(ctx context.Context) (unlock func(), err error) {
	if d.path == "" {
		return d.lockMemory(ctx)
	}
	if err := os.MkdirAll(filepath.Join(d.path, "blobs"), 0o700); err != nil {
		return nil, stateError(d.path, err)
	}
	if info, err := os.Lstat(d.path); err != nil || !info.IsDir() {
		return nil, stateError(d.path, errors.New("is not a directory (a symbolic link is refused)"))
	}
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	l := flock.New(filepath.Join(d.path, "lock"))
	if ok, err := l.TryLockContext(ctx, 20*time.Millisecond); !ok {
		return nil, stateError(d.path, fmt.Errorf("another process holds its lock: %w", err))
	}
	return func() { _ = l.Unlock() }, nil
}

func (d *stateDir) lockMemory(ctx context.Context) (unlock func(), err error) {
	select {
	case d.turn <- struct{}{}:
		return func() { <-d.turn }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func stateError(path string, err error) error {
	return &Error{Code: policy.Unavailable, Err: fmt.Errorf("state %s: %w", path, err),
		Advice: "name a writable directory with --state"}
}

func (d *stateDir) load() (saved, error) {
	if d.path == "" {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.metadata, nil
	}
	var s saved
	err := readState(filepath.Join(d.path, "metadata.json"), &s)
	return s, err
}

func (d *stateDir) seen() (seen, error) {
	if d.path == "" {
		d.mu.Lock()
		defer d.mu.Unlock()
		return seen{Tags: maps.Clone(d.memory.Tags), Revoked: d.memory.Revoked}, nil
	}
	var s seen
	err := readState(filepath.Join(d.path, "seen.json"), &s)
	return s, err
}

// locked is load under the lock.
func (d *stateDir) locked(ctx context.Context) (saved, error) {
	unlock, err := d.lock(ctx)
	if err != nil {
		return saved{}, err
	}
	defer unlock()
	return d.load()
}

// commit persists a view that was verified on top of old, with the tombstones that
// are remembered with it, the memory first: after a crash in between more is
// remembered than was believed, never less. When the state is no longer old,
// nothing is written, and the state that it is now is returned.
func (d *stateDir) commit(ctx context.Context, old, next saved, remember func(seen []Tombstone) []Tombstone) (moved *saved, err error) {
	unlock, err := d.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	now, err := d.load()
	if err != nil {
		return nil, err
	}
	if !now.sameMetadata(old) {
		return &now, nil
	}
	if d.path != "" {
		d.sweep()
	}
	next.Format = 1
	if now.Floor.After(next.Floor) {
		next.Floor = now.Floor
	}
	if err := d.rememberTombstones(remember); err != nil {
		return nil, err
	}
	if d.path == "" {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.metadata = next
		return nil, nil
	}
	return nil, writeState(filepath.Join(d.path, "metadata.json"), next)
}

// sweep removes the temporary files of processes that were killed while they wrote.
// The caller holds the lock, so that nobody is writing these.
func (d *stateDir) sweep() {
	for _, name := range []string{".metadata.json-*", ".seen.json-*"} {
		left, _ := filepath.Glob(filepath.Join(d.path, name))
		for _, path := range left {
			_ = os.Remove(path)
		}
	}
}

// sameMetadata tells whether two states hold the same metadata: the floor may
// have moved.
func (s saved) sameMetadata(o saved) bool {
	return s.Timestamp == o.Timestamp && s.Snapshot == o.Snapshot && s.Targets == o.Targets && s.RootVersion == o.RootVersion &&
		slices.Equal(s.Roots, o.Roots) && slices.Equal(s.OnlineKeys, o.OnlineKeys) && bytes.Equal(s.Index, o.Index)
}

// rememberTombstones writes the tombstones that are to be remembered, if they have
// changed. The caller holds the lock.
func (d *stateDir) rememberTombstones(remember func(seen []Tombstone) []Tombstone) error {
	memory, err := d.seen()
	if err != nil {
		return err
	}
	merged := remember(memory.Revoked)
	if len(merged) > maxRemembered {
		return stateError(d.path, fmt.Errorf("more than %d tombstones are to be remembered", maxRemembered))
	}
	if d.path == "" {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.memory.Revoked = merged
		return nil
	}
	if reflect.DeepEqual(merged, memory.Revoked) {
		return nil
	}
	memory.Format, memory.Revoked = 1, merged
	return writeState(filepath.Join(d.path, "seen.json"), memory)
}

// forget drops tombstones that this directory's owner has taken back. The caller
// holds the lock.
func (d *stateDir) forget(keys []string) error {
	memory, err := d.seen()
	if err != nil {
		return err
	}
	memory.Format = 1
	memory.Revoked = slices.DeleteFunc(slices.Clone(memory.Revoked), func(t Tombstone) bool { return slices.Contains(keys, t.key()) })
	if d.path == "" {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.memory = memory
		return nil
	}
	return writeState(filepath.Join(d.path, "seen.json"), memory)
}

// rememberTag records the time of a tag and refuses to go back. The caller
// holds the lock.
func (d *stateDir) rememberTag(target string, now tagSeen) error {
	memory, err := d.seen()
	if err != nil {
		return err
	}
	was, known := memory.Tags[target]
	if known && was.Digest == now.Digest && !now.Time.After(was.Time) {
		return nil // it did not move; its time may fall when the policy changes
	}
	if known && (now.Time.Before(was.Time) || now.Time.Equal(was.Time) && now.Digest < was.Digest) {
		return &Error{Code: policy.RolledBack,
			Err:    fmt.Errorf("%s went back: %s of %s was seen, now it is %s of %s", target, was.Digest, was.Time.Format(time.RFC3339), now.Digest, now.Time.Format(time.RFC3339)),
			Advice: "to go back to an old release on purpose, sign it again with this tag and publish"}
	}
	if !known && len(memory.Tags) >= maxRemembered {
		return stateError(d.path, fmt.Errorf("it remembers %d tags already", maxRemembered))
	}
	if memory.Tags == nil {
		memory.Tags = map[string]tagSeen{}
	}
	memory.Tags[target] = now
	memory.Format = 1
	if d.path == "" {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.memory = memory
		return nil
	}
	return writeState(filepath.Join(d.path, "seen.json"), memory)
}

// blob reads the cache.
func (d *stateDir) blob(h v1.Hash) ([]byte, bool) {
	if d.path == "" {
		d.mu.Lock()
		defer d.mu.Unlock()
		data, ok := d.blobs[h]
		return data, ok
	}
	data, err := os.ReadFile(filepath.Join(d.path, "blobs", h.Hex))
	return data, err == nil
}

// keepBlob adds to the cache. A cache that cannot be written costs a request
// later and nothing else.
func (d *stateDir) keepBlob(h v1.Hash, data []byte) {
	if d.path == "" {
		d.mu.Lock()
		defer d.mu.Unlock()
		if len(d.blobs) < maxCached {
			d.blobs[h] = data
		}
		return
	}
	dir := filepath.Join(d.path, "blobs")
	if replaceFile(filepath.Join(dir, h.Hex), data) != nil {
		return
	}
	if names, err := os.ReadDir(dir); err == nil && len(names) > maxCached {
		evictOldest(dir, names)
	}
}

// evictOldest removes the older half of the cache.
func evictOldest(dir string, entries []fs.DirEntry) {
	age := func(e fs.DirEntry) time.Time {
		info, err := e.Info()
		if err != nil {
			return time.Time{}
		}
		return info.ModTime()
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return age(a).Compare(age(b)) })
	for _, e := range entries[:len(entries)/2] {
		_ = os.Remove(filepath.Join(dir, e.Name()))
	}
}

// readState decodes a state file strictly; one that does not exist leaves v.
// A damaged one is an error: starting over would give up rollback protection.
func readState(path string, v any) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && info.Size() > maxState {
		err = fmt.Errorf("is larger than %d bytes", maxState)
	}
	if err != nil {
		return stateError(path, err)
	}
	data, err := os.ReadFile(path)
	if err == nil {
		err = attest.UnmarshalStrict(data, v, false)
	}
	if err != nil {
		return &Error{Code: policy.Unavailable, Err: fmt.Errorf("state %s is damaged: %w", path, err),
			Advice: "removing it gives up what it remembers: rollback protection starts anew"}
	}
	return nil
}

func writeState(path string, v any) error {
	data, err := json.Marshal(v)
	if err == nil {
		err = replaceFile(path, data)
	}
	if err != nil {
		return stateError(path, err)
	}
	return nil
}

// replaceFile replaces a file atomically and durably: temporary file, fsync,
// rename, fsync of the directory.
func replaceFile(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+strings.TrimPrefix(filepath.Base(path), ".")+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	return err
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
