package ddl

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/rehomedb/rehome/tenant"
)

// Reasons of a rewrite (event_trigger.h).
const (
	rewriteDefault = 2
	rewriteColumn  = 4
)

// columns follows the columns of a table: away, renamed, of another type, new, and what belongs to each.
func (p *planner) columns(was, t *Table) {
	name := t.quoted()
	for i := len(was.Columns) - 1; i >= 0; i-- { // what is generated usually stands behind what it is generated from
		c := &was.Columns[i]
		if t.column(c.Num) == nil && !c.Inherited {
			p.note("column %s of table %s was dropped", shown(c.Name), t.TableName())
			p.do(stepTables, "ALTER TABLE %s DROP COLUMN IF EXISTS %s", name, tenant.QuoteIdent(c.Name))
		}
	}
	p.renames(was, t)
	for i := range t.Columns {
		c := &t.Columns[i]
		switch old := was.column(c.Num); {
		case c.Inherited && (old == nil || old.Inherited):
		case old == nil:
			p.addColumn(t, c)
		default:
			p.alterColumn(t, old, c)
		}
	}
}

// renames gives columns their new names; where names are swapped, through names in between.
func (p *planner) renames(was, t *Table) {
	type step struct{ from, to string }
	var now, then []step
	for i := range t.Columns {
		c := &t.Columns[i]
		old := was.column(c.Num)
		if old == nil || old.Name == c.Name || c.Inherited {
			continue
		}
		if taken := was.named(c.Name); taken != nil && t.column(taken.Num) != nil {
			middle := fmt.Sprintf("rehome_renamed_%d", c.Num)
			now, then = append(now, step{old.Name, middle}), append(then, step{middle, c.Name})
			continue
		}
		now = append(now, step{old.Name, c.Name})
	}
	for _, s := range slices.Concat(now, then) {
		p.do(stepTables, "%s", unless("NOT "+hasColumn(t, s.from), "ALTER TABLE "+t.quoted()+" RENAME COLUMN "+tenant.QuoteIdent(s.from)+" TO "+tenant.QuoteIdent(s.to)))
	}
}

// addColumn adds a column with the very value that older rows have at the source, and then sets its default.
func (p *planner) addColumn(t *Table, c *Column) {
	add := "ALTER TABLE " + t.quoted() + " ADD COLUMN IF NOT EXISTS " + definition(c)
	alter := "ALTER TABLE " + t.quoted() + " ALTER COLUMN " + tenant.QuoteIdent(c.Name)
	notNull := ""
	if c.NotNull {
		notNull = " NOT NULL"
	}
	drawn := c.Identity != "" || c.Default != "" && c.Missing == nil && p.rewr[t.Root]&rewriteDefault != 0
	switch {
	case c.Generated != "":
		p.do(stepTables, "%s%s", add, notNull)
	case drawn:
		if !t.Empty {
			p.problem("rehome resume-replication adds the column with values of the shards' own; rehome verify --repair then brings the source's",
				"column %s of table %s was added with a value of its own for each row (%s)", shown(c.Name), t.TableName(), valueOf(c))
		}
		if c.Identity != "" {
			p.do(stepTables, "%s%s%s", add, p.identity(t, c), notNull)
		} else {
			p.do(stepTables, "%s DEFAULT %s%s", add, c.Default, notNull)
		}
	case c.Missing != nil:
		p.do(stepTables, "%s DEFAULT %s::%s%s", add, tenant.QuoteLiteral(*c.Missing), c.TypeMod, notNull)
		if c.Default == "" {
			p.do(stepTables, "%s DROP DEFAULT", alter)
		} else {
			p.do(stepTables, "%s SET DEFAULT %s", alter, c.Default)
		}
	default:
		p.do(stepTables, "%s%s", add, notNull)
		if c.Default != "" {
			p.do(stepTables, "%s SET DEFAULT %s", alter, c.Default)
		}
	}
}

func valueOf(c *Column) string {
	if c.Identity != "" {
		return "an identity"
	}
	return "DEFAULT " + c.Default
}

