package api

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/api/openapitest"
)

func operations(t *testing.T) []*openapitest.Operation {
	t.Helper()
	ops, err := openapitest.Parse([]byte(openAPI))
	if err != nil {
		t.Fatal(err)
	}
	return ops
}

// sourceRoutes reads the methods and paths that route knows out of the source, where its cases are "METHOD part". What it compares the
// second part with is in the case's body, or in the cases of a function that this calls, whose name begins with route, too.
func sourceRoutes(t *testing.T) (routes []string) {
	t.Helper()
	functions := map[string]*ast.FuncDecl{}
	files, _ := filepath.Glob("*.go")
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok {
				functions[f.Name.Name] = f
			}
		}
	}
	two := functions["route"].Body.List[1].(*ast.IfStmt) // for paths of two parts
	for _, c := range cases(two) {
		seconds, more := seconds(c)
		for _, s := range literals(c) {
			method, part, _ := strings.Cut(s, " ")
			if len(seconds) == 0 && more == "" {
				routes = append(routes, method+" /"+part+"/{}")
			}
			for _, second := range seconds {
				routes = append(routes, method+" /"+part+"/"+second)
			}
			if more == "" {
				continue
			}
			for _, inner := range cases(functions[more]) {
				for _, s := range literals(inner) {
					if m, rest, _ := strings.Cut(s, " "); m == method {
						routes = append(routes, method+" /"+part+"/"+rest)
					}
				}
			}
		}
	}
	for _, c := range cases(functions["route"]) {
		if c.Pos() > two.End() {
			for _, s := range literals(c) {
				method, part, _ := strings.Cut(s, " ")
				routes = append(routes, method+" /"+part)
			}
		}
	}
	return routes
}

// cases gives the clauses in a piece of code whose expressions are strings of two words.
func cases(n ast.Node) (list []*ast.CaseClause) {
	ast.Inspect(n, func(n ast.Node) bool {
		if c, ok := n.(*ast.CaseClause); ok && len(literals(c)) > 0 && strings.Contains(literals(c)[0], " ") {
			list = append(list, c)
		}
		return true
	})
	return list
}

// literals gives a clause's strings.
func literals(c *ast.CaseClause) (list []string) {
	for _, e := range c.List {
		if s, ok := literal(e); ok {
			list = append(list, s)
		}
	}
	return list
}

func literal(e ast.Expr) (string, bool) {
	l, ok := e.(*ast.BasicLit)
	if !ok || l.Kind != token.STRING {
		return "", false
	}
	s, err := strconv.Unquote(l.Value)
	return s, err == nil
}

// seconds gives what a clause's body compares with, and the function that it calls to go on.
func seconds(c *ast.CaseClause) (list []string, more string) {
	ast.Inspect(&ast.BlockStmt{List: c.Body}, func(n ast.Node) bool {
		switch b := n.(type) {
		case *ast.BinaryExpr:
			if s, ok := literal(b.Y); ok && b.Op == token.EQL {
				list = append(list, s)
			}
		case *ast.CallExpr:
			if f, ok := b.Fun.(*ast.Ident); ok && strings.HasPrefix(f.Name, "route") {
				more = f.Name
			}
		}
		return true
	})
	return list, more
}

// Each route is in the document, and nothing else is.
func TestDocumentRoutes(t *testing.T) {
	var documented []string
	for _, o := range operations(t) {
		if h, _ := route(o.Method, o.URL("a")); h == nil {
			t.Errorf("%s %s is in the document, and not served", o.Method, o.Path)
		}
		if !slices.Contains([]string{"before", "after", "any", "never"}, o.When) {
			t.Errorf("%s %s: x-when is %q", o.Method, o.Path, o.When)
		}
		documented = append(documented, o.Method+" "+regexp.MustCompile(`\{.*\}`).ReplaceAllString(o.Path, "{}"))
	}
	served := sourceRoutes(t)
	if len(served) < 20 {
		t.Fatalf("only %d routes found: %q", len(served), served)
	}
	slices.Sort(documented)
	slices.Sort(served)
	for _, r := range served {
		if !slices.Contains(documented, r) {
			t.Errorf("%s is served, and not in the document", r)
		}
	}
	for _, r := range documented {
		if !slices.Contains(served, r) {
			t.Errorf("%s is in the document, and no case of route", r)
		}
	}
}

