package verify

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// Kinds of tenant.SchemaDiff. "Extra" is at the shard only.
const (
	TableMissing           = "table-missing"
	ColumnMissing          = "column-missing"
	ColumnExtra            = "column-extra"
	ColumnType             = "column-type"
	ColumnNullability      = "column-nullability"
	ColumnGenerated        = "column-generated"
	ColumnIdentity         = "column-identity"
	ColumnDefault          = "column-default"
	ConstraintMissing      = "constraint-missing"
	ConstraintExtra        = "constraint-extra"
	ConstraintDefinition   = "constraint-definition"
	ConstraintNotValidated = "constraint-not-validated"
	ConstraintViolated     = "constraint-violated" // a deferrable one, which nothing enforces while rows are replicated
	IndexMissing           = "index-missing"
	IndexExtra             = "index-extra" // of unique ones: others refuse no row
	IndexDefinition        = "index-definition"
	IndexInvalid           = "index-invalid"
	TriggerMissing         = "trigger-missing"
	TriggerExtra           = "trigger-extra"
	TriggerDisabled        = "trigger-disabled"
	SequenceMissing        = "sequence-missing"
	SequenceType           = "sequence-type" // narrower than the source's
)

// maxSchemaDiffs bounds the result when a whole schema is not there; the rest is counted.
const maxSchemaDiffs = 500

// schemaFindings are the differences in schema, and the tables whose rows cannot be compared because of them.
type schemaFindings struct {
	in    Input
	diffs []tenant.SchemaDiff
	more  int64
	skip  map[tenant.TableName]string // why not
	cuts  map[tenant.TableName][]cut  // of large tables: the parts, for each side

	bounds    map[tenant.TableName][]string // of large tables: between their units
	scattered map[tenant.TableName]bool     // tables whose rows do not lie in the order of their keys
}

// compareSchema reads the schemas of all sides and compares each shard's with the source's.
func compareSchema(ctx context.Context, in Input, w *watch) (f *schemaFindings, err error) {
	s, err := openSides(ctx, in)
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	defer s.close()
	err = w.guard(ctx, s, func(ctx context.Context) (err error) {
		f, err = findSchema(ctx, in, s)
		return err
	})
	return f, err
}

