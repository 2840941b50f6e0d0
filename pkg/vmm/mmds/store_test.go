package mmds

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestStore(t *testing.T) {
	const put, patch = true, false
	tests := []struct {
		put  bool
		text string
		want string // "" for no change
		err  error
	}{
		{patch, `{"a": 1}`, "", ErrNotInitialized},
		{put, `{"b": 1.50, "a": {"c": "x y", "<&>": "é"}}`, `{"a":{"<&>":"é","c":"x y"},"b":1.50}`, nil},
		{put, `{"a": 1, "a": 2}`, `{"a":2}`, nil},
		{put, ` "just a string" `, `"just a string"`, nil},
		{put, `null`, `null`, nil},
		{put, `{"n": 123456789012345678901234567890, "e": 1e999}`, `{"e":1e999,"n":123456789012345678901234567890}`, nil},
		{patch, `{"n": null, "e": {"x": null, "y": {"z": null}}, "gone": null}`, `{"e":{"y":{}}}`, nil},
		{patch, `{"e": [1, null]}`, `{"e":[1,null]}`, nil},
		{patch, `{"e": {"f": 1}}`, `{"e":{"f":1}}`, nil},
		{patch, `{"e": {"g": true}}`, `{"e":{"f":1,"g":true}}`, nil},
		{patch, `[1]`, `[1]`, nil},
		{patch, `{"a": 1}`, `{"a":1}`, nil},
		{patch, `{`, "", errdefs.ErrInvalidArgument},
		{put, ``, "", errdefs.ErrInvalidArgument},
		{put, `{} {}`, "", errdefs.ErrInvalidArgument},
		{put, `{"a": 01}`, "", errdefs.ErrInvalidArgument},
		{put, strings.Repeat("[", maxDepth+1) + strings.Repeat("]", maxDepth+1), "", errdefs.ErrInvalidArgument},
		{put, strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth), strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth), nil},
		{put, `["[\"[[", "]\\"]`, `["[\"[[","]\\"]`, nil},
		{put, `"` + strings.Repeat("x", 299) + `"`, "", ErrTooLarge},
		{put, `  "` + strings.Repeat("x", 298) + `"  `, `"` + strings.Repeat("x", 298) + `"`, nil},
		{patch, `{"a": "` + strings.Repeat("y", 293) + `"}`, "", ErrTooLarge},
		{patch, `{"a": "` + strings.Repeat("y", 292) + `"}`, `{"a":"` + strings.Repeat("y", 292) + `"}`, nil},
		{patch, `{"b": 1}`, "", ErrTooLarge},
		{patch, `{"b": 1, "a": null}`, `{"b":1}`, nil},
	}
	s := NewStore(300)
	if s.Text() != "" {
		t.Error("data before there were any")
	}
	for _, tt := range tests {
		before := s.Text()
		f := s.Patch
		if tt.put {
			f = s.Put
		}
		if err := f([]byte(tt.text)); !errors.Is(err, tt.err) {
			t.Errorf("%.60s: %v, want %v", tt.text, err, tt.err)
		}
		if tt.want == "" {
			tt.want = before
		}
		if got := s.Text(); got != tt.want {
			t.Errorf("%.60s: %s, want %s", tt.text, got, tt.want)
		}
	}
}

const sample = `{"latest": {"meta-data": {"ami-id": "ami-1", "a/b~c": "slash", "esc\"aped": "a\nb\u00e9", "": "empty", "net": {"macs": {"02:00": {}}}},
	"list": ["zero", {"one": 1}, [["deep"], "]}"], -4.5e3], "yes": true, "none": null, "n": 512, "brackets": "}]{[\\\""}, "z": ""}`

