package replicator

import (
	"context"
	"encoding/json"
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
	case s.elsewhere(ctx, rel.table):
		return nil
	}
	t := &truncation{rels: []*relation{rel}, partition: &partition, where: rel.truncatedPart(s.commit)}
	if b := s.e.cfg.back; b != nil {
		t.where = b.ownedRows(rel.table, partition.Quoted())
	}
	for i := range s.lanes {
		if err := s.add(ctx, i, change{op: opTruncate, rel: rel, truncate: t}); err != nil {
			return err
		}
	}
	return nil
}

// unnoted pauses for a partition that came up and could not be given the trigger that notes its TRUNCATE.
func (s *stream) unnoted(state []byte, query string) error {
	var r struct {
		Schema  string `json:"schema"`
		Name    string `json:"name"`
		Trigger string `json:"trigger"`
		Error   string `json:"error"`
	}
	if err := json.Unmarshal(state, &r); err != nil {
		return fmt.Errorf("stream: a row of rehome.ddl: %w", err)
	}
	name := tenant.TableName{Schema: r.Schema, Name: r.Name}
	return s.ask(stop("ddl-truncate-unnoted", fmt.Sprintf("at the source, as the replication's role, which must own the partition or be a member of its owner: "+
		"CREATE TRIGGER %[1]s AFTER TRUNCATE ON %[2]s FOR EACH STATEMENT EXECUTE FUNCTION rehome.note_truncation(); ALTER TABLE %[2]s ENABLE ALWAYS TRIGGER %[1]s; "+
		"or see to it that nobody truncates it alone; then: rehome resume-replication", tenant.QuoteIdent(r.Trigger), name.Quoted()),
		"partition %s came up at the source, and a TRUNCATE of it alone would not be noticed: no trigger could be made on it: %s. The command: %s", name, r.Error, query))
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
