package workload

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
)

// cents is money in hundredths; sums in it are exact.
type cents int64

// String is the amount as numeric(18,2) reads it.
func (c cents) String() string {
	sign := ""
	if c < 0 {
		sign, c = "-", -c
	}
	return fmt.Sprintf("%s%d.%02d", sign, c/100, c%100)
}

// newUUID is a random UUID (RFC 9562, version 4) from a seeded source: the same seed makes the same data.
func newUUID(r *rand.Rand) string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], r.Uint64())
	binary.BigEndian.PutUint64(b[8:], r.Uint64())
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, (n+7)/8*8)
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	return b[:n]
}

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

// words are of several scripts and with characters that formats must escape.
func words() []string {
	return []string{
		"ledger", "harbour", "quarter", "invoice", "Übersicht", "año", "naïve", "café", "東京", "Ελλάδα", "привет", "🚚", "a\\b", "tab\there",
		"line\nbreak", "\"quoted\"", "it's", "{brace}", "comma,", "NULL", "\\N", "%s", "zero", "plan", "draft", "final", "shipment", "north",
	}
}

// prose is text of about n bytes that compresses little enough to be stored out of line when it is long.
func prose(r *rand.Rand, n int) string {
	vocabulary := words()
	var b strings.Builder
	b.Grow(n + 32)
	for b.Len() < n {
		b.WriteString(pick(r, vocabulary))
		b.WriteByte(' ')
		if n > 2000 {
			b.WriteString(hex.EncodeToString(randomBytes(r, 16)))
			b.WriteByte(' ')
		}
	}
	return strings.TrimSpace(b.String())
}

// arrayLiteral is the text form of a text[].
func arrayLiteral(items []string) string {
	quoted := make([]string, len(items))
	for i, item := range items {
		quoted[i] = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(item) + `"`
	}
	return "{" + strings.Join(quoted, ",") + "}"
}
