package verify

import (
	"context"
	"fmt"
	"math"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// A range of keys is read by itself where the rows lie in the order of their keys, more or less. Where they do not, as with
// random uuids, each range is all over the table and to read it means to read nearly all pages: then one scan sums several
// ranges up, row by row, by the range that the row's key is in.

const (
	// inOrder is how closely rows must follow the order of their keys (pg_stats.correlation, without its sign): below, more
	// pages are read than a range has.
	inOrder = 0.9
	// maxSwept is how many units one scan sums up at most: what an interruption loses stays bounded.
	maxSwept = 16
)

// findScattered finds the divided tables whose rows do not lie in the order of their keys. Without statistics uuids are taken
// to be random, and numbers not.
func (f *schemaFindings) findScattered(ctx context.Context, s *side) error {
	f.scattered = map[tenant.TableName]bool{}
	var schemas, names, columns []string
	for i := range f.in.Catalogue.Tables {
		t := &f.in.Catalogue.Tables[i]
		if column, ok := rangeColumn(t); ok && len(f.bounds[t.Name]) > 0 {
			f.scattered[t.Name] = column.BaseOID == oidUUID
			schemas, names, columns = append(schemas, t.Name.Schema), append(names, t.Name.Name), append(columns, column.Name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	rows, err := s.conn.Query(ctx, `SELECT schemaname::text, tablename::text, correlation FROM pg_stats JOIN unnest($1::text[], $2::text[], $3::text[]) w(s, t, c)
		ON schemaname = w.s AND tablename = w.t AND attname = w.c WHERE correlation IS NOT NULL ORDER BY inherited`, schemas, names, columns)
	if err != nil {
		return fmt.Errorf("%s: read how tables are ordered: %w", s, err)
	}
	var name tenant.TableName
	var correlation float64
	if _, err := pgx.ForEachRow(rows, []any{&name.Schema, &name.Name, &correlation}, func() error {
		f.scattered[name] = math.Abs(correlation) < inOrder
		return nil
	}); err != nil {
		return fmt.Errorf("%s: read how tables are ordered: %w", s, err)
	}
	return nil
}

// groupsOf joins units that follow each other into those that one scan reads.
func groupsOf(units []unit, scattered bool) [][]unit {
	var out [][]unit
	for i, u := range units {
		if last := len(out) - 1; scattered && i > 0 && units[i-1].number+1 == u.number && len(out[last]) < maxSwept {
			out[last] = append(out[last], u)
			continue
		}
		out = append(out, []unit{u})
	}
	return out
}

// sweepOf is the query that sums up several units at once: unit, rows, sum 1, sum 2. What is in no range is the last one's.
func sweepOf(t *catalog.Table, transcode bool, units []unit, where string) string {
	column, _ := rangeColumn(t)
	bounds := units[0].bounds
	values := make([]string, len(bounds))
	for i := range bounds {
		values[i] = tenant.QuoteLiteral(bounds[i])
	}
	number := fmt.Sprintf("coalesce(width_bucket(t.%s::%[2]s, ARRAY[%[3]s]::%[2]s[]), %[4]d)", tenant.QuoteIdent(column.Name), rangeType(column), strings.Join(values, ", "), len(bounds))
	row := newRowHash(t, transcode)
	return fmt.Sprintf(`SELECT u::bigint, count(*), sum(%s)::text, sum(%s)::text FROM (SELECT %s AS u, %s FROM %s t%s LIMIT ALL) x GROUP BY 1`,
		row.over(1), row.over(2), number, row.columns(), fromTable(t), whereText(keysOf(t, bounds, units[0].number, units[len(units)-1].number), where))
}

// rangeType is what a range column's values are compared as.
func rangeType(c catalog.Column) string {
	if c.BaseOID == oidUUID {
		return "uuid"
	}
	return "int8"
}
