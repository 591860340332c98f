package replicator

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/replicator/pgoutput"
	"github.com/rehomedb/rehome/tenant"
)

// firstUserOID is where the OIDs of objects begin that initdb did not make (FirstNormalObjectId of transam.h): only below
// it does a type have the same OID on every server.
const firstUserOID = 16384

// bpcharOID is character(n), whose text form carries blanks that do not count (pg_type.dat).
const bpcharOID = 1042

// relate joins what the stream says of a table with the catalogue. A table whose shape changed is compared with the
// shards: if they have the new shape it goes on, else it pauses before the first row of the new shape. The description
// comes in the transaction that ends at commit.
func (e *Engine) relate(ctx context.Context, commit tenant.LSN, m pgoutput.Relation, former *relation) (*relation, error) {
	table, special := e.cat.Table(m.OID), specialOf(&m)
	if special == userTable && table != nil && !describes(table, &m) {
		var err error
		if table, err = e.reshaped(ctx, table, m); err != nil {
			return nil, err
		}
		e.reshape(table)
	}
	return e.join(commit, m, special, table, former)
}

// specialOf tells the tables of ours.
func specialOf(m *pgoutput.Relation) specialRelation {
	if m.Namespace != "rehome" {
		return userTable
	}
	switch m.Name {
	case "marker":
		return markerTable
	case "ddl":
		return ddlTable
	case "truncated":
		return truncatedTable
	case "progress":
		return progressTable
	}
	return heartbeatTable
}

// describes reports whether the catalogue's table is the one that the stream describes.
func describes(table *catalog.Table, m *pgoutput.Relation) bool {
	return table.Name == tenant.TableName{Schema: m.Namespace, Name: m.Name} && sameShape(table.Copied(), m.Columns)
}

// join makes the relation of a table that the stream describes as the catalogue has it; nil: it has none.
func (e *Engine) join(commit tenant.LSN, m pgoutput.Relation, special specialRelation, table *catalog.Table, former *relation) (*relation, error) {
	rel := &relation{name: tenant.TableName{Schema: m.Namespace, Name: m.Name}, realm: -1, full: m.Identity == 'f', special: special}
	if former != nil {
		rel.version = former.version + 1
	}
	if special != userTable {
		for _, c := range m.Columns {
			rel.columns = append(rel.columns, catalog.Column{Name: c.Name})
		}
		return rel, nil
	}
	if table == nil {
		// The description of a partition precedes that of its root, under which its rows come.
		rel.special = undescribed
		return rel, nil
	}
	columns := table.Copied()
	rel.table = table
	for i, mc := range m.Columns {
		j := slices.IndexFunc(columns, func(c catalog.Column) bool { return c.Name == mc.Name })
		rel.columns = append(rel.columns, columns[j])
		if mc.Key {
			rel.keys = append(rel.keys, i)
		}
		if table.Sharded() && mc.Name == table.RealmKey {
			rel.realm = i
			rel.bpchar = columns[j].BaseOID == bpcharOID
		}
	}
	rel.blind = len(e.cfg.Shards) > 1 && rel.realm >= 0 && table.RealmFixed && !rel.full && !rel.isKey(rel.realm)
	c, _ := e.copyOf(table)
	if err := rel.marked(c, commit); err != nil {
		return nil, err
	}
	if former != nil && former.sameAs(rel) {
		// The source describes a table again whenever its statistics change: what is prepared for it stays good.
		rel.version = former.version
	}
	rel.arrays = arraysFit(rel.columns)
	rel.sorts = rel.sortColumns(table.Identity)
	return rel, nil
}

func sameShape(cat []catalog.Column, stream []pgoutput.Column) bool {
	return slices.EqualFunc(cat, stream, func(c catalog.Column, s pgoutput.Column) bool {
		return c.Name == s.Name && c.TypeOID == s.TypeOID && c.Mod == s.TypeMod
	})
}

// sameAs reports whether statements made for one of two descriptions of a table serve the other.
func (r *relation) sameAs(o *relation) bool {
	return r.special == o.special && r.table != nil && o.table != nil && r.table.OID == o.table.OID && r.name == o.name && r.full == o.full &&
		slices.Equal(r.columns, o.columns) && slices.Equal(r.keys, o.keys) && slices.Equal(r.table.PrimaryKey, o.table.PrimaryKey)
}

