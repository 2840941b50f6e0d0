package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The file's data are there before the first request; both limits hold.
func TestMetadataFile(t *testing.T) {
	dir := t.TempDir()
	file, sock := filepath.Join(dir, "metadata.json"), filepath.Join(dir, "fc.sock")
	if err := os.WriteFile(file, []byte(`{ "a": { "b": 1 } }`), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, nil, "--api-sock", sock, "--metadata", file, "--mmds-size-limit", "60000", "--http-api-max-payload-size", "70000")
	c := answers(t, sock)
	ctx := context.Background()
	var data json.RawMessage
	if err := c.GetMetadata(ctx, &data); err != nil || string(data) != `{"a":{"b":1}}` {
		t.Errorf("%s, %v", data, err)
	}
	for n, want := range map[int]string{59998: "", 59999: "MMDS limit exceeded error: The MMDS patch request doesn't fit.", 69999: "larger than the 70000 bytes allowed"} {
		if err := c.PutMetadata(ctx, strings.Repeat("x", n)); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%d bytes: %v, want %q", n, err, want)
		}
	}
}
