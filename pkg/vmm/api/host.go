package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

// What can be known of the host's files when they are named, so that the request that names a wrong one fails, and not
// the start. The machine opens them itself, later, and checks again.

func hostError(field, path, want string, err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	if err != nil {
		want += " (" + err.Error() + ")"
	}
	return &config.FieldError{Field: field, Value: strconv.Quote(shorten(path)), Want: want}
}

// within runs look, which looks at a path of the host, for as long as ctx lasts. Then look goes on by itself: the host's file system may
// never answer.
func within(ctx context.Context, field, path string, look func() error) error {
	done := make(chan error, 1)
	go func() { done <- look() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("waiting for the host to open %s %s: %w", field, strconv.Quote(shorten(path)), context.Cause(ctx))
	}
}

// readFile reads a regular file of at most MaxConfigFile bytes that a field names.
func readFile(field, path string) ([]byte, error) {
	want := fmt.Sprintf("a readable file of at most %d bytes", MaxConfigFile)
	if err := checkOpens(field, path, os.O_RDONLY, false); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, hostError(field, path, want, err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, MaxConfigFile+1))
	if err != nil || len(text) > MaxConfigFile {
		return nil, hostError(field, path, want, err)
	}
	return text, nil
}

func checkBootSource(b *config.BootSource) error {
	if err := checkOpens("kernel_image_path", b.KernelImagePath, os.O_RDONLY, false); err != nil {
		return err
	}
	if b.InitrdPath == "" {
		return nil
	}
	return checkOpens("initrd_path", b.InitrdPath, os.O_RDONLY, false)
}

func checkDrive(d *config.Drive) error {
	if d.Socket != "" {
		return checkSocket("drives/"+d.DriveID+"/socket", d.Socket)
	}
	flags := os.O_RDWR
	if d.IsReadOnly {
		flags = os.O_RDONLY
	}
	return checkOpens("drives/"+d.DriveID+"/path_on_host", d.PathOnHost, flags, true)
}

// checkSocket wants a socket. Whether somebody listens is a matter of the start: one who serves a single client would take this for it.
func checkSocket(field, path string) error {
	st, err := os.Stat(path)
	if err == nil && st.Mode()&fs.ModeSocket == 0 {
		err = unix.ENOTSOCK
	}
	if err != nil {
		return hostError(field, path, "a socket at which a vhost-user back-end listens", err)
	}
	return nil
}

// checkOpens opens a regular file, or a block device where that will do, and closes it again. O_NONBLOCK keeps a named
// pipe, put there in the meantime, from blocking the server.
func checkOpens(field, path string, flags int, device bool) error {
	want := "a readable file"
	if flags == os.O_RDWR {
		want = "a readable and writable file"
	}
	if device {
		want += " or block device"
	}
	st, err := os.Stat(path)
	if err != nil {
		return hostError(field, path, want, err)
	}
	block := st.Mode()&fs.ModeDevice != 0 && st.Mode()&fs.ModeCharDevice == 0
	if !st.Mode().IsRegular() && !(device && block) {
		return hostError(field, path, want, nil)
	}
	fd, err := unix.Open(path, flags|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return hostError(field, path, want, err)
	}
	unix.Close(fd)
	return nil
}

func checkFilesystem(f *config.Filesystem) error {
	if f.Socket != "" {
		return checkSocket("filesystems/"+f.FSID+"/socket", f.Socket)
	}
	field := "filesystems/" + f.FSID + "/path_on_host"
	st, err := os.Stat(f.PathOnHost)
	if err != nil || !st.IsDir() {
		return hostError(field, f.PathOnHost, "a folder", err)
	}
	return nil
}

// checkVsock wants a place where the socket can be made. Nothing is bound before the start.
func checkVsock(v *config.Vsock) error {
	if _, err := os.Lstat(v.UDSPath); err == nil {
		return hostError("uds_path", v.UDSPath, "a path where nothing is yet", unix.EEXIST)
	}
	return checkFolder("uds_path", v.UDSPath)
}

func checkSerial(s *config.Serial) error {
	if s.SerialOutPath == "" {
		return nil
	}
	st, err := os.Stat(s.SerialOutPath)
	if errors.Is(err, fs.ErrNotExist) {
		return checkFolder("serial_out_path", s.SerialOutPath)
	}
	if err == nil && st.IsDir() {
		err = unix.EISDIR
	}
	if err == nil {
		err = unix.Access(s.SerialOutPath, unix.W_OK)
	}
	if err != nil {
		return hostError("serial_out_path", s.SerialOutPath, "a writable file", err)
	}
	return nil
}

// checkFolder wants the folder of path to be there and writable.
func checkFolder(field, path string) error {
	if err := unix.Access(filepath.Dir(path), unix.W_OK|unix.X_OK); err != nil {
		return hostError(field, path, "a path in a writable folder", err)
	}
	return nil
}
