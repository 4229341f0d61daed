package main

import (
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/spf13/pflag"

	"github.com/imgtrust/imgtrust/internal/oci"
)

// registryFlags are the flags of every command that talks to a registry.
type registryFlags struct {
	insecureHTTP bool
}

func (f *registryFlags) register(flags *pflag.FlagSet) {
	flags.BoolVar(&f.insecureHTTP, "insecure-http", false, "use plain http beyond loopback registries: gives up privacy and, for tags, integrity")
}

// registryClient returns a client with the credentials of the Docker config
// and its helpers.
func (a *app) registryClient(f registryFlags) *oci.Client { return a.layoutClient(f, nil) }

// layoutClient is registryClient with repositories that lie in layouts.
func (a *app) layoutClient(f registryFlags, layouts map[string]string) *oci.Client {
	return oci.New(oci.Options{Keychain: authn.DefaultKeychain, InsecureHTTP: f.insecureHTTP, Mirrors: a.mirrors, Layouts: layouts})
}
