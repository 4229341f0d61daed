package main

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"os"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/kms/cliplugin/handler"

	"github.com/imgtrust/imgtrust/sign"
)

// keyService is a key service for the scripts: a plugin of sigstore's protocol
// whose keys are files, files://ci.key.
func keyService() int {
	args, err := handler.GetPluginArgs(os.Args)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	impl, err := newFileService(args.InitOptions.KeyResourceID, args.InitOptions.HashFunc)
	if err != nil {
		_ = handler.WriteErrorResponse(os.Stdout, err)
		return 1
	}
	if _, err := handler.Dispatch(os.Stdout, os.Stdin, args, impl); err != nil {
		return 1
	}
	return 0
}

type fileService struct{ signature.SignerVerifier }

func newFileService(file string, hash crypto.Hash) (*fileService, error) {
	key, err := sign.LoadKey(context.Background(), file, sign.LoadOptions{Plaintext: true})
	if err != nil {
		return nil, err
	}
	s, err := signature.LoadSignerVerifier(key.Private(), hash)
	return &fileService{s}, err
}

func (s *fileService) CreateKey(context.Context, string) (crypto.PublicKey, error) {
	return nil, errors.New("keys are made elsewhere")
}

func (s *fileService) CryptoSigner(context.Context, func(error)) (crypto.Signer, crypto.SignerOpts, error) {
	return nil, nil, errors.New("not by this protocol")
}

func (s *fileService) SupportedAlgorithms() []string { return []string{"files"} }
func (s *fileService) DefaultAlgorithm() string      { return "files" }
