package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strings"
	"time"
)

// store is a registry for pulling, all of it in memory: the pull part of the OCI distribution specification, v1.1, §"Pull". It is
// filled before it serves.
type store struct {
	// blobs by digest, whichever repository they are asked of.
	blobs map[string][]byte
	// manifests by "name:tag" and "name@digest".
	manifests map[string]manifest
}

type manifest struct {
	mediaType string
	data      []byte
}

type descriptor struct {
	MediaType string    `json:"mediaType"`
	Digest    string    `json:"digest"`
	Size      int       `json:"size"`
	Platform  *platform `json:"platform,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Variant      string `json:"variant,omitempty"`
}

func newStore() *store { return &store{blobs: map[string][]byte{}, manifests: map[string]manifest{}} }

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (s *store) addBlob(mediaType string, data []byte) descriptor {
	d := descriptor{MediaType: mediaType, Digest: digest(data), Size: len(data)}
	s.blobs[d.Digest] = data
	return d
}

// addManifest adds a manifest or an index, v, to repository name, with a tag if it is not empty.
func (s *store) addManifest(name, tag, mediaType string, v any) (descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return descriptor{}, err
	}
	d := descriptor{MediaType: mediaType, Digest: digest(data), Size: len(data)}
	s.manifests[name+"@"+d.Digest] = manifest{mediaType, data}
	if tag != "" {
		s.manifests[name+":"+tag] = manifest{mediaType, data}
	}
	return d, nil
}

// ServeHTTP answers GET and HEAD of /v2/, /v2/NAME/manifests/TAG-OR-DIGEST and /v2/NAME/blobs/DIGEST.
func (s *store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	switch {
	case !ok:
		http.NotFound(w, r)
		return
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		http.Error(w, "this registry only serves", http.StatusMethodNotAllowed)
		return
	case path == "":
		return
	}
	if name, ref, ok := strings.Cut(path, "/manifests/"); ok {
		sep := ":"
		if strings.Contains(ref, ":") {
			sep = "@"
		}
		if m, ok := s.manifests[name+sep+ref]; ok {
			serve(w, r, m.mediaType, m.data)
			return
		}
	} else if _, ref, ok := strings.Cut(path, "/blobs/"); ok {
		if data, ok := s.blobs[ref]; ok {
			serve(w, r, "application/octet-stream", data)
			return
		}
	}
	http.NotFound(w, r)
}

func serve(w http.ResponseWriter, r *http.Request, mediaType string, data []byte) {
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Docker-Content-Digest", digest(data))
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}
