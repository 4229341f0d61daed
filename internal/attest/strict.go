package attest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"unicode/utf8"
)

// UnmarshalStrict decodes one JSON document into v, a pointer. It refuses what
// encoding/json lets pass: invalid UTF-8, data after the document, a name given
// twice in one object, a name that differs from a field's only in case, and
// nesting deeper than MaxDepth. With allowUnknown false it refuses names that v
// has no field for, too. The error names the place, as in
// `dsseEnvelope.signatures[0]: unknown field "key"`.
//
// Values held as json.RawMessage or decoded by a type's own UnmarshalJSON are
// checked for names given twice and for depth only. Bounding the size of data
// is the caller's business.
func UnmarshalStrict(data []byte, v any, allowUnknown bool) error {
	if !utf8.Valid(data) {
		return errors.New("not valid UTF-8")
	}
	var whole json.RawMessage
	if err := json.Unmarshal(data, &whole); err != nil {
		return syntaxError(err)
	}
	s := scanner{dec: json.NewDecoder(bytes.NewReader(data)), allowUnknown: allowUnknown}
	s.dec.UseNumber()
	if err := s.value(reflect.TypeOf(v), 0); err != nil {
		return err
	}
	return typeError(json.Unmarshal(data, v))
}

func syntaxError(err error) error {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return fmt.Errorf("byte %d: %w", syntax.Offset, err)
	}
	return err
}

// typeError says where a value of the wrong type stands, in the document's
// words rather than Go's.
func typeError(err error) error {
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		return at(wrong.Field, fmt.Errorf("a %s where a value of type %s belongs", wrong.Value, wrong.Type.Kind()))
	}
	return err
}

// at prefixes err with its place in the document.
func at(path string, err error) error {
	if path == "" {
		return err
	}
	return fmt.Errorf("%s: %w", path, err)
}

// scanner walks a document that is known to be well formed, beside the type
// that it will be decoded into.
type scanner struct {
	dec          *json.Decoder
	allowUnknown bool
}

// placed is an error with its place in the document. The place is put together
// only once there is an error, from the inside out: documents are large, and
// nearly all of them are right.
type placed struct {
	path string
	err  error
}

func (p placed) Error() string { return at(p.path, p.err).Error() }
func (p placed) Unwrap() error { return p.err }

// within says that err occurred in the member or element named part.
func within(part string, err error) error {
	var p placed
	switch {
	case !errors.As(err, &p):
		return placed{part, err}
	case strings.HasPrefix(p.path, "["):
		return placed{part + p.path, p.err}
	}
	return placed{part + "." + p.path, p.err}
}

// value reads one value of type t; t is nil where anything may stand.
func (s *scanner) value(t reflect.Type, depth int) error {
	if depth > MaxDepth {
		return fmt.Errorf("nested deeper than %d", MaxDepth)
	}
	token, err := s.dec.Token()
	if err != nil {
		return err
	}
	switch token {
	case json.Delim('{'):
		return s.object(plain(t), depth)
	case json.Delim('['):
		return s.array(plain(t), depth)
	}
	return nil
}

func (s *scanner) object(t reflect.Type, depth int) error {
	seen := map[string]bool{}
	for s.dec.More() {
		token, err := s.dec.Token()
		if err != nil {
			return err
		}
		name, _ := token.(string)
		if seen[name] {
			return fmt.Errorf("field %q is given twice", clip(name))
		}
		seen[name] = true
		member, err := s.member(t, name)
		if err != nil {
			return err
		}
		if err := s.value(member, depth+1); err != nil {
			return within(clip(name), err)
		}
	}
	_, err := s.dec.Token()
	return err
}

func (s *scanner) array(t reflect.Type, depth int) error {
	var element reflect.Type
	if t != nil && (t.Kind() == reflect.Slice || t.Kind() == reflect.Array) {
		element = t.Elem()
	}
	for i := 0; s.dec.More(); i++ {
		if err := s.value(element, depth+1); err != nil {
			return within(fmt.Sprintf("[%d]", i), err)
		}
	}
	_, err := s.dec.Token()
	return err
}

// clip keeps a name of a foreign document short enough for an error.
func clip(name string) string {
	if len(name) > maxNameInError {
		return strings.ToValidUTF8(name[:maxNameInError], "") + "…"
	}
	return name
}

// member returns the type of the member of t that name denotes; nil when its
// value is not to be checked.
func (s *scanner) member(t reflect.Type, name string) (reflect.Type, error) {
	if t == nil {
		return nil, nil
	}
	if t.Kind() == reflect.Map {
		return t.Elem(), nil
	}
	if t.Kind() != reflect.Struct {
		return nil, nil // the decoder reports the wrong type
	}
	for _, f := range reflect.VisibleFields(t) {
		known, ok := jsonName(f)
		switch {
		case ok && known == name:
			return f.Type, nil
		case ok && strings.EqualFold(known, name):
			return nil, fmt.Errorf("field %q is written %q", clip(name), known)
		}
	}
	if s.allowUnknown {
		return nil, nil
	}
	return nil, fmt.Errorf("unknown field %q", clip(name))
}

// jsonName is the name under which encoding/json knows f.
func jsonName(f reflect.StructField) (string, bool) {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	if !f.IsExported() || name == "-" || f.Anonymous && name == "" {
		return "", false
	}
	if name == "" {
		name = f.Name
	}
	return name, true
}

// plain strips pointers from t; it is nil for types that decode themselves.
func plain(t reflect.Type) reflect.Type {
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == nil || t.Kind() == reflect.Interface || reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]()) {
		return nil
	}
	return t
}

// marshal encodes v compactly, without escaping <, > and &.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
