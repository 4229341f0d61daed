package depcheck_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgtrust/imgtrust/internal/depcheck"
)

const root = "../.."

// module is the table of docs/architecture.md.
var module = depcheck.Rules{
	Module: "github.com/imgtrust/imgtrust",
	May: []depcheck.May{
		{"cmd/imgtrust", []string{"build", "slim", "sign", "trust", "verify", "policy", "internal"}},
		{"cmd/imgtrustd", []string{"node"}},
		{"cmd/imgtrust-hook", nil},
		{"node", []string{"verify", "policy", "trust", "internal"}},
		{"verify", []string{"policy", "trust", "internal/attest", "internal/oci", "internal/layer"}},
		{"trust", []string{"policy", "internal/attest", "internal/oci"}},
		{"sign", []string{"internal/attest", "internal/oci", "internal/layer"}},
		{"build", []string{"internal/oci", "internal/layer"}},
		{"slim", []string{"internal/oci", "internal/layer"}},
		{"policy", []string{"internal/attest"}},
		{"internal/attest", nil},
		{"internal/demo", []string{depcheck.All}},
		{"internal/testkit", []string{depcheck.All}},
		{"internal/depcheck", nil},
		{"internal", []string{"internal/oci"}},
		{"test", []string{depcheck.All}},
		{"bench", []string{depcheck.All}},
		{"testdata", nil},
	},
	Only: []depcheck.Only{
		{"github.com/moby/buildkit", []string{"build"}},
		{"github.com/theupdateframework/go-tuf", []string{"trust"}},
		{"github.com/spf13/cobra", []string{"cmd"}},
		{"github.com/distribution/distribution", []string{"internal/registry"}},
	},
	Never: []depcheck.Never{
		{"verify", "github.com/moby/buildkit"},
		{"policy", "github.com/moby/buildkit"},
		{"trust", "github.com/moby/buildkit"},
		{"sign", "github.com/moby/buildkit"},
		{"slim", "github.com/moby/buildkit"},
		{"cmd/imgtrustd", "github.com/moby/buildkit"},
		{"cmd/imgtrustd", "build"},
		{"cmd/imgtrustd", "slim"},
		{"cmd/imgtrust", "node"},
	},
	TestOnly: []string{"internal/testkit"},
}

// pure packages do no I/O themselves and read no clock.
var (
	pure = []string{"policy", "internal/attest"}

	impure = []string{
		"os", "net", "syscall", "embed", "log", "database", "io/fs", "io/ioutil",
		"path/filepath", "math/rand", "golang.org/x/sys",
	}
	clock = []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTicker", "NewTimer"}
)

func TestModule(t *testing.T) {
	for _, breach := range depcheck.Check(list(t), module) {
		t.Error(breach)
	}
}

// list also reads the directories of the module in this process: what "go
// list" reads go test does not see, and would give a cached result.
func list(t *testing.T) []depcheck.Package {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && (d.Name() == ".git" || d.Name() == "bin") {
			return fs.SkipDir
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	packages, err := depcheck.List(root)
	if err != nil {
		t.Fatal(err)
	}
	return packages
}

func TestPurePackages(t *testing.T) {
	for _, p := range list(t) {
		short := strings.TrimPrefix(p.ImportPath, module.Module+"/")
		if !slices.Contains(pure, short) {
			continue
		}
		for _, breach := range impureImports(p.Imports) {
			t.Errorf("%s must not import %s: it is pure", short, breach)
		}
		for _, file := range p.GoFiles {
			for _, breach := range clockReads(t, filepath.Join(p.Dir, file), nil) {
				t.Errorf("%s must not call time.%s: it is pure", short, breach)
			}
		}
	}
}

func impureImports(imports []string) (found []string) {
	for _, path := range imports {
		for _, name := range impure {
			// net/url, net/netip and their like only parse.
			if path == "net/url" || path == "net/netip" || path == "net/textproto" {
				continue
			}
			if path == name || strings.HasPrefix(path, name+"/") {
				found = append(found, path)
			}
		}
	}
	return found
}

// clockReads returns the functions of package time that a file uses to learn
// the time. src is as for parser.ParseFile.
func clockReads(t *testing.T, file string, src any) (found []string) {
	t.Helper()
	tree, err := parser.ParseFile(token.NewFileSet(), file, src, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(tree, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := s.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains(clock, s.Sel.Name) {
				found = append(found, s.Sel.Name)
			}
		}
		return true
	})
	return found
}

