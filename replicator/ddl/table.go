package ddl

import (
	"slices"
	"strings"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// table follows one table to its new state.
func (p *planner) table(t *Table) {
	was := p.new.Tables[t.OID]
	if was == nil && !p.wanted(t) {
		return
	}
	p.new.Tables[t.OID] = t
	p.dirty[t.Root], p.dirty[t.OID] = true, true
	if was == nil {
		p.create(t)
		return
	}
	p.dirty[was.Root] = true
	if p.published(was) != p.published(t) {
		p.out.New = append(p.out.New, t.OID)
		if p.published(t) && !t.Empty && !was.Partition {
			p.problem("rehome resume-replication goes on without those rows; rehome verify --repair then brings them",
				"table %s had rows before it could be published: they are not in the stream", t.TableName())
		}
	}
	p.typeNames(was, t)
	p.rename(stepTables, "TABLE", was.Schema, was.Name, t.Schema, t.Name)
	if !t.Partition && !was.Partition {
		p.columns(was, t)
		p.heritage(was, t)
	}
	p.partition(was, t)
	p.keys(was, t)
	if was.Partition && !t.Partition {
		p.out.New = append(p.out.New, t.OID)
	}
}

// typeNames gives the types of columns their new names: of composite types and domains no state is known, the columns tell.
// An enum has its new name by then.
func (p *planner) typeNames(was, t *Table) {
	for i := range t.Columns {
		c := &t.Columns[i]
		old := was.column(c.Num)
		if old == nil || old.TypeOID != c.TypeOID || old.Type == c.Type {
			continue
		}
		name := strings.TrimSuffix(c.Type, "[]")
		from, err := tenant.ParseTableName(strings.TrimSuffix(old.Type, "[]"))
		to, err2 := tenant.ParseTableName(name)
		if err != nil || err2 != nil || p.types[name] {
			continue
		}
		p.types[name] = true
		p.rename(stepTypes, "TYPE", from.Schema, from.Name, to.Schema, to.Name)
	}
}

func (p *planner) published(t *Table) bool { return slices.Contains(t.Published, p.opts.Publication) }

// wanted reports whether a table that is not known takes part.
func (p *planner) wanted(t *Table) bool {
	name := t.TableName()
	if t.Partition {
		root := p.find(t.Root)
		return root != nil && p.new.Tables[t.Root] != nil
	}
	if !catalog.Included(p.opts.Replication, name) {
		return false
	}
	if t.Persistence != "p" {
		p.note("table %s is unlogged: its rows are not carried", name)
		return false
	}
	return true
}

// create makes a table.
func (p *planner) create(t *Table) {
	name := t.TableName()
	p.out.New = append(p.out.New, t.OID)
	p.schema(stepTables, t.Schema)
	if !t.Empty {
		why := "was filled by the command that made it"
		if t.Partition {
			why = "had rows when it was attached, which were not replicated"
		}
		p.problem("rehome resume-replication makes the table at the shards without those rows; rehome verify --repair then brings them",
			"table %s %s: its rows of before are not in the stream", name, why)
	}
	var head string
	inline := p.columnList(t)
	if t.Partition && len(t.Parents) == 1 {
		parent := p.find(t.Parents[0])
		if t.Key != "" {
			head = " PARTITION BY " + t.Key
		}
		p.do(stepTables, "CREATE TABLE IF NOT EXISTS %s PARTITION OF %s %s%s", t.quoted(), parent.quoted(), t.Bound, head)
	} else {
		if parents := p.parents(t); len(parents) > 0 {
			head = " INHERITS (" + strings.Join(parents, ", ") + ")"
		}
		if t.Key != "" {
			head += " PARTITION BY " + t.Key
		}
		p.do(stepTables, "CREATE TABLE IF NOT EXISTS %s (%s)%s", t.quoted(), inline, head)
	}
	if p.opts.Fence != nil {
		p.steps[stepFences] = append(p.steps[stepFences], p.opts.Fence(name)...)
	}
	p.keys(&Table{OID: t.OID, Schema: t.Schema, Name: t.Name, Partition: t.Partition, ReplIdent: "d"}, t)
}

func (p *planner) parents(t *Table) []string {
	var out []string
	for _, o := range t.Parents {
		if up := p.find(o); up != nil {
			out = append(out, up.quoted())
		}
	}
	return out
}

func (p *planner) columnList(t *Table) string {
	var out []string
	for i := range t.Columns {
		c := &t.Columns[i]
		if c.Inherited {
			continue
		}
		def := definition(c)
		switch {
		case c.Identity != "":
			def += p.identity(t, c)
		case c.Default != "" && c.Generated == "":
			def += " DEFAULT " + c.Default
		}
		if c.NotNull {
			def += " NOT NULL"
		}
		out = append(out, def)
	}
	return strings.Join(out, ", ")
}

// definition is a column's name, type, collation and, when it is generated, what from.
func definition(c *Column) string {
	def := tenant.QuoteIdent(c.Name) + " " + c.TypeMod
	if c.Collation != "" {
		def += " COLLATE " + c.Collation
	}
	switch c.Generated {
	case "s":
		def += " GENERATED ALWAYS AS (" + c.Default + ") STORED"
	case "v":
		def += " GENERATED ALWAYS AS (" + c.Default + ") VIRTUAL"
	}
	return def
}

func generatedAs(kind string) string {
	if kind == "a" {
		return "ALWAYS"
	}
	return "BY DEFAULT"
}

// identity is the clause of an identity column, with the sequence named as at the source.
func (p *planner) identity(t *Table, c *Column) string {
	out := " GENERATED " + generatedAs(c.Identity) + " AS IDENTITY"
	for _, s := range p.row.Sequences {
		if s.Owner == t.OID && s.Column == c.Num && s.Internal {
			return out + " (SEQUENCE NAME " + s.quoted() + " " + s.options() + ")"
		}
	}
	return out
}

// partition follows ATTACH and DETACH.
func (p *planner) partition(was, t *Table) {
	up := func(x *Table) uint32 {
		if x.Partition && len(x.Parents) == 1 {
			return x.Parents[0]
		}
		return 0
	}
	if up(was) == up(t) && was.Bound == t.Bound {
		return
	}
	child := regclass(t.quoted())
	if old := p.find(up(was)); up(was) != 0 && old != nil {
		in := "EXISTS (SELECT FROM pg_catalog.pg_inherits WHERE inhrelid = " + child + " AND inhparent = " + regclass(old.quoted()) + ")"
		p.do(stepPartitions, "%s", unless("NOT "+in, "ALTER TABLE "+old.quoted()+" DETACH PARTITION "+t.quoted()))
	}
	if parent := p.find(up(t)); up(t) != 0 && parent != nil {
		in := "EXISTS (SELECT FROM pg_catalog.pg_inherits WHERE inhrelid = " + child + " AND inhparent = " + regclass(parent.quoted()) + ")"
		p.do(stepPartitions, "%s", unless(in, "ALTER TABLE "+parent.quoted()+" ATTACH PARTITION "+t.quoted()+" "+t.Bound))
	}
}

// heritage follows INHERIT and NO INHERIT.
func (p *planner) heritage(was, t *Table) {
	for _, o := range was.Parents {
		if up := p.find(o); up != nil && !slices.Contains(t.Parents, o) {
			p.do(stepPartitions, "ALTER TABLE %s NO INHERIT %s", t.quoted(), up.quoted())
		}
	}
	for _, o := range t.Parents {
		if up := p.find(o); up != nil && !slices.Contains(was.Parents, o) {
			p.do(stepPartitions, "ALTER TABLE %s INHERIT %s", t.quoted(), up.quoted())
		}
	}
}

// keys follows constraints, indexes and the replica identity.
func (p *planner) keys(was, t *Table) {
	if !was.Partition && t.Partition {
		return // ATTACH merges what both have
	}
	for _, k := range was.Constraints {
		if now := match(t.Constraints, k.OID, k.Name, k.Def, constraintIs); now == nil {
			p.do(stepDropKeys, "ALTER TABLE %s DROP CONSTRAINT IF EXISTS %s", was.quoted(), tenant.QuoteIdent(k.Name))
		}
	}
	for i := range t.Constraints {
		k := &t.Constraints[i]
		if old := match(was.Constraints, k.OID, k.Name, k.Def, constraintIs); old != nil {
			p.constraint(t, old, k)
		} else {
			p.addConstraint(t, k)
		}
	}
	for _, x := range was.Indexes {
		if now := match(t.Indexes, x.OID, x.Name, x.Def, indexIs); now == nil && x.Own && x.Parent == 0 {
			p.do(stepDropKeys, "DROP INDEX IF EXISTS %s", tenant.TableName{Schema: was.Schema, Name: x.Name}.Quoted())
		}
	}
	for i := range t.Indexes {
		x := &t.Indexes[i]
		old := match(was.Indexes, x.OID, x.Name, x.Def, indexIs)
		switch {
		case !x.Own || !x.Valid && t.Kind == "r":
		case old == nil && x.Parent == 0:
			p.addIndex(t, x)
		case old != nil && old.Parent == 0 && x.Parent != 0:
			p.attachIndex(t, x)
		case old != nil && old.Name != x.Name:
			p.rename(stepTables, "INDEX", t.Schema, old.Name, t.Schema, x.Name)
		}
	}
	p.replicaIdentity(was, t)
}

// match finds the entry with the same number or, since a rewrite gives a new one, with the same name and definition.
func match[T any](list []T, oid uint32, name, def string, is func(*T, uint32, string, string) bool) *T {
	for i := range list {
		if is(&list[i], oid, "", "") {
			return &list[i]
		}
	}
	for i := range list {
		if is(&list[i], 0, name, def) {
			return &list[i]
		}
	}
	return nil
}

func constraintIs(k *Constraint, oid uint32, name, def string) bool {
	return k.OID == oid || (name != "" && k.Name == name && k.Def == def)
}

func indexIs(x *Index, oid uint32, name, def string) bool {
	return x.OID == oid || (name != "" && x.Name == name && x.Def == def)
}

func (p *planner) constraint(t *Table, old, k *Constraint) {
	name := tenant.QuoteIdent(k.Name)
	// One that waits for the stream to be built, or was left out, is not there.
	if old.Name != k.Name {
		p.do(stepTables, "%s", unless(hasConstraint(t, k.Name)+" OR NOT "+hasConstraint(t, old.Name), "ALTER TABLE "+t.quoted()+" RENAME CONSTRAINT "+tenant.QuoteIdent(old.Name)+" TO "+name))
	}
	if k.Type == "f" && (old.Deferrable != k.Deferrable || old.Deferred != k.Deferred) {
		how := "NOT DEFERRABLE"
		if k.Deferrable {
			how = "DEFERRABLE INITIALLY IMMEDIATE"
			if k.Deferred {
				how = "DEFERRABLE INITIALLY DEFERRED"
			}
		}
		p.do(stepForeignKeys, "%s", unless("NOT "+hasConstraint(t, k.Name), "ALTER TABLE "+t.quoted()+" ALTER CONSTRAINT "+name+" "+how))
	}
	if !old.Validated && k.Validated {
		p.do(stepForeignKeys, "%s", unless("NOT "+hasConstraint(t, k.Name), "ALTER TABLE "+t.quoted()+" VALIDATE CONSTRAINT "+name))
	}
}

func (p *planner) addConstraint(t *Table, k *Constraint) {
	step := stepKeys
	if k.Type == "f" {
		step = stepForeignKeys
		to := p.find(k.Points)
		if to == nil {
			p.note("foreign key %s of %s points to a table that is left out, and is left out as well", k.Name, t.TableName())
			return
		}
		if p.opts.Shards > 1 {
			from, realm := p.realmKey(t)
			if _, target := p.realmKey(to); target && (!realm || !slices.Contains(k.Columns, from)) {
				p.note("foreign key %s of %s lacks the realm key: it cannot hold across shards and is left out", k.Name, t.TableName())
				return
			}
		}
	} else if from, realm := p.realmKey(t); p.opts.Shards > 1 && realm && k.Type != "c" && !slices.Contains(k.Columns, from) {
		p.note("constraint %s of %s lacks the realm key: each shard enforces it for its own rows only", k.Name, t.TableName())
	}
	p.do(step, "%s", unless(hasConstraint(t, k.Name), "ALTER TABLE "+t.quoted()+" ADD CONSTRAINT "+tenant.QuoteIdent(k.Name)+" "+k.Def))
}

func (p *planner) addIndex(t *Table, x *Index) {
	if key, realm := p.realmKey(t); p.opts.Shards > 1 && realm && x.Unique && !slices.Contains(x.Columns, key) {
		p.note("unique index %s of %s lacks the realm key: each shard enforces it for its own rows only", x.Name, t.TableName())
	}
	p.do(stepKeys, "%s", unless(regclass(tenant.TableName{Schema: t.Schema, Name: x.Name}.Quoted())+" IS NOT NULL", indexDefinition(t, x)))
}

// indexDefinition is the statement that makes the index. Postgres prints the index of a partitioned table without those of
// its partitions, which are made along with it.
func indexDefinition(t *Table, x *Index) string {
	if t.Kind != "p" || !x.Valid {
		return x.Def
	}
	for _, name := range []string{tenant.QuoteIdent(x.Name), x.Name} {
		head, rest, found := strings.Cut(x.Def, " "+name+" ON ONLY ")
		if found && (head == "CREATE INDEX" || head == "CREATE UNIQUE INDEX") {
			return head + " " + name + " ON " + rest
		}
	}
	return x.Def
}

func (p *planner) attachIndex(t *Table, x *Index) {
	for _, up := range p.new.Tables {
		for _, i := range up.Indexes {
			if i.OID == x.Parent {
				p.do(stepKeys, "ALTER INDEX %s ATTACH PARTITION %s", tenant.TableName{Schema: up.Schema, Name: i.Name}.Quoted(), tenant.TableName{Schema: t.Schema, Name: x.Name}.Quoted())
				return
			}
		}
	}
}

func (p *planner) replicaIdentity(was, t *Table) {
	name := func(x *Table) string {
		for _, i := range x.Indexes {
			if i.Identity {
				return i.Name
			}
		}
		return ""
	}
	if was.ReplIdent == t.ReplIdent && name(was) == name(t) {
		return
	}
	p.out.New = append(p.out.New, t.OID)
	how := map[string]string{"d": "DEFAULT", "f": "FULL", "n": "NOTHING"}[t.ReplIdent]
	if t.ReplIdent == "i" {
		if name(t) == "" {
			return
		}
		how = "USING INDEX " + tenant.QuoteIdent(name(t))
	}
	p.do(stepForeignKeys, "ALTER TABLE ONLY %s REPLICA IDENTITY %s", t.quoted(), how)
}
