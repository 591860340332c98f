package verify

import (
	"context"
	"fmt"
	"strings"

	"github.com/rehomedb/rehome/tenant"
)

// doubleLimit bounds how many doubled keys are counted: one is too many.
const doubleLimit = 1000

// readDeferrable lists the unique constraints that may be deferred. The trigger that checks them again at the end of a
// transaction does not fire for a replica (session_replication_role), so nothing at a shard enforces them but the source's
// having done so. NULLS NOT DISTINCT exists from 15 on.
const readDeferrable = `SELECT w.schema, w.name, k.conname::text, pg_get_constraintdef(k.oid), c.relkind = 'p', coalesce((to_jsonb(i)->>'indnullsnotdistinct')::bool, false),
		ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY x(num, ord) JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = x.num ORDER BY x.ord)
	FROM unnest($1::text[], $2::text[]) w(schema, name)
	JOIN pg_namespace n ON n.nspname = w.schema JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name AND c.relkind IN ('r', 'p')
	JOIN pg_constraint k ON k.conrelid = c.oid AND k.contype IN ('p', 'u') AND k.condeferrable JOIN pg_index i ON i.indexrelid = k.conindid ORDER BY 1, 2, 3`

// doubled is a unique constraint that the rows of a shard violate.
type doubled struct {
	table            tenant.TableName
	name, definition string
	keys             int64
}

// readDoubles looks for keys that are there more than once, of constraints that nothing enforces while rows are replicated.
func (s *side) readDoubles(ctx context.Context, in Input) ([]doubled, error) {
	var schemas, names []string
	for i := range in.Catalogue.Tables {
		schemas, names = append(schemas, in.Catalogue.Tables[i].Name.Schema), append(names, in.Catalogue.Tables[i].Name.Name)
	}
	rows, err := s.conn.Query(ctx, readDeferrable, schemas, names)
	if err != nil {
		return nil, fmt.Errorf("%s: list deferrable constraints: %w", s, err)
	}
	type constraint struct {
		doubled
		sql string
	}
	var all []constraint
	for rows.Next() {
		var c constraint
		var tree, nulls bool
		var columns []string
		if err := rows.Scan(&c.table.Schema, &c.table.Name, &c.name, &c.definition, &tree, &nulls, &columns); err != nil {
			rows.Close()
			return nil, fmt.Errorf("%s: list deferrable constraints: %w", s, err)
		}
		c.sql = doublesOf(c.table, tree, nulls, columns)
		all = append(all, c)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("%s: list deferrable constraints: %w", s, err)
	}
	var out []doubled
	for _, c := range all {
		if err := s.conn.QueryRow(ctx, c.sql, doubleLimit).Scan(&c.keys); err != nil {
			return nil, fmt.Errorf("%s: check constraint %s of %s: %w", s, c.name, c.table, err)
		}
		if c.keys > 0 {
			out = append(out, c.doubled)
		}
	}
	return out, nil
}

// doublesOf counts the keys that a table has more than once. Where NULLs are distinct, keys with one are no doubles.
func doublesOf(table tenant.TableName, tree, nulls bool, columns []string) string {
	from := "ONLY " + table.Quoted()
	if tree {
		from = table.Quoted()
	}
	list, known := make([]string, len(columns)), make([]string, len(columns))
	for i, c := range columns {
		list[i] = tenant.QuoteIdent(c)
		known[i] = list[i] + " IS NOT NULL"
	}
	where := " WHERE " + strings.Join(known, " AND ")
	if nulls {
		where = ""
	}
	return "SELECT count(*) FROM (SELECT FROM " + from + where + " GROUP BY " + strings.Join(list, ", ") + " HAVING count(*) > 1 LIMIT $1) x"
}
