package otp

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"strings"
	"unicode"
)

// Digest is the SHA-256 of a plan's canonical JSON: keys sorted, no white space, numbers as they were written. A struct
// and a map that say the same have the same digest, and so have a plan and what was decoded from its JSON.
func Digest(plan any) ([]byte, error) {
	canonical, err := canonicalJSON(plan)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(canonical)
	return sum[:], nil
}

func canonicalJSON(plan any) ([]byte, error) {
	raw, err := json.Marshal(plan)
	if err != nil {
		return nil, fmt.Errorf("marshal the plan: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber() // a float64 would make large numbers equal that are not
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, fmt.Errorf("read the plan: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read the plan: more than one value")
	}
	out, err := json.Marshal(v) // sorts the keys of maps
	if err != nil {
		return nil, fmt.Errorf("marshal the plan: %w", err)
	}
	return out, nil
}

// newCode makes 8 random digits. Digits can be told over the phone and typed on any keyboard; 10^8 of them against
// MaxTries tries a challenge and the rate limits leave a guesser about 2 in a million an hour.
func newCode() (string, error) {
	n, err := rand.Int(rand.Reader, big.NewInt(1e8))
	if err != nil {
		return "", fmt.Errorf("make a code: %w", err)
	}
	return fmt.Sprintf("%08d", n), nil
}

// shown groups a code for people: "4821-9937".
func shown(code string) string { return code[:4] + "-" + code[4:] }

// normalise takes a code as people type it: with spaces, hyphens of any kind, or digits of another script.
func normalise(code string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= '0' && r <= '9':
			return r
		case r >= '０' && r <= '９': // full-width, as East Asian input methods type them
			return '0' + (r - '０')
		case unicode.IsSpace(r), unicode.Is(unicode.Pd, r), unicode.Is(unicode.Cf, r), r == '.':
			return -1
		}
		return r
	}, code)
}

// hash is the HMAC of a secret text under a key of this installation, bound to what it belongs to. The key matters: 10^8
// codes are tried in a second by who has the hashes, and not at all by who lacks REHOME_SECRET.
func (s *Service) hash(purpose, owner, secret string) []byte {
	mac := hmac.New(sha256.New, s.cfg.Seal.Derive("otp:"+purpose))
	_, _ = fmt.Fprintf(mac, "%d:%s:%s", len(owner), owner, secret)
	return mac.Sum(nil)
}

// matches compares in constant time.
func (s *Service) matches(want []byte, purpose, owner, secret string) bool {
	return hmac.Equal(want, s.hash(purpose, owner, secret))
}
