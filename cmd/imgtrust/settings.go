package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

const (
	projectFile = "imgtrust.yaml"
	maxSettings = 256 << 10 // bytes of a settings file
)

// applySettings gives flags that were not on the command line their values from
// the environment (IMGTRUST_ and the flag's name in capitals), then the
// project's imgtrust.yaml, then the user's configuration file. A file is checked
// whole, for every command.
//
// The user's file, imgtrust/config.yaml below XDG_CONFIG_HOME, maps flag names
// to values, and has one more key:
//
//	trust: registry.example.com/trust
//	root: /etc/imgtrust/root.json
//	mirrors:
//	  registry.example.com/payments: mirror.internal/payments
//
// The project's file holds options of build and sign, and nothing that decides
// what is trusted: a pull request could choose it.
//
//	build: {platform: "linux/amd64"}
//	sign: {tag: [v1]}
func (a *app) applySettings(cmd *cobra.Command) error {
	given := map[string]bool{}
	cmd.Flags().Visit(func(f *pflag.Flag) { given[f.Name] = true })
	project, err := a.projectSettings(cmd.Root())
	if err != nil {
		return usageError{err}
	}
	user, err := a.userSettings(cmd.Root())
	if err != nil {
		return usageError{err}
	}
	a.mirrors = user.mirrors
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if given[f.Name] || f.Name == "help" || f.Name == "version" || err != nil {
			return
		}
		err = a.setFlag(f, project[cmd.Name()], user.flags)
	})
	if err != nil {
		return usageError{err}
	}
	return nil
}

// setFlag sets one flag from the first place that has it.
func (a *app) setFlag(f *pflag.Flag, project, user map[string]setting) error {
	name := "IMGTRUST_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
	if value := a.getenv(name); value != "" {
		return setting{place: name, values: []string{value}}.apply(f)
	}
	if s, ok := project[f.Name]; ok {
		return s.apply(f)
	}
	if s, ok := user[f.Name]; ok {
		return s.apply(f)
	}
	return nil
}

// setting is the value of a flag in a file, with its place for errors.
type setting struct {
	place  string
	values []string
}

func (s setting) apply(f *pflag.Flag) error {
	for _, v := range s.values {
		if err := f.Value.Set(v); err != nil {
			return fmt.Errorf("%s: --%s %q: %w", s.place, f.Name, v, err)
		}
	}
	return nil
}

// userConfiguration is the decoded configuration file of the user.
type userConfiguration struct {
	flags   map[string]setting
	mirrors map[string]string
}

func (a *app) userSettings(root *cobra.Command) (userConfiguration, error) {
	u := userConfiguration{flags: map[string]setting{}}
	dir := a.getenv("XDG_CONFIG_HOME")
	if !filepath.IsAbs(dir) {
		home, err := os.UserHomeDir()
		if err != nil {
			return u, nil // no home, no configuration
		}
		dir = filepath.Join(home, ".config")
	}
	path := filepath.Join(dir, "imgtrust", "config.yaml")
	fields, err := readSettings(path)
	if err != nil {
		return u, err
	}
	known := flagNames(root, func(*cobra.Command) bool { return true })
	for _, f := range fields {
		switch {
		case f.key == "mirrors":
			u.mirrors, err = f.pairs()
		case !slices.Contains(known, f.key):
			err = fmt.Errorf("%s: no command has a setting %q", f.place, f.key)
		default:
			u.flags[f.key], err = f.setting()
		}
		if err != nil {
			return u, err
		}
	}
	return u, nil
}

// projectOptions are what may stand in a file of the working tree: nothing that
// decides what is trusted, which program runs, which files of this machine are
// read, or where results are written.
func projectOptions(command string) []string {
	return map[string][]string{
		"build": {"file", "target", "platform", "build-arg", "label", "annotation", "no-cache", "pull", "progress"},
		"sign":  {"tag", "annotation", "expires"},
	}[command]
}

// projectSettings reads imgtrust.yaml: per command, the settings of its flags.
func (a *app) projectSettings(root *cobra.Command) (map[string]map[string]setting, error) {
	sections, err := readSettings(projectFile)
	if err != nil {
		return nil, err
	}
	settings := map[string]map[string]setting{}
	for _, section := range sections {
		allowed := projectOptions(section.key)
		if allowed == nil {
			return nil, fmt.Errorf("%s: %q: only options of build and sign may stand in a file of the working tree, since a pull request could choose the rest", section.place, section.key)
		}
		fields, err := fieldsOf(projectFile, section.node)
		if err != nil {
			return nil, err
		}
		known := flagNames(root, func(c *cobra.Command) bool { return c.Name() == section.key })
		settings[section.key] = map[string]setting{}
		for _, f := range fields {
			if !slices.Contains(known, f.key) {
				return nil, fmt.Errorf("%s: %s has no setting %q", f.place, section.key, f.key)
			}
			if !slices.Contains(allowed, f.key) {
				return nil, fmt.Errorf("%s: %q may not stand in a file of the working tree, since a pull request could choose it", f.place, f.key)
			}
			if settings[section.key][f.key], err = f.setting(); err != nil {
				return nil, err
			}
		}
	}
	return settings, nil
}

// flagNames are the flags of the commands that match.
func flagNames(cmd *cobra.Command, match func(*cobra.Command) bool) []string {
	var names []string
	if match(cmd) {
		cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	}
	for _, sub := range cmd.Commands() {
		names = append(names, flagNames(sub, match)...)
	}
	return names
}

// field is one key of a YAML mapping.
type field struct {
	place string // FILE:LINE:COLUMN
	key   string
	node  *yaml.Node
}

// readSettings reads a YAML mapping; a file that is not there is empty.
func readSettings(path string) ([]field, error) {
	data, err := readBounded(path, maxSettings)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if doc.Kind == 0 {
		return nil, nil
	}
	return fieldsOf(path, doc.Content[0])
}

// fieldsOf lists the keys of a mapping and refuses one that stands twice.
func fieldsOf(path string, n *yaml.Node) ([]field, error) {
	if n.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("%s:%d:%d: want settings as KEY: VALUE", path, n.Line, n.Column)
	}
	var fields []field
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		f := field{fmt.Sprintf("%s:%d:%d", path, key.Line, key.Column), key.Value, n.Content[i+1]}
		if slices.ContainsFunc(fields, func(o field) bool { return o.key == f.key }) {
			return nil, fmt.Errorf("%s: %q stands twice", f.place, f.key)
		}
		fields = append(fields, f)
	}
	return fields, nil
}

// setting reads a value or a list of values.
func (f field) setting() (setting, error) {
	s := setting{place: f.place}
	nodes := []*yaml.Node{f.node}
	if f.node.Kind == yaml.SequenceNode {
		nodes = f.node.Content
	}
	for _, n := range nodes {
		if n.Kind != yaml.ScalarNode {
			return s, fmt.Errorf("%s: %q: want a value or a list of values", f.place, f.key)
		}
		s.values = append(s.values, n.Value)
	}
	return s, nil
}

// pairs reads a mapping of words.
func (f field) pairs() (map[string]string, error) {
	pairs := map[string]string{}
	if err := f.node.Decode(&pairs); err != nil {
		return nil, fmt.Errorf("%s: %q: want HOST/PREFIX: HOST/PREFIX: %w", f.place, f.key, err)
	}
	return pairs, nil
}
