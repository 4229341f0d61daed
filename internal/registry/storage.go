package registry

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/gofrs/flock"
)

const (
	lockFile   = "registry.lock"
	secretFile = "http.secret"
	secretSize = 32 // bytes; the file has them in hex and a newline
)

// ErrInUse is returned for a directory that another server uses.
var ErrInUse = errors.New("in use by another registry")

// storage is where the images are, and the key that authenticates the state
// which the registry hands to clients in the URL of an upload. With a key that
// outlives the process such a URL does so, too.
type storage struct {
	dir    string // "" is memory
	secret string
	lock   *flock.Flock
}

// openStorage makes the directory when it is missing and locks it. For ""
// it needs neither and draws a secret for this server alone.
func openStorage(dir string) (*storage, error) {
	if dir == "" {
		return &storage{secret: newSecret()}, nil
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("registry directory: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("registry directory: %w", err)
	}
	lock := flock.New(filepath.Join(dir, lockFile), flock.SetPermissions(0o600))
	switch locked, err := lock.TryLock(); {
	case err != nil:
		return nil, fmt.Errorf("registry directory: %w", err)
	case !locked:
		return nil, fmt.Errorf("registry directory %s: %w", dir, ErrInUse)
	}
	secret, err := loadSecret(filepath.Join(dir, secretFile))
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return &storage{dir: dir, secret: secret, lock: lock}, nil
}

func (s *storage) close() error {
	if s.lock == nil {
		return nil
	}
	return s.lock.Close()
}

// loadSecret reads the secret, or makes one when there is none yet. The caller
// holds the directory's lock.
func loadSecret(path string) (string, error) {
	secret, err := readSecret(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return secret, err
	}
	secret = newSecret()
	if err := writeFile(path, []byte(secret+"\n")); err != nil {
		return "", fmt.Errorf("writing the registry's upload secret: %w", err)
	}
	return secret, nil
}

func readSecret(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("reading the registry's upload secret: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 2*secretSize+2))
	if err != nil {
		return "", fmt.Errorf("reading the registry's upload secret: %w", err)
	}
	secret := strings.TrimSuffix(string(b), "\n")
	if raw, err := hex.DecodeString(secret); err != nil || len(raw) != secretSize {
		return "", damagedSecret{path}
	}
	return secret, nil
}

// damagedSecret is a secret file that does not hold one.
type damagedSecret struct{ path string }

func (e damagedSecret) Error() string {
	return fmt.Sprintf("%s is damaged: want %d hex digits", e.path, 2*secretSize)
}

// Hint tells what it costs to go on.
func (e damagedSecret) Hint() string {
	return "remove the file: images stay, uploads in progress start again"
}

func newSecret() string {
	b := make([]byte, secretSize)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// writeFile writes a file that only its owner reads, whole or not at all, and
// durably.
func writeFile(path string, content []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
