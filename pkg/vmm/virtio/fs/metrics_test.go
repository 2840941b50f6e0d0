package fs_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// What goes either way is counted, requests and answers included.
func TestMetrics(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "f"), bytes.Repeat([]byte("x"), 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	d := newDevice(t, root, false)
	v := start(t, d)
	node, fh := v.open("f", 2)
	m := d.Metrics()
	requests, rx, tx := m.Requests.Count(), m.RxBytes.Count(), m.TxBytes.Count()
	if requests != 3 {
		t.Errorf("%d requests until the file was open, want 3", requests)
	}
	if st, b := v.call(opRead, node, fuse.ReadIn{Fh: fh, Size: 4096}, nil, 4096); st != 0 || len(b) != 4096 {
		t.Fatalf("READ: %v, %d bytes", st, len(b))
	}
	if n := m.RxBytes.Count() - rx; n != outHeader+4096 {
		t.Errorf("a read of 4096 bytes moved %d to the guest", n)
	}
	if st, _ := v.call(opWrite, node, fuse.WriteIn{Fh: fh, Size: 1000}, make([]byte, 1000), 16); st != 0 {
		t.Fatalf("WRITE: %v", st)
	}
	if n := m.TxBytes.Count() - tx; n < 1000+2*inHeader || n > 1000+4*inHeader {
		t.Errorf("a write of 1000 bytes moved %d from the guest", n)
	}
	if m.Requests.Count() != 5 || m.InvalidReqs.Count() != 0 || m.EventFails.Count() != 0 {
		t.Errorf("%d requests, %d invalid", m.Requests.Count(), m.InvalidReqs.Count())
	}
	v.Do(v.Rings[1], v.put(opRead, node, nil, nil)[:0], v.room(10)) // no header
	if m.InvalidReqs.Count() != 1 {
		t.Errorf("%d invalid requests, want 1", m.InvalidReqs.Count())
	}
}
