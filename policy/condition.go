package policy

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"

	"github.com/imgtrust/imgtrust/internal/attest"
)

const (
	maxExpression = 4096   // bytes
	maxCost       = 100000 // of one evaluation, in units of CEL's cost model

	imageType     = "imgtrust.Image"
	statementType = "imgtrust.Statement"
)

// condition is a compiled CEL expression. It may be evaluated concurrently.
type condition struct {
	expr, message string
	program       cel.Program
	readsNow      bool
}

// compiler makes conditions. Its environment takes some milliseconds to set up.
type compiler struct{ env *cel.Env }

func newCompiler() (*compiler, error) {
	registry, err := types.NewRegistry()
	if err != nil {
		return nil, fmt.Errorf("setting up conditions: %w", err)
	}
	env, err := cel.NewEnv(
		cel.CustomTypeAdapter(registry),
		cel.CustomTypeProvider(&declared{registry, fieldTypes()}),
		cel.Variable("image", cel.ObjectType(imageType)),
		cel.Variable("statement", cel.ObjectType(statementType)),
		cel.Variable("now", cel.TimestampType),
		cel.DefaultUTCTimeZone(true),
		cel.ParserExpressionSizeLimit(maxExpression),
		cel.ASTValidators(cel.ValidateRegexLiterals(), cel.ValidateTimestampLiterals(), cel.ValidateDurationLiterals()),
	)
	if err != nil {
		return nil, fmt.Errorf("setting up conditions: %w", err)
	}
	return &compiler{env}, nil
}

// declared is a type provider that also knows the variables' fields. Their
// values are maps, so that a missing field is missing for has() and an error
// when read, where a Go struct would give its zero value.
type declared struct {
	*types.Registry
	structs map[string]map[string]*types.Type
}

func fieldTypes() map[string]map[string]*types.Type {
	texts := cel.ListType(cel.StringType)
	return map[string]map[string]*types.Type{
		imageType: {
			"repository": cel.StringType, "digest": cel.StringType, "tag": cel.StringType,
			"platforms": texts, "user": cel.StringType, "entrypoint": texts,
			"size": cel.IntType, "layers": cel.IntType, "setuid": cel.IntType, "shell": cel.BoolType,
		},
		statementType: {
			"created": cel.TimestampType, "expires": cel.TimestampType,
			"repository": cel.StringType, "tags": texts,
			"annotations": cel.MapType(cel.StringType, cel.StringType),
			"provenance":  cel.StringType, "sbom": cel.StringType,
		},
	}
}

func (d *declared) FindStructType(name string) (*types.Type, bool) {
	if _, ok := d.structs[name]; ok {
		return types.NewTypeTypeWithParam(types.NewObjectType(name)), true
	}
	return d.Registry.FindStructType(name)
}

func (d *declared) FindStructFieldNames(name string) ([]string, bool) {
	fields, ok := d.structs[name]
	if !ok {
		return d.Registry.FindStructFieldNames(name)
	}
	var all []string
	for field := range fields {
		all = append(all, field)
	}
	return all, true
}

func (d *declared) FindStructFieldType(name, field string) (*types.FieldType, bool) {
	fields, ok := d.structs[name]
	if !ok {
		return d.Registry.FindStructFieldType(name, field)
	}
	t, ok := fields[field]
	if !ok {
		return nil, false
	}
	return &types.FieldType{Type: t}, true
}

// compile checks an expression, which must yield bool.
func (c *compiler) compile(expr, message string) (condition, error) {
	if len(expr) > maxExpression {
		return condition{}, fmt.Errorf("an expression has at most %d bytes", maxExpression)
	}
	checked, issues := c.env.Compile(expr)
	if issues.Err() != nil {
		return condition{}, issueError(issues)
	}
	if checked.OutputType() != cel.BoolType {
		return condition{}, fmt.Errorf("the expression yields %s, not bool", checked.OutputType())
	}
	program, err := c.env.Program(checked, cel.CostLimit(maxCost))
	if err != nil {
		return condition{}, fmt.Errorf("the expression does not compile: %w", err)
	}
	if message == "" {
		message = expr
	}
	return condition{expr, message, program, readsNow(checked)}, nil
}

