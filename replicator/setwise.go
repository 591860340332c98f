package replicator

import (
	"bytes"
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

// runPlanner plans groups, one after the other, each in the memory of the one before it.
type runPlanner struct {
	runs     []*changeRun // of any group; those of this one come first
	used     int
	perTable map[uint32][]*changeRun
	order    []uint32
	out      []*changeRun
	literals []byte // the arrays of a statement
	places   []placed

	copies bool // runs of inserts are for a COPY, which takes every type
}

// planRuns sorts a group's changes into runs, which are applied in their order. The tables' runs follow each other;
// within a table the order of runs is that of the changes. A TRUNCATE stands between all that came before and after it.
func planRuns(cs []change) []*changeRun { return new(runPlanner).plan(cs) }

// plan is planRuns. What it returns is good until the next plan.
func (p *runPlanner) plan(cs []change) []*changeRun {
	if p.perTable == nil {
		p.perTable = map[uint32][]*changeRun{}
	}
	p.reset()
	for i := range cs {
		c := &cs[i]
		if c.op == opTruncate || c.op == opDDL {
			p.flush()
			p.out = append(p.out, p.run(c))
			continue
		}
		oid := c.rel.table.OID
		runs, known := p.perTable[oid]
		if !known {
			p.order = append(p.order, oid)
		}
		if n := len(runs); n > 0 && runs[n-1].take(c, p.copies) {
			continue
		}
		r := p.run(c)
		if c.setwise(p.copies) {
			r.mask = c.mask()
			if c.op == opUpdate {
				if r.keys == nil {
					r.keys = map[string]int{}
				}
				r.keys[c.rel.key(c.row)] = 0
			}
		} else {
			r.op = 0 // stays alone
		}
		p.perTable[oid] = append(runs, r)
	}
	p.flush()
	return p.out
}

// keptRuns bounds the runs whose memory is kept: a group seldom has changes of more tables, but may have as many runs as
// changes.
const keptRuns = 64

func (p *runPlanner) reset() {
	for _, r := range p.runs[:p.used] {
		clear(r.rows)
		clear(r.keys)
		r.rows = r.rows[:0]
	}
	if len(p.runs) > keptRuns {
		p.runs = slices.Clone(p.runs[:keptRuns])
	}
	clear(p.out)
	p.used, p.out = 0, p.out[:0]
}

// flush ends the tables' runs.
func (p *runPlanner) flush() {
	for _, oid := range p.order {
		p.out = append(p.out, p.perTable[oid]...)
	}
	clear(p.perTable)
	p.order = p.order[:0]
}

// run begins a run.
func (p *runPlanner) run(c *change) *changeRun {
	if p.used == len(p.runs) {
		p.runs = append(p.runs, &changeRun{})
	}
	r := p.runs[p.used]
	p.used++
	r.rel, r.op, r.mask, r.rows = c.rel, c.op, "", append(r.rows[:0], c)
	return r
}

// take appends a change to the run if it belongs there.
func (r *changeRun) take(c *change, copies bool) bool {
	if r.op != c.op || r.rel != c.rel || r.rows[0].anywhere != c.anywhere || !c.setwise(copies) || (c.op == opUpdate && !c.masked(r.mask)) {
		return false
	}
	if c.op == opUpdate {
		var room [64]byte
		key := c.rel.appendKey(room[:0], c.row)
		if at, ok := r.keys[string(key)]; ok {
			r.rows[at] = c // the later update brings everything that the earlier one set
			return true
		}
		r.keys[string(key)] = len(r.rows)
	}
	r.rows = append(r.rows, c)
	return true
}

// setwise reports whether a change may be one of many in a statement: an insert, or an update or delete by a key that
// stays as it is and has no NULL. An insert by COPY may have values that no array can carry.
func (c *change) setwise(copies bool) bool {
	r := c.rel
	if copies && c.op == opInsert && len(r.columns) > 0 {
		return true
	}
	if !r.arrays {
		return false
	}
	switch c.op {
	case opInsert:
		return true
	case opUpdate:
		return c.old == nil && !r.full && len(r.keys) > 0 && r.hasKey(c.row) && c.setsAny()
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
func (r *relation) key(row pgoutput.Tuple) string { return string(r.appendKey(nil, row)) }

func (r *relation) appendKey(b []byte, row pgoutput.Tuple) []byte {
	for _, k := range r.keys {
		b = strconv.AppendInt(b, int64(len(row[k].Data)), 10)
		b = append(b, ':')
		b = append(b, row[k].Data...)
	}
	return b
}

// mask says which columns an update sets: '1' for each. See updateStatement for those it leaves alone.
func (c *change) mask() string {
	if c.op != opUpdate {
		return ""
	}
	mask := make([]byte, len(c.row))
	for i := range c.row {
		mask[i] = '0'
		if c.sets(i) {
			mask[i] = '1'
		}
	}
	return string(mask)
}

// sets reports whether an update sets a column.
func (c *change) sets(i int) bool {
	return c.row[i].Kind != pgoutput.Unchanged && c.rel.columns[i].IdentityKind != "a" && (c.old != nil || !c.rel.isKey(i))
}

// setsAny reports whether an update sets any column.
func (c *change) setsAny() bool {
	for i := range c.row {
		if c.sets(i) {
			return true
		}
	}
	return false
}

// masked reports whether mask is the update's.
func (c *change) masked(mask string) bool {
	if len(mask) != len(c.row) {
		return false
	}
	for i := range c.row {
		if c.sets(i) != (mask[i] == '1') {
			return false
		}
	}
	return true
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
func (r *changeRun) setStatement() statement { return new(runPlanner).setStatement(r) }

// setStatement makes one statement of a run. Its values are good until the next one.
func (p *runPlanner) setStatement(r *changeRun) statement {
	rel := r.rel
	st := statement{counts: true}
	switch r.op {
	case opInsert:
		all := make([]int, len(rel.columns))
		for i := range all {
			all[i] = i
		}
		st.args = p.arrays(r, all, func(c *change) pgoutput.Tuple { return c.row })
		st.shape = rel.shape('i', "")
		st.sql = func() string {
			return "INSERT INTO " + rel.name.Quoted() + " (" + rel.columnList("", all) + ") OVERRIDING SYSTEM VALUE " + rel.unnest(all)
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
		st.args = p.arrays(r, cols, func(c *change) pgoutput.Tuple { return c.row })
		st.shape = rel.shape('u', r.mask)
		st.sql = func() string {
			var b strings.Builder
			for n, i := range set {
				if n > 0 {
					b.WriteString(", ")
				}
				b.WriteString(tenant.QuoteIdent(rel.columns[i].Name) + " = v.c" + strconv.Itoa(len(rel.keys)+n))
			}
			return "UPDATE " + rel.target() + " AS t SET " + b.String() + " FROM (" + rel.unnest(cols) + ") AS v WHERE " + rel.joinKeys() + rel.joinNumbers(numbered, len(cols))
		}
	default:
		st.args = p.arrays(r, rel.keys, func(c *change) pgoutput.Tuple { return c.old })
		st.shape = rel.shape('d', "")
		st.sql = func() string {
			return "DELETE FROM " + rel.target() + " AS t USING (" + rel.unnest(rel.keys) + ") AS v WHERE " + rel.joinKeys()
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

// unnest makes rows of the arrays $1, $2, …, all of one length. The casts name the types without a modifier: one with a
// modifier would cut values silently. Functions that return sets go on side by side in a SELECT list (manual, 38.5.8), where
// they need no store of rows in between, as they would in FROM: that is a quarter of an insert's price.
func (r *relation) unnest(cols []int) string {
	args := make([]string, len(cols))
	for n, i := range cols {
		args[n] = "unnest($" + strconv.Itoa(n+1) + "::" + r.columns[i].Type + "[]) AS c" + strconv.Itoa(n)
	}
	return "SELECT " + strings.Join(args, ", ")
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
func (p *runPlanner) arrays(r *changeRun, cols []int, row func(*change) pgoutput.Tuple) [][]byte {
	out := make([][]byte, len(cols))
	size := 0
	for _, i := range cols {
		size += 2
		for _, c := range r.rows {
			size += len(row(c)[i].Data) + len(`"",`) + 1
		}
	}
	b := p.literals[:0]
	if cap(b) < size {
		b = make([]byte, 0, size+size/8)
	}
	for n, i := range cols {
		from := len(b)
		b = append(b, '{')
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
			b = appendEscaped(b, v.Data)
			b = append(b, '"')
		}
		b = append(b, '}')
		out[n] = b[from:len(b):len(b)] // where b had to grow, what was written before stays where it was
	}
	if cap(b) <= 2*groupBytes {
		p.literals = b[:0]
	}
	return out
}

// appendEscaped appends an array's element as it stands between quotes.
func appendEscaped(b, v []byte) []byte {
	if bytes.IndexByte(v, '"') < 0 && bytes.IndexByte(v, '\\') < 0 {
		return append(b, v...)
	}
	for _, x := range v {
		if x == '"' || x == '\\' {
			b = append(b, '\\')
		}
		b = append(b, x)
	}
	return b
}
