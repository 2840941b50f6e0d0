package mmds

import (
	"encoding/json"
	"iter"
	"strconv"
	"strings"
)

// The functions below walk through compact JSON, a Store's text, which is known to be right. That takes a moment for each request,
// and no memory beside the text between requests; an answer in JSON is a part of the text and no copy.

// find gives the value that a JSON pointer (RFC 6901) leads to.
func find(text, pointer string) (value string, ok bool) {
	if pointer == "" {
		return text, text != ""
	}
	if pointer[0] != '/' {
		return "", false
	}
	value = text
	for token := range strings.SplitSeq(pointer[1:], "/") {
		if value, ok = child(value, token); !ok {
			return "", false
		}
	}
	return value, true
}

// child gives the member or the element of value that a pointer's token names.
func child(value, token string) (string, bool) {
	if !isObject(value) && !isArray(value) {
		return "", false
	}
	want := strings.ReplaceAll(strings.ReplaceAll(token, "~1", "/"), "~0", "~")
	if isArray(value) {
		n, err := strconv.ParseUint(token, 10, 31)
		if err != nil || token != strconv.FormatUint(n, 10) {
			return "", false
		}
		want = token
	}
	for name, v := range children(value) {
		if name == want {
			return v, true
		}
	}
	return "", false
}

func isObject(value string) bool { return strings.HasPrefix(value, "{") }
func isArray(value string) bool  { return strings.HasPrefix(value, "[") }

// children are an object's members, or an array's elements by their numbers.
func children(value string) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		object := isObject(value)
		for i, n := 1, 0; i < len(value)-1; n++ {
			name := ""
			if object {
				end := skip(value, i)
				name = unquote(value[i:end])
				i = end + 1 // and the colon
			} else {
				name = strconv.Itoa(n)
			}
			end := skip(value, i)
			if !yield(name, value[i:end]) {
				return
			}
			i = end + 1 // and the comma
		}
	}
}

// skip is the end of the value that begins at i.
func skip(text string, i int) int {
	for deep, quoted := 0, false; i < len(text); i++ {
		switch c := text[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			if quoted = !quoted; !quoted && deep == 0 {
				return i + 1
			}
		case quoted:
		case c == '{' || c == '[':
			deep++
		case (c == ',' || c == ':' || c == '}' || c == ']') && deep == 0:
			return i // behind a number or a word
		case c == '}' || c == ']':
			if deep--; deep == 0 {
				return i + 1
			}
		}
	}
	return len(text)
}

// unquote is the string that a JSON string stands for.
func unquote(quoted string) string {
	if !strings.Contains(quoted, `\`) {
		return quoted[1 : len(quoted)-1]
	}
	var s string
	_ = json.Unmarshal([]byte(quoted), &s) // the text is known to be right
	return s
}

// imds gives a value in the form of EC2's instance metadata service: an object as the list of its members, a slash behind those
// that are objects; a string as it is. There is no form for others.
func imds(value string) (string, bool) {
	switch {
	case strings.HasPrefix(value, `"`):
		return unquote(value), true
	case !isObject(value):
		return "", false
	}
	var b strings.Builder
	separator := ""
	for name, v := range children(value) {
		b.WriteString(separator)
		separator = "\n"
		b.WriteString(name)
		if isObject(v) {
			b.WriteByte('/')
		}
	}
	return b.String(), true
}