// documentBench is a bench with one of each part, called a.
func documentBench(t *testing.T, started bool) *bench {
	t.Helper()
	b := newBench(t)
	b.must(t, "PUT", "/drives/a", `{"drive_id": "a", "path_on_host": "$D/disk", "is_root_device": false}`)
	b.must(t, "PUT", "/network-interfaces/a", `{"iface_id": "a", "host_dev_name": "tap0"}`)
	b.must(t, "PUT", "/filesystems/a", `{"fs_id": "a", "tag": "other", "path_on_host": "$D/shared"}`)
	b.must(t, "PUT", "/network-interfaces/m", `{"iface_id": "m", "host_dev_name": "tapm"}`)
	b.must(t, "PUT", "/mmds/config", `{"network_interfaces": ["m"]}`)
	b.must(t, "PUT", "/mmds", `{}`)
	b.must(t, "PATCH", "/machine-config", `{"mem_size_mib": 261120}`)
	b.must(t, "PUT", "/balloon", `{"amount_mib": 0, "deflate_on_oom": true, "stats_polling_interval_s": 1, "free_page_hinting": true}`)
	if started {
		b.start(t)
	}
	return b
}

// example gives values for what must be there on the host.
func example(o *openapitest.Operation) func(string) string {
	return func(name string) string {
		switch {
		case name == "path_on_host" && strings.HasPrefix(o.Path, "/filesystems"):
			return `"$D/shared"`
		case name == "path_on_host", name == "kernel_image_path", name == "initrd_path":
			return `"$D/disk"`
		case name == "uds_path", strings.HasSuffix(name, "_path"):
			return `"$D/new"`
		}
		return ""
	}
}

// Every body of the document is taken, with each field at the ends of its range, and every one that is off in one field is refused by
// that field's name.
func TestDocumentBodies(t *testing.T) {
	n := 0
	for _, o := range operations(t) {
		if o.Body == nil {
			continue
		}
		t.Run(o.Method+" "+o.Path, func(t *testing.T) {
			refusing := documentBench(t, o.When == "after") // nothing that is refused changes it
			for _, c := range o.Body.Cases("", example(o)) {
				n++
				b := refusing
				if !c.Bad {
					b = documentBench(t, o.When == "after")
				}
				id := "a"
				var members map[string]any
				if json.Unmarshal([]byte(c.Text), &members) == nil {
					if s, ok := members[o.Param()].(string); ok && !c.Bad {
						id = s
					}
				}
				status, answer := b.do(o.Method, o.URL(id), c.Text)
				if !c.Bad {
					// What is right by itself may come at the wrong time, or be about what is not there.
					apart := o.When == "any" && (strings.Contains(answer, beforeStart) || strings.Contains(answer, noKernel)) ||
						strings.Contains(c.Text, strings.Repeat("a", 64)) && strings.Contains(answer, "want the id of") ||
						strings.Contains(c.Text, `"huge_pages": "2M"`) && strings.Contains(answer, "with a balloon") // there is one
					if status != 204 && !apart {
						t.Errorf("%s: %d %s", c.Text, status, answer)
					}
					continue
				}
				if status != 400 || !strings.Contains(answer, c.Field) {
					t.Errorf("%s: %d %s, want 400 and %q in it", c.Text, status, answer, c.Field)
				}
			}
		})
	}
	if n < 200 {
		t.Errorf("only %d bodies tried", n)
	}
}