// issueError gives the first issue in one line.
func issueError(issues *cel.Issues) error {
	if len(issues.Errors()) == 0 {
		return errors.New("the expression does not compile")
	}
	first := issues.Errors()[0]
	text := strings.Join(strings.Fields(first.Message), " ")
	return fmt.Errorf("the expression does not compile: %s (line %d, column %d of it)",
		text, first.Location.Line(), first.Location.Column()+1)
}

// readsNow tells whether an expression names now.
func readsNow(checked *cel.Ast) bool {
	named := ast.MatchDescendants(ast.NavigateAST(checked.NativeRep()), func(e ast.NavigableExpr) bool {
		return e.Kind() == ast.IdentKind && strings.TrimPrefix(e.AsIdent(), ".") == "now"
	})
	return len(named) > 0
}

// holds returns the reason why the condition does not hold; "" when it does.
func (c *condition) holds(variables map[string]any) string {
	out, _, err := c.program.Eval(variables)
	switch {
	case err != nil:
		return fmt.Sprintf("condition %q could not be evaluated: %s", c.message, strings.Join(strings.Fields(err.Error()), " "))
	case out != types.True:
		return fmt.Sprintf("condition %q does not hold", c.message)
	}
	return ""
}

// variables are what conditions read. Facts that are not known are left out.
func variables(f Facts, s *attest.ReleaseStatement, now time.Time) map[string]any {
	return map[string]any{
		"image":     imageFacts(f, s),
		"statement": statementFacts(s),
		"now":       now.UTC(),
	}
}

func imageFacts(f Facts, s *attest.ReleaseStatement) map[string]any {
	m := map[string]any{"repository": f.Repository, "digest": f.Digest}
	set(m, "tag", f.Tag)
	platforms := []string{}
	for _, image := range images(s, f.Digest) {
		if image.Platform != "" {
			platforms = append(platforms, image.Platform)
		}
	}
	m["platforms"] = platforms
	if c := describes(s, f.Digest); c != nil {
		configFacts(m, c)
	}
	return m
}

func configFacts(m map[string]any, c *attest.Config) {
	m["user"] = user(c.User)
	if len(c.Entrypoint) > 0 {
		m["entrypoint"] = c.Entrypoint
	}
	set(m, "size", c.ImageSize)
	set(m, "layers", int64(c.Layers))
	if c.Setuid != nil {
		m["setuid"] = int64(*c.Setuid)
	}
	if c.Shell != nil {
		m["shell"] = *c.Shell
	}
}

func statementFacts(s *attest.ReleaseStatement) map[string]any {
	m := map[string]any{"created": s.Created, "repository": s.Repository, "tags": []string{}, "annotations": map[string]string{}}
	if s.Tags != nil {
		m["tags"] = s.Tags
	}
	if s.Annotations != nil {
		m["annotations"] = s.Annotations
	}
	if !s.Expires.IsZero() {
		m["expires"] = s.Expires
	}
	set(m, "provenance", s.Provenance)
	set(m, "sbom", s.SBOM)
	return m
}

// set puts a value in unless it is zero.
func set[T comparable](m map[string]any, name string, value T) {
	var zero T
	if value != zero {
		m[name] = value
	}
}

// images are the platform manifests that a digest of s covers: all for the
// subject, else the one.
func images(s *attest.ReleaseStatement, digest string) []attest.Manifest {
	all := s.Manifests
	if len(all) > 1 {
		all = all[1:]
	}
	if digest == s.Digest {
		return all
	}
	for _, m := range all {
		if m.Digest == digest {
			return []attest.Manifest{m}
		}
	}
	return nil
}

// describes returns the config facts of s when they hold for all that digest
// covers: s describes the config of its first platform.
func describes(s *attest.ReleaseStatement, digest string) *attest.Config {
	all, wanted := images(s, s.Digest), images(s, digest)
	if len(wanted) == 0 {
		return nil
	}
	for _, m := range wanted {
		if m.Digest != all[0].Digest && (m.Config == "" || m.Config != all[0].Config) {
			return nil
		}
	}
	return s.Config
}

// user is the user part of a config's User as a container runtime reads it: "0"
// for root, for any spelling of 0, and for none.
func user(text string) string {
	name, _, _ := strings.Cut(text, ":")
	if name == "" || name == "root" {
		return "0"
	}
	if id, err := strconv.Atoi(name); err == nil {
		return strconv.Itoa(id)
	}
	return name
}
