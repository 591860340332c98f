package verify

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// Kinds of tenant.SchemaDiff that only Schemas looks for.
const (
	TableGone        = "table-gone"        // from the source
	TableExtra       = "table-extra"       // at the shard, and not replicated: its rows stay there
	PartitionMissing = "partition-missing" // at the shard
	PartitionExtra   = "partition-extra"   // at the shard: the source has no place for its rows, or another
	EnumLabels       = "enum-labels"
)

// Schemas compares the schemas of both sides and no row, as the sessions see them: what Compare compares of them, and what
// matters only to a source that is to take the writes back: tables that are not replicated, partitions and labels of enums.
// Of the input it uses Catalogue, Placement, Accepted, Source and Shards.
func Schemas(ctx context.Context, in Input) ([]tenant.SchemaDiff, error) {
	s, err := openSides(ctx, in)
	if err != nil {
		return nil, fmt.Errorf("compare the schemas: %w", err)
	}
	defer s.close()
	all := s.all()
	schemas, others := make([]*sideSchema, len(all)), make([]*layout, len(all))
	group, gctx := errgroup.WithContext(ctx)
	for i, one := range all {
		group.Go(func() (err error) {
			if schemas[i], err = one.readSchema(gctx, in); err == nil {
				others[i], err = one.readLayout(gctx, in)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, fmt.Errorf("compare the schemas: %w", err)
	}
	f := &schemaFindings{in: in, skip: map[tenant.TableName]string{}}
	for i, one := range all[1:] {
		f.shard(one.name, schemas[0], schemas[i+1])
		f.layout(one.name, schemas[0], others[0], others[i+1])
	}
	return f.diffs, nil
}

// layout is what Compare leaves to each side.
type layout struct {
	tables     map[tenant.TableName]bool
	partitions map[tenant.TableName]partition
	labels     map[tenant.TableName]string // of enums, in order
}

type partition struct {
	root  tenant.TableName
	bound string
}

const (
	readAllTables = `SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND NOT c.relispartition AND n.nspname NOT LIKE 'pg\_%'
		  AND n.nspname NOT IN ('information_schema', 'rehome', 'rehome_control')
		  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')`
	readPartitions = `SELECT n.nspname::text, c.relname::text, w.schema, w.name, coalesce(pg_get_expr(c.relpartbound, c.oid), '')
		FROM unnest($1::text[], $2::text[]) w(schema, name) JOIN pg_namespace rn ON rn.nspname = w.schema
		JOIN pg_class r ON r.relnamespace = rn.oid AND r.relname = w.name AND r.relkind = 'p'
		CROSS JOIN LATERAL pg_partition_tree(r.oid) t JOIN pg_class c ON c.oid = t.relid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE t.level > 0`
	readLabels = `SELECT n.nspname::text, t.typname::text, string_agg(quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder)
		FROM pg_enum e JOIN pg_type t ON t.oid = e.enumtypid JOIN pg_namespace n ON n.oid = t.typnamespace
		WHERE n.nspname NOT LIKE 'pg\_%' AND n.nspname <> 'information_schema' GROUP BY 1, 2`
)

func (s *side) readLayout(ctx context.Context, in Input) (*layout, error) {
	out := &layout{tables: map[tenant.TableName]bool{}, partitions: map[tenant.TableName]partition{}, labels: map[tenant.TableName]string{}}
	r := &schemaReader{side: s, ctx: ctx}
	var object tenant.TableName
	r.query(readAllTables, []any{&object.Schema, &object.Name}, func() { out.tables[object] = true })
	names := make([]tenant.TableName, len(in.Catalogue.Tables))
	for i := range in.Catalogue.Tables {
		names[i] = in.Catalogue.Tables[i].Name
	}
	var p partition
	r.named(readPartitions, names, []any{&object.Schema, &object.Name, &p.root.Schema, &p.root.Name, &p.bound}, func() { out.partitions[object] = p })
	var labels string
	r.query(readLabels, []any{&object.Schema, &object.Name, &labels}, func() { out.labels[object] = labels })
	if r.err != nil {
		return nil, fmt.Errorf("%s: read the schema: %w", s, r.err)
	}
	return out, nil
}

func (f *schemaFindings) layout(shard string, known *sideSchema, source, target *layout) {
	for i := range f.in.Catalogue.Tables {
		if name := f.in.Catalogue.Tables[i].Name; known.tables[name] == nil {
			f.add(shard, name.String(), TableGone, "", "")
		}
	}
	for _, name := range sorted(target.tables) {
		if !slices.ContainsFunc(f.in.Catalogue.Tables, func(t catalog.Table) bool { return t.Name == name }) {
			f.add(shard, name.String(), TableExtra, "", "")
		}
	}
	for _, name := range sorted(target.partitions) {
		have, want := target.partitions[name], source.partitions[name]
		if have.root != want.root || !sameDefinition(have.bound, want.bound) {
			f.add(shard, name.String(), PartitionExtra, want.describe(), have.describe())
		}
	}
	for _, name := range sorted(source.partitions) {
		if _, ok := target.partitions[name]; !ok && source.partitions[name].root != (tenant.TableName{}) {
			f.add(shard, name.String(), PartitionMissing, source.partitions[name].describe(), "")
		}
	}
	for _, name := range sorted(target.labels) {
		if was, ok := source.labels[name]; ok && was != target.labels[name] {
			f.add(shard, name.String(), EnumLabels, was, target.labels[name])
		}
	}
}

func (p partition) describe() string {
	if p.bound == "" {
		return ""
	}
	return "PARTITION OF " + p.root.String() + " " + p.bound
}

func sorted[V any](m map[tenant.TableName]V) []tenant.TableName {
	return slices.SortedFunc(maps.Keys(m), func(a, b tenant.TableName) int {
		return cmp.Or(strings.Compare(a.Schema, b.Schema), strings.Compare(a.Name, b.Name))
	})
}

// Snapshot opens a session that sees what is committed when it is asked for first: for Schemas, where no exact position matters.
func Snapshot(open func(ctx context.Context) (*pgx.Conn, error)) Sessions {
	return func(ctx context.Context) (*pgx.Conn, error) {
		conn, err := open(ctx)
		if err != nil {
			return nil, err
		}
		if _, err := conn.Exec(ctx, "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"); err != nil {
			closeSession(conn)
			return nil, fmt.Errorf("begin: %w", err)
		}
		return conn, nil
	}
}
