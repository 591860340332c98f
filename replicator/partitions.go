package replicator

import (
	"context"
	"fmt"
	"strconv"

	"github.com/rehomedb/rehome/replicator/pgoutput"
	"github.com/rehomedb/rehome/tenant"
)

// partitionTruncated takes a note that a partition was truncated alone, of which the stream itself says nothing.
func (s *stream) partitionTruncated(ctx context.Context, note *relation, row pgoutput.Tuple) error {
	values := map[string]string{}
	for i, c := range note.columns {
		if i < len(row) && row[i].Kind == pgoutput.Text {
			values[c.Name] = string(row[i].Data)
		}
	}
	oid, err := strconv.ParseUint(values["root"], 10, 32)
	if err != nil || values["name"] == "" {
		return stop("bad-message", "report this", "a note of a TRUNCATE at the source cannot be understood: %v", values)
	}
	partition := tenant.TableName{Schema: values["schema"], Name: values["name"]}
	rel := s.rels[uint32(oid)]
	if rel == nil { // no row of it came yet
		table := s.e.Catalogue().Table(uint32(oid))
		if table == nil {
			return nil // of a table that is left out
		}
		c, _ := s.e.copyOf(table)
		rel = &relation{table: table, name: table.Name, realm: -1, skip: c.watermark, marks: c.marks}
	}
	switch {
	case s.commit < rel.skip:
		return nil
	case s.watching:
		s.foreign = partition.String()
		return nil
	}
	t := &truncation{rels: []*relation{rel}, partition: &partition, where: rel.truncatedPart(s.commit)}
	for i := range s.lanes {
		if err := s.add(ctx, i, change{op: opTruncate, rel: rel, truncate: t}); err != nil {
			return err
		}
	}
	return nil
}

// truncatePartition empties a partition. TRUNCATE is refused where a foreign key points to its tree, even if the table
// that it comes from is empty; a replica's DELETE is not. With a condition only its rows go.
func truncatePartition(name tenant.TableName, where string) statement {
	if where != "" {
		sql := "DELETE FROM " + name.Quoted() + " WHERE " + where
		return statement{shape: "T" + sql, sql: func() string { return sql }}
	}
	sql := "DO " + tenant.QuoteLiteral(fmt.Sprintf(`BEGIN IF EXISTS (SELECT FROM pg_catalog.pg_constraint WHERE contype = 'f' AND confrelid = %s::pg_catalog.regclass) THEN DELETE FROM %[2]s; ELSE TRUNCATE %[2]s; END IF; END`,
		tenant.QuoteLiteral(name.Quoted()), name.Quoted()))
	return statement{shape: "T" + sql, sql: func() string { return sql }}
}
