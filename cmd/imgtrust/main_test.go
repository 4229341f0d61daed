package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"imgtrust":           func() { os.Exit(run(os.Args[1:])) },
		"sigstore-kms-files": func() { os.Exit(keyService()) },
		"sigstore-kms-wrong": func() { fmt.Print(`{"publicKey":null}`) },
	})
}

// TestScripts runs testdata/script/*.txtar, a tour of the program as its users
// see it. Beside testscript's own commands the scripts have
//
//	exits CODE PROGRAM ARGS…    run it and require exactly this exit code, one
//	                            error line at most, and no stack trace
//	start NAME PROGRAM ARGS…    run it in the background and wait for its first
//	                            line on stdout, which $NAME then holds
//	interrupt NAME [CODE]       interrupt it and require this exit code (0); its
//	                            output is then in the files NAME.stdout, NAME.stderr
//	waitfor FILE                wait until the file exists
//
// and those of scriptCommands.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("..", "..", "testdata", "script"),
		Setup:               setupScript,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		ContinueOnError:     true,
		Cmds: merged(scriptCommands(), map[string]func(*testscript.TestScript, bool, []string){
			"exits":     exits,
			"start":     startProgram,
			"interrupt": interruptProgram,
			"waitfor":   waitFor,
		}),
	})
}

type runningKey struct{}

// setupScript gives each script a home of its own, and no credentials.
func setupScript(env *testscript.Env) error {
	home := filepath.Join(env.WorkDir, ".home")
	env.Setenv("HOME", home)
	env.Setenv("XDG_STATE_HOME", filepath.Join(home, "state"))
	env.Setenv("XDG_CONFIG_HOME", filepath.Join(home, "config"))
	env.Setenv("DOCKER_CONFIG", filepath.Join(home, "docker"))
	env.Values[runningKey{}] = map[string]*program{}
	return os.MkdirAll(home, 0o700)
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARGS...")
	}
	requireExit(ts, args[0], ts.Exec(args[1], args[2:]...))
	requireTidy(ts, ts.ReadFile("stderr"))
}

// requireTidy allows one error line at most, and no stack trace.
func requireTidy(ts *testscript.TestScript, stderr string) {
	if strings.Count("\n"+stderr, "\nimgtrust: error: ") > 1 {
		ts.Fatalf("more than one error line")
	}
	for _, trace := range []string{"panic:", "goroutine 1 ", "goroutine 0 ", "\x1b"} {
		if strings.Contains(stderr, trace) {
			ts.Fatalf("stderr holds %q", trace)
		}
	}
}

func requireExit(ts *testscript.TestScript, want string, err error) {
	code := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if strconv.Itoa(code) != want {
		ts.Fatalf("exit code %d, want %s", code, want)
	}
}

// program is one that start has started.
type program struct {
	cmd  *exec.Cmd
	done chan error // the result of Wait, once
}

func startProgram(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: start NAME PROGRAM ARGS...")
	}
	name := args[0]
	p := launch(ts, name, args[1:])
	ts.Value(runningKey{}).(map[string]*program)[name] = p
	line, err := firstLine(ts.MkAbs(name+".stdout"), p)
	if err != nil {
		ts.Fatalf("%s: %v\n%s", name, err, ts.ReadFile(name+".stderr"))
	}
	ts.Setenv(name, line)
}

func launch(ts *testscript.TestScript, name string, args []string) *program {
	stdout, err := os.Create(ts.MkAbs(name + ".stdout"))
	ts.Check(err)
	defer stdout.Close()
	stderr, err := os.Create(ts.MkAbs(name + ".stderr"))
	ts.Check(err)
	defer stderr.Close()

	// env runs the program from the script's PATH.
	cmd := exec.Command("env", append(scriptEnv(ts), args...)...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Stdout, cmd.Stderr = stdout, stderr
	ts.Check(cmd.Start())
	p := &program{cmd: cmd, done: make(chan error, 1)}
	go func() { p.done <- cmd.Wait() }()
	ts.Defer(func() { _ = cmd.Process.Kill() })
	return p
}

// scriptEnv is the part of the script's environment that the programs read.
func scriptEnv(ts *testscript.TestScript) []string {
	var env []string
	for _, key := range []string{"PATH", "HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "DOCKER_CONFIG", "TMPDIR"} {
		env = append(env, key+"="+ts.Getenv(key))
	}
	return env
}

// firstLine waits for a whole line in the file while the program runs.
func firstLine(file string, p *program) (string, error) {
	for {
		f, err := os.Open(file)
		if err != nil {
			return "", err
		}
		line, err := bufio.NewReader(f).ReadString('\n')
		if err := errors.Join(f.Close()); err != nil {
			return "", err
		}
		if err == nil {
			return strings.TrimSuffix(line, "\n"), nil
		}
		select {
		case err := <-p.done:
			return "", fmt.Errorf("ended before it printed a line: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func interruptProgram(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: interrupt NAME [CODE]")
	}
	running := ts.Value(runningKey{}).(map[string]*program)
	p := running[args[0]]
	if p == nil {
		ts.Fatalf("nothing was started as %s", args[0])
	}
	delete(running, args[0])
	want := "0"
	if len(args) == 2 {
		want = args[1]
	}
	ts.Check(p.cmd.Process.Signal(syscall.SIGINT))
	requireExit(ts, want, <-p.done)
	requireTidy(ts, ts.ReadFile(args[0]+".stderr"))
}

func waitFor(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: waitfor FILE")
	}
	deadline := time.Now().Add(time.Minute)
	for {
		_, err := os.Stat(ts.MkAbs(args[0]))
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("waitfor: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
