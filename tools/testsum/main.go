// Command testsum runs "go test -json" with its own arguments, shows the
// package results and the output of what failed, and closes with one line:
//
//	412 passed, 0 failed, 0 skipped
//
// Tests and subtests count alike; a package that does not build, or fails
// outside its tests, counts as one failure. The exit code is 1 when anything
// failed, when nothing ran, or when a test was skipped under CI=true.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

func main() {
	sum, err := run(os.Args[1:], os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testsum:", err)
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", sum.passed, sum.failed, sum.skipped)
	if err != nil || !sum.ok(os.Getenv("CI") == "true") {
		os.Exit(1)
	}
}

// event is one line of "go test -json" (go doc test2json).
type event struct {
	Action, Package, ImportPath, Test, Output string
}

type summary struct {
	passed, failed, skipped int
	blamed                  map[string]bool     // packages with a failed test
	output                  map[string][]string // of tests that have not ended yet
}

func newSummary() *summary {
	return &summary{blamed: map[string]bool{}, output: map[string][]string{}}
}

func (s *summary) ok(ci bool) bool {
	return s.failed == 0 && s.passed > 0 && !(ci && s.skipped > 0)
}

func run(args []string, out io.Writer) (*summary, error) {
	sum := newSummary()
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return sum, err
	}
	if err := cmd.Start(); err != nil {
		return sum, err
	}
	err = sum.read(pipe, out)
	waitErr := cmd.Wait()
	if _, failed := errors.AsType[*exec.ExitError](waitErr); failed && sum.failed > 0 {
		waitErr = nil // told already
	}
	return sum, errors.Join(err, waitErr)
}

// read counts the events and prints what a person wants to see of them.
func (s *summary) read(r io.Reader, out io.Writer) error {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			s.line(line, out)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// line takes one event; a line that is none is shown as it is.
func (s *summary) line(line []byte, out io.Writer) {
	var e event
	if err := json.Unmarshal(line, &e); err != nil || e.Action == "" {
		out.Write(line)
		return
	}
	s.count(e)
	s.show(e, out)
}

// count adds the end of a test. A package's failure is counted when none of
// its tests accounts for it.
func (s *summary) count(e event) {
	switch e.Action {
	case "pass":
		if e.Test != "" {
			s.passed++
		}
	case "skip":
		if e.Test != "" {
			s.skipped++
		}
	case "fail":
		if e.Test != "" || !s.blamed[e.Package] {
			s.failed++
		}
		s.blamed[e.Package] = true
	}
}

// show keeps a test's output until it ends, and prints it if it failed or was
// skipped. A package's own output is one line, or what broke it.
func (s *summary) show(e event, out io.Writer) {
	key := e.Package + " " + e.Test
	switch {
	case e.Action == "build-output":
		io.WriteString(out, e.Output)
	case e.Action == "output" && e.Test == "":
		if e.Output != "PASS\n" && !strings.Contains(e.Output, "[no test files]") {
			io.WriteString(out, e.Output)
		}
	case e.Action == "output":
		s.output[key] = append(s.output[key], e.Output)
	case e.Action == "fail" || e.Action == "skip":
		io.WriteString(out, strings.Join(s.output[key], ""))
		delete(s.output, key)
	case e.Action == "pass":
		delete(s.output, key)
	}
}
