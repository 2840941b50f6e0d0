package api

import (
	"net"
	"strings"
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

// TestSocketDrive describes a drive that another process serves, and has it looked at again. Nobody connects before the start.
func TestSocketDrive(t *testing.T) {
	b := newBench(t)
	l, err := net.Listen("unix", b.dir+"/socket")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	refused := func(method, body, want string) {
		t.Helper()
		if status, answer := b.do(method, "/drives/a", body); status != 400 || !strings.Contains(faultOf(t, answer), want) {
			t.Errorf("%s %s: %d %s, want 400 with %q", method, body, status, answer, want)
		}
	}
	const begin = `{"drive_id": "a", "is_root_device": true, `
	refused("PUT", begin+`"socket": "/nope"}`, `drives/a/socket is "/nope": want a socket at which a vhost-user back-end listens (no such file`)
	refused("PUT", begin+`"socket": "$D/disk"}`, "socket operation on non-socket")
	refused("PUT", begin+`"socket": "$D/socket", "path_on_host": "$D/disk"}`, "drives/a/path_on_host is")
	refused("PUT", begin+`"socket": "$D/socket", "is_read_only": true}`, "drives/a/is_read_only is true")
	refused("PUT", begin+`"socket": "$D/socket", "io_engine": "Sync"}`, `drives/a/io_engine is "Sync"`)
	refused("PUT", begin+`"socket": "$D/socket", "rate_limiter": {}}`, "drives/a/rate_limiter")
	refused("PUT", begin+`"socket": 7}`, "socket is 7: want a string")
	b.must(t, "PUT", "/drives/a", begin+`"socket": "$D/socket", "cache_type": "Writeback", "partuuid": null, "path_on_host": null, "rate_limiter": null}`)
	if got, want := b.must(t, "GET", "/vm/config", ""), `{"drive_id":"a","socket":"`+b.dir+`/socket","is_root_device":true,"is_read_only":false,"cache_type":"Writeback"}`; !strings.Contains(got, want) {
		t.Errorf("%s, want %s in it", got, want)
	}
	b.start(t)
	if d := b.booted[0].Drives[0]; d.Socket != b.dir+"/socket" || d.PathOnHost != "" || d.IOEngine != "" || d.CacheType != config.CacheWriteback {
		t.Errorf("%+v", d)
	}
	refused("PATCH", `{"drive_id": "a", "path_on_host": "$D/disk"}`, "drives/a/path_on_host is")
	refused("PATCH", `{"drive_id": "a", "rate_limiter": {}}`, "drives/a/rate_limiter is there")
	if len(b.machine.drives) != 0 {
		t.Error("the machine was asked all the same")
	}
	b.must(t, "PATCH", "/drives/a", `{"drive_id": "a"}`)
	if len(b.machine.drives) != 1 {
		t.Error("the machine was not asked")
	}
}

// TestSocketFilesystem is the same of a folder.
func TestSocketFilesystem(t *testing.T) {
	b := newBench(t)
	l, err := net.Listen("unix", b.dir+"/socket")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const begin = `{"fs_id": "a", "tag": "t", `
	for body, want := range map[string]string{
		`"socket": "/nope"}`:   `filesystems/a/socket is "/nope": want a socket at which a vhost-user back-end listens (no such file`,
		`"socket": "$D/disk"}`: "socket operation on non-socket",
		`"socket": "$D/socket", "path_on_host": "$D/shared"}`: "filesystems/a/path_on_host is",
		`"socket": "$D/socket", "is_read_only": true}`:        "filesystems/a/is_read_only is true",
		`"socket": null}`: "filesystems/a/path_on_host is missing",
	} {
		if status, answer := b.do("PUT", "/filesystems/a", begin+body); status != 400 || !strings.Contains(faultOf(t, answer), want) {
			t.Errorf("%s: %d %s, want 400 with %q", body, status, answer, want)
		}
	}
	b.must(t, "PUT", "/filesystems/a", begin+`"socket": "$D/socket", "path_on_host": null}`)
	if got, want := b.must(t, "GET", "/vm/config", ""), `{"fs_id":"a","tag":"t","socket":"`+b.dir+`/socket","is_read_only":false}`; !strings.Contains(got, want) {
		t.Errorf("%s, want %s in it", got, want)
	}
}
