package apitest

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/api/openapitest"
)

// maker makes JSON texts, of which a share does not fit the schema.
type maker struct {
	*rand.Rand
	files []string // paths that may be named
	wrong float64  // how likely it is that one value is off
}

func (m *maker) chance(p float64) bool { return m.Float64() < p }

func pick[T any](m *maker, list ...T) T { return list[m.IntN(len(list))] }

func quote(s string) string {
	b, _ := json.Marshal(s) // a string always marshals
	return string(b)
}

// ids are few, so that requests meet what others have made.
func (m *maker) id() string {
	if m.chance(0.02) {
		return pick(m, "", "a-b", "é", strings.Repeat("x", 65), "..", "%2e", "a b", "\x00")
	}
	return pick(m, "a", "b", "c", "root", "1")
}

// body is a text for a request whose path has the id.
func (m *maker) body(o *openapitest.Operation, id string) string {
	if o.Body == nil {
		return pick(m, "{}", "", "null", `{"snapshot_path": "a", "mem_file_path": "b"}`)
	}
	text := m.object(o.Body, o.Param(), id)
	if m.chance(m.wrong / 2) {
		return m.damage(text)
	}
	return text
}

// damage makes a text that is no JSON, most of the time.
func (m *maker) damage(text string) string {
	at := m.IntN(len(text) + 1)
	switch m.IntN(8) {
	case 0:
		return text[:at]
	case 1:
		return text[:at] + string(rune(m.IntN(0x300))) + text[at:]
	case 2:
		return text[:at] + "\xff\xfe" + text[at:]
	case 3:
		return text + text
	case 4:
		return strings.Repeat("[", 1+m.IntN(20000))
	case 5:
		return strings.Repeat(`{"a":`, 1+m.IntN(9000))
	case 6:
		return text[:at] + strings.Repeat(" ", m.IntN(60000)) + text[at:]
	}
	p := []byte(text)
	for range 1 + m.IntN(4) {
		if len(p) > 0 {
			p[m.IntN(len(p))] ^= byte(1 << m.IntN(8))
		}
	}
	return string(p)
}

func (m *maker) object(s *openapitest.Schema, param, id string) string {
	if s.Properties == nil {
		return m.tree(4)
	}
	o := map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(s.Properties)) {
		required := slices.Contains(s.Required, key)
		if required && m.chance(m.wrong/8) || !required && m.chance(0.6) {
			continue
		}
		if o[key] = m.value(key, s.Properties[key]); key == param && param != "" && m.chance(0.97) {
			o[key] = quote(id)
		}
	}
	if m.chance(m.wrong / 8) {
		o[pick(m, "x", "Drive_ID", "vcpu_count ", "")] = m.tree(2)
	}
	text := openapitest.Object(o)
	if m.chance(m.wrong/8) && len(o) > 0 {
		// A key that comes twice.
		for _, key := range slices.Sorted(maps.Keys(o)) {
			return strings.TrimSuffix(text, "}") + fmt.Sprintf(", %s: %s}", quote(key), o[key])
		}
	}
	return text
}

// tree is any JSON value.
func (m *maker) tree(depth int) string {
	if depth == 0 || m.chance(0.4) {
		return pick(m, "null", "true", "0", "-1", "1e999", "18446744073709551616", `""`, `"x"`, `"\ud800"`, "[]", "{}", "0.1")
	}
	var parts []string
	list := m.chance(0.3)
	for i := range m.IntN(5) {
		if part := m.tree(depth - 1); list {
			parts = append(parts, part)
		} else {
			parts = append(parts, fmt.Sprintf(`"%c%d": %s`, 'a'+m.IntN(3), i, part))
		}
	}
	if list {
		return "[" + strings.Join(parts, ",") + "]"
	}
	return "{" + strings.Join(parts, ",") + "}"
}

func (m *maker) value(key string, s *openapitest.Schema) string {
	if m.chance(m.wrong / 8) {
		return m.tree(2)
	}
	if len(s.Enum) > 0 && !m.chance(m.wrong/8) {
		return string(pick(m, s.Enum...))
	}
	switch s.Type {
	case "boolean":
		return pick(m, "true", "false")
	case "integer":
		return m.number(s)
	case "string":
		return m.word(key, s)
	case "array":
		var parts []string
		for range m.IntN(4) {
			parts = append(parts, m.value(key, s.Items))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case "object":
		return m.object(s, "", "")
	}
	return m.tree(3)
}

func (m *maker) number(s *openapitest.Schema) string {
	limit := func(n json.Number, otherwise int64) *big.Int {
		if i, ok := new(big.Int).SetString(n.String(), 10); ok {
			return i
		}
		return big.NewInt(otherwise)
	}
	low, high := limit(s.Minimum, -5), limit(s.Maximum, 1<<40)
	if m.chance(m.wrong / 4) {
		by := big.NewInt(1 + m.Int64N(1<<m.IntN(62)))
		return pick(m, new(big.Int).Sub(low, by), new(big.Int).Add(high, by)).String()
	}
	n := big.NewInt(m.Int64N(1 << m.IntN(63)))
	if n.Add(n, low); n.Cmp(high) > 0 || m.chance(0.1) {
		return pick(m, low, high).String()
	}
	return n.String()
}

func (m *maker) word(key string, s *openapitest.Schema) string {
	switch {
	case key == "host_dev_name" && m.chance(0.9):
		return quote(fmt.Sprint("fuzz", m.IntN(4)))
	case s.Format == "path", strings.HasSuffix(key, "path"), strings.HasSuffix(key, "host"), key == "socket":
		return quote(pick(m, m.files...))
	case strings.HasSuffix(key, "_id"):
		return quote(m.id())
	}
	most := 40
	if s.MaxLength != nil {
		most = *s.MaxLength
	}
	if m.chance(m.wrong / 4) {
		most += 1 + m.IntN(100)
	}
	// Names of interfaces are made of words from here, too: none may be that of an interface of the host's.
	letters := []rune("abcXYZ0189-_: /=.,'\"\\%$@")
	if m.chance(m.wrong / 4) {
		letters = append(letters, 0, '\n', 0x7f, 'é', '世', 0x2028, 0x1f600, 0xfffd)
	}
	text := make([]rune, m.IntN(most+1))
	for i := range text {
		text[i] = pick(m, letters...)
	}
	return pick(m, quote(string(text)), quote(string(text)), `"02:00:00:00:00:0`+fmt.Sprint(m.IntN(10))+`"`, `"169.254.169.254"`)
}
