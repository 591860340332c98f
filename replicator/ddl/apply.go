package ddl

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// Options are what Apply must know of the replication.
type Options struct {
	Replication tenant.ReplicationOptions
	Shards      int
	Publication string
	Settings    map[string]string // of the sessions that run the statements, which they have again behind each
	// Fence makes the statements that close a new table of a shard to all but the engine.
	Fence func(tenant.TableName) []string
}

// Change is what a command means for the shards.
type Change struct {
	Shape     *Shape
	Catalogue *catalog.Catalogue
	SQL       []string  // for every shard, in their order; none: nothing changed there
	Problems  []Problem // what the statements cannot repeat
	Notes     []string  // for people: what was dropped, what is not carried
	New       []uint32  // tables that came up, or may now be published: to be looked at when the transaction ends
	Renewed   bool      // shape or catalogue are others than before
}

// Problem is something that the statements cannot repeat at the shards.
type Problem struct {
	Message, Remedy string
}

// Statements come in the order of these steps, whatever the order in which objects are looked at.
const (
	stepTypes = iota
	stepSequences
	stepDropKeys
	stepDropTables
	stepTables
	stepPartitions
	stepKeys
	stepForeignKeys
	stepOwners
	stepDropRest
	stepFences
	steps
)

// planner collects what a change needs.
type planner struct {
	old   *Shape
	new   *Shape
	cat   *catalog.Catalogue
	row   *Row
	opts  Options
	out   *Change
	steps [steps][]string
	gone  map[uint32]Dropped // relations
	rewr  map[uint32]int     // roots of tables that the command rewrote -> reasons
	dirty map[uint32]bool    // tables whose place in the catalogue is to be made anew
	types map[string]bool    // new names of types that were renamed
}

// Apply compares what a command left with what is known. rewritten are the tables that it rewrote, with the reasons that
// Postgres gives (AT_REWRITE_* of event_trigger.h).
func Apply(old *Shape, cat *catalog.Catalogue, row *Row, rewritten map[uint32]int, opts Options) Change {
	p := &planner{old: old, new: old.clone(), cat: cat, row: row, opts: opts, out: &Change{}, gone: map[uint32]Dropped{}, rewr: map[uint32]int{}, dirty: map[uint32]bool{}, types: map[string]bool{}}
	for oid, why := range rewritten {
		root := oid
		if t := old.Tables[oid]; t != nil {
			root = t.Root
		}
		p.rewr[root] |= why
	}
	for _, d := range row.Dropped {
		p.gone[d.OID] = d
	}
	p.enums()
	p.drops()
	// Parents first: what a parent gets, its children have then.
	tables := slices.Clone(row.Tables)
	depth := func(t *Table) int { return p.depth(t, 0) }
	sort.SliceStable(tables, func(i, j int) bool { return depth(tables[i]) < depth(tables[j]) })
	for _, t := range tables {
		p.table(t)
	}
	p.sequences()
	for _, o := range row.Others {
		if p.types[o.Name] {
			continue
		}
		p.note("%s %s was run at the source and is not carried to the shards", o.Tag, o.Name)
	}
	for _, s := range p.steps {
		p.out.SQL = append(p.out.SQL, s...)
	}
	p.out.Shape = p.new
	p.catalogue()
	return *p.out
}

func (p *planner) depth(t *Table, level int) int {
	const most = 64 // deeper than any tree, in case of a cycle of stale states
	deepest := level
	if level > most {
		return level
	}
	for _, parent := range t.Parents {
		if up := p.find(parent); up != nil {
			deepest = max(deepest, p.depth(up, level+1))
		}
	}
	return deepest
}

// find is a table's state after the command.
func (p *planner) find(oid uint32) *Table {
	for _, t := range p.row.Tables {
		if t.OID == oid {
			return t
		}
	}
	return p.new.Tables[oid]
}

func (p *planner) do(step int, format string, args ...any) {
	p.steps[step] = append(p.steps[step], fmt.Sprintf(format, args...))
}

func (p *planner) note(format string, args ...any) {
	p.out.Notes = append(p.out.Notes, fmt.Sprintf(format, args...))
}

func (p *planner) problem(remedy, format string, args ...any) {
	p.out.Problems = append(p.out.Problems, Problem{Message: fmt.Sprintf(format, args...), Remedy: remedy})
}

// unless makes a statement that runs only where a condition does not hold, so that it may be run again.
func unless(condition, sql string) string {
	return "DO " + tenant.QuoteLiteral("BEGIN IF NOT ("+condition+") THEN "+sql+"; END IF; END")
}

func regclass(name string) string { return "to_regclass(" + tenant.QuoteLiteral(name) + ")" }