func findSchema(ctx context.Context, in Input, s *sides) (*schemaFindings, error) {
	all := s.all()
	schemas := make([]*sideSchema, len(all))
	group, gctx := errgroup.WithContext(ctx)
	sizes := make([]tableSizes, len(all))
	doubles := make([][]doubled, len(all))
	for i, one := range all {
		group.Go(func() (err error) {
			if schemas[i], err = one.readSchema(gctx, in); err != nil {
				return err
			}
			if sizes[i], err = one.readSizes(gctx, in); err != nil || i == 0 && in.Home == "" {
				return err
			}
			doubles[i], err = one.readDoubles(gctx, in)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	f := &schemaFindings{in: in, skip: map[tenant.TableName]string{}, cuts: cutTables(in, sizes)}
	for _, d := range doubles[0] {
		f.add("", d.table.String()+"."+shown(d.name), ConstraintViolated, fmt.Sprintf("%d keys are there more than once", d.keys), d.definition)
	}
	for i, one := range all[1:] {
		f.shard(one.name, schemas[0], schemas[i+1])
		for _, d := range doubles[i+1] {
			f.add(one.name, d.table.String()+"."+shown(d.name), ConstraintViolated, d.definition, fmt.Sprintf("%d keys are there more than once", d.keys))
		}
	}
	if err := f.chooseBounds(ctx, all[0], sizes[0]); err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	return f, nil
}

func (f *schemaFindings) add(shard, object, kind, source, target string) {
	if len(f.diffs) == maxSchemaDiffs {
		f.more++
		return
	}
	f.diffs = append(f.diffs, tenant.SchemaDiff{Object: object, Kind: kind, Source: source, Target: target, Shard: shard})
}

func (f *schemaFindings) skipRows(t *catalog.Table, why, shard string) {
	if f.skip[t.Name] == "" {
		f.skip[t.Name] = why + " on shard " + shard
	}
}

func (f *schemaFindings) shard(shard string, source, target *sideSchema) {
	for i := range f.in.Catalogue.Tables {
		t := &f.in.Catalogue.Tables[i]
		from, to := source.tables[t.Name], target.tables[t.Name]
		switch {
		case from == nil: // dropped at the source since: reading its rows says so
		case to == nil:
			f.add(shard, t.Name.String(), TableMissing, "", "")
			f.skipRows(t, "the table is missing", shard)
		default:
			d := &tableDiff{f: f, t: t, shard: shard, from: from, to: to}
			d.columns()
			d.constraints()
			d.indexes()
			d.triggers()
		}
	}
	for _, s := range f.in.Catalogue.Sequences {
		have, ok := target.sequences[s.Name]
		switch {
		case !ok:
			f.add(shard, s.Name.String(), SequenceMissing, s.Type, "")
		case integerWidth(have) < integerWidth(s.Type):
			f.add(shard, s.Name.String(), SequenceType, s.Type, have)
		}
	}
}

func integerWidth(typ string) int {
	return map[string]int{"smallint": 2, "integer": 4, "bigint": 8}[typ]
}

// tableDiff compares one table.
type tableDiff struct {
	f        *schemaFindings
	t        *catalog.Table
	shard    string
	from, to *tableSchema
}

func (d *tableDiff) add(name, kind, source, target string) {
	d.f.add(d.shard, d.object(name), kind, source, target)
}

// object names a part of the table as findings do: schema.table.part.
func (d *tableDiff) object(part string) string { return d.t.Name.String() + "." + shown(part) }

func shown(name string) string {
	return strings.TrimPrefix(tenant.TableName{Schema: "x", Name: name}.String(), "x.")
}

func (d *tableDiff) columns() {
	for _, name := range d.from.order {
		a := d.from.columns[name]
		b, ok := d.to.columns[name]
		if !ok {
			d.add(name, ColumnMissing, a.typ, "")
			d.f.skipRows(d.t, "column "+shown(name)+" is missing", d.shard)
			continue
		}
		if !sameDefinition(a.typ, b.typ) {
			d.add(name, ColumnType, a.typ, b.typ)
		}
		// Identities that route to several shards may have made the realm key NOT NULL at the source, and take it back.
		if a.notNull != b.notNull && (name != d.t.RealmKey || len(d.f.in.Shards) == 1) {
			d.add(name, ColumnNullability, nullability(a.notNull), nullability(b.notNull))
		}
		if a.identity != b.identity {
			d.add(name, ColumnIdentity, identityText(a.identity), identityText(b.identity))
		}
		switch same := sameDefinition(a.expr, b.expr); {
		case a.generated != b.generated || a.generated != "" && !same:
			d.add(name, ColumnGenerated, generatedText(a), generatedText(b))
		case !same:
			d.add(name, ColumnDefault, a.expr, b.expr)
		}
	}
	for _, name := range d.to.order {
		if _, ok := d.from.columns[name]; !ok {
			d.add(name, ColumnExtra, "", d.to.columns[name].typ)
		}
	}
}

func nullability(notNull bool) string {
	if notNull {
		return "NOT NULL"
	}
	return "NULL"
}

func identityText(kind string) string {
	return map[string]string{"a": "GENERATED ALWAYS AS IDENTITY", "d": "GENERATED BY DEFAULT AS IDENTITY"}[kind]
}

func generatedText(c column) string {
	switch c.generated {
	case "":
		return c.expr
	case "v":
		return "GENERATED ALWAYS AS (" + c.expr + ") VIRTUAL"
	}
	return "GENERATED ALWAYS AS (" + c.expr + ") STORED"
}

// notNullCheck begins the names of the checks that stand in for NOT NULL while the catalogue's changes make it.
const notNullCheck = "rehome_nn_"

func (d *tableDiff) constraints() {
	for _, name := range slices.Sorted(maps.Keys(d.from.constraints)) {
		a := d.from.constraints[name]
		b, ok := d.to.constraints[name]
		switch {
		case strings.HasPrefix(name, notNullCheck) || !ok && d.leftOut(name, a):
		case !ok:
			d.add(name, ConstraintMissing, a.definition, "")
		case a.kind != b.kind || !sameDefinition(a.definition, b.definition):
			d.add(name, ConstraintDefinition, a.definition, b.definition)
		case a.validated && !b.validated:
			d.add(name, ConstraintNotValidated, a.definition, b.definition+" NOT VALID")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(d.to.constraints)) {
		if _, ok := d.from.constraints[name]; !ok && !strings.HasPrefix(name, notNullCheck) {
			d.add(name, ConstraintExtra, "", d.to.constraints[name].definition)
		}
	}
}

// leftOut reports whether a constraint is not carried on purpose: a foreign key to a table that stays behind, or one that
// was accepted because no shard can enforce it (what the schema's restoration leaves out).
func (d *tableDiff) leftOut(name string, c constraint) bool {
	if c.kind != "f" {
		return false
	}
	for _, code := range []string{"constraint-without-realm", "foreign-key-to-excluded"} {
		if slices.Contains(d.f.in.Accepted, tenant.Finding{Code: code, Object: d.object(name)}.ID()) {
			return true
		}
	}
	return !slices.ContainsFunc(d.f.in.Catalogue.Tables, func(t catalog.Table) bool { return t.Name == c.points })
}

func (d *tableDiff) indexes() {
	for _, name := range slices.Sorted(maps.Keys(d.from.indexes)) {
		a := d.from.indexes[name]
		b, ok := d.to.indexes[name]
		switch {
		case catalog.IsIdentityIndex(name) || !a.valid: // the latter are not carried
		case !ok && a.constraint: // said of the constraint
		case !ok:
			d.add(name, IndexMissing, a.definition, "")
		case a.unique != b.unique || !sameDefinition(a.definition, b.definition):
			if !a.constraint || !b.constraint {
				d.add(name, IndexDefinition, unique(a), unique(b))
			}
		case !b.valid:
			d.add(name, IndexInvalid, "", "")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(d.to.indexes)) {
		b := d.to.indexes[name]
		if _, ok := d.from.indexes[name]; !ok && b.unique && !b.constraint && !catalog.IsIdentityIndex(name) {
			d.add(name, IndexExtra, "", unique(b))
		}
	}
}

func unique(x index) string {
	if x.unique {
		return "UNIQUE " + x.definition
	}
	return x.definition
}

func (d *tableDiff) triggers() {
	for _, name := range slices.Sorted(maps.Keys(d.from.triggers)) {
		enabled, ok := d.to.triggers[name]
		switch {
		case !ok:
			d.add(name, TriggerMissing, "", "")
		case d.from.triggers[name] && !enabled:
			d.add(name, TriggerDisabled, "", "")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(d.to.triggers)) {
		if _, ok := d.from.triggers[name]; !ok {
			d.add(name, TriggerExtra, "", "")
		}
	}
}
