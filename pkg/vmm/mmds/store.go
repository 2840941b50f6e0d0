// Package mmds is Firecracker's microVM metadata service, which the host fills and the guest asks over HTTP: the data, the
// session tokens, and the answers to requests. Package tcpip carries requests and answers between it and a network device.
//
// It must never let the guest change the data, trust what a request says, or keep more of a request than its answer. Bodies of
// errors and the rules are Firecracker's, as programs in guests know them.
package mmds

import (
	"bytes"
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"
)

// DefaultLimit bounds the data, in bytes of compact JSON, where nobody says otherwise.
const DefaultLimit = 51200

// maxDepth bounds how deep arrays and objects are nested, as Firecracker's parser does.
const maxDepth = 127

// Errors of a Store, in Firecracker's words.
var (
	// ErrTooLarge says that the data would be larger than the limit. They stay as they were.
	ErrTooLarge = errdefs.ErrResourceExhausted.WithMessage("The MMDS patch request doesn't fit.")
	// ErrNotInitialized says that there are no data to be patched yet.
	ErrNotInitialized = errdefs.ErrFailedPrecondition.WithMessage("The MMDS data store is not initialized.")
)

// Store holds the data: one JSON value. It is safe for concurrent use; whoever reads gets the data as they were before a change or
// after it.
type Store struct {
	limit   int
	writing sync.Mutex
	// text is compact JSON, the keys of each object sorted; nil before the first Put. Readers do not wait for who writes.
	text atomic.Pointer[string]
}

// NewStore makes a store without data, for at most limit bytes of them.
func NewStore(limit int) *Store { return &Store{limit: limit} }

// Put replaces the data by a JSON text. Of two members of the same name the last one counts.
func (s *Store) Put(text []byte) error {
	v, err := parse(text)
	if err != nil {
		return err
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	return s.set(v)
}

// Patch merges a JSON text into the data (RFC 7396).
func (s *Store) Patch(text []byte) error {
	patch, err := parse(text)
	if err != nil {
		return err
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	text = []byte(s.Text())
	if len(text) == 0 {
		return ErrNotInitialized
	}
	v, err := parse(text)
	if err != nil {
		return fmt.Errorf("the data store's own text: %w", err)
	}
	return s.set(merge(v, patch))
}

// Text is the data as compact JSON, "" if there are none yet.
func (s *Store) Text() string {
	if text := s.text.Load(); text != nil {
		return *text
	}
	return ""
}

func (s *Store) set(v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b) // which sorts keys
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("metadata: %w", err)
	}
	text := bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	if len(text) > s.limit {
		return ErrTooLarge
	}
	kept := string(text)
	s.text.Store(&kept)
	return nil
}

// parse reads one JSON value. Numbers stay as they are written.
func parse(text []byte) (any, error) {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("metadata: %s: %w", fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
	}
	if !json.Valid(text) {
		return nil, bad("not a JSON text")
	}
	if d := depth(text); d > maxDepth {
		return nil, bad("arrays and objects are nested more than %d deep", maxDepth)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, bad("%v", err)
	}
	return v, nil
}

// depth is how deep arrays and objects are nested in a JSON text.
func depth(text []byte) (deepest int) {
	now, quoted := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			now++
			deepest = max(deepest, now)
		case c == '}' || c == ']':
			now--
		}
	}
	return deepest
}

// merge is RFC 7396's MergePatch. It may use and change target.
func merge(target, patch any) any {
	changes, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	object, ok := target.(map[string]any)
	if !ok {
		object = make(map[string]any, len(changes))
	}
	for name, v := range changes {
		if v == nil {
			delete(object, name)
		} else {
			object[name] = merge(object[name], v)
		}
	}
	return object
}
