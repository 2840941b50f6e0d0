package legacy

import "testing"

func TestBootTimer(t *testing.T) {
	calls := 0
	b := BootTimer{Booted: func() { calls++ }}
	ignored := []struct {
		name   string
		offset uint64
		data   []byte
	}{
		{"another byte", 0, []byte{122}},
		{"another offset", 1, []byte{BootTimerDone}},
		{"the page's last byte", 4095, []byte{BootTimerDone}},
		{"two bytes", 0, []byte{BootTimerDone, 0}},
		{"eight bytes", 0, []byte{BootTimerDone, 0, 0, 0, 0, 0, 0, 0}},
		{"no byte", 0, nil},
	}
	for _, tt := range ignored {
		b.Write(tt.offset, tt.data)
		if calls != 0 {
			t.Fatalf("%s counts as a boot", tt.name)
		}
	}
	for range 3 {
		b.Write(0, []byte{BootTimerDone})
	}
	if calls != 1 {
		t.Errorf("%d calls for three boots, want 1", calls)
	}
}
