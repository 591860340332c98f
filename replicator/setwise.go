package replicator

import (
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/replicator/pgoutput"
	"github.com/rehomedb/rehome/tenant"
)

// A group of whole source transactions ends up in one target transaction, where nobody sees the states in between. So
// its changes need not be applied one by one: all that counts is the order of changes of one table. Within a table,
// changes of the same kind that follow each other become one statement over arrays, and of several updates of one row
// only the last is kept, since every update brings the whole row. That is several times cheaper for the shard, most of
// all where a few rows are hot.
//
// It is an optimisation that checks itself: a statement must hit exactly as many rows as it names. If it does not, or a
// constraint refuses an order of rows that the source never had, the group is rolled back and applied again one change
// at a time, strictly in order (errInOrder).

// minSet is the least number of changes that is worth a statement over arrays.
const minSet = 3

// errInOrder asks for the group to be applied again, one change at a time.
var errInOrder = errors.New("apply the group in order")

// changeRun is a run of changes of one table that may be one statement.
type changeRun struct {
	rel  *relation
	op   op
	mask string // of an update: which columns it sets
	rows []*change
	keys map[string]int // of an update: where the row with that key is in rows
}

// planRuns sorts a group's changes into runs, which are applied in their order. The tables' runs follow each other;
// within a table the order of changes is kept. A TRUNCATE stands between all that came before and after it.
func planRuns(cs []change) []*changeRun {
	var out []*changeRun
	perTable := map[uint32][]*changeRun{}
	var order []uint32
	flush := func() {
		for _, oid := range order {
			out = append(out, perTable[oid]...)
		}
		clear(perTable)
		order = order[:0]
	}
	for i := range cs {
		c := &cs[i]
		if c.op == opTruncate || c.op == opDDL {
			flush()
			out = append(out, &changeRun{rel: c.rel, op: c.op, rows: []*change{c}})
			continue
		}
		oid := c.rel.table.OID
		runs, known := perTable[oid]
		if !known {
			order = append(order, oid)
		}
		if n := len(runs); n > 0 && runs[n-1].take(c) {
			continue
		}
		r := &changeRun{rel: c.rel, op: c.op, rows: []*change{c}}
		if c.setwise() {
			r.mask = c.mask()
			if c.op == opUpdate {
				r.keys = map[string]int{c.rel.key(c.row): 0}
			}
		} else {
			r.op = 0 // stays alone
		}
		perTable[oid] = append(runs, r)
	}
	flush()
	return out
}

// take appends a change to the run if it belongs there.
func (r *changeRun) take(c *change) bool {
	if r.op != c.op || r.rel != c.rel || r.rows[0].anywhere != c.anywhere || !c.setwise() || (c.op == opUpdate && r.mask != c.mask()) {
		return false
	}
	if c.op == opUpdate {
		key := c.rel.key(c.row)
		if at, ok := r.keys[key]; ok {
			r.rows[at] = c // the later update brings everything that the earlier one set
			return true
		}
		r.keys[key] = len(r.rows)
	}
	r.rows = append(r.rows, c)
	return true
}

// setwise reports whether a change may be one of many in a statement: an insert, or an update or delete by a key that
// stays as it is and has no NULL.
func (c *change) setwise() bool {
	r := c.rel
	if !r.arrays {
		return false
	}
	switch c.op {
	case opInsert:
		return true
	case opUpdate:
		return c.old == nil && !r.full && len(r.keys) > 0 && r.hasKey(c.row) && strings.IndexByte(c.mask(), '1') >= 0
	case opDelete:
		return !r.full && len(r.keys) > 0 && r.hasKey(c.old)
	}
	return false
}

func (r *relation) hasKey(row pgoutput.Tuple) bool {
	for _, k := range r.keys {
		if k >= len(row) || row[k].Kind != pgoutput.Text {
			return false
		}
	}
	return true
}

// key is the row's replica identity as bytes.
func (r *relation) key(row pgoutput.Tuple) string {
	var b strings.Builder
	for _, k := range r.keys {
		b.WriteString(strconv.Itoa(len(row[k].Data)))
		b.WriteByte(':')
		b.Write(row[k].Data)
	}
	return b.String()
}

// mask says which columns an update sets: '1' for each. See updateStatement for those it leaves alone.
func (c *change) mask() string {
	if c.op != opUpdate {
		return ""
	}
	mask := make([]byte, len(c.row))
	for i, v := range c.row {
		mask[i] = '1'
		if v.Kind == pgoutput.Unchanged || c.rel.columns[i].IdentityKind == "a" || (c.old == nil && c.rel.isKey(i)) {
			mask[i] = '0'
		}
	}
	return string(mask)
}