// renameTypes takes over other names of columns' types, of which the stream says nothing: it describes a table again only
// when the table itself changes. A table that has other columns now is described before its next row.
func (s *stream) renameTypes(cat *catalog.Catalogue) {
	for oid, rel := range s.rels {
		if rel.table == nil || cat.Table(oid) == nil {
			continue
		}
		now := *rel
		now.columns = slices.Clone(rel.columns)
		for i := range now.columns {
			c := &now.columns[i]
			for _, is := range cat.Table(oid).Columns {
				if is.Num == c.Num && is.TypeOID == c.TypeOID && is.Mod == c.Mod {
					c.Type, c.TypeMod, c.BaseType = is.Type, is.TypeMod, is.BaseType
				}
			}
		}
		if !slices.Equal(now.columns, rel.columns) {
			now.table = cat.Table(oid)
			now.version++
			s.rels[oid] = &now
		}
	}
}

// reshaped answers for a table whose columns are not those of the catalogue: the shards' description of it, if every
// shard has just the columns that the stream has.
func (e *Engine) reshaped(ctx context.Context, old *catalog.Table, m pgoutput.Relation) (*catalog.Table, error) {
	name := tenant.TableName{Schema: m.Namespace, Name: m.Name}
	if e.cfg.back != nil {
		return nil, backReshaped(name)
	}
	var found *catalog.Table
	for _, sh := range e.cfg.Shards {
		conn, err := connect(ctx, sh.DSN, "rehome-setup-"+e.cfg.Replication, nil)
		if err != nil {
			return nil, fmt.Errorf("shard %s: %w", sh.Name, err)
		}
		opts := e.cfg.Options
		opts.Include, opts.Exclude = []string{name.String()}, nil
		cat, err := catalog.Describe(ctx, conn, opts)
		closeSoon(conn)
		if err != nil {
			return nil, fmt.Errorf("shard %s: %w", sh.Name, err)
		}
		i := slices.IndexFunc(cat.Tables, func(t catalog.Table) bool { return t.Name == name })
		if i < 0 {
			return nil, shapeChanged(name, sh.Name, "the shard has no such table")
		}
		if what := difference(cat.Tables[i].Copied(), m.Columns, old); what != "" {
			return nil, shapeChanged(name, sh.Name, what)
		}
		t := cat.Tables[i]
		found = &t
	}
	found.OID, found.RealmKey, found.RealmFixed, found.Identity, found.Leaves = old.OID, old.RealmKey, old.RealmFixed, old.Identity, old.Leaves
	return found, nil
}

func shapeChanged(t tenant.TableName, shard, what string) error {
	return stop("schema-changed", "run the same ALTER TABLE in the database on every shard, then: rehome resume-replication",
		"table %s changed its shape at the source, and shard %s does not have the new one: %s", t, shard, what)
}

// difference says in words how a shard's columns differ from the stream's; "" when they do not.
func difference(shard []catalog.Column, stream []pgoutput.Column, old *catalog.Table) string {
	var missing, extra, other []string
	for _, s := range stream {
		i := slices.IndexFunc(shard, func(c catalog.Column) bool { return c.Name == s.Name })
		switch {
		case i < 0:
			missing = append(missing, s.Name)
		case differentType(shard[i], s, old.Column(s.Name)):
			other = append(other, s.Name+" ("+shard[i].TypeMod+")")
		}
	}
	for _, c := range shard {
		if !slices.ContainsFunc(stream, func(s pgoutput.Column) bool { return c.Name == s.Name }) {
			extra = append(extra, c.Name)
		}
	}
	var out []string
	if len(missing) > 0 {
		out = append(out, "it lacks "+strings.Join(missing, ", "))
	}
	if len(extra) > 0 {
		out = append(out, "the source no longer has "+strings.Join(extra, ", "))
	}
	if len(other) > 0 {
		out = append(out, "the source has another type for "+strings.Join(other, ", "))
	}
	return strings.Join(out, "; ")
}

// differentType reports whether a shard's column is of another type than the stream's, or of the same with another
// modifier: a value with more digits than numeric(10,2) holds would be rounded without a word. The OIDs of types that were
// made by users are those of the source; what they meant when the replication began is known.
func differentType(shard catalog.Column, s pgoutput.Column, old *catalog.Column) bool {
	switch {
	case shard.Mod != s.TypeMod:
		return true
	case s.TypeOID < firstUserOID || shard.TypeOID < firstUserOID:
		return shard.TypeOID != s.TypeOID
	case old != nil && old.TypeOID == s.TypeOID:
		return old.Type != shard.Type
	}
	return false
}
