package replicator

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"
	"strconv"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/replicator/pgoutput"
)

// Rows that one statement writes may come in any order: no two of a run have one key. They are sent in the order of their key's
// index where the source's is another, as with a key that begins with the realm: so the server finds the index's pages in
// its processor's cache for row after row, instead of fetching another for each (docs/decisions/0015-one-lane-a-shard.md, "Rows
// in the order of their keys").
//
// A unique index beside the key may have needed the source's order of updates: then the group is applied again, as whenever
// statements over arrays do not work out, and that table's updates keep their order from then on (lane.inOrder).

// sortFrom is the least number of rows that are sorted: few have hardly a page in common.
const sortFrom = 200

// placed is a row with what its key begins with.
type placed struct {
	a, b uint64
	key  pgoutput.Tuple // the row that has the key
	row  *change
}

// compare is the order of keys: by what they begin with, and in full only where that is the same.
func (p *placed) compare(o *placed, rel *relation) int {
	if c := cmp.Or(cmp.Compare(p.a, o.a), cmp.Compare(p.b, o.b)); c != 0 {
		return c
	}
	for _, k := range rel.sorts {
		if c := rel.compareValues(k, p.key[k].Data, o.key[k].Data); c != 0 {
			return c
		}
	}
	return 0
}

// sort puts a run's rows in the order of their keys, and reports whether they were in another.
func (p *runPlanner) sort(r *changeRun) bool {
	rel := r.rel
	if len(r.rows) < sortFrom || len(rel.sorts) == 0 {
		return false
	}
	at, inOrder := p.places[:0], true
	for i, c := range r.rows {
		key := c.row
		if r.op == opDelete {
			key = c.old
		}
		now := placed{key: key, row: c}
		now.a, now.b = rel.place(key)
		at = append(at, now)
		inOrder = inOrder && (i == 0 || at[i-1].compare(&at[i], rel) <= 0)
	}
	if !inOrder {
		slices.SortFunc(at, func(x, y placed) int { return x.compare(&y, rel) })
		for i := range at {
			r.rows[i] = at[i].row
		}
	}
	clear(at)
	p.places = at[:0]
	return !inOrder
}

// arrange sorts a run unless its table's updates have to keep the source's order, or its inserts should: an index on a time, or
// on a number that counts, is appended to as long as the rows come in the source's order. Else its new part has a third more pages.
func (r *pipelineRun) arrange(run *changeRun) (sorted bool) {
	table := run.rel.table
	if (run.op == opUpdate && r.l.inOrder.has(table.OID)) || (run.op == opInsert && table.Indexes > 1) {
		return false
	}
	return r.l.plan.sort(run)
}

// sortColumns are the columns of a relation's replica identity in the order of its index, which need not be that of the table's
// columns; none if the identity is the whole row.
func (r *relation) sortColumns(id catalog.Identity) []int {
	if r.full {
		return nil
	}
	out := r.columnIndexes(id.Columns)
	if len(out) != len(r.keys) {
		return r.keys // the stream knows the identity better
	}
	return out
}

// place says where a key belongs among others: by its first column, and by the second, or by the rest of the first if that is
// a long one. Short and long ones of the same beginning are so put in an order that is not quite the index's, but one all the same.
func (r *relation) place(key pgoutput.Tuple) (a, b uint64) {
	a, rest := r.placeOf(key, r.sorts[0])
	if len(rest) > 0 || len(r.sorts) == 1 {
		return a, headOf(rest)
	}
	b, _ = r.placeOf(key, r.sorts[1])
	return a, b
}

// placeOf is the place of one value, with what of it does not count.
func (r *relation) placeOf(key pgoutput.Tuple, column int) (at uint64, rest []byte) {
	v := key[column].Data
	if r.wholeNumbers(column) {
		return uint64(wholeNumber(v)) ^ 1<<63, nil // two's complement in its order
	}
	return headOf(v), v[min(len(v), 8):]
}

// compareValues compares values of a column: numbers by their value, others by their bytes.
func (r *relation) compareValues(column int, x, y []byte) int {
	if r.wholeNumbers(column) {
		return cmp.Compare(wholeNumber(x), wholeNumber(y))
	}
	return bytes.Compare(x, y)
}

// wholeNumbers reports whether a column is of an integer type, or of a domain over one.
func (r *relation) wholeNumbers(column int) bool {
	base := r.columns[column].BaseOID
	return base == oidInt8 || base == oidInt4 || base == oidInt2
}

// wholeNumber reads an integer as the source wrote it; anything else would do no harm as 0.
func wholeNumber(v []byte) int64 {
	n, _ := strconv.ParseInt(string(v), 10, 64)
	return n
}

// headOf are a text's first eight bytes as a number of the same order.
func headOf(v []byte) uint64 {
	if len(v) >= 8 {
		return binary.BigEndian.Uint64(v)
	}
	var b [8]byte
	copy(b[:], v)
	return binary.BigEndian.Uint64(b[:])
}
