package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/term"
)

// passphraseVariables hold the passphrase of every key, the first that is not
// empty. A passphrase never comes from a flag: other users see those.
var passphraseVariables = [...]string{"IMGTRUST_PASSWORD", "COSIGN_PASSWORD"}

// noPassphrase is a key that needs a passphrase where nobody can be asked.
type noPassphrase struct{ file string }

func (e noPassphrase) Error() string {
	return fmt.Sprintf("no passphrase for %s, and no terminal to ask on", e.file)
}

func (e noPassphrase) Hint() string {
	return "set IMGTRUST_PASSWORD to the passphrase"
}

// passphrase returns a function that finds the passphrase of the key in file:
// in the environment, else by asking on the terminal; with confirm (for a new
// key) twice.
func (a *app) passphrase(file string, confirm bool) func() ([]byte, error) {
	return func() ([]byte, error) {
		for _, name := range passphraseVariables {
			if word := a.getenv(name); word != "" {
				return []byte(word), nil
			}
		}
		terminal, ok := a.stdin.(*os.File)
		if !ok || !term.IsTerminal(int(terminal.Fd())) {
			return nil, noPassphrase{file}
		}
		return a.askPassphrase(terminal, file, confirm)
	}
}

func (a *app) askPassphrase(terminal *os.File, file string, confirm bool) ([]byte, error) {
	word, err := a.readSecret(terminal, fmt.Sprintf("passphrase for %s: ", file))
	if err != nil || !confirm {
		return word, err
	}
	if len(word) == 0 {
		return nil, errors.New("an empty passphrase protects nothing")
	}
	again, err := a.readSecret(terminal, "the same again: ")
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(word, again) {
		return nil, errors.New("the two passphrases differ")
	}
	return word, nil
}

// readSecret reads one line without echo. An interrupt ends the wait and gives
// the terminal its echo back.
func (a *app) readSecret(terminal *os.File, prompt string) ([]byte, error) {
	state, err := term.GetState(int(terminal.Fd()))
	if err != nil {
		return nil, err
	}
	interrupt := make(chan os.Signal, 1)
	signal.Notify(interrupt, os.Interrupt)
	defer signal.Stop(interrupt)
	fmt.Fprintf(a.stderr, "imgtrust: %s", prompt)
	defer fmt.Fprintln(a.stderr)
	type line struct {
		word []byte
		err  error
	}
	read := make(chan line, 1)
	go func() {
		word, err := term.ReadPassword(int(terminal.Fd()))
		read <- line{word, err}
	}()
	select {
	case got := <-read:
		return got.word, got.err
	case <-interrupt:
		return nil, errors.Join(errors.New("interrupted"), term.Restore(int(terminal.Fd()), state))
	}
}
