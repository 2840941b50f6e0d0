package harness

import (
	"os"
	"testing"
)

func TestParseSmaps(t *testing.T) {
	const smaps = `00400000-01000000 r-xp 00000000 00:1f 4242                             /usr/bin/fc-vmm
Size:              12288 kB
Shared_Clean:       2904 kB
Private_Clean:        12 kB
Private_Dirty:         0 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0008000000 rw-s 00000000 00:01 99                         /memfd:guest-ram (deleted)
Private_Clean:       188 kB
Private_Dirty:     33520 kB
7f5248b88000-7f5248d88000 rw-p 00000000 00:00 0 
Private_Clean:         0 kB
Private_Dirty:       120 kB
Private_Hugetlb:       0 kB
`
	u, err := parseSmaps([]byte(smaps))
	if want := (Usage{Private: 132 << 10, Shared: 2904 << 10, GuestRAM: 33708 << 10}); err != nil || u != want {
		t.Errorf("%v, %v; want %v", u, err, want)
	}
	if _, err := parseSmaps([]byte("Private_Dirty: many kB\n")); err == nil {
		t.Error("no error for a size that is no number")
	}
}

func TestMeasure(t *testing.T) {
	u := Measure(t, os.Getpid())
	if u.Private < 64<<10 || u.GuestRAM != 0 || u.Files < 3 || u.Threads < 1 {
		t.Errorf("this process: %v", u)
	}
}
