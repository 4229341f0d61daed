package sign

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/imgtrust/imgtrust/internal/attest"
)

// Save writes the key to PREFIX.key, encrypted under passphrase and readable by
// its owner only, and the public key to PREFIX.pub. It overwrites nothing: a
// file that exists is fs.ErrExist. It leaves both files or neither, and no
// file half written.
func (k *Key) Save(prefix string, passphrase []byte) error {
	private, err := k.MarshalEncrypted(passphrase)
	if err != nil {
		return err
	}
	public, err := attest.MarshalPublicKey(k.Public())
	if err != nil {
		return err
	}
	if err := writeNew(prefix+".key", private, 0o600); err != nil {
		return err
	}
	if err := writeNew(prefix+".pub", public, 0o644); err != nil {
		return errors.Join(err, os.Remove(prefix+".key"))
	}
	return nil
}

// writeNew makes a whole new file appear at path, or fails.
func writeNew(path string, data []byte, mode fs.FileMode) error {
	if _, err := os.Lstat(path); err == nil {
		return &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist}
	}
	temp, err := os.CreateTemp(filepath.Dir(path), ".key-*")
	if err != nil {
		return fmt.Errorf("creating %s: %w", path, err)
	}
	defer os.Remove(temp.Name())
	if err := writeAll(temp, data, mode); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return publish(temp.Name(), path)
}

func writeAll(f *os.File, data []byte, mode fs.FileMode) error {
	_, err := f.Write(data)
	return errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
}

// publish gives the file its name. A link, unlike a rename, never replaces what
// is there; file systems without links get the rename.
func publish(temp, path string) error {
	err := os.Link(temp, path)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.Rename(temp, path)
}
