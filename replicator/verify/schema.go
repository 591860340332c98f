package verify

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// sideSchema is what one side has of the catalogue's tables and sequences. Partitions are not part of it: how a table is
// laid out is each side's own affair.
type sideSchema struct {
	tables    map[tenant.TableName]*tableSchema
	sequences map[tenant.TableName]string // type
}

type tableSchema struct {
	columns     map[string]column
	order       []string // of the columns
	constraints map[string]constraint
	indexes     map[string]index
	triggers    map[string]bool // enabled
}

type column struct {
	typ       string // with its collation, if that is not the type's own
	notNull   bool
	generated string // "", s stored, v virtual
	identity  string // "", a always, d by default
	expr      string // default, or what it is generated from
}

type constraint struct {
	kind       string // p, u, x, f, c as in pg_constraint.contype
	definition string
	validated  bool
	points     tenant.TableName // of a foreign key
}

type index struct {
	definition string // from USING on: without its name, and its table's
	unique     bool
	valid      bool
	constraint bool // backs one, which defines it
}

// What is read of a schema. Functions print with the settings' empty search_path: every name that is not Postgres' own
// is qualified, so both sides print alike.
const (
	readTables = `SELECT c.oid, w.schema, w.name FROM unnest($1::text[], $2::text[]) w(schema, name)
		JOIN pg_namespace n ON n.nspname = w.schema JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name AND c.relkind IN ('r', 'p')`
	readColumns = `SELECT a.attrelid, a.attname::text, format_type(a.atttypid, a.atttypmod) || coalesce(' COLLATE ' || quote_ident(l.collname), ''),
			a.attnotnull, a.attgenerated::text, a.attidentity::text, coalesce(pg_get_expr(d.adbin, d.adrelid), '')
		FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
		LEFT JOIN pg_collation l ON l.oid = a.attcollation AND a.attcollation <> t.typcollation
		LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
		WHERE a.attrelid = ANY ($1::oid[]) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attrelid, a.attnum`
	// From 18 on NOT NULL has entries of its own in pg_constraint; a column's nullability says the same everywhere.
	readConstraints = `SELECT k.conrelid, k.conname::text, k.contype::text, k.convalidated, coalesce(pg_get_constraintdef(k.oid), ''),
			coalesce(fn.nspname::text, ''), coalesce(fc.relname::text, '')
		FROM pg_constraint k LEFT JOIN pg_class fc ON fc.oid = k.confrelid LEFT JOIN pg_namespace fn ON fn.oid = fc.relnamespace
		WHERE k.conrelid = ANY ($1::oid[]) AND k.contype IN ('p', 'u', 'x', 'f', 'c') AND k.conparentid = 0`
	readIndexes = `SELECT i.indrelid, c.relname::text, coalesce(pg_get_indexdef(i.indexrelid), ''), i.indisunique, i.indisvalid AND i.indisready,
			EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.conrelid = i.indrelid AND k.contype IN ('p', 'u', 'x'))
		FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = ANY ($1::oid[])`
	// Fences, and whatever else is Rehome's own, call functions of the schema rehome.
	readTriggers = `SELECT t.tgrelid, t.tgname::text, t.tgenabled <> 'D' FROM pg_trigger t JOIN pg_proc f ON f.oid = t.tgfoid JOIN pg_namespace n ON n.oid = f.pronamespace
		WHERE t.tgrelid = ANY ($1::oid[]) AND NOT t.tgisinternal AND n.nspname <> 'rehome'`
	readSequenceTypes = `SELECT w.schema, w.name, format_type(s.seqtypid, -1) FROM unnest($1::text[], $2::text[]) w(schema, name)
		JOIN pg_namespace n ON n.nspname = w.schema JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name JOIN pg_sequence s ON s.seqrelid = c.oid`
)

func (s *side) readSchema(ctx context.Context, in Input) (*sideSchema, error) {
	out := &sideSchema{tables: map[tenant.TableName]*tableSchema{}, sequences: map[tenant.TableName]string{}}
	r := &schemaReader{side: s, ctx: ctx, tables: map[uint32]*tableSchema{}}

	tables := make([]tenant.TableName, len(in.Catalogue.Tables))
	for i := range in.Catalogue.Tables {
		tables[i] = in.Catalogue.Tables[i].Name
	}
	sequences := make([]tenant.TableName, len(in.Catalogue.Sequences))
	for i := range in.Catalogue.Sequences {
		sequences[i] = in.Catalogue.Sequences[i].Name
	}
	var (
		oid        uint32
		object     tenant.TableName
		name, text string
	)
	r.named(readTables, tables, []any{&oid, &object.Schema, &object.Name}, func() {
		t := &tableSchema{columns: map[string]column{}, constraints: map[string]constraint{}, indexes: map[string]index{}, triggers: map[string]bool{}}
		r.tables[oid], out.tables[object] = t, t
	})
	r.named(readSequenceTypes, sequences, []any{&object.Schema, &object.Name, &text}, func() { out.sequences[object] = text })

	var c column
	r.each(readColumns, []any{&oid, &name, &c.typ, &c.notNull, &c.generated, &c.identity, &c.expr}, func() {
		t := r.tables[oid]
		t.columns[name], t.order = c, append(t.order, name)
	})
	var k constraint
	r.each(readConstraints, []any{&oid, &name, &k.kind, &k.validated, &k.definition, &k.points.Schema, &k.points.Name}, func() {
		k.definition = strings.TrimSuffix(k.definition, " NOT VALID")
		r.tables[oid].constraints[name] = k
	})
	var x index
	r.each(readIndexes, []any{&oid, &name, &x.definition, &x.unique, &x.valid, &x.constraint}, func() {
		x.definition = indexDefinition(x.definition)
		r.tables[oid].indexes[name] = x
	})
	var enabled bool
	r.each(readTriggers, []any{&oid, &name, &enabled}, func() { r.tables[oid].triggers[name] = enabled })
	if r.err != nil {
		return nil, fmt.Errorf("%s: read the schema: %w", s, r.err)
	}
	return out, nil
}

// indexDefinition cuts the names of the index and its table off: CREATE [UNIQUE] INDEX name ON [ONLY] table USING ….
func indexDefinition(s string) string {
	for i := 0; i < len(s); {
		if s[i] == '"' {
			i = quotedEnd(s, i, false)
			continue
		}
		if strings.HasPrefix(s[i:], " USING ") {
			return s[i+1:]
		}
		i++
	}
	return s
}

// schemaReader runs queries until one fails.
type schemaReader struct {
	side   *side
	ctx    context.Context //nolint:containedctx // lives for one call of readSchema
	tables map[uint32]*tableSchema
	err    error
}

func (r *schemaReader) named(sql string, names []tenant.TableName, into []any, f func()) {
	schemas, relations := make([]string, len(names)), make([]string, len(names))
	for i, n := range names {
		schemas[i], relations[i] = n.Schema, n.Name
	}
	r.query(sql, into, f, schemas, relations)
}

// each reads entries of the tables that are there.
func (r *schemaReader) each(sql string, into []any, f func()) {
	oids := make([]uint32, 0, len(r.tables))
	for oid := range r.tables {
		oids = append(oids, oid)
	}
	r.query(sql, into, f, oids)
}

func (r *schemaReader) query(sql string, into []any, f func(), args ...any) {
	if r.err != nil {
		return
	}
	rows, err := r.side.conn.Query(r.ctx, sql, args...)
	if err == nil {
		_, err = pgx.ForEachRow(rows, into, func() error {
			f()
			return nil
		})
	}
	r.err = err
}