func TestFind(t *testing.T) {
	s := NewStore(DefaultLimit)
	if err := s.Put([]byte(sample)); err != nil {
		t.Fatal(err)
	}
	const missing = "missing"
	for _, tt := range []struct{ pointer, json, imds string }{
		{"", s.Text(), "latest/\nz"},
		{"/latest", "", "brackets\nlist\nmeta-data/\nn\nnone\nyes"},
		{"/latest/meta-data", "", "\na/b~c\nami-id\nesc\"aped\nnet/"},
		{"/latest/meta-data/ami-id", `"ami-1"`, "ami-1"},
		{"/latest/meta-data/a~1b~0c", `"slash"`, "slash"},
		{"/latest/meta-data/a/b~c", missing, ""},
		{"/latest/meta-data/esc\"aped", `"a\nbé"`, "a\nbé"},
		{"/latest/meta-data/", `"empty"`, "empty"},
		{"/latest/meta-data/net/macs", `{"02:00":{}}`, "02:00/"},
		{"/latest/meta-data/net/macs/02:00", `{}`, ""},
		{"/latest/list", `["zero",{"one":1},[["deep"],"]}"],-4.5e3]`, missing},
		{"/latest/list/0", `"zero"`, "zero"},
		{"/latest/list/1", `{"one":1}`, "one"},
		{"/latest/list/1/one", `1`, missing},
		{"/latest/list/2/0/0", `"deep"`, "deep"},
		{"/latest/list/2/1", `"]}"`, "]}"},
		{"/latest/list/3", `-4.5e3`, missing},
		{"/latest/list/4", missing, ""},
		{"/latest/list/01", missing, ""},
		{"/latest/list/+1", missing, ""},
		{"/latest/list/-", missing, ""},
		{"/latest/list/99999999999999999999", missing, ""},
		{"/latest/yes", `true`, missing},
		{"/latest/yes/no", missing, ""},
		{"/latest/none", `null`, missing},
		{"/latest/n", `512`, missing},
		{"/latest/brackets", `"}]{[\\\""`, `}]{[\"`},
		{"/z", `""`, ""},
		{"/z/z", missing, ""},
		{"/LATEST", missing, ""},
		{"latest", missing, ""},
		{"/", missing, ""},
	} {
		got, ok := find(s.Text(), tt.pointer)
		if ok == (tt.json == missing) || tt.json != "" && ok && got != tt.json {
			t.Errorf("%q: %s, %v, want %s", tt.pointer, got, ok, tt.json)
		}
		if !ok {
			continue
		}
		text, ok := imds(got)
		if ok == (tt.imds == missing) || ok && text != tt.imds {
			t.Errorf("%q: %q, %v, want %q", tt.pointer, text, ok, tt.imds)
		}
	}
	if _, ok := find("", ""); ok {
		t.Error("found something where there is nothing")
	}
}

// Readers see the data as they were before a change or after it.
func TestStoreConcurrently(t *testing.T) {
	s := NewStore(DefaultLimit)
	value := func(i int) string { return fmt.Sprintf(`{"a":"%d","b":"%[1]d"}`, i) }
	if err := s.Put([]byte(value(0))); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 300 {
			if err := s.Patch([]byte(value(i))); err != nil {
				t.Error(err)
			}
		}
	}()
	for {
		text := s.Text()
		a, _ := find(text, "/a")
		if b, _ := find(text, "/b"); a != b {
			t.Fatalf("%s and %s", a, b)
		}
		select {
		case <-done:
			return
		default:
		}
	}
}

// FuzzStore: what was put is found again, member by member, and a text that is no JSON changes nothing.
func FuzzStore(f *testing.F) {
	f.Add([]byte(sample), []byte(`{"z": null}`))
	f.Add([]byte(`[1,[2,[3,{"a":"]"}]]]`), []byte(`{"\ud800":0}`))
	f.Add([]byte(`"\\\""`), []byte(`{"a":{"b":[]}}`))
	f.Fuzz(func(t *testing.T, first, patch []byte) {
		s := NewStore(1 << 20)
		if err := s.Put(first); err != nil {
			if s.Text() != "" {
				t.Error("data after an error")
			}
			return
		}
		before := s.Text()
		if err := s.Put([]byte(before)); err != nil || s.Text() != before {
			t.Errorf("%q becomes %q, %v", before, s.Text(), err)
		}
		if err := s.Patch(patch); err != nil && s.Text() != before {
			t.Error("changed in spite of an error")
		}
		check(t, s.Text(), "", s.Text())
	})
}

func check(t *testing.T, text, pointer, value string) {
	got, ok := find(text, pointer)
	if !ok || got != value {
		t.Fatalf("%q: %q, %v, want %q", pointer, got, ok, value)
	}
	imds(value)
	if !isObject(value) && !isArray(value) {
		return
	}
	escape := strings.NewReplacer("~", "~0", "/", "~1")
	for name, v := range children(value) {
		check(t, text, pointer+"/"+escape.Replace(name), v)
	}
}
