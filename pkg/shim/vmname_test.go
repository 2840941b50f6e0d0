package shim

import (
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/pkg/identifiers"
)

func TestVMNames(t *testing.T) {
	parts := []string{"a", "b", "c", "a-b", "b-c", "a-b-c", "a.b", "b.c", "a_b", "b_c", "a-b.c", "a.b_c", "A", "1"}
	whose := make(map[string][2]string)
	for _, ns := range parts {
		for _, id := range parts {
			if identifiers.Validate(ns) != nil || identifiers.Validate(id) != nil {
				t.Fatalf("containerd has no %q or no %q", ns, id)
			}
			name := vmName(ns, id)
			if other, ok := whose[name]; ok {
				t.Errorf("%s is of %q and of %q", name, other, [2]string{ns, id})
			}
			whose[name] = [2]string{ns, id}
			if filepath.Base(name) != name || len(name) > 200 {
				t.Errorf("%s is no file's name", name)
			}
		}
	}
	if identifiers.Validate(vmName("a", "b")) == nil {
		t.Error("a namespace or an id can have what is between them")
	}
}
