package replicator

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/replicator/pgoutput"
	"github.com/rehomedb/rehome/tenant"
)

// statement is SQL for one change with the values to bind, in the text form in which the source sent them.
type statement struct {
	shape  string // what the prepared statement depends on: relation, operation, columns present
	sql    func() string
	args   [][]byte
	counts bool // exactly one row must be hit
	pruned bool // its values say which partitions it is about, see pipelineRun.planFor
	placed bool // one row's INSERT, whose plan is the same with its values and without
}

// size is what its values take in the send buffer.
func (st *statement) size() (bytes int) {
	for _, a := range st.args {
		bytes += len(a) + 4
	}
	return bytes
}

// statements makes the SQL of a change. All of it is bound, nothing is quoted into the text but identifiers.
func statementFor(c *change) (statement, error) {
	switch c.op {
	case opInsert:
		return insertStatement(c)
	case opUpdate:
		return updateStatement(c)
	case opDelete:
		return deleteStatement(c)
	case opTruncate:
		return truncateStatement(c), nil
	}
	return statement{}, fmt.Errorf("apply: unknown operation %q", rune(c.op))
}

func insertStatement(c *change) (statement, error) {
	r := c.rel
	args := make([][]byte, len(c.row))
	for i, v := range c.row {
		if v.Kind == pgoutput.Unchanged {
			return statement{}, missingValue(c, i)
		}
		args[i] = v.Data
		if v.Kind == pgoutput.Null {
			args[i] = nil
		}
	}
	return statement{
		shape: r.shape('I', ""), args: args, placed: true,
		sql: func() string {
			if len(r.columns) == 0 {
				return "INSERT INTO " + r.name.Quoted() + " DEFAULT VALUES"
			}
			var cols, vals strings.Builder
			for i, col := range r.columns {
				if i > 0 {
					cols.WriteString(", ")
					vals.WriteString(", ")
				}
				cols.WriteString(tenant.QuoteIdent(col.Name))
				vals.WriteString("$" + strconv.Itoa(i+1))
			}
			return "INSERT INTO " + r.name.Quoted() + " (" + cols.String() + ") OVERRIDING SYSTEM VALUE VALUES (" + vals.String() + ")"
		},
	}, nil
}

// updateStatement sets every column that the source sent, but not the identity columns when they did not change and not
// GENERATED ALWAYS identities, which no UPDATE may set (manual, UPDATE).
func updateStatement(c *change) (statement, error) {
	r := c.rel
	if numbered := r.numbered(); len(numbered) > 0 {
		return renumberStatement(c, numbered)
	}
	mask := c.mask()
	var set []int
	for i := range mask {
		if mask[i] == '1' {
			set = append(set, i)
		}
	}
	where, whereArgs, shape, err := r.match(c, len(set))
	if err != nil {
		return statement{}, err
	}
	args := make([][]byte, 0, len(set)+len(whereArgs))
	for _, i := range set {
		if c.row[i].Kind == pgoutput.Null {
			args = append(args, nil)
		} else {
			args = append(args, c.row[i].Data)
		}
	}
	args = append(args, whereArgs...)
	return statement{
		shape: r.shape('U', mask+shape), args: args, counts: true, pruned: r.table.Partitioned,
		sql: func() string {
			var b strings.Builder
			for n, i := range set {
				if n > 0 {
					b.WriteString(", ")
				}
				b.WriteString(tenant.QuoteIdent(r.columns[i].Name) + " = $" + strconv.Itoa(n+1))
			}
			if len(set) == 0 {
				// Nothing to set, but the row must be there: lock it, and the count says whether it is.
				return "SELECT 1 FROM " + r.target() + " WHERE " + where() + " FOR UPDATE"
			}
			return "UPDATE " + r.target() + " SET " + b.String() + " WHERE " + where()
		},
	}, nil
}

func deleteStatement(c *change) (statement, error) {
	where, args, shape, err := c.rel.match(c, 0)
	if err != nil {
		return statement{}, err
	}
	return statement{
		shape: c.rel.shape('D', shape), args: args, counts: !c.anywhere, pruned: c.rel.table.Partitioned,
		sql: func() string { return "DELETE FROM " + c.rel.target() + " WHERE " + where() },
	}, nil
}

