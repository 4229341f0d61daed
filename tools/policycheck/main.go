// Command policycheck asks the library behind podman, CRI-O and skopeo whether a
// policy lets an image run: policycheck POLICY REGISTRIES.D IMAGE. Debian's own
// skopeo has this kind of signature disabled.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"
)

func main() {
	if err := check(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "policycheck:", err)
		os.Exit(1)
	}
}

func check(ctx context.Context, args []string) (err error) {
	if len(args) != 3 {
		return errors.New("usage: policycheck POLICY REGISTRIES.D IMAGE")
	}
	policy, err := signature.NewPolicyFromFile(args[0])
	if err != nil {
		return err
	}
	judge, err := signature.NewPolicyContext(policy)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, judge.Destroy()) }()
	ref, err := docker.ParseReference("//" + args[2])
	if err != nil {
		return err
	}
	source, err := ref.NewImageSource(ctx, &types.SystemContext{RegistriesDirPath: args[1], DockerInsecureSkipTLSVerify: types.OptionalBoolTrue})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	_, err = judge.IsRunningImageAllowed(ctx, image.UnparsedInstance(source, nil))
	return err
}
