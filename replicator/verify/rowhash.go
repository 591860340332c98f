package verify

import (
	"fmt"
	"strings"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// OIDs of types that are hashed in a way of their own (pg_type.dat).
const (
	oidBytea       = 17
	oidInt8        = 20
	oidInt2        = 21
	oidInt4        = 23
	oidText        = 25
	oidJSON        = 114
	oidBpchar      = 1042
	oidVarchar     = 1043
	oidTimestamp   = 1114
	oidTimestamptz = 1184
	oidUUID        = 2950
	oidJSONB       = 3802
)

// A column that is NULL is hashed as this: a value that no column holds unless on purpose.
const (
	nullText  = `'rehome NULL 7f4c0d19b3e85a62'`
	nullBytes = `decode('7265686f6d65204e554c4c7f4c0d19b3e85a62', 'hex')`
)

// maxFlags is how many columns have a bit in the one integer (int4) that says which of them are NULL.
const maxFlags = 31

// rowHash is how a row is hashed: each input by its function, whose second argument, the seed, is the hash of the inputs
// before it. Two chains from different seeds make the 128 bits of a row.
//
// What is hashed of a column is its value's canonical form: the bytes of integers, uuids and bytea; else its text under the
// settings. Columns whose text is short, or of a type that is not known here, are hashed as one row's text, which tells NULL
// from empty; the others apart, since making a row's text of a long value means to look at each byte of it three times.
type rowHash []hashInput

type hashInput struct{ function, expr string }

func newRowHash(t *catalog.Table, transcode bool) rowHash {
	var out, texts rowHash
	var flags, rest []string
	for _, c := range t.Columns {
		col := "t." + tenant.QuoteIdent(c.Name)
		number := c.BaseOID == oidInt2 || c.BaseOID == oidInt4 || c.BaseOID == oidInt8 || c.BaseOID == oidUUID
		if number && len(flags) == maxFlags {
			rest = append(rest, col)
			continue
		}
		if number {
			flags = append(flags, col+" IS NULL")
		}
		text := func(expr string) {
			texts = append(texts, hashInput{"hashtextextended", "coalesce(" + encoded(expr, transcode) + ", " + nullText + `) COLLATE "C"`})
		}
		switch c.BaseOID {
		case oidInt2, oidInt4:
			out = append(out, hashInput{"hashint4extended", "coalesce(" + col + "::int4, 0)"})
		case oidInt8:
			// Its own function folds it to 32 bits first: of two values that it takes for the same the upper halves differ.
			value := "coalesce(" + col + "::int8, 0)"
			out = append(out, hashInput{"hashint8extended", value}, hashInput{"hashint4extended", "(" + value + " >> 32)::int4"})
		case oidUUID:
			out = append(out, hashInput{"uuid_hash_extended", "coalesce(" + col + "::uuid, '00000000-0000-0000-0000-000000000000')"})
		case oidBytea: // its own function cannot be called by name before 18
			texts = append(texts, hashInput{"hash_array_extended", "ARRAY[coalesce(" + col + "::bytea, " + nullBytes + ")]"})
		case oidText, oidVarchar, oidJSON, oidJSONB, oidTimestamp, oidTimestamptz:
			text(col + "::text")
		case oidBpchar: // a cast to text would cut its blanks off
			text("CASE WHEN " + col + " IS NOT NULL THEN concat(" + col + ") END")
		default:
			rest = append(rest, col)
		}
	}
	if len(flags) > 0 {
		out = append(rowHash{{"hashint4extended", flagsOf(flags)}}, out...)
	}
	if len(rest) > 0 || len(out)+len(texts) == 0 {
		out = append(out, hashInput{"hashtextextended", encoded("ROW("+strings.Join(rest, ", ")+")::text", transcode) + ` COLLATE "C"`})
	}
	return append(out, texts...)
}

// flagsOf is an integer of which each condition has a bit; in most rows none holds.
func flagsOf(conditions []string) string {
	bits := make([]string, len(conditions))
	for i, c := range conditions {
		bits[i] = fmt.Sprintf("CASE WHEN %s THEN %d ELSE 0 END", c, 1<<i)
	}
	return "CASE WHEN " + strings.Join(conditions, " OR ") + " THEN " + strings.Join(bits, " | ") + " ELSE 0 END"
}

// inline is the hash over a table named t.
func (r rowHash) inline(seed int) string {
	return r.chain(seed, func(i int) string { return r[i].expr })
}

// columns are the inputs, over a table named t, as columns of a subquery: so they are made once and hashed twice.
func (r rowHash) columns() string {
	list := make([]string, len(r))
	for i := range r {
		list[i] = fmt.Sprintf("%s AS v%d", r[i].expr, i)
	}
	return strings.Join(list, ", ")
}

// over is the hash over a subquery that has the columns.
func (r rowHash) over(seed int) string {
	return r.chain(seed, func(i int) string { return fmt.Sprintf("v%d", i) })
}

func (r rowHash) chain(seed int, input func(int) string) string {
	h := fmt.Sprint(seed)
	for i := range r {
		h = r[i].function + "(" + input(i) + ", " + h + ")"
	}
	return h
}