func truncateStatement(c *change) statement {
	if p := c.truncate.partition; p != nil {
		return truncatePartition(*p, c.truncate.where)
	}
	if c.truncate.apart {
		// TRUNCATE would be refused while a table that refers to this one keeps its rows; a replica's DELETE is not.
		sql := "DELETE FROM " + c.rel.target()
		if c.truncate.where != "" {
			sql += " WHERE " + c.truncate.where
		}
		return statement{shape: "T" + sql, sql: func() string { return sql }}
	}
	names := make([]string, 0, len(c.truncate.rels))
	for _, r := range c.truncate.rels {
		// Foreign keys are not enforced for a replica, but TRUNCATE checks them all the same; what refers to these
		// tables was truncated by the same command at the source, so naming them together is enough.
		names = append(names, r.target())
	}
	sql := "TRUNCATE " + strings.Join(names, ", ")
	if c.truncate.restartIdentity {
		sql += " RESTART IDENTITY"
	}
	return statement{shape: "T" + sql, sql: func() string { return sql }}
}

// target is the relation as a statement names it: ONLY, since children are tables of their own, except for the root of
// a partition tree, which holds no rows itself.
func (r *relation) target() string {
	if r.table.Partitioned {
		return r.name.Quoted()
	}
	return "ONLY " + r.name.Quoted()
}

func (r *relation) shape(o byte, rest string) string {
	return string(o) + strconv.Itoa(int(r.table.OID)) + "." + strconv.Itoa(r.version) + "." + rest
}

// match makes the condition that finds the changed row: by its replica identity; for FULL by the primary key if there is
// one, else by comparing every column's text, hitting exactly one of equal rows.
func (r *relation) match(c *change, offset int) (where func() string, args [][]byte, shape string, err error) {
	row := c.old
	if row == nil {
		row = c.row
	}
	if len(row) != len(r.columns) {
		return nil, nil, "", fmt.Errorf("apply to %s: a row of %d values for %d columns", r.name, len(row), len(r.columns))
	}
	cols, exact := r.keys, true
	var indexed []int // key columns that help to find the row, though they do not say for sure which it is
	if r.full {
		cols = r.columnIndexes(r.table.PrimaryKey)
		if len(cols) == 0 || len(cols) < len(r.table.PrimaryKey) || r.table.DeferrableKey {
			// A deferrable key may be doubled within a transaction; a generated column of a key is not in the stream.
			exact, indexed = false, cols
			cols = make([]int, len(r.columns))
			for i := range cols {
				cols[i] = i
			}
		}
	}
	var nulls strings.Builder
	for _, i := range cols {
		switch row[i].Kind {
		case pgoutput.Null:
			nulls.WriteByte('n')
		case pgoutput.Unchanged:
			return nil, nil, "", missingValue(c, i)
		default:
			nulls.WriteByte('v')
			args = append(args, row[i].Data)
		}
	}
	kinds := nulls.String()
	where = func() string {
		var b strings.Builder
		n := offset
		for j, i := range cols {
			if j > 0 {
				b.WriteString(" AND ")
			}
			name := tenant.QuoteIdent(r.columns[i].Name)
			if kinds[j] == 'n' {
				b.WriteString(name + " IS NOT DISTINCT FROM NULL") // a row of NULLs IS NULL too
				continue
			}
			n++
			if exact || slices.Contains(indexed, i) {
				b.WriteString(r.columns[i].Equal(name, "$"+strconv.Itoa(n)))
			} else {
				b.WriteString(sameText(name, r.columns[i], n))
			}
		}
		if exact {
			return b.String()
		}
		if b.Len() == 0 {
			b.WriteString("true")
		}
		one := "(SELECT ctid FROM " + r.target() + " WHERE " + b.String() + " LIMIT 1)"
		if !r.table.Partitioned {
			return "ctid = " + one
		}
		return "(tableoid, ctid) = (SELECT tableoid, ctid FROM " + r.target() + " WHERE " + b.String() + " LIMIT 1)"
	}
	return where, args, "/" + kinds, nil
}

// sameText compares a column with a bound value by their text, which every type has, where types without an equality
// operator (json, xml, point) could not be compared and equal numbers may differ in their digits. The value goes through
// the type once, so that both texts are written by the same function. They are compared by
// their bytes: texts that differ may be equal under a column's own collation.
func sameText(name string, col catalog.Column, n int) string {
	return name + `::text COLLATE "C" = ($` + strconv.Itoa(n) + "::" + col.Type + ")::text"
}

func missingValue(c *change, i int) error {
	return stop("missing-value", "report this with the table's definition; until then set REPLICA IDENTITY FULL on the table at the source",
		"a row of %s (%s) cannot be written, because the source did not send the large value of column %s, which did not change",
		c.rel.name, c.rel.keyText(c), c.rel.columns[i].Name)
}
