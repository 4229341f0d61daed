package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSettings tells where a flag's value comes from, and what may not stand
// in which file.
func TestSettings(t *testing.T) {
	rows := []struct {
		summary  string
		args     []string
		env      map[string]string
		user     string // config.yaml
		project  string // imgtrust.yaml
		code     int
		contains string // in stderr
	}{
		{"nothing is set: the flag is missing", []string{"trust", "status", "127.0.0.1:1/trust"}, nil, "", "", 2, "missing --root"},
		{"from the environment", []string{"trust", "status", "127.0.0.1:1/trust"}, map[string]string{"IMGTRUST_ROOT": "no-env.json"}, "", "", 1, "no-env.json"},
		{"from the user's file", []string{"trust", "status", "127.0.0.1:1/trust"}, nil, "root: no-user.json\n", "", 1, "no-user.json"},
		{"the environment goes before the file", []string{"trust", "status", "127.0.0.1:1/trust"}, map[string]string{"IMGTRUST_ROOT": "no-env.json"}, "root: no-user.json\n", "", 1, "no-env.json"},
		{"the flag goes before both", []string{"trust", "status", "127.0.0.1:1/trust", "--root", "no-flag.json"}, map[string]string{"IMGTRUST_ROOT": "no-env.json"}, "root: no-user.json\n", "", 1, "no-flag.json"},
		{"an unknown key of the user's file", []string{"--version"}, nil, "", "", 0, ""},
		{"an unknown key of the user's file, with its place", []string{"policy", "check", "x"}, nil, "trust: a.example/t\nrooot: x\n", "", 2, `config.yaml:2:1: no command has a setting "rooot"`},
		{"a key twice", []string{"policy", "check", "x"}, nil, "root: a\nroot: b\n", "", 2, "stands twice"},
		{"a wrong type", []string{"policy", "check", "x"}, nil, "root: {a: b}\n", "", 2, "want a value"},
		{"the project names the trust repository", []string{"policy", "check", "x"}, nil, "", "trust: evil.example/t\n", 2, "a pull request could choose"},
		{"the project names it below sign", []string{"policy", "check", "x"}, nil, "", "sign: {trust: evil.example/t}\n", 2, "a pull request could choose"},
		{"the project wants plain http", []string{"policy", "check", "x"}, nil, "", "build: {insecure-http: true}\n", 2, "a pull request could choose"},
		{"the project names the program that runs the steps", []string{"policy", "check", "x"}, nil, "", "build: {runc: ./evil}\n", 2, "a pull request could choose"},
		{"the project reads files of this machine", []string{"policy", "check", "x"}, nil, "", "build: {build-context: [h=/etc]}\n", 2, "a pull request could choose"},
		{"the project reads a secret", []string{"policy", "check", "x"}, nil, "", "build: {secret: [id=k]}\n", 2, "a pull request could choose"},
		{"the project writes a file", []string{"policy", "check", "x"}, nil, "", "build: {iidfile: x}\n", 2, "a pull request could choose"},
		{"the project names the key", []string{"policy", "check", "x"}, nil, "", "sign: {key: x}\n", 2, "a pull request could choose"},
		{"the project sets an option of build", []string{"build", "."}, nil, "", "build: {platform: 7/7/7/7/7}\n", 2, ""},
		{"the project sets what build does not have", []string{"policy", "check", "x"}, nil, "", "build: {colour: red}\n", 2, `build has no setting "colour"`},
		{"a value that the flag does not take", []string{"trust", "status", "127.0.0.1:1/trust"}, map[string]string{"IMGTRUST_JSON": "perhaps"}, "", "", 2, "IMGTRUST_JSON"},
	}
	for _, r := range rows {
		t.Run(r.summary, func(t *testing.T) {
			dir := t.TempDir()
			t.Chdir(dir)
			config := filepath.Join(dir, "config", "imgtrust")
			if err := os.MkdirAll(config, 0o755); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(config, "config.yaml"), r.user)
			write(t, "imgtrust.yaml", r.project)
			var stdout, stderr bytes.Buffer
			a := &app{stdin: strings.NewReader(""), stdout: &stdout, stderr: &stderr, getenv: func(name string) string {
				if name == "XDG_CONFIG_HOME" {
					return filepath.Join(dir, "config")
				}
				return r.env[name]
			}}
			code := a.execute(context.Background(), r.args)
			if code != r.code || !strings.Contains(stderr.String(), r.contains) {
				t.Errorf("exit code %d, want %d; stderr %q, want %q in it", code, r.code, stderr.String(), r.contains)
			}
		})
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if text == "" {
		return
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
