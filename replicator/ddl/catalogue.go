package ddl

import (
	"cmp"
	"slices"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// realmKey is the column that names the realm of a table's rows; false for one that every shard has whole. A table that
// is known stays what it was, under whatever name its column has now.
func (p *planner) realmKey(t *Table) (string, bool) {
	if root := p.find(t.Root); root != nil && root.OID != t.OID {
		return p.realmKey(root)
	}
	if was := p.cat.Table(t.OID); was != nil {
		if !was.Sharded() {
			return "", false
		}
		if old := was.Column(was.RealmKey); old != nil {
			if c := t.column(old.Num); c != nil {
				return c.Name, true
			}
		}
		return "", false
	}
	if catalog.DeclaredReference(p.opts.Replication, t.TableName()) {
		return "", false
	}
	want, _ := catalog.WantedRealmKey(p.opts.Replication, t.TableName())
	if t.named(want) == nil {
		return "", false
	}
	return want, true
}

// catalogue makes the catalogue of after the command, sharing what did not change.
func (p *planner) catalogue() {
	p.out.Catalogue = p.cat
	if len(p.dirty) == 0 && !p.out.Renewed && len(p.out.SQL) == 0 {
		return
	}
	p.out.Renewed = true
	now := &catalog.Catalogue{Server: p.cat.Server}
	seen := map[uint32]bool{}
	for i := range p.cat.Tables {
		was := &p.cat.Tables[i]
		seen[was.OID] = true
		t := p.new.Tables[was.OID]
		switch {
		case t == nil || t.Partition:
		case p.dirty[was.OID]:
			now.Tables = append(now.Tables, p.catalogueTable(t, was))
		default:
			now.Tables = append(now.Tables, *was)
		}
	}
	var fresh []*Table
	for oid, t := range p.new.Tables {
		if !seen[oid] && !t.Partition {
			fresh = append(fresh, t)
		}
	}
	slices.SortFunc(fresh, func(a, b *Table) int { return cmp.Compare(a.OID, b.OID) })
	for _, t := range fresh {
		now.Tables = append(now.Tables, p.catalogueTable(t, nil))
	}
	now.Sequences = []catalog.Sequence{}
	for _, s := range p.new.Sequences {
		q := catalog.Sequence{
			Name: tenant.TableName{Schema: s.Schema, Name: s.Name}, Type: s.Type, Increment: s.Increment, Min: s.Min, Max: s.Max, Start: s.Start, Cycle: s.Cycle,
		}
		if owner := p.new.Tables[s.Owner]; owner != nil {
			if c := owner.column(s.Column); c != nil {
				q.OwnedBy = owner.TableName().String() + "." + tenant.QuoteIdent(c.Name)
			}
		}
		now.Sequences = append(now.Sequences, q)
	}
	slices.SortFunc(now.Sequences, func(a, b catalog.Sequence) int {
		return cmp.Or(cmp.Compare(a.Name.Schema, b.Name.Schema), cmp.Compare(a.Name.Name, b.Name.Name))
	})
	p.out.Catalogue = now
}

func (p *planner) catalogueTable(t *Table, was *catalog.Table) catalog.Table {
	out := catalog.Table{OID: t.OID, Name: t.TableName(), Partitioned: t.Kind == "p", Identity: t.identity(), Indexes: len(t.Indexes)}
	out.RealmKey, _ = p.realmKey(t)
	out.RealmFixed = out.RealmKey != "" && catalog.RealmFixed(p.opts.Replication, out.Name)
	if was != nil {
		out.RealmFixed = was.RealmFixed && out.RealmKey != ""
		out.Rows, out.Bytes = was.Rows, was.Bytes
		if was.Sharded() && out.RealmKey == "" && p.opts.Shards > 1 {
			p.problem("put it back at the source, then cancel the replication and start it again", "the realm key of table %s was dropped: its rows can no longer be routed", t.TableName())
		}
	}
	for _, c := range t.Columns {
		out.Columns = append(out.Columns, catalog.Column{
			Name: c.Name, Num: c.Num, TypeOID: c.TypeOID, Type: c.Type, TypeMod: c.TypeMod, Mod: c.Mod, BaseOID: c.Base, BaseType: c.BaseType, Category: c.Category,
			NotNull: c.NotNull, Generated: c.Generated != "", IdentityKind: c.Identity, EqualOp: c.Equal,
			Binary: was != nil && binary(was, &c), // only the copy asks for it
		})
	}
	for _, x := range t.Indexes {
		if x.Primary {
			out.PrimaryKey, out.DeferrableKey = x.Columns, !x.Immediate
		}
	}
	for oid, l := range p.new.Tables {
		switch {
		case slices.Contains(l.Parents, t.OID) && !l.Partition:
			out.Children = true
		case l.Root != t.OID || (oid == t.OID && t.Kind == "p"):
		case l.Kind == "p":
			out.Branches = append(out.Branches, leaf(l, was, out.RealmKey))
		default:
			out.Leaves = append(out.Leaves, leaf(l, was, out.RealmKey))
		}
	}
	byName := func(a, b catalog.Leaf) int {
		return cmp.Or(cmp.Compare(a.Name.Schema, b.Name.Schema), cmp.Compare(a.Name.Name, b.Name.Name))
	}
	slices.SortFunc(out.Leaves, byName)
	slices.SortFunc(out.Branches, byName)
	return out
}

func binary(was *catalog.Table, c *Column) bool {
	i := slices.IndexFunc(was.Columns, func(x catalog.Column) bool { return x.TypeOID == c.TypeOID })
	return i >= 0 && was.Columns[i].Binary
}

func leaf(t *Table, was *catalog.Table, realm string) catalog.Leaf {
	l := catalog.Leaf{OID: t.OID}
	if was != nil {
		for _, o := range slices.Concat(was.Leaves, was.Branches) {
			if o.OID == t.OID {
				l = o
			}
		}
	}
	l.Name, l.Identity, l.Unlogged, l.Parent, l.Nullable = t.TableName(), t.identity(), t.Persistence == "u", 0, false
	if t.Partition && len(t.Parents) == 1 {
		l.Parent = t.Parents[0]
	}
	if c := t.named(realm); c != nil && t.Partition {
		l.Nullable = !c.NotNull
	}
	return l
}

// identity is the table's replica identity.
func (t *Table) identity() catalog.Identity {
	id := catalog.Identity{Kind: t.ReplIdent, Columns: []string{}}
	for _, x := range t.Indexes {
		if (t.ReplIdent == "d" && x.Primary && x.Immediate && x.Valid) || (t.ReplIdent == "i" && x.Identity) {
			id.Index, id.Columns = x.Name, x.Columns
		}
	}
	if t.ReplIdent == "f" {
		for _, c := range t.Columns {
			id.Columns = append(id.Columns, c.Name)
		}
	}
	return id
}
