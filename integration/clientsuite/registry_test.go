package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/integration/ociimage"
)

func fetch(t *testing.T, url string) (int, string, []byte) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header.Get("Content-Type"), b
}

// TestPull walks every image of the suite as a client that pulls all platforms would.
func TestPull(t *testing.T) {
	if _, err := os.Stat(ociimage.DefaultBusybox); err != nil {
		t.Skip(err)
	}
	s := newStore()
	refs, err := addSuiteImages(s, ociimage.DefaultBusybox)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(s)
	defer server.Close()
	for key, ref := range refs {
		t.Run(key, func(t *testing.T) {
			sep := ":"
			if strings.Contains(ref, "@") {
				sep = "@"
			}
			name, tag, _ := strings.Cut(ref, sep)
			base := server.URL + "/v2/" + name
			var walk func(url, want string) int
			walk = func(url, want string) int {
				status, mediaType, b := fetch(t, url)
				if status != http.StatusOK || want != "" && digest(b) != want {
					t.Fatalf("%s: status %d, digest %s, want %s", url, status, digest(b), want)
				}
				var m struct {
					Manifests, Layers []descriptor
					Config            *descriptor
				}
				if mediaType == mediaIndex || mediaType == mediaManifest {
					if err := json.Unmarshal(b, &m); err != nil {
						t.Fatal(err)
					}
				}
				blobs := 0
				for _, d := range m.Manifests {
					blobs += walk(base+"/manifests/"+d.Digest, d.Digest)
				}
				for _, d := range m.Layers {
					blobs += 1 + walk(base+"/blobs/"+d.Digest, d.Digest)
				}
				if m.Config != nil {
					walk(base+"/blobs/"+m.Config.Digest, m.Config.Digest)
				}
				return blobs
			}
			if blobs := walk(base+"/manifests/"+tag, ""); blobs < 3 {
				t.Errorf("%d layers in all platforms, want one for each of three at least", blobs)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	server := httptest.NewServer(newStore())
	defer server.Close()
	for path, want := range map[string]int{
		"/v2/":                          http.StatusOK,
		"/":                             http.StatusNotFound,
		"/v2/busybox/manifests/none":    http.StatusNotFound,
		"/v2/busybox/blobs/sha256:none": http.StatusNotFound,
	} {
		if got, _, _ := fetch(t, server.URL+path); got != want {
			t.Errorf("GET %s: status %d, want %d", path, got, want)
		}
	}
	resp, err := http.Post(server.URL+"/v2/busybox/blobs/uploads/", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: status %d, want %d", resp.StatusCode, http.StatusMethodNotAllowed)
	}
}