func hasConstraint(t *Table, name string) string {
	return "EXISTS (SELECT FROM pg_catalog.pg_constraint WHERE conrelid = " + regclass(t.quoted()) + " AND conname = " + tenant.QuoteLiteral(name) + ")"
}

func hasColumn(t *Table, name string) string {
	return "EXISTS (SELECT FROM pg_catalog.pg_attribute WHERE attrelid = " + regclass(t.quoted()) + " AND attname = " + tenant.QuoteLiteral(name) + " AND NOT attisdropped)"
}

// enums makes, extends and renames enum types.
func (p *planner) enums() {
	for _, e := range p.row.Enums {
		was := p.new.Enums[e.OID]
		p.new.Enums[e.OID] = e
		if was == nil {
			p.schema(stepTypes, e.Schema)
			labels := make([]string, len(e.Labels))
			for i, l := range e.Labels {
				labels[i] = tenant.QuoteLiteral(l.Label)
			}
			p.do(stepTypes, "%s", unless("to_regtype("+tenant.QuoteLiteral(e.quoted())+") IS NOT NULL", "CREATE TYPE "+e.quoted()+" AS ENUM ("+strings.Join(labels, ", ")+")"))
			continue
		}
		p.rename(stepTypes, "TYPE", was.Schema, was.Name, e.Schema, e.Name)
		known := map[uint32]string{}
		for _, l := range was.Labels {
			known[l.OID] = l.Label
		}
		for i, l := range e.Labels {
			old, ok := known[l.OID]
			switch {
			case !ok && i > 0:
				p.do(stepTypes, "ALTER TYPE %s ADD VALUE IF NOT EXISTS %s AFTER %s", e.quoted(), tenant.QuoteLiteral(l.Label), tenant.QuoteLiteral(e.Labels[i-1].Label))
			case !ok && len(e.Labels) > 1:
				next := slices.IndexFunc(e.Labels, func(x Label) bool { _, ok := known[x.OID]; return ok })
				if next < 0 {
					p.do(stepTypes, "ALTER TYPE %s ADD VALUE IF NOT EXISTS %s", e.quoted(), tenant.QuoteLiteral(l.Label))
					continue
				}
				p.do(stepTypes, "ALTER TYPE %s ADD VALUE IF NOT EXISTS %s BEFORE %s", e.quoted(), tenant.QuoteLiteral(l.Label), tenant.QuoteLiteral(e.Labels[next].Label))
			case !ok:
				p.do(stepTypes, "ALTER TYPE %s ADD VALUE IF NOT EXISTS %s", e.quoted(), tenant.QuoteLiteral(l.Label))
			case old != l.Label:
				p.do(stepTypes, "%s", unless("NOT EXISTS (SELECT FROM pg_catalog.pg_enum WHERE enumtypid = to_regtype("+tenant.QuoteLiteral(e.quoted())+") AND enumlabel = "+tenant.QuoteLiteral(old)+")",
					"ALTER TYPE "+e.quoted()+" RENAME VALUE "+tenant.QuoteLiteral(old)+" TO "+tenant.QuoteLiteral(l.Label)))
			}
		}
	}
}

// schema makes a schema, which no state describes.
func (p *planner) schema(step int, name string) {
	if name != "public" {
		p.do(step, "CREATE SCHEMA IF NOT EXISTS %s", tenant.QuoteIdent(name))
	}
}

// rename follows an object to its new schema and name.
func (p *planner) rename(step int, what, oldSchema, oldName, schema, name string) {
	from := tenant.TableName{Schema: oldSchema, Name: oldName}
	exists := "to_regclass("
	if what == "TYPE" {
		exists = "to_regtype("
	}
	absent := func() string { return exists + tenant.QuoteLiteral(from.Quoted()) + ") IS NULL" }
	if oldSchema != schema {
		p.schema(step, schema)
		p.do(step, "%s", unless(absent(), "ALTER "+what+" "+from.Quoted()+" SET SCHEMA "+tenant.QuoteIdent(schema)))
		from.Schema = schema
	}
	if oldName != name {
		p.do(step, "%s", unless(absent(), "ALTER "+what+" "+from.Quoted()+" RENAME TO "+tenant.QuoteIdent(name)))
	}
}