func TestPurityIsSeen(t *testing.T) {
	if got := impureImports([]string{"net/url", "net/http", "os", "ospf", "strings", "os/exec"}); !slices.Equal(got, []string{"net/http", "os", "os/exec"}) {
		t.Errorf("impure imports: %v", got)
	}
	src := "package p\nimport \"time\"\nvar a, b = time.Now(), time.Unix(0, 0)\nfunc f(t time.Time) { g(time.Since) }\n"
	if got := clockReads(t, "p.go", src); !slices.Equal(got, []string{"Now", "Since"}) {
		t.Errorf("clock reads: %v", got)
	}
}

// good is a small module that keeps the rules of TestCheck.
func good() map[string]*depcheck.Package {
	return map[string]*depcheck.Package{
		"cmd":     {ImportPath: "example.com/m/cmd/tool", Imports: []string{"os", "example.com/m/build", "example.com/m/verify"}},
		"build":   {ImportPath: "example.com/m/build", Imports: []string{"big.org/kit/client", "example.com/m/build/internal/x"}},
		"build/x": {ImportPath: "example.com/m/build/internal/x", Imports: []string{"big.org/kit"}},
		"verify":  {ImportPath: "example.com/m/verify", Imports: []string{"example.com/m/policy"}, XTestImports: []string{"example.com/m/kit", "big.org/kit"}},
		"policy":  {ImportPath: "example.com/m/policy", Imports: []string{"strings", "other.org/lib"}},
		"kit":     {ImportPath: "example.com/m/kit", Imports: []string{"example.com/m/verify"}},
		"big":     {ImportPath: "big.org/kit/client", Imports: []string{"big.org/kit"}},
		"kitty":   {ImportPath: "big.org/kitty"},
		"lib":     {ImportPath: "other.org/lib", Imports: []string{"strings"}},
	}
}

func TestCheck(t *testing.T) {
	rules := depcheck.Rules{
		Module: "example.com/m",
		May: []depcheck.May{
			{"cmd", []string{"build", "verify"}},
			{"build", nil},
			{"verify", []string{"policy"}},
			{"policy", nil},
			{"kit", []string{depcheck.All}},
			{"absent", []string{"build"}},
		},
		Only:     []depcheck.Only{{"big.org/kit", []string{"build"}}},
		Never:    []depcheck.Never{{"verify", "big.org/kit"}, {"cmd", "kit"}, {"absent", "build"}},
		TestOnly: []string{"kit"},
	}
	for _, c := range []struct {
		summary string
		change  func(m map[string]*depcheck.Package)
		want    []string
	}{
		{"everything in order", func(map[string]*depcheck.Package) {}, nil},
		{"a direction turned round", func(m map[string]*depcheck.Package) {
			m["policy"].Imports = append(m["policy"].Imports, "example.com/m/build/internal/x")
		}, []string{
			"policy must not import build/internal/x",
			"verify must not reach big.org/kit: verify -> policy -> build/internal/x -> big.org/kit",
		}},
		{"an outside package in the wrong place", func(m map[string]*depcheck.Package) {
			m["policy"].Imports = []string{"big.org/kit/client"}
		}, []string{
			"policy must not import big.org/kit/client: only build may",
			"verify must not reach big.org/kit: verify -> policy -> big.org/kit/client",
		}},
		{"a package with a similar name is another one", func(m map[string]*depcheck.Package) {
			m["policy"].Imports = []string{"big.org/kitty"}
		}, nil},
		{"reached through somebody else's package", func(m map[string]*depcheck.Package) {
			m["lib"].Imports = []string{"big.org/kit/client"}
		}, []string{"verify must not reach big.org/kit: verify -> policy -> other.org/lib -> big.org/kit/client"}},
		{"the test kit in the program", func(m map[string]*depcheck.Package) {
			m["build"].Imports = append(m["build"].Imports, "example.com/m/kit")
		}, []string{
			"build must not import kit",
			"cmd/tool must not reach kit: cmd/tool -> build -> kit",
			"build must not import kit but in tests of package NAME_test",
		}},
		{"the test kit in a test of the package itself", func(m map[string]*depcheck.Package) {
			m["policy"].TestImports = []string{"example.com/m/kit"}
		}, []string{"policy must not import kit but in tests of package NAME_test"}},
		{"a package that nobody thought of", func(m map[string]*depcheck.Package) {
			m["new"] = &depcheck.Package{ImportPath: "example.com/m/new"}
		}, []string{"new has no line in the table"}},
	} {
		t.Run(c.summary, func(t *testing.T) {
			m := good()
			c.change(m)
			var packages []depcheck.Package
			for _, p := range m {
				packages = append(packages, *p)
			}
			slices.SortFunc(packages, func(a, b depcheck.Package) int { return strings.Compare(a.ImportPath, b.ImportPath) })
			if got := depcheck.Check(packages, rules); !slices.Equal(got, c.want) {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
		})
	}
}
