package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/containerd/errdefs"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

// Decoding is stricter than encoding/json: keys match exactly and come once, unknown ones are refused, required ones are
// asked for, and every error has the field and the place. A null is as good as a field left out.

// document is a JSON text, kept whole so that errors can give a line and a column.
type document struct{ text []byte }

// member is a key of an object with its value.
type member struct {
	key   string
	keyAt int // offsets into the document
	raw   []byte
	at    int
}

// schema says what the tags of a struct cannot.
type schema struct {
	// required keys.
	required []string
	// inert maps Firecracker's keys for what does not exist here to the JSON values, besides null, that ask for nothing.
	inert map[string][]string
	// of is what this object is a part of, for errors: "rate_limiter/ops/".
	of string
}

// partSchema is for the structs inside of others.
func partSchema(v reflect.Value, name string) schema {
	s := schema{of: name + "/"}
	switch v.Type() {
	case reflect.TypeFor[config.TokenBucket]():
		s.required = []string{"size", "refill_time"}
	case reflect.TypeFor[config.CPUIDModifier]():
		s.required = []string{"leaf", "subleaf", "flags", "modifiers"}
	case reflect.TypeFor[config.RegisterModifier]():
		s.required = []string{"register", "bitmap"}
	case reflect.TypeFor[config.MSRModifier]():
		s.required = []string{"addr", "bitmap"}
	}
	return s
}

// errorAt is an error at an offset of the document.
func (d document) errorAt(offset int, format string, args ...any) error {
	before := d.text[:min(max(offset, 0), len(d.text))]
	line := bytes.Count(before, []byte("\n")) + 1
	column := len(before) - (bytes.LastIndexByte(before, '\n') + 1) + 1
	return &decodeError{fmt.Sprintf("%s at line %d column %d", fmt.Sprintf(format, args...), line, column)}
}

// decodeError is an error in a JSON text, with its place.
type decodeError struct{ msg string }

func (e *decodeError) Error() string { return e.msg }

// Unwrap gives the class.
func (e *decodeError) Unwrap() error { return errdefs.ErrInvalidArgument }

// check refuses what is no JSON text.
func (d document) check() error {
	if !utf8.Valid(d.text) {
		i := 0
		for i < len(d.text) {
			r, n := utf8.DecodeRune(d.text[i:])
			if r == utf8.RuneError && n == 1 {
				break
			}
			i += n
		}
		return d.errorAt(i, "invalid UTF-8")
	}
	var raw json.RawMessage
	err := json.Unmarshal(d.text, &raw)
	if err == nil {
		return nil
	}
	offset := len(d.text)
	var se *json.SyntaxError
	if errors.As(err, &se) && se.Error() != "unexpected end of JSON input" {
		offset = int(se.Offset) - 1 // it counts the byte that was wrong
	}
	return d.errorAt(offset, "%s", err)
}

// members splits the object raw, which lies at offset at of a document that passed check, and is called of.
func (d document) members(of string, raw []byte, at int) ([]member, error) {
	trimmed := bytes.TrimLeft(raw, " \t\r\n")
	at += len(raw) - len(trimmed)
	dec := json.NewDecoder(bytes.NewReader(trimmed))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		if of != "" {
			of = strings.TrimSuffix(of, "/") + ": "
		}
		return nil, d.errorAt(at, "%sinvalid type: want an object", of)
	}
	var ms []member
	seen := make(map[string]bool)
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, d.errorAt(at, "%s", err)
		}
		m := member{keyAt: at + int(dec.InputOffset())}
		m.key, _ = t.(string)
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, d.errorAt(m.keyAt, "%s", err)
		}
		m.raw, m.at = value, at+int(dec.InputOffset())-len(value)
		if seen[m.key] {
			return nil, d.errorAt(m.keyAt, "duplicate field `%s%s`", of, shorten(m.key))
		}
		seen[m.key] = true
		ms = append(ms, m)
	}
	return ms, nil
}

// elements splits the array raw likewise.
func (d document) elements(m member) ([]member, error) {
	dec := json.NewDecoder(bytes.NewReader(m.raw))
	if t, err := dec.Token(); err != nil || t != json.Delim('[') {
		return nil, d.errorAt(m.at, "%s: invalid type: want an array", m.key)
	}
	var es []member
	for dec.More() {
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, d.errorAt(m.at, "%s: %s", m.key, err)
		}
		es = append(es, member{raw: value, at: m.at + int(dec.InputOffset()) - len(value)})
	}
	return es, nil
}

// fill stores the object raw at offset at into the struct that into points to. Fields that are left out keep their value.
func (d document) fill(raw []byte, at int, into any, s schema) error {
	ms, err := d.members(s.of, raw, at)
	if err != nil {
		return err
	}
	fields := fieldsByKey(into)
	missing := slices.Clone(s.required)
	for _, m := range ms {
		null := string(m.raw) == "null"
		if idle, ok := s.inert[m.key]; ok {
			if !null && !slices.Contains(idle, compact(m.raw)) {
				return d.errorAt(m.at, "%s is %s: want null, it is not supported", m.key, shorten(compact(m.raw)))
			}
			continue
		}
		field, ok := fields[m.key]
		if !ok {
			return d.errorAt(m.keyAt, "unknown field `%s%s`, expected one of %s", s.of, shorten(m.key), keyList(fields))
		}
		if null {
			continue
		}
		missing = slices.DeleteFunc(missing, func(k string) bool { return k == m.key })
		if t := field.Type(); t.Kind() == reflect.Pointer && t.Elem().Kind() == reflect.Struct {
			field.Set(reflect.New(t.Elem()))
			if err := d.fill(m.raw, m.at, field.Interface(), partSchema(field.Elem(), s.of+m.key)); err != nil {
				return err
			}
			continue
		}
		if done, err := d.fillSpecial(m, field, s.of+m.key); err != nil {
			return err
		} else if done {
			continue
		}
		if err := json.Unmarshal(m.raw, field.Addr().Interface()); err != nil {
			return d.errorAt(m.at, "%s%s is %s: want %s", s.of, m.key, shorten(compact(m.raw)), kindName(field))
		}
	}
	if len(missing) > 0 {
		return d.errorAt(at+len(raw), "missing field `%s%s`", s.of, missing[0])
	}
	return nil
}

func fieldsByKey(into any) map[string]reflect.Value {
	v := reflect.ValueOf(into).Elem()
	fields := make(map[string]reflect.Value, v.NumField())
	for i := range v.NumField() {
		key, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		fields[key] = v.Field(i)
	}
	return fields
}

func keyList(fields map[string]reflect.Value) string {
	if len(fields) == 0 {
		return "none"
	}
	keys := make([]string, 0, len(fields))
	for k := range fields {
		keys = append(keys, "`"+k+"`")
	}
	slices.Sort(keys)
	return strings.Join(keys, ", ")
}

func kindName(v reflect.Value) string {
	t := v.Type()
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.Map:
		return "an object of strings"
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "a string"
	case reflect.Uint32:
		return "an integer from 0 to 4294967295"
	case reflect.Uint64:
		return "an integer from 0 to 18446744073709551615"
	case reflect.Int, reflect.Int64:
		return "an integer"
	case reflect.Slice:
		return "an array of strings"
	}
	return "a " + t.Kind().String()
}

func compact(raw []byte) string {
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil {
		return string(raw)
	}
	return b.String()
}

// shorten bounds what an error repeats of a request.
func shorten(s string) string { return shortenTo(s, 64) }

// shortenTo cuts a string off behind limit bytes, and shows that.
func shortenTo(s string, limit int) string {
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "..."
	}
	return s
}
