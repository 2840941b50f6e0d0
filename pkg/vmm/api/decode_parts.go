package api

import (
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
)

// fillSpecial stores a member in a field whose type has a form of its own in JSON, and says whether it has: a list of objects, read as
// strictly as one object is, and what reads itself from a string. name is the field's, for errors.
func (d document) fillSpecial(m member, field reflect.Value, name string) (bool, error) {
	if t, ok := field.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return true, d.fillText(m, t, name)
	}
	if field.Kind() != reflect.Slice {
		return false, nil
	}
	elem := field.Type().Elem()
	_, text := reflect.New(elem).Interface().(encoding.TextUnmarshaler)
	if elem.Kind() != reflect.Struct && !text {
		return false, nil
	}
	es, err := d.elements(member{key: name, raw: m.raw, at: m.at})
	if err != nil {
		return true, err
	}
	list := reflect.MakeSlice(field.Type(), len(es), len(es))
	for i, e := range es {
		at := fmt.Sprintf("%s[%d]", name, i)
		v := list.Index(i)
		if text {
			err = d.fillText(e, v.Addr().Interface().(encoding.TextUnmarshaler), at)
		} else {
			err = d.fill(e.raw, e.at, v.Addr().Interface(), partSchema(v, at))
		}
		if err != nil {
			return true, err
		}
	}
	field.Set(list)
	return true, nil
}

// fillText has into read a string; its error says what is wanted.
func (d document) fillText(m member, into encoding.TextUnmarshaler, name string) error {
	var s *string
	if err := json.Unmarshal(m.raw, &s); err != nil || s == nil {
		return d.errorAt(m.at, "%s is %s: want a string", name, shorten(compact(m.raw)))
	}
	if err := into.UnmarshalText([]byte(*s)); err != nil {
		return d.errorAt(m.at, "%s is %s: %s", name, shorten(compact(m.raw)), err)
	}
	return nil
}
