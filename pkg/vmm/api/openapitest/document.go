// Package openapitest reads an OpenAPI document and makes bodies that fit it, or do not. It knows the part of OpenAPI 3.0 that the API's own
// document uses, and is for tests only.
package openapitest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Schema describes a value (OpenAPI 3.0.3 §4.7.24). References and allOf are resolved.
type Schema struct {
	Type, Format         string
	Nullable             bool
	Enum                 []json.RawMessage
	Minimum, Maximum     json.Number
	MinLength, MaxLength *int
	Pattern              string
	Required             []string
	Properties           map[string]*Schema
	MinProperties        int
	AdditionalProperties json.RawMessage
	Items                *Schema
	MinItems             int
	MaxItems             *int
}

// closed says whether an object may have no other members than the properties.
func (s *Schema) closed() bool { return string(s.AdditionalProperties) == "false" }

// Operation is a method on a path.
type Operation struct {
	Method, Path string
	// When the request is allowed: "before" InstanceStart, "after" it, at "any" time, or "never".
	When string
	// Body is nil where there is none.
	Body *Schema
	// Answer is the body of the answer 200, if there is one.
	Answer *Schema
}

// Param is the name of the path's parameter, or empty.
func (o *Operation) Param() string {
	_, rest, _ := strings.Cut(o.Path, "{")
	name, _, _ := strings.Cut(rest, "}")
	return name
}

// URL is the path with its parameter set.
func (o *Operation) URL(id string) string { return strings.Replace(o.Path, "{"+o.Param()+"}", id, 1) }

// Parse gives the operations of a document, in order of path and method.
func Parse(text []byte) ([]*Operation, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var root any
	if err := d.Decode(&root); err != nil {
		return nil, err
	}
	whole, err := expand(root, root, 0)
	if err != nil {
		return nil, err
	}
	type content struct {
		Content map[string]struct{ Schema *Schema }
	}
	var doc struct {
		Paths map[string]map[string]json.RawMessage
	}
	if err := convert(whole, &doc); err != nil {
		return nil, err
	}
	var ops []*Operation
	for _, path := range slices.Sorted(maps.Keys(doc.Paths)) {
		for _, method := range slices.Sorted(maps.Keys(doc.Paths[path])) {
			if method == "parameters" {
				continue
			}
			var o struct {
				When        string `json:"x-when"`
				RequestBody *content
				Responses   map[string]content
			}
			if err := json.Unmarshal(doc.Paths[path][method], &o); err != nil {
				return nil, fmt.Errorf("%s %s: %w", method, path, err)
			}
			op := &Operation{Method: strings.ToUpper(method), Path: path, When: o.When, Answer: o.Responses["200"].Content["application/json"].Schema}
			if o.RequestBody != nil {
				op.Body = o.RequestBody.Content["application/json"].Schema
			}
			ops = append(ops, op)
		}
	}
	return ops, nil
}

// expand replaces references by what they name, and allOf by its parts put together.
func expand(root, node any, depth int) (any, error) {
	if depth > 50 {
		return nil, fmt.Errorf("references go round in a circle")
	}
	switch v := node.(type) {
	case []any:
		list := make([]any, len(v))
		for i := range v {
			var err error
			if list[i], err = expand(root, v[i], depth+1); err != nil {
				return nil, err
			}
		}
		return list, nil
	case map[string]any:
		if ref, ok := v["$ref"].(string); ok {
			target := root
			for _, part := range strings.Split(strings.TrimPrefix(ref, "#/"), "/") {
				if m, ok := target.(map[string]any); ok {
					target = m[part]
				}
			}
			if target == nil {
				return nil, fmt.Errorf("%s leads nowhere", ref)
			}
			return expand(root, target, depth+1)
		}
		object := make(map[string]any, len(v))
		for k := range v {
			e, err := expand(root, v[k], depth+1)
			if err != nil {
				return nil, err
			}
			if parts, ok := e.([]any); ok && k == "allOf" {
				for _, p := range parts {
					maps.Copy(object, p.(map[string]any))
				}
				continue
			}
			object[k] = e
		}
		return object, nil
	}
	return node, nil
}

func convert(from, to any) error {
	text, err := json.Marshal(from)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, to)
}
