package mmds

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math"
	"sync"
	"time"
)

// A token's time to live, in seconds.
const (
	minTTL = 1
	maxTTL = 21600
)

const (
	// tokenLen is that of a token in base64: a nonce, the time of its end, and a tag.
	tokenLen = (12 + 8 + 16) / 3 * 4
	// maxTokens bounds the tokens under one key: nonces are random (NIST SP 800-38D §8.3).
	maxTokens = math.MaxUint32
)

// Authority makes tokens and knows its own again. It remembers none: a token is the time of its end, encrypted and authenticated by a
// key that nobody else has, and so good for this microVM and this process only. It is safe for concurrent use.
type Authority struct {
	id    []byte
	epoch time.Time

	mu     sync.Mutex
	aead   cipher.AEAD // nil before the first token
	tokens uint32      // made with this key
	// since is the time since epoch; nil for that of the monotonic clock.
	since func() time.Duration
}

// NewAuthority makes an authority for a microVM.
func NewAuthority(id string) *Authority {
	return &Authority{id: []byte("microvmid=" + id), epoch: time.Now()}
}

// token makes a token that is good for ttl seconds.
func (a *Authority) token(ttl uint32) (string, error) {
	if ttl < minTTL || ttl > maxTTL {
		return "", fmt.Errorf("Invalid time to live value provided for token: %d. Please provide a value between %d and %d.", //lint:ignore ST1005 Firecracker's sentence
			ttl, minTTL, maxTTL)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.aead == nil || a.tokens == maxTokens {
		aead, err := newAEAD()
		if err != nil {
			return "", err
		}
		a.aead, a.tokens = aead, 0
	}
	a.tokens++
	end := binary.LittleEndian.AppendUint64(nil, uint64(a.now()+time.Duration(ttl)*time.Second))
	return base64.StdEncoding.EncodeToString(a.aead.Seal(nil, nil, end, a.id)), nil
}

// valid says whether a token is the authority's own and its time is not over.
func (a *Authority) valid(token string) bool {
	if len(token) != tokenLen {
		return false
	}
	sealed, err := base64.StdEncoding.Strict().DecodeString(token)
	if err != nil {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.aead == nil {
		return false
	}
	end, err := a.aead.Open(nil, nil, sealed, a.id)
	return err == nil && len(end) == 8 && a.now() < time.Duration(binary.LittleEndian.Uint64(end))
}

func (a *Authority) now() time.Duration {
	if a.since != nil {
		return a.since()
	}
	return time.Since(a.epoch)
}

// newAEAD is AES-256-GCM with a new key.
func newAEAD() (cipher.AEAD, error) {
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("key for tokens: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("key for tokens: %w", err)
	}
	return cipher.NewGCMWithRandomNonce(block)
}
