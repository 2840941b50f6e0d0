package api

import (
	"context"
	_ "embed" // the document
	"encoding/json"
)

// openAPI describes this API to programs: each endpoint, each field with its type, its range and whether it is required, and, as x-when,
// on which side of InstanceStart a request is allowed. It is text that is never parsed here; tests hold it against what is served.
//
//go:embed openapi.json
var openAPI string

func (s *Server) getOpenAPI(context.Context, request) (any, error) {
	return json.RawMessage(openAPI), nil
}
