// Package depcheck checks which package imports which. The table for this
// module is in its test; a broken line of it fails with the chain of imports:
//
//	verify must not reach github.com/moby/buildkit: verify -> build -> github.com/moby/buildkit/client
//
// Packages of the module are written relative to it, "internal/oci", those of
// other modules in full; a name in a rule stands for the package and all below it.
package depcheck

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
)

// Package is a package as "go list -json" describes it.
type Package struct {
	ImportPath   string
	Dir          string
	GoFiles      []string
	Imports      []string // of the package itself
	TestImports  []string // of its tests in the package
	XTestImports []string // of its tests in package NAME_test
}

// Rules are the directions of a module. Test files are free to import what
// they like, but for TestOnly.
type Rules struct {
	Module   string   // its path
	May      []May    // the first line that names a package holds; every package needs one
	Only     []Only   // who imports these
	Never    []Never  // what must not be reached, directly or through others
	TestOnly []string // packages for tests in package NAME_test alone
}

// May allows a package to import these packages of the module. All stands for
// every one.
type May struct {
	Package string
	Import  []string
}

// All in a May line allows every package of the module.
const All = "..."

// Only allows no package but these to import an outside package.
type Only struct {
	Import string
	By     []string
}

// Never forbids a package to reach another one.
type Never struct {
	Package, Reach string
}

// List returns the packages of the module in dir and all that they import.
func List(dir string) ([]Package, error) {
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Dir,GoFiles,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = dir
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return nil, fmt.Errorf("go list: %w: %s", err, exit.Stderr)
	}
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	return decode(strings.NewReader(string(out)))
}

func decode(r io.Reader) ([]Package, error) {
	var packages []Package
	for d := json.NewDecoder(r); ; {
		var p Package
		switch err := d.Decode(&p); err {
		case nil:
			packages = append(packages, p)
		case io.EOF:
			return packages, nil
		default:
			return nil, fmt.Errorf("go list: %w", err)
		}
	}
}

// Check returns one sentence for each breach of the rules, in the order of the
// rules. Rules about packages that do not exist hold.
func Check(packages []Package, rules Rules) []string {
	g := graph{rules: rules, imports: map[string][]string{}}
	for _, p := range packages {
		p.ImportPath = g.short(p.ImportPath)
		g.imports[p.ImportPath] = g.shortAll(p.Imports)
		if g.inModule(p.ImportPath) {
			p.TestImports, p.XTestImports = g.shortAll(p.TestImports), g.shortAll(p.XTestImports)
			g.own = append(g.own, p)
		}
	}
	return slices.Concat(g.checkMay(), g.checkOnly(), g.checkNever(), g.checkTestOnly())
}

type graph struct {
	rules   Rules
	own     []Package           // of the module, names shortened
	imports map[string][]string // by package, names shortened
}

// short writes a package of the module relative to it, as "./internal/oci".
func (g *graph) short(path string) string {
	if rest, ok := strings.CutPrefix(path, g.rules.Module); ok && (rest == "" || rest[0] == '/') {
		return "." + rest
	}
	return path
}

func (g *graph) shortAll(paths []string) []string {
	var short []string
	for _, p := range paths {
		short = append(short, g.short(p))
	}
	return short
}

func (g *graph) inModule(path string) bool { return strings.HasPrefix(path, ".") }

// within tells whether a rule's name stands for the package. A name is of the
// module unless its first element has a dot, as that of other modules has.
func within(path, name string) bool {
	if first, _, _ := strings.Cut(name, "/"); !strings.Contains(first, ".") {
		name = "./" + name
	}
	return path == name || strings.HasPrefix(path, name+"/")
}

func withinAny(path string, names []string) bool {
	return slices.ContainsFunc(names, func(name string) bool { return name == All || within(path, name) })
}

func (g *graph) checkMay() (breaches []string) {
	for _, p := range g.own {
		i := slices.IndexFunc(g.rules.May, func(m May) bool { return within(p.ImportPath, m.Package) })
		if i < 0 {
			breaches = append(breaches, fmt.Sprintf("%s has no line in the table", name(p.ImportPath)))
			continue
		}
		rule := g.rules.May[i]
		for _, to := range g.imports[p.ImportPath] {
			if g.inModule(to) && !within(to, rule.Package) && !withinAny(to, rule.Import) {
				breaches = append(breaches, fmt.Sprintf("%s must not import %s", name(p.ImportPath), name(to)))
			}
		}
	}
	return breaches
}

func (g *graph) checkOnly() (breaches []string) {
	for _, rule := range g.rules.Only {
		for _, p := range g.own {
			for _, to := range g.imports[p.ImportPath] {
				if within(to, rule.Import) && !withinAny(p.ImportPath, rule.By) {
					breaches = append(breaches, fmt.Sprintf("%s must not import %s: only %s may", name(p.ImportPath), to, strings.Join(rule.By, ", ")))
				}
			}
		}
	}
	return breaches
}

func (g *graph) checkNever() (breaches []string) {
	for _, rule := range g.rules.Never {
		for _, p := range g.own {
			if !within(p.ImportPath, rule.Package) {
				continue
			}
			if chain := g.chain(p.ImportPath, rule.Reach); chain != nil {
				breaches = append(breaches, fmt.Sprintf("%s must not reach %s: %s", name(p.ImportPath), rule.Reach, strings.Join(chain, " -> ")))
			}
		}
	}
	return breaches
}

// chain returns a shortest chain of imports from a package to one that the
// name stands for, both ends included, or nil.
func (g *graph) chain(from, to string) []string {
	came := map[string]string{from: ""}
	for queue := []string{from}; len(queue) > 0; queue = queue[1:] {
		at := queue[0]
		if at != from && within(at, to) {
			return back(came, at)
		}
		for _, next := range g.imports[at] {
			if _, seen := came[next]; !seen {
				came[next] = at
				queue = append(queue, next)
			}
		}
	}
	return nil
}

func back(came map[string]string, at string) (chain []string) {
	for ; at != ""; at = came[at] {
		chain = append(chain, name(at))
	}
	slices.Reverse(chain)
	return chain
}

func (g *graph) checkTestOnly() (breaches []string) {
	for _, only := range g.rules.TestOnly {
		for _, p := range g.own {
			if within(p.ImportPath, only) {
				continue
			}
			for _, to := range slices.Concat(g.imports[p.ImportPath], p.TestImports) {
				if within(to, only) {
					breaches = append(breaches, fmt.Sprintf("%s must not import %s but in tests of package NAME_test", name(p.ImportPath), name(to)))
				}
			}
		}
	}
	return breaches
}

func name(path string) string { return strings.TrimPrefix(path, "./") }