// alterColumn follows what changed of a column.
func (p *planner) alterColumn(t *Table, old, c *Column) {
	alter := "ALTER TABLE " + t.quoted() + " ALTER COLUMN " + tenant.QuoteIdent(c.Name)
	retyped := old.TypeOID != c.TypeOID || old.Mod != c.Mod || old.Collation != c.Collation
	def := old.Default
	if old.Generated != "" && c.Generated == "" {
		p.do(stepTables, "%s DROP EXPRESSION IF EXISTS", alter)
		def = ""
	}
	if retyped {
		if def != "" && c.Generated == "" && def != c.Default {
			p.do(stepTables, "%s DROP DEFAULT", alter)
			def = ""
		}
		p.retype(t, c, alter)
	}
	if c.Generated != "" {
		if def != c.Default && !retyped {
			p.do(stepTables, "%s SET EXPRESSION AS (%s)", alter, c.Default)
		}
		return
	}
	if old.Identity != "" && c.Identity == "" {
		p.do(stepTables, "%s DROP IDENTITY IF EXISTS", alter)
	}
	if def != c.Default {
		if c.Default == "" {
			p.do(stepTables, "%s DROP DEFAULT", alter)
		} else {
			p.do(stepTables, "%s SET DEFAULT %s", alter, c.Default)
		}
	}
	if c.NotNull && !old.NotNull {
		p.do(stepTables, "%s SET NOT NULL", alter)
	}
	switch {
	case old.Identity == c.Identity:
	case old.Identity == "":
		p.do(stepTables, "%s", unless("EXISTS (SELECT FROM pg_catalog.pg_attribute WHERE attrelid = "+regclass(t.quoted())+" AND attname = "+tenant.QuoteLiteral(c.Name)+" AND attidentity <> '')",
			alter+" ADD"+p.identity(t, c)))
	case c.Identity != "":
		p.do(stepTables, "%s SET GENERATED %s", alter, generatedAs(c.Identity))
	}
	if !c.NotNull && old.NotNull {
		p.do(stepKeys, "%s DROP NOT NULL", alter) // a primary key that goes first must be gone
	}
}

// retype changes a column's type by the cast that belongs to it, under the settings that the cast may depend on.
func (p *planner) retype(t *Table, c *Column, alter string) {
	sql := alter + " TYPE " + c.TypeMod
	if c.Collation != "" {
		sql += " COLLATE " + c.Collation
	}
	if p.rewr[t.Root]&rewriteColumn != 0 {
		if t.Empty {
			sql += " USING NULL" // there may be no cast, and there is nothing to cast
		} else if !p.row.Plain && c.Generated == "" {
			p.problem("run the same ALTER TABLE in the database on every shard, then: rehome resume-replication",
				"column %s of table %s got the type %s by an expression that is not known here (USING)", shown(c.Name), t.TableName(), c.TypeMod)
			p.do(stepTables, "DO %s", tenant.QuoteLiteral("BEGIN IF NOT "+hasType(t, c)+" THEN RAISE EXCEPTION USING MESSAGE = "+
				tenant.QuoteLiteral("column "+shown(c.Name)+" of "+t.TableName().String()+" is not of type "+c.TypeMod+" yet")+"; END IF; END"))
			return
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.row.Settings)) {
		p.do(stepTables, "SET LOCAL %s = %s", tenant.QuoteIdent(strings.ToLower(name)), tenant.QuoteLiteral(p.row.Settings[name]))
	}
	p.do(stepTables, "%s", sql)
	for _, name := range slices.Sorted(maps.Keys(p.row.Settings)) {
		p.do(stepTables, "SET LOCAL %s = %s", tenant.QuoteIdent(strings.ToLower(name)), tenant.QuoteLiteral(p.opts.Settings[strings.ToLower(name)]))
	}
}

func hasType(t *Table, c *Column) string {
	collation := ""
	if c.Collation != "" {
		collation = " AND attcollation = " + tenant.QuoteLiteral(c.Collation) + "::regcollation"
	}
	return "EXISTS (SELECT FROM pg_catalog.pg_attribute WHERE attrelid = " + regclass(t.quoted()) + " AND attname = " + tenant.QuoteLiteral(c.Name) +
		" AND format_type(atttypid, atttypmod) = " + tenant.QuoteLiteral(c.TypeMod) + collation + ")"
}

// shown is a name as people write it, quoted only where it must be.
func shown(name string) string {
	return strings.TrimPrefix(tenant.TableName{Schema: "x", Name: name}.String(), "x.")
}
