package main

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/imgtrust/imgtrust/sign"
	"github.com/imgtrust/imgtrust/trust"
)

// maxRootFile bounds a root.json read from disk, in bytes.
const maxRootFile = 1 << 20

// layoutRepository is how a trust repository on a disk is called: a layout has no
// name, and which trust repository it is, root.json decides.
const layoutRepository = "localhost/layout"

// trustFlags are the flags of every command that reads a trust repository.
type trustFlags struct {
	repository string
	root       string
	state      string
	offline    bool
	registry   registryFlags
}

// register adds the flags; a command whose argument is the trust repository
// leaves out --trust.
func (f *trustFlags) register(flags *pflag.FlagSet, withRepository bool) {
	if withRepository {
		flags.StringVar(&f.repository, "trust", "", "trust repository, HOST/REPO or oci:DIR")
	}
	flags.StringVar(&f.root, "root", "", "bootstrap root.json, as imgtrust trust init wrote it")
	flags.StringVar(&f.state, "state", "", "directory that remembers what was seen (default: below the user's state directory)")
	f.registry.register(flags)
}

// clientOptions reads the root file and makes the options of a client whose
// state is kept under a kind of its own.
func (a *app) clientOptions(f trustFlags, kind string) (trust.ClientOptions, error) {
	o := trust.ClientOptions{State: f.state, Offline: f.offline, Registry: a.registryClient(f.registry), Warn: func(text string) { a.progress("warning: %s", text) }}
	if f.root == "" {
		return o, usageError{errors.New("missing --root FILE: the root.json to start from, which never comes from the registry it protects")}
	}
	if f.repository == "" {
		return o, usageError{errors.New("missing --trust REPO")}
	}
	var err error
	if dir, ok := strings.CutPrefix(f.repository, "oci:"); ok {
		o.Repository = layoutRepository
		o.Registry = a.layoutClient(f.registry, map[string]string{layoutRepository: dir})
	} else if o.Repository, err = parseRepository("--trust", f.repository); err != nil {
		return o, usageError{err}
	}
	if o.Root, err = readBounded(f.root, maxRootFile); err != nil {
		return o, fmt.Errorf("--root: %w", err)
	}
	if o.State == "" {
		o.State, err = a.stateDir(kind)
	}
	return o, err
}

// readBounded reads a file of at most max bytes.
func readBounded(path string, max int64) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, max+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > max {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, max)
	}
	return data, nil
}

// keyFlags name private keys.
type keyFlags struct{ plaintext bool }

func (f *keyFlags) register(flags *pflag.FlagSet) {
	flags.BoolVar(&f.plaintext, "insecure-plaintext-key", false, "accept keys that are not encrypted: whoever reads the file then signs as its owner")
}

// loadKeys reads private keys, asking for a passphrase once per key.
func (a *app) loadKeys(ctx context.Context, paths []string, f keyFlags) ([]crypto.Signer, error) {
	var keys []crypto.Signer
	for _, path := range paths {
		k, err := sign.LoadKey(ctx, path, sign.LoadOptions{Passphrase: a.passphrase(path, false), Plaintext: f.plaintext})
		if err != nil {
			return nil, err
		}
		keys = append(keys, k.Private())
	}
	return keys, nil
}
