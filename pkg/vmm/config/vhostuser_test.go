package config

import (
	"strings"
	"testing"
)

func TestSocketDrives(t *testing.T) {
	for _, tt := range []struct {
		name  string
		drive Drive
		want  string // of the error
	}{
		{"good", Drive{Socket: "s"}, ""},
		{"all that it may have", Drive{Socket: strings.Repeat("s", MaxSocketPath), CacheType: CacheWriteback, IsRootDevice: true, PartUUID: "0eaa91a0-01"}, ""},
		{"a file too", Drive{Socket: "s", PathOnHost: "f"}, `drives/a/path_on_host is "f": want it left out with socket`},
		{"read-only", Drive{Socket: "s", IsReadOnly: true}, "drives/a/is_read_only is true: want it left out"},
		{"engine", Drive{Socket: "s", IOEngine: IOSync}, `drives/a/io_engine is "Sync": want it left out`},
		{"limits", Drive{Socket: "s", RateLimiter: &RateLimiter{}}, "drives/a/rate_limiter is there: want it left out"},
		{"cache", Drive{Socket: "s", CacheType: "None"}, "drives/a/cache_type"},
		{"long", Drive{Socket: strings.Repeat("s", MaxSocketPath+1)}, "a path of at most 107 bytes"},
		{"abstract", Drive{Socket: "@s"}, "drives/a/socket is \"@s\": want a path that does not begin with @"},
		{"NUL", Drive{Socket: "s\x00"}, "drives/a/socket"},
		{"neither", Drive{}, "drives/a/path_on_host is missing"},
	} {
		tt.drive.DriveID = "a"
		vm := VM{BootSource: &BootSource{KernelImagePath: "k"}, Drives: []Drive{tt.drive}}
		for range 2 { // defaults are applied to what has them, too
			vm.ApplyDefaults()
			if err := vm.Validate(); tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
			}
		}
	}
}

func TestSocketFilesystems(t *testing.T) {
	for _, tt := range []struct {
		name string
		fs   Filesystem
		want string // of the error
	}{
		{"good", Filesystem{Socket: strings.Repeat("s", MaxSocketPath)}, ""},
		{"a folder too", Filesystem{Socket: "s", PathOnHost: "f"}, `filesystems/a/path_on_host is "f": want it left out with socket`},
		{"read-only", Filesystem{Socket: "s", IsReadOnly: true}, "filesystems/a/is_read_only is true: want it left out"},
		{"long", Filesystem{Socket: strings.Repeat("s", MaxSocketPath+1)}, "a path of at most 107 bytes"},
		{"abstract", Filesystem{Socket: "@s"}, "filesystems/a/socket is \"@s\": want a path that does not begin with @"},
		{"neither", Filesystem{}, "filesystems/a/path_on_host is missing"},
	} {
		tt.fs.FSID, tt.fs.Tag = "a", "t"
		if err := tt.fs.Validate(); tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestSocketUpdates(t *testing.T) {
	served, file := &Drive{DriveID: "a", Socket: "s"}, &Drive{DriveID: "a", PathOnHost: "f"}
	for _, u := range []DriveUpdate{{DriveID: "a"}, {DriveID: "a", PathOnHost: "g"}, {DriveID: "a", RateLimiter: &RateLimiter{}}} {
		if err := u.CheckFor(file); err != nil {
			t.Errorf("%+v: %v", u, err)
		}
		empty := u.PathOnHost == "" && u.RateLimiter == nil
		if err := u.CheckFor(served); (err == nil) != empty || err != nil && !strings.Contains(err.Error(), "left out") {
			t.Errorf("%+v of a drive with a socket: %v", u, err)
		}
	}
}
