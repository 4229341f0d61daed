// Command wait is a build step that never ends: it starts a second process in a
// session of its own, says so, and sleeps. The tests kill builds that run it.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) == 2 {
		child := exec.Command(os.Args[0], os.Args[1], "child")
		child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := child.Start(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println("waiting")
	}
	time.Sleep(time.Hour)
}
