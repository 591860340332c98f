package replicator

import (
	"strings"
	"time"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/replicator/pgoutput"
	"github.com/rehomedb/rehome/tenant"
)

// op is what a change does.
type op byte

const (
	opInsert   op = 'I'
	opUpdate   op = 'U'
	opDelete   op = 'D'
	opTruncate op = 'T'
	opDDL      op = 'X' // statements that change the schema
)

// relation is a published table as the stream describes it, joined with the catalogue. It is immutable; a new Relation
// message makes a new one.
type relation struct {
	version int // distinguishes statements prepared for an older shape
	table   *catalog.Table
	name    tenant.TableName
	columns []catalog.Column // in the order of the stream's tuples
	keys    []int            // columns of the replica identity
	sorts   []int            // the same in the order of their index, see sortColumns
	full    bool             // REPLICA IDENTITY FULL: the old row comes whole
	arrays  bool             // values of every column can be carried in arrays
	blind   bool             // old rows come without their realm, which the owner asserts never to change
	realm   int              // index of the realm key column; -1 for a reference table
	bpchar  bool             // the realm key is blank-padded
	special specialRelation
	skip    tenant.LSN // watermark: commits before it are in the table's copy
	marks   *marks     // not nil: its chunks have watermarks of their own, skip is the least
	chunk   int        // with marks: the column that names a row's chunk
}

type specialRelation byte

const (
	userTable specialRelation = iota
	markerTable
	heartbeatTable
	ddlTable
	truncatedTable
	progressTable
	undescribed // not in the catalogue: a partition, whose rows come as its root's
)

// change is one row change, or one TRUNCATE, for one shard. Its values point into the arena of its group.
type change struct {
	op       op
	rel      *relation
	row      pgoutput.Tuple // insert, update: the new row
	old      pgoutput.Tuple // update with a changed key, delete: the old key, or the whole old row for full
	truncate *truncation
	anywhere bool   // delete: not known at which shard the row is, so all look for it; not counted
	gives    *carry // delete: what the row's new lane needs of it
	needs    *carry // insert: what the row's old lane gives
	ddl      *schemaStep
}

// truncation is a TRUNCATE of one or more tables.
type truncation struct {
	rels            []*relation
	restartIdentity bool
	// apart: a table of the same command was copied later, so that its rows are those of after the command.
	apart bool
	where string // with apart or of a partition: which rows; "": all
	// partition was truncated, and nothing else of its tree; nil: the tables of rels.
	partition *tenant.TableName
}

// group is what a lane applies as one target transaction, or a piece of one.
type group struct {
	changes []change
	txns    int
	bytes   int
	first   time.Time  // when its oldest transaction was committed at the source
	end     tenant.LSN // end of its last complete transaction; 0 while open
	commit  tenant.LSN // commit position of the transaction that is still open
	open    bool       // the last transaction is not complete: more follows
	ordered bool       // other lanes wait for a change of it, or it for theirs: strictly in order, and once
	marker  string     // attempt of a cutover's marker: commit durably and say so
	barrier *barrier   // nothing to apply: open a snapshot here
	side    *side      // a transaction that was applied ahead: it commits here
	ddl     bool       // the schema changes: alone, and strictly in order
	parts   []part     // its transactions, where they are more than one
}

// part is a whole transaction within a group.
type part struct {
	changes int // how many of the group's are its own and of those before it
	end     tenant.LSN
}

// arena hands out memory for values in large pieces. What it hands out is never moved.
type arena struct {
	bytes  []byte
	values []pgoutput.Value
}

const (
	arenaBytes  = 64 << 10
	arenaValues = 1024
)

func (a *arena) tuple(src pgoutput.Tuple) pgoutput.Tuple {
	if cap(a.values)-len(a.values) < len(src) {
		a.values = make([]pgoutput.Value, 0, max(arenaValues, len(src)))
	}
	at := len(a.values)
	a.values = a.values[:at+len(src)]
	out := a.values[at : at+len(src) : at+len(src)]
	for i, v := range src {
		out[i] = pgoutput.Value{Kind: v.Kind, Data: a.copy(v.Data)}
	}
	return out
}

func (a *arena) copy(src []byte) []byte {
	if src == nil {
		return nil
	}
	if len(src) == 0 {
		return []byte{} // a piece of an arena that holds nothing yet would be nil, which is bound as NULL
	}
	if cap(a.bytes)-len(a.bytes) < len(src) {
		a.bytes = make([]byte, 0, max(arenaBytes, len(src)))
	}
	at := len(a.bytes)
	a.bytes = append(a.bytes, src...)
	return a.bytes[at:len(a.bytes):len(a.bytes)]
}

// sizeOf estimates what a tuple holds of memory.
func sizeOf(t pgoutput.Tuple) int {
	n := len(t) * 32
	for _, v := range t {
		n += len(v.Data)
	}
	return n
}

// keyText names a row for a person: its identity columns and their values.
func (r *relation) keyText(c *change) string {
	row := c.row
	if c.old != nil {
		row = c.old
	}
	cols := r.keys
	if r.full && len(r.table.PrimaryKey) > 0 {
		cols = r.columnIndexes(r.table.PrimaryKey)
	}
	var b strings.Builder
	for _, i := range cols {
		if i >= len(row) {
			continue
		}
		if b.Len() > 0 {
			b.WriteString(", ")
		}
		b.WriteString(r.columns[i].Name)
		b.WriteByte('=')
		switch row[i].Kind {
		case pgoutput.Null:
			b.WriteString("NULL")
		case pgoutput.Unchanged:
			b.WriteString("(unchanged)")
		default:
			v := string(row[i].Data)
			if len(v) > 60 {
				v = v[:60] + "…"
			}
			b.WriteString(v)
		}
	}
	if b.Len() == 0 {
		return "(no key)"
	}
	return b.String()
}

func (r *relation) columnIndexes(names []string) []int {
	out := make([]int, 0, len(names))
	for _, n := range names {
		for i, c := range r.columns {
			if c.Name == n {
				out = append(out, i)
			}
		}
	}
	return out
}
