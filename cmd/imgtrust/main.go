// Command imgtrust builds container images, signs them, lists them in a TUF
// trust repository kept in an OCI registry, and verifies them.
//
// Interface rules, kept by every command:
//
//   - stdout carries results only: one line per image, or with --json one
//     compact JSON object per line. Progress, hints and errors go to stderr.
//   - An error is one line, "imgtrust: error: what is wrong", followed by at
//     most a few "imgtrust: hint: what to do" lines. No stack traces.
//   - Exit codes: 0 yes or done, 1 could not tell or failed, 2 usage,
//     3 no (the image is refused).
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	os.Exit(run(os.Args[1:]))
}

// run is the whole program: it is main for the tests, too.
func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second signal ends the process at once: after the first one the
	// default behaviour is restored.
	context.AfterFunc(ctx, stop)
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv}
	return a.execute(ctx, args)
}
