package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/integration/ociimage"
)

// Media types of the OCI image specification, v1.1, media-types.md.
const (
	mediaIndex    = "application/vnd.oci.image.index.v1+json"
	mediaManifest = "application/vnd.oci.image.manifest.v1+json"
	mediaConfig   = "application/vnd.oci.image.config.v1+json"
	mediaLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// epoch is the time stamp of every file.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// others are the further platforms of the images, whose layers hold nothing that could run: some tests look at platforms that are
// not the machine's.
func others() []platform {
	var ps []platform
	for _, p := range []platform{
		{Architecture: "amd64"}, {Architecture: "arm64", Variant: "v8"}, {Architecture: "s390x"},
	} {
		if p.Architecture != runtime.GOARCH {
			p.OS = "linux"
			ps = append(ps, p)
		}
	}
	return ps
}

// addSuiteImages adds the images of the tests and returns the key of each in the tests' list of images, with its reference in this
// registry.
func addSuiteImages(s *store, busybox string) (map[string]string, error) {
	base, err := ociimage.Layer(busybox)
	if err != nil {
		return nil, err
	}
	users, err := files(map[string]string{
		// The tests run processes as sys, www-data and backup.
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nsys:x:3:3:sys:/dev:/bin/false\nwww-data:x:33:33:www-data:/var/www:/bin/false\n" +
			"backup:x:34:34:backup:/var/backups:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n",
		// They send SIGTERM to nc as a container's first process, for which Debian's has no handler.
		"bin/nc":    "#!/bin/sh\ntrap 'exit 143' TERM\nbusybox nc \"$@\" &\nwait $!\n",
		"etc/group": "root:x:0:\nsys:x:3:\nwww-data:x:33:\nbackup:x:34:\nnobody:x:65534:\n",
	})
	if err != nil {
		return nil, err
	}
	more, err := files(map[string]string{
		"test_dir/test_file": "test_content\n",
		// A test looks, with bash, whether a program has kept its set-user-ID bit.
		"bin/bash":                   "#!/bin/sh\nexec sh \"$@\"\n",
		setUserID + "usr/bin/passwd": "nothing ever runs this\n",
	})
	if err != nil {
		return nil, err
	}
	pause, err := files(map[string]string{"pause": "nothing ever runs this\n"})
	if err != nil {
		return nil, err
	}
	refs := map[string]string{}
	for _, image := range []struct {
		key, name, tag string
		layers         [][]byte
	}{
		{"BusyBox", "busybox", "suite", [][]byte{base, users}},
		{"VolumeCopyUp", "volume-copy-up", "suite", [][]byte{base, users, more}},
		{"VolumeOwnership", "volume-ownership", "suite", [][]byte{base, users, more}},
		{"Pause", "pause", "suite", [][]byte{pause}},
	} {
		d, err := addImage(s, image.name, image.tag, image.layers)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", image.name, err)
		}
		refs[image.key] = image.name + ":" + image.tag
		if image.key == "BusyBox" {
			refs["BusyBoxByDigest"] = image.name + "@" + d.Digest
		}
	}
	return refs, nil
}

// addImage adds an index of an image for this machine, whose layers are tars, and of others.
func addImage(s *store, name, tag string, layers [][]byte) (descriptor, error) {
	here := platform{Architecture: runtime.GOARCH, OS: "linux"}
	manifests := []descriptor{}
	for _, p := range append([]platform{here}, others()...) {
		if p != here {
			// Content of its own: what a test did not pull must not be there all the same.
			dummy, err := files(map[string]string{"about": strings.Join([]string{name, p.OS, p.Architecture, p.Variant}, " ")})
			if err != nil {
				return descriptor{}, err
			}
			layers = [][]byte{dummy}
		}
		d, err := addPlatform(s, name, p, layers)
		if err != nil {
			return descriptor{}, err
		}
		manifests = append(manifests, d)
	}
	return s.addManifest(name, tag, mediaIndex, map[string]any{"schemaVersion": 2, "mediaType": mediaIndex, "manifests": manifests})
}

func addPlatform(s *store, name string, p platform, tars [][]byte) (descriptor, error) {
	var layers []descriptor
	var diffIDs []string
	for _, t := range tars {
		var buf bytes.Buffer
		z := gzip.NewWriter(&buf)
		if _, err := z.Write(t); err != nil {
			return descriptor{}, err
		}
		if err := z.Close(); err != nil {
			return descriptor{}, err
		}
		layers = append(layers, s.addBlob(mediaLayer, buf.Bytes()))
		diffIDs = append(diffIDs, digest(t))
	}
	config, err := json.Marshal(map[string]any{
		"created": epoch, "architecture": p.Architecture, "os": p.OS, "variant": p.Variant,
		"config": map[string]any{"Env": []string{"PATH=/bin:/sbin:/usr/bin:/usr/sbin"}, "Cmd": []string{"sh"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
	})
	if err != nil {
		return descriptor{}, err
	}
	d, err := s.addManifest(name, "", mediaManifest, map[string]any{
		"schemaVersion": 2, "mediaType": mediaManifest, "config": s.addBlob(mediaConfig, config), "layers": layers,
	})
	d.Platform = &p
	return d, err
}

// setUserID before a file's name gives it that bit.
const setUserID = "u+s "

// files makes a layer of programs by their contents, and of the folders at the top that these are in.
func files(contents map[string]string) ([]byte, error) {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, name := range slices.Sorted(maps.Keys(contents)) {
		content := contents[name]
		mode := int64(0o755)
		if plain, ok := strings.CutPrefix(name, setUserID); ok {
			name, mode = plain, 0o4755
		}
		if dir, _, ok := strings.Cut(name, "/"); ok {
			if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, ModTime: epoch}); err != nil {
				return nil, err
			}
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content)), ModTime: epoch}
		if err := tw.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := tw.Write([]byte(content)); err != nil {
			return nil, err
		}
	}
	return buf.Bytes(), tw.Close()
}
