// Command step is a build step for images that have nothing else to run:
//
//	step wait TOKEN   never ends, nor does a second process that it starts in a
//	                  session of its own; the tests kill builds that run it
//	step print FILE   prints a file, such as a secret
package main

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

func main() {
	if err := step(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func step(verb string, args []string) error {
	switch verb {
	case "wait":
		child := exec.Command(os.Args[0], "waitalone", args[0])
		child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := child.Start(); err != nil {
			return err
		}
		fallthrough
	case "waitalone":
		time.Sleep(time.Hour)
		return nil
	case "print":
		text, err := os.ReadFile(args[0])
		os.Stdout.Write(text)
		return err
	default:
		return fmt.Errorf("no verb %q", verb)
	}
}
