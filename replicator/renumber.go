package replicator

import (
	"strconv"
	"strings"

	"github.com/rehomedb/rehome/replicator/pgoutput"
	"github.com/rehomedb/rehome/tenant"
)

// numbered lists the GENERATED ALWAYS identities of which the stream does not tell whether they changed: those outside
// the replica identity. UPDATE … SET id = DEFAULT gives such a column another value at the source, and no UPDATE can set
// that value at a shard (manual, UPDATE).
func (r *relation) numbered() []int {
	var out []int
	for i, c := range r.columns {
		if c.IdentityKind == "a" && !r.full && !r.isKey(i) {
			out = append(out, i)
		}
	}
	return out
}

// renumberStatement updates a row whose identities are as they were, and else replaces it, in one statement that returns
// one row for the row that it hit. Values that the source did not send stay what they are at the shard.
func renumberStatement(c *change, numbered []int) (statement, error) {
	r := c.rel
	mask := c.mask()
	var args [][]byte
	at := make([]string, len(c.row)) // of each column, the value as SQL
	for i, v := range c.row {
		name := tenant.QuoteIdent(r.columns[i].Name)
		if v.Kind == pgoutput.Unchanged {
			at[i] = "gone." + name
			continue
		}
		value := v.Data
		if v.Kind == pgoutput.Null {
			value = nil
		}
		args = append(args, value)
		at[i] = "$" + strconv.Itoa(len(args)) + "::" + r.columns[i].Type
	}
	where, whereArgs, shape, err := r.match(c, len(args))
	if err != nil {
		return statement{}, err
	}
	present := make([]byte, len(c.row)) // which values are bound
	for i, v := range c.row {
		present[i] = '1'
		if v.Kind == pgoutput.Unchanged {
			present[i] = '0'
		}
	}
	return statement{
		shape: r.shape('N', mask+string(present)+shape), args: append(args, whereArgs...), counts: true, pruned: r.table.Partitioned,
		sql: func() string {
			var set, same, names []string
			for i := range mask {
				name := tenant.QuoteIdent(r.columns[i].Name)
				names = append(names, name)
				if mask[i] == '1' {
					set = append(set, name+" = "+at[i])
				}
			}
			for _, i := range numbered {
				same = append(same, names[i]+" = "+at[i])
			}
			hit := where()
			numbers := strings.Join(same, " AND ")
			update := "UPDATE " + r.target() + " SET " + strings.Join(set, ", ") + " WHERE " + hit + " AND " + numbers + " RETURNING 1"
			if len(set) == 0 {
				update = "SELECT 1 FROM " + r.target() + " WHERE " + hit + " AND " + numbers + " FOR UPDATE"
			}
			return "WITH kept AS (" + update + "), gone AS (DELETE FROM " + r.target() + " WHERE " + hit + " AND NOT (" + numbers + ") RETURNING *), " +
				"anew AS (INSERT INTO " + r.name.Quoted() + " (" + strings.Join(names, ", ") + ") OVERRIDING SYSTEM VALUE SELECT " + strings.Join(at, ", ") + " FROM gone RETURNING 1) " +
				"SELECT FROM kept UNION ALL SELECT FROM anew"
		},
	}, nil
}

// joinNumbers is the condition, in a statement over arrays, that identities are as they were. They are the last columns.
func (r *relation) joinNumbers(numbered []int, columns int) string {
	var b strings.Builder
	for n, i := range numbered {
		c := r.columns[i]
		b.WriteString(" AND " + c.Equal("t."+tenant.QuoteIdent(c.Name), "v.c"+strconv.Itoa(columns-len(numbered)+n)))
	}
	return b.String()
}