// drops follows what a command dropped.
func (p *planner) drops() {
	var tables []string
	for _, d := range p.row.Dropped {
		switch d.Class {
		case "pg_class":
			if t := p.new.Tables[d.OID]; t != nil {
				tables = append(tables, t.quoted())
				p.note("table %s was dropped", t.TableName())
				delete(p.new.Tables, d.OID)
				p.dirty[t.OID], p.dirty[t.Root] = true, true
				continue
			}
			if s := p.new.Sequences[d.OID]; s != nil {
				if s.Owner == 0 || d.Original { // else it goes with its column
					p.do(stepDropRest, "DROP SEQUENCE IF EXISTS %s", s.quoted())
				}
				delete(p.new.Sequences, d.OID)
				continue
			}
			if d.Type == "index" {
				p.dropIndex(d)
			} else if d.Original && (d.Type == "view" || d.Type == "materialized view") {
				p.note("%s %s was dropped at the source and is left at the shards", d.Type, d.Identity)
			}
		case "pg_type":
			if e := p.new.Enums[d.OID]; e != nil {
				p.do(stepDropRest, "DROP TYPE IF EXISTS %s", e.quoted())
				p.note("type %s.%s was dropped", e.Schema, e.Name)
				delete(p.new.Enums, d.OID)
			}
		case "pg_constraint":
			for oid, t := range p.new.Tables {
				if i := slices.IndexFunc(t.Constraints, func(k Constraint) bool { return k.OID == d.OID }); i >= 0 {
					if _, goes := p.gone[oid]; goes || p.find(oid) != t {
						continue // the table's new state shows it
					}
					p.do(stepDropKeys, "ALTER TABLE %s DROP CONSTRAINT IF EXISTS %s", t.quoted(), tenant.QuoteIdent(t.Constraints[i].Name))
					now := *t
					now.Constraints = slices.Delete(slices.Clone(t.Constraints), i, i+1)
					p.new.Tables[oid] = &now
				}
			}
		default:
			if d.Original && (d.Class == "pg_proc" || d.Class == "pg_trigger" || d.Class == "pg_policy") {
				p.note("%s %s was dropped at the source and is left at the shards", d.Type, d.Identity)
			}
		}
	}
	if len(tables) > 0 {
		p.do(stepDropTables, "DROP TABLE IF EXISTS %s", strings.Join(tables, ", "))
	}
}

// dropIndex drops an index that the source dropped, by its number or, since REINDEX CONCURRENTLY gives it another one
// without a word, by its name.
func (p *planner) dropIndex(d Dropped) {
	for oid, t := range p.new.Tables {
		i := slices.IndexFunc(t.Indexes, func(x Index) bool { return x.OID == d.OID || (t.Schema == d.Schema && x.Name == d.Name) })
		if i < 0 {
			continue
		}
		if _, goes := p.gone[oid]; goes || !t.Indexes[i].Own || t.Indexes[i].Parent != 0 {
			continue // goes with what it belongs to
		}
		p.do(stepDropKeys, "DROP INDEX IF EXISTS %s", tenant.TableName{Schema: t.Schema, Name: t.Indexes[i].Name}.Quoted())
		now := *t
		now.Indexes = slices.Delete(slices.Clone(t.Indexes), i, i+1)
		p.new.Tables[oid] = &now
		p.dirty[t.Root] = true
	}
}

func (p *planner) sequences() {
	for _, s := range p.row.Sequences {
		was := p.new.Sequences[s.OID]
		owner := p.new.Tables[s.Owner]
		if s.Owner != 0 && owner == nil || catalog.MatchesAny(p.opts.Replication.Exclude, tenant.TableName{Schema: s.Schema, Name: s.Name}) {
			continue
		}
		p.new.Sequences[s.OID] = s
		p.out.Renewed = true
		if was == nil {
			if s.Internal {
				continue // made by its identity column
			}
			p.schema(stepSequences, s.Schema)
			p.do(stepSequences, "CREATE SEQUENCE IF NOT EXISTS %s AS %s %s", s.quoted(), s.Type, s.options())
		} else {
			// One that belongs to a column follows its table's schema by itself.
			p.rename(stepOwners, "SEQUENCE", was.Schema, was.Name, s.Schema, s.Name)
			if was.Type != s.Type || was.options() != s.options() {
				p.do(stepOwners, "ALTER SEQUENCE %s AS %s %s", s.quoted(), s.Type, s.options())
			}
		}
		if !s.Internal && (was == nil && s.Owner != 0 || was != nil && (was.Owner != s.Owner || was.Column != s.Column)) {
			by := "NONE"
			if owner != nil {
				if c := owner.column(s.Column); c != nil {
					by = owner.quoted() + "." + tenant.QuoteIdent(c.Name)
				}
			}
			p.do(stepOwners, "ALTER SEQUENCE %s OWNED BY %s", s.quoted(), by)
		}
	}
}

func (s *Sequence) options() string {
	cycle := "NO CYCLE"
	if s.Cycle {
		cycle = "CYCLE"
	}
	return fmt.Sprintf("INCREMENT BY %d MINVALUE %d MAXVALUE %d START WITH %d CACHE %d %s", s.Increment, s.Min, s.Max, s.Start, s.Cache, cycle)
}