func (r *relation) isKey(column int) bool {
	return slices.Contains(r.keys, column)
}

// arraysFit reports whether every column's values can be carried as an array of its type: unnest would flatten arrays
// and expand composites, and geometric types separate elements by other characters than a comma.
func arraysFit(columns []catalog.Column) bool {
	for _, c := range columns {
		switch c.Category {
		case "A", "C", "G", "P", "":
			return false
		}
	}
	return len(columns) > 0
}

// setStatement makes one statement of a run.
func (r *changeRun) setStatement() statement {
	rel := r.rel
	st := statement{counts: true}
	switch r.op {
	case opInsert:
		all := make([]int, len(rel.columns))
		for i := range all {
			all[i] = i
		}
		st.args = r.arrays(all, func(c *change) pgoutput.Tuple { return c.row })
		st.shape = rel.shape('i', "")
		st.sql = func() string {
			return "INSERT INTO " + rel.name.Quoted() + " (" + rel.columnList("", all) + ") OVERRIDING SYSTEM VALUE SELECT * FROM " + rel.unnest(all)
		}
	case opUpdate:
		var set []int
		for i := range r.mask {
			if r.mask[i] == '1' {
				set = append(set, i)
			}
		}
		numbered := rel.numbered() // another number: not hit, and so applied in order
		cols := slices.Concat(rel.keys, set, numbered)
		st.args = r.arrays(cols, func(c *change) pgoutput.Tuple { return c.row })
		st.shape = rel.shape('u', r.mask)
		st.sql = func() string {
			var b strings.Builder
			for n, i := range set {
				if n > 0 {
					b.WriteString(", ")
				}
				b.WriteString(tenant.QuoteIdent(rel.columns[i].Name) + " = v.c" + strconv.Itoa(len(rel.keys)+n))
			}
			return "UPDATE " + rel.target() + " AS t SET " + b.String() + " FROM " + rel.unnest(cols) + " WHERE " + rel.joinKeys() + rel.joinNumbers(numbered, len(cols))
		}
	default:
		st.args = r.arrays(rel.keys, func(c *change) pgoutput.Tuple { return c.old })
		st.shape = rel.shape('d', "")
		st.sql = func() string {
			return "DELETE FROM " + rel.target() + " AS t USING " + rel.unnest(rel.keys) + " WHERE " + rel.joinKeys()
		}
	}
	return st
}

func (r *relation) columnList(prefix string, cols []int) string {
	names := make([]string, len(cols))
	for n, i := range cols {
		names[n] = prefix + tenant.QuoteIdent(r.columns[i].Name)
	}
	return strings.Join(names, ", ")
}

// unnest makes rows of the arrays $1, $2, … The casts name the types without a modifier: one with a modifier would cut
// values silently.
func (r *relation) unnest(cols []int) string {
	args, names := make([]string, len(cols)), make([]string, len(cols))
	for n, i := range cols {
		args[n] = "$" + strconv.Itoa(n+1) + "::" + r.columns[i].Type + "[]"
		names[n] = "c" + strconv.Itoa(n)
	}
	return "unnest(" + strings.Join(args, ", ") + ") AS v(" + strings.Join(names, ", ") + ")"
}

func (r *relation) joinKeys() string {
	conds := make([]string, len(r.keys))
	for n, k := range r.keys {
		c := r.columns[k]
		conds[n] = c.Equal("t."+tenant.QuoteIdent(c.Name), "v.c"+strconv.Itoa(n))
	}
	return strings.Join(conds, " AND ")
}

// arrays writes one array literal for each column (manual, 8.15.2): every value quoted, as the source wrote it.
func (r *changeRun) arrays(cols []int, row func(*change) pgoutput.Tuple) [][]byte {
	out := make([][]byte, len(cols))
	for n, i := range cols {
		size := 2
		for _, c := range r.rows {
			size += len(row(c)[i].Data) + 4
		}
		b := append(make([]byte, 0, size+size/8), '{')
		for k, c := range r.rows {
			if k > 0 {
				b = append(b, ',')
			}
			v := row(c)[i]
			if v.Kind != pgoutput.Text {
				b = append(b, "NULL"...)
				continue
			}
			b = append(b, '"')
			for _, x := range v.Data {
				if x == '"' || x == '\\' {
					b = append(b, '\\')
				}
				b = append(b, x)
			}
			b = append(b, '"')
		}
		out[n] = append(b, '}')
	}
	return out
}
