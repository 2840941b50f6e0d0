package ociimage

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"testing"
)

func TestWrite(t *testing.T) {
	if err := checkStatic(DefaultBusybox); err != nil {
		t.Skip(err)
	}
	var a, b bytes.Buffer
	for _, w := range []*bytes.Buffer{&a, &b} {
		if err := Write(w, DefaultBusybox); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("two archives of one busybox differ")
	}
	r := tar.NewReader(&a)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if dir, sum, ok := bytes.Cut([]byte(h.Name), []byte("sha256/")); ok && string(sum) != hexSum(data) {
			t.Errorf("%s%s does not have the digest of its name", dir, sum)
		}
	}
}

func TestNotStatic(t *testing.T) {
	const dynamic = "/bin/ls"
	if _, err := os.Stat(dynamic); err != nil {
		t.Skip(err)
	}
	if err := Write(io.Discard, dynamic); !errors.Is(err, ErrNotStatic) {
		t.Errorf("Write with %s: %v, want %v", dynamic, err, ErrNotStatic)
	}
}
