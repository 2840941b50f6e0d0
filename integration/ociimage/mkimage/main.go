// Command mkimage writes the tests' busybox image as an OCI archive, for `ctr image import`.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"os"

	"github.com/fcshim/containerd-shim-fc-v2/integration/ociimage"
)

func main() {
	out := flag.String("o", "busybox.tar", "file to write")
	busybox := flag.String("busybox", ociimage.DefaultBusybox, "a static busybox")
	flag.Parse()
	if err := run(*out, *busybox); err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
	fmt.Println(ociimage.Name)
}

func run(out, busybox string) (err error) {
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			os.Remove(out)
		}
	}()
	w := bufio.NewWriter(f)
	if err := ociimage.Write(w, busybox); err != nil {
		return err
	}
	return w.Flush()
}
