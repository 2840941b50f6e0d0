package openapitest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/big"
	"regexp"
	"slices"
	"unicode/utf8"
)

// Check says what in a JSON text is not as the schema says.
func (s *Schema) Check(text []byte) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return err
	}
	return s.check("", v)
}

func (s *Schema) check(at string, v any) error {
	if v == nil && s.Nullable {
		return nil
	}
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(s.Enum) > 0 && !slices.ContainsFunc(s.Enum, func(e json.RawMessage) bool { return bytes.Equal(e, text) }) {
		return fmt.Errorf("%s is %s: not in the enumeration", at, text)
	}
	bad := fmt.Errorf("%s is %s: not of the type %s, or outside of its limits", at, text, s.Type)
	switch s.Type {
	case "boolean":
		if _, ok := v.(bool); !ok {
			return bad
		}
	case "integer":
		n, ok := v.(json.Number)
		i, whole := new(big.Int).SetString(n.String(), 10)
		if !ok || !whole || s.Minimum != "" && i.Cmp(integer(s.Minimum)) < 0 || s.Maximum != "" && i.Cmp(integer(s.Maximum)) > 0 {
			return bad
		}
	case "string":
		t, ok := v.(string)
		if !ok || !s.matches(t) {
			return bad
		}
	case "array":
		list, ok := v.([]any)
		if !ok || len(list) < s.MinItems || s.MaxItems != nil && len(list) > *s.MaxItems {
			return bad
		}
		for i, e := range list {
			if err := s.Items.check(fmt.Sprintf("%s/%d", at, i), e); err != nil {
				return err
			}
		}
	case "object":
		o, ok := v.(map[string]any)
		if !ok {
			return bad
		}
		for _, k := range s.Required {
			if _, ok := o[k]; !ok {
				return fmt.Errorf("%s/%s is missing", at, k)
			}
		}
		for k, e := range o {
			p := s.Properties[k]
			if p == nil && s.closed() {
				return fmt.Errorf("%s/%s is unknown", at, k)
			}
			if p != nil {
				if err := p.check(at+"/"+k, e); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// matches says whether a string has a length and a form that are allowed. Lengths are in bytes.
func (s *Schema) matches(t string) bool {
	return (s.MinLength == nil || len(t) >= *s.MinLength) && (s.MaxLength == nil || len(t) <= *s.MaxLength) &&
		utf8.ValidString(t) && (s.Pattern == "" || regexp.MustCompile(s.Pattern).MatchString(t))
}

func integer(n json.Number) *big.Int {
	i, ok := new(big.Int).SetString(n.String(), 10)
	if !ok {
		panic("the document's limit " + n.String() + " is no integer")
	}
	return i
}
