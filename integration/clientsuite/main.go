// Command clientsuite runs containerd's own client tests where no registry can be reached:
//
//	clientsuite CMD [ARG…]
//
// It makes the images that the tests pull out of this machine's static busybox, serves them as a registry on a port of 127.0.0.1
// chosen by the system, and runs CMD with TEST_IMAGE_LIST, the path of a TOML file that gives the images' names, in its environment.
// It exits with CMD's status.
//
// It must never serve anything but what it made, nor listen anywhere but on 127.0.0.1.
package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/fcshim/containerd-shim-fc-v2/integration/ociimage"
)

// The variable that scripts/tools.sh makes the tests read; they have a flag for it, but look at it before it is parsed.
const envImageList = "TEST_IMAGE_LIST"

func main() {
	status, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "clientsuite:", err)
		status = 126
	}
	os.Exit(status)
}

func run(argv []string) (int, error) {
	if len(argv) == 0 {
		return 0, errors.New("usage: clientsuite CMD [ARG…]")
	}
	images := newStore()
	refs, err := addSuiteImages(images, ociimage.DefaultBusybox)
	if err != nil {
		return 0, err
	}
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	server := &http.Server{Handler: images, ReadHeaderTimeout: 10 * time.Second}
	defer server.Close()
	go func() { _ = server.Serve(listener) }()

	dir, err := os.MkdirTemp("", "clientsuite")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	list := map[string]string{}
	for key, ref := range refs {
		list[key] = listener.Addr().String() + "/" + ref
	}
	b, err := toml.Marshal(list)
	if err != nil {
		return 0, err
	}
	path := filepath.Join(dir, "images.toml")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		return 0, err
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), envImageList+"="+path)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil // -1 for an end by a signal
	}
	return 0, err
}
