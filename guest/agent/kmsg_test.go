package main

import (
	"os"
	"strings"
	"testing"
)

func TestKmsg(t *testing.T) {
	for line, want := range map[string]string{
		"level=warning msg=x\n":   "<3>agent: level=warning msg=x",
		strings.Repeat("a", 2000): "<3>agent: " + strings.Repeat("a", maxLine-3-len(kmsgPrefix)) + "...",
	} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		if n, err := (kmsg{w}).Write([]byte(line)); n != len(line) || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		buf := make([]byte, 4096)
		if n, _ := r.Read(buf); string(buf[:n]) != want {
			t.Errorf("%q, want %q", buf[:n], want)
		}
		r.Close()
		w.Close()
	}
}
