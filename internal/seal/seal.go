// Package seal encrypts secrets at rest (connection strings, TOTP seeds, signing keys) with AES-256-GCM under keys
// derived from REHOME_SECRET by HKDF-SHA256 (RFC 5869). A sealed value begins with a version byte and the four-byte id
// of its key, so that a later rotation can tell which secret opens it.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/rehomedb/rehome/tenant"
)

// MinSecret is the least length of REHOME_SECRET, in bytes.
const MinSecret = 32

const version, header = 1, 1 + 4

// Box seals and opens. It is safe for concurrent use.
type Box struct {
	secret []byte
	keyID  []byte
	aead   cipher.AEAD
}

// ErrWrongKey says that a value was sealed under another secret.
var ErrWrongKey = &tenant.Error{
	Kind: tenant.KindRefused, Code: "wrong-secret",
	Message: "a stored secret was sealed under another REHOME_SECRET", Hint: "start the server with the REHOME_SECRET that this installation was set up with",
}

// New derives the keys of a secret.
func New(secret tenant.Secret) (*Box, error) {
	raw := []byte(secret.Reveal())
	if len(raw) < MinSecret {
		return nil, tenant.Errorf(tenant.KindInvalid, "short-secret", "make one with: openssl rand -base64 48", "REHOME_SECRET has %d bytes; it needs at least %d", len(raw), MinSecret)
	}
	key, err := hkdf.Key(sha256.New, raw, nil, "rehome seal v1", 32)
	if err != nil {
		return nil, fmt.Errorf("derive the sealing key: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("make the cipher: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("make the cipher: %w", err)
	}
	id := sha256.Sum256(key)
	return &Box{secret: raw, keyID: id[:4], aead: aead}, nil
}

// Seal encrypts plain. The purpose ("shard-dsn", "totp-seed") must be given again to open it.
func (b *Box) Seal(purpose, plain string) []byte {
	out := append([]byte{version}, b.keyID...)
	nonce := make([]byte, b.aead.NonceSize())
	_, _ = rand.Read(nonce) // never fails (crypto/rand)
	out = append(out, nonce...)
	return b.aead.Seal(out, nonce, []byte(plain), []byte(purpose))
}

// Open decrypts what Seal made for the same purpose. ErrWrongKey if another secret sealed it.
func (b *Box) Open(purpose string, sealed []byte) (string, error) {
	n := b.aead.NonceSize()
	if len(sealed) < header+n || sealed[0] != version {
		return "", errors.New("open a stored secret: it is damaged")
	}
	if !slices.Equal(sealed[1:header], b.keyID) {
		return "", ErrWrongKey
	}
	plain, err := b.aead.Open(nil, sealed[header:header+n], sealed[header+n:], []byte(purpose))
	if err != nil {
		return "", errors.New("open a stored secret: it is damaged or was sealed for another purpose")
	}
	return string(plain), nil
}

// Derive gives a 32-byte key that depends on the secret and on info, for example the pass of a database's fence.
func (b *Box) Derive(info string) []byte {
	key, err := hkdf.Key(sha256.New, b.secret, nil, "rehome derive v1 "+info, 32)
	if err != nil {
		panic(err) // only for lengths beyond HKDF's, and 32 is not
	}
	return key
}
