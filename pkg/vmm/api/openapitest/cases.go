package openapitest

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
)

// Case is a JSON text that a schema allows, or does not because of one field.
type Case struct {
	Text string
	Bad  bool
	// Field is what is wrong; empty if that is the whole.
	Field string
}

// Cases gives the texts at and beyond the limits of a schema, and of all inside of it, one field off at a time. example gives a value, in
// JSON, for a string whose form the schema does not determine: a path, say; "" leaves it to Cases.
func (s *Schema) Cases(name string, example func(name string) string) []Case {
	allowed := func(texts ...string) (cs []Case) {
		for _, t := range texts {
			cs = append(cs, Case{Text: t})
		}
		return cs
	}
	refused := func(cs []Case, texts ...string) []Case {
		for _, t := range texts {
			cs = append(cs, Case{Text: t, Bad: true, Field: name})
		}
		return cs
	}
	if len(s.Enum) > 0 {
		var cs []Case
		for _, e := range s.Enum {
			cs = append(cs, allowed(string(e))...)
		}
		switch s.Type {
		case "boolean":
			return refused(cs, fmt.Sprint(len(s.Enum) == 1 && string(s.Enum[0]) == "false"), "0", `"x"`)
		case "object":
			return refused(cs, `{"x": 1}`, "7", "[]")
		}
		return refused(cs, `"no such word"`, "7", "[]", "{}")
	}
	switch s.Type {
	case "boolean":
		return refused(allowed("true", "false"), "0", `"true"`, "[]")
	case "integer":
		beyond := func(n json.Number, by int64) string { return new(big.Int).Add(integer(n), big.NewInt(by)).String() }
		return refused(allowed(s.Minimum.String(), s.Maximum.String()), beyond(s.Minimum, -1), beyond(s.Maximum, 1), "1.5", `"1"`, "true", "1e40", "{}")
	case "string":
		return s.stringCases(name, example, allowed, refused)
	case "array":
		cs := refused(nil, "{}", "7", `"x"`)
		if s.MinItems == 0 {
			cs = append(cs, allowed("[]")...)
		} else {
			cs = refused(cs, "[]")
		}
		if s.MaxItems != nil && *s.MaxItems == 0 {
			return cs
		}
		for _, c := range s.Items.Cases(name, example) {
			c.Text = "[" + c.Text + "]"
			cs = append(cs, c)
		}
		return cs
	case "object":
		return s.objectCases(name, example, refused)
	}
	return allowed("{}")
}

func (s *Schema) stringCases(name string, example func(string) string, allowed func(...string) []Case, refused func([]Case, ...string) []Case) []Case {
	cs := refused(nil, "7", "true", "{}", "[]")
	good := example(name)
	if good == "" {
		good = quote(s.fit("a"))
	}
	cs = append(cs, allowed(good)...)
	if s.MaxLength != nil && s.Format != "path" {
		if long := strings.Repeat("a", *s.MaxLength); s.matches(long) {
			cs = append(cs, allowed(quote(long))...)
		}
	}
	if s.MaxLength != nil && s.Format == "path" {
		cs = refused(cs, quote("/"+strings.Repeat("a", *s.MaxLength)))
	} else if s.MaxLength != nil {
		cs = refused(cs, quote(strings.Repeat("a", *s.MaxLength+1)))
	}
	for _, odd := range []string{"", "a\x00b", "a b/:%", "\x7f", "é", "00:11:22:33:44", "01:00:00:00:00:01", "@abc"} {
		if !s.matches(odd) {
			cs = refused(cs, quote(odd))
		}
	}
	return cs
}

// fit is a string that the schema allows, made of a word if that will do.
func (s *Schema) fit(word string) string {
	for _, t := range []string{word, "a1", "02:00:00:00:00:01", "abc-123", "169.254.1.1", "7", "0b1", ""} {
		if s.matches(t) {
			return t
		}
	}
	panic("no string is known that fits the pattern " + s.Pattern)
}

func (s *Schema) objectCases(name string, example func(string) string, refused func([]Case, ...string) []Case) []Case {
	cs := refused(nil, "7", "[]", `"x"`)
	// least has all that is required, and whole everything.
	least, whole := map[string]string{}, map[string]string{}
	parts := map[string][]Case{}
	for key, p := range s.Properties {
		parts[key] = p.Cases(key, example)
		i := slices.IndexFunc(parts[key], func(c Case) bool { return !c.Bad })
		whole[key] = parts[key][i].Text
		if slices.Contains(s.Required, key) {
			least[key] = whole[key]
		}
	}
	only := "" // is there because something must be
	if s.MinProperties > 0 && len(least) == 0 {
		only = slices.Min(slices.Collect(maps.Keys(s.Properties)))
		least[only] = whole[only]
		cs = refused(cs, "{}")
	}
	with := func(key string, c Case) Case {
		o := maps.Clone(least)
		if delete(o, key); c.Text != "" {
			o[key] = c.Text
		}
		c.Text = Object(o)
		return c
	}
	cs = append(cs, Case{Text: Object(least)}, Case{Text: Object(whole)})
	if s.closed() {
		cs = append(cs, with("no_such_field", Case{"1", true, "no_such_field"}))
	}
	for key := range s.Properties {
		for _, c := range parts[key] {
			cs = append(cs, with(key, c))
		}
		required := slices.Contains(s.Required, key)
		if key == only {
			cs = append(cs, with(key, Case{"null", true, name}))
		} else {
			cs = append(cs, with(key, Case{"null", required, key}))
		}
		if required {
			cs = append(cs, with(key, Case{"", true, key}))
		}
	}
	return cs
}

// Object is the JSON text of an object whose members' values are JSON texts.
func Object(members map[string]string) string {
	var b strings.Builder
	for i, k := range slices.Sorted(maps.Keys(members)) {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%s: %s", quote(k), members[k])
	}
	return "{" + b.String() + "}"
}

func quote(s string) string {
	b, _ := json.Marshal(s) // a string always marshals
	return string(b)
}
