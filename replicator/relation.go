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

// bpcharOID is character(n), whose text form carries blanks that do not count (pg_type.dat).
const bpcharOID = 1042

// relate joins what the stream says of a table with the catalogue. A table whose shape changed is compared with the
// shards: if they have the new shape it goes on, else it pauses before the first row of the new shape.
func (e *Engine) relate(ctx context.Context, m pgoutput.Relation, former *relation) (*relation, error) {
	rel := &relation{name: tenant.TableName{Schema: m.Namespace, Name: m.Name}, realm: -1, full: m.Identity == 'f'}
	if former != nil {
		rel.version = former.version + 1
	}
	if m.Namespace == "rehome" {
		rel.special = heartbeatTable
		if m.Name == "marker" {
			rel.special = markerTable
		}
		for _, c := range m.Columns {
			rel.columns = append(rel.columns, catalog.Column{Name: c.Name})
		}
		return rel, nil
	}
	table := e.cat.Table(m.OID)
	if table == nil {
		// The description of a partition precedes that of its root, under which its rows come.
		rel.special = undescribed
		return rel, nil
	}
	columns := table.Copied()
	if table.Name != rel.name || !sameShape(columns, m.Columns) {
		var err error
		if table, err = e.reshaped(ctx, table, m); err != nil {
			return nil, err
		}
		columns = table.Copied()
	}
	rel.table = table
	rel.skip = e.watermark(table)
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
	return rel, nil
}

func sameShape(cat []catalog.Column, stream []pgoutput.Column) bool {
	return slices.EqualFunc(cat, stream, func(c catalog.Column, s pgoutput.Column) bool { return c.Name == s.Name && c.TypeOID == s.TypeOID })
}

// reshaped answers for a table whose columns are not those of the catalogue: the shards' description of it, if every
// shard has just the columns that the stream has.
func (e *Engine) reshaped(ctx context.Context, old *catalog.Table, m pgoutput.Relation) (*catalog.Table, error) {
	name := tenant.TableName{Schema: m.Namespace, Name: m.Name}
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
		if what := difference(cat.Tables[i].Copied(), m.Columns); what != "" {
			return nil, shapeChanged(name, sh.Name, what)
		}
		t := cat.Tables[i]
		found = &t
	}
	found.OID, found.RealmKey, found.Identity, found.Leaves = old.OID, old.RealmKey, old.Identity, old.Leaves
	return found, nil
}

func shapeChanged(t tenant.TableName, shard, what string) error {
	return stop("schema-changed", "run the same ALTER TABLE in the database on every shard, then: rehome resume-replication",
		"table %s changed its shape at the source, and shard %s does not have the new one: %s", t, shard, what)
}

// difference says in words how a shard's columns differ from the stream's; "" when they do not.
func difference(shard []catalog.Column, stream []pgoutput.Column) string {
	var missing, extra []string
	for _, s := range stream {
		if !slices.ContainsFunc(shard, func(c catalog.Column) bool { return c.Name == s.Name }) {
			missing = append(missing, s.Name)
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
	return strings.Join(out, "; ")
}
