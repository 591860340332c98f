package replicator

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// A table that is too large to be copied again after every crash is copied in chunks. Each is recorded at each shard in
// the transaction that brings its rows, and counts when all shards have it with the same watermark.
//
// Chunks of key values (chunkOfKeys) outlive the snapshot that they were copied under: what is left is copied under the
// next one, and the stream tells by a row's key which commits its chunk has already (marks). That needs a key whose order
// we can compute as the database does, and that the source sends with every old row.
//
// Chunks of pages (chunkOfPages) need no key, but mean something under one snapshot only: when it is gone, the leaf is
// begun anew.

const (
	chunkOfKeys  = 'k'
	chunkOfPages = 'c'
)

// tidRanges is the version from which a range of ctid is read as such and not by reading the whole table (release notes
// of 14, "TID range scans").
const tidRanges = 140000

// OIDs of the types of keys, which are the same on every server (pg_type.dat).
const (
	oidInt8 = 20
	oidInt2 = 21
	oidInt4 = 23
	oidUUID = 2950
)

// keyPoint is a key's value such that the order of the bytes is the order of the values.
type keyPoint [16]byte

func orderedType(base uint32) bool {
	return base == oidInt2 || base == oidInt4 || base == oidInt8 || base == oidUUID
}

// parseKey reads the text form of a key of one of the ordered types. Integers get their sign turned round, so that
// negative ones come first; uuids are compared by Postgres as bytes (uuid_internal_cmp).
func parseKey(base uint32, text []byte) (k keyPoint, err error) {
	if base != oidUUID {
		n, err := strconv.ParseInt(string(text), 10, 64)
		if err != nil {
			return k, fmt.Errorf("key %q is no integer", text)
		}
		binary.BigEndian.PutUint64(k[:], uint64(n)^(1<<63))
		return k, nil
	}
	digits := make([]byte, 0, 32)
	for _, c := range text {
		if c != '-' {
			digits = append(digits, c)
		}
	}
	if len(digits) != 32 {
		return k, fmt.Errorf("key %q is no uuid", text)
	}
	if _, err := hex.Decode(k[:], digits); err != nil {
		return k, fmt.Errorf("key %q is no uuid: %w", text, err)
	}
	return k, nil
}

func (k keyPoint) less(o keyPoint) bool { return bytes.Compare(k[:], o[:]) < 0 }

// chunkKey is the column by whose values a table can be cut: the first of its primary key, or of the index that is its
// replica identity, so that a range is read by an index; of a type with an order that we can compute; and within the
// replica identity, so that an old row names its chunk. Nil: there is none.
func chunkKey(t *catalog.Table) *catalog.Column {
	for _, key := range [][]string{t.PrimaryKey, t.Identity.Columns} {
		if len(key) == 0 || !t.Identity.Has(key[0]) {
			continue
		}
		if t.Identity.Kind == "f" && !slices.Contains(t.PrimaryKey, key[0]) {
			continue // the columns of FULL are no index
		}
		if c := t.Column(key[0]); c != nil && orderedType(c.BaseOID) && !c.Generated {
			return c
		}
	}
	return nil
}

// chunk is a part of a table.
type chunk struct {
	number int  // from 1
	kind   byte // chunkOfKeys, chunkOfPages
	key    string
	lo, hi *string // text of the first value and of the first that is not in it; nil: unbounded
}

func (c chunk) same(o chunk) bool {
	equal := func(a, b *string) bool { return (a == nil) == (b == nil) && (a == nil || *a == *b) }
	return c.number == o.number && c.kind == o.kind && c.key == o.key && equal(c.lo, o.lo) && equal(c.hi, o.hi)
}

// where is the condition of the chunk's rows. The bounds are literals, which take the key's type.
func (c chunk) where() string {
	column := "ctid"
	if c.kind == chunkOfKeys {
		column = tenant.QuoteIdent(c.key)
	}
	var parts []string
	if c.lo != nil {
		parts = append(parts, column+" >= "+tenant.QuoteLiteral(*c.lo))
	}
	if c.hi != nil {
		parts = append(parts, column+" < "+tenant.QuoteLiteral(*c.hi))
	}
	if len(parts) == 0 {
		return "true"
	}
	return strings.Join(parts, " AND ")
}

// piece is a chunk as a shard knows it.
type piece struct {
	chunk
	copied // a watermark of 0: its rows are not there
}

// cutAt makes chunks of a relation out of the values between them.
func cutAt(kind byte, key string, bounds []string) []chunk {
	out := make([]chunk, len(bounds)+1)
	for i := range out {
		out[i] = chunk{number: i + 1, kind: kind, key: key}
		if i > 0 {
			out[i].lo = &bounds[i-1]
		}
		if i < len(bounds) {
			out[i].hi = &bounds[i]
		}
	}
	return out
}

// marks are the watermarks of a table whose chunks were copied under different snapshots.
type marks struct {
	key    string
	base   uint32
	bounds []keyPoint // between the chunks
	chunks []chunk
	at     []tenant.LSN // of each chunk
	last   tenant.LSN   // the largest: from it on the table is like any other
}

func newMarks(base uint32, pieces []piece) (*marks, error) {
	m := &marks{key: pieces[0].key, base: base}
	for i, p := range pieces {
		if i > 0 {
			k, err := parseKey(base, []byte(*p.lo))
			if err != nil {
				return nil, err
			}
			m.bounds = append(m.bounds, k)
		}
		m.chunks = append(m.chunks, p.chunk)
		m.at = append(m.at, p.watermark)
		m.last = max(m.last, p.watermark)
	}
	return m, nil
}

// of is the watermark of the chunk that a key belongs to.
func (m *marks) of(k keyPoint) tenant.LSN {
	return m.at[sort.Search(len(m.bounds), func(i int) bool { return k.less(m.bounds[i]) })]
}

// mixedAt reports whether a commit at this position is in some chunks' copies and not in others', or in all.
func (m *marks) mixedAt(commit tenant.LSN) bool { return m != nil && commit < m.last }

// whereBefore is the condition of the rows whose chunks do not have a commit yet.
func (m *marks) whereBefore(commit tenant.LSN) string {
	var parts []string
	for i, c := range m.chunks {
		if m.at[i] <= commit {
			parts = append(parts, "("+c.where()+")")
		}
	}
	if len(parts) == 0 {
		return "false"
	}
	return strings.Join(parts, " OR ")
}