// The fields that a body may have are those of the document: the server lists them when it meets another.
func TestDocumentFields(t *testing.T) {
	listed := regexp.MustCompile("`([a-z_]+)`")
	var look func(t *testing.T, o *openapitest.Operation, s *openapitest.Schema, wrap func(string) string)
	look = func(t *testing.T, o *openapitest.Operation, s *openapitest.Schema, wrap func(string) string) {
		b := documentBench(t, o.When == "after")
		_, answer := b.do(o.Method, o.URL("a"), wrap(`{"no_such_field": 1}`))
		_, list, ok := strings.Cut(answer, "expected one of")
		if !ok {
			t.Fatalf("no list of fields: %s", answer)
		}
		for _, m := range listed.FindAllStringSubmatch(list, -1) {
			if s.Properties[m[1]] == nil {
				t.Errorf("%s is a field of %s, and not in the document", m[1], o.Path)
			}
		}
		for key, p := range s.Properties {
			if p.Type == "object" && len(p.Properties) > 0 {
				look(t, o, p, func(inner string) string { return wrap(openapitest.Object(map[string]string{key: inner})) })
			}
		}
	}
	for _, o := range operations(t) {
		if o.Body != nil && len(o.Body.Properties) > 0 {
			t.Run(o.Method+" "+o.Path, func(t *testing.T) { look(t, o, o.Body, func(s string) string { return s }) })
		}
	}
}

// A request on the wrong side of the start is refused as such.
func TestDocumentWhen(t *testing.T) {
	for _, o := range operations(t) {
		body := ""
		if o.Body != nil {
			for _, c := range o.Body.Cases("", example(o)) {
				if !c.Bad {
					body = c.Text
					break
				}
			}
		} else if o.When == "never" && o.Method != "GET" && o.Method != "DELETE" {
			body = "{}"
		}
		for _, started := range []bool{false, true} {
			b := documentBench(t, started)
			status, answer := b.do(o.Method, o.URL("a"), body)
			want := ""
			switch {
			case o.When == "never":
				want = "not supported yet: "
			case o.When == "before" && started:
				want = afterStart
			case o.When == "after" && !started:
				want = beforeStart
			case o.Path == "/actions" && started: // the first of its enumeration is the start
				want = afterStart
			case o.Path == "/actions":
				want = noKernel
			}
			if want == "" && status/100 != 2 || want != "" && (status != 400 || !strings.Contains(answer, want)) {
				t.Errorf("%s %s, started=%v: %d %s, want %q", o.Method, o.Path, started, status, answer, want)
			}
		}
	}
}

// What is answered is as the document says.
func TestDocumentAnswers(t *testing.T) {
	for _, started := range []bool{false, true} {
		b := documentBench(t, false)
		limit := `{"bandwidth": {"size": 18446744073709551615, "refill_time": 1}}`
		b.must(t, "PUT", "/drives/r", `{"drive_id": "r", "path_on_host": "$D/disk", "is_root_device": true, "partuuid": "0eaa91a0-01", "rate_limiter": `+limit+`}`)
		b.must(t, "PUT", "/network-interfaces/b", `{"iface_id": "b", "host_dev_name": "tap1", "mtu": 68, "guest_mac": "02:00:00:00:00:01", "rx_rate_limiter": `+limit+`}`)
		b.must(t, "PUT", "/vsock", `{"guest_cid": 3, "uds_path": "$D/v.sock"}`)
		b.must(t, "PUT", "/entropy", `{"rate_limiter": `+limit+`}`)
		b.must(t, "PUT", "/serial", `{"serial_out_path": "$D/console"}`)
		if started {
			b.start(t)
		}
		for _, o := range operations(t) {
			if o.Answer == nil || o.When == "after" && !started {
				continue
			}
			if err := o.Answer.Check([]byte(b.must(t, o.Method, o.Path, ""))); err != nil {
				t.Errorf("%s %s, started=%v: %v", o.Method, o.Path, started, err)
			}
		}
	}
}
