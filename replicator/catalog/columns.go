package catalog

import (
	"context"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// notNull is whether a column a of pg_attribute is NULL nowhere. From Postgres 18 on attnotnull is set also where the
// constraint is NOT VALID.
const notNull = `a.attnotnull AND NOT EXISTS (
		           SELECT FROM pg_constraint k WHERE k.conrelid = a.attrelid AND k.contype = 'n' AND k.conkey[1] = a.attnum AND NOT k.convalidated)`

func readColumns(ctx context.Context, conn *pgx.Conn, cat *Catalogue) error {
	rows, err := conn.Query(ctx, `
		SELECT a.attrelid, a.attname::text, a.attnum, a.atttypid, format_type(a.atttypid, -1), format_type(a.atttypid, a.atttypmod), a.atttypmod,
		       `+notNull+`, a.attgenerated <> '', a.attidentity::text
		FROM pg_attribute a
		WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped
		ORDER BY a.attrelid, a.attnum`, cat.oids())
	if err != nil {
		return err
	}
	byOID := make(map[uint32]*Table, len(cat.Tables))
	for i := range cat.Tables {
		byOID[cat.Tables[i].OID] = &cat.Tables[i]
	}
	seen := make(map[uint32]bool)
	var (
		rel uint32
		c   Column
	)
	_, err = pgx.ForEachRow(rows, []any{&rel, &c.Name, &c.Num, &c.TypeOID, &c.Type, &c.TypeMod, &c.Mod, &c.NotNull, &c.Generated, &c.IdentityKind}, func() error {
		t := byOID[rel]
		t.Columns = append(t.Columns, c)
		seen[c.TypeOID] = true
		return nil
	})
	if err != nil {
		return err
	}
	types, err := readTypes(ctx, conn, seen)
	if err != nil {
		return err
	}
	equals, err := readEquality(ctx, conn, types)
	if err != nil {
		return err
	}
	for i := range cat.Tables {
		for j := range cat.Tables[i].Columns {
			c := &cat.Tables[i].Columns[j]
			c.BaseOID = types.base(c.TypeOID)
			if c.BaseOID != c.TypeOID {
				c.BaseType = types[c.BaseOID].sql
			}
			c.Category = types[c.BaseOID].category
			c.EqualOp = equals[c.BaseOID]
			c.Binary = types.binary(c.TypeOID)
		}
	}
	return nil
}

// readEquality finds the equality operators of types of extensions, as citext or ltree: those of their default B-tree
// classes, which unique indexes use. Named without its schema such an operator is not found, or is another type's, which
// no index serves.
func readEquality(ctx context.Context, conn *pgx.Conn, types typeGraph) (map[uint32]string, error) {
	oids := make([]uint32, 0, len(types))
	for o, t := range types {
		if !t.system {
			oids = append(oids, o)
		}
	}
	out := make(map[uint32]string)
	rows, err := conn.Query(ctx, `
		SELECT c.opcintype, format('OPERATOR(%I.%s)', n.nspname, o.oprname)
		FROM pg_opclass c JOIN pg_am m ON m.oid = c.opcmethod
		JOIN pg_amop x ON x.amopfamily = c.opcfamily AND x.amoplefttype = c.opcintype AND x.amoprighttype = c.opcintype AND x.amopstrategy = 3
		JOIN pg_operator o ON o.oid = x.amopopr JOIN pg_namespace n ON n.oid = o.oprnamespace
		WHERE m.amname = 'btree' AND c.opcdefault AND c.opcintype = ANY ($1) AND n.nspname <> 'pg_catalog'`, oids)
	if err != nil {
		return nil, err
	}
	var (
		oid uint32
		op  string
	)
	_, err = pgx.ForEachRow(rows, []any{&oid, &op}, func() error {
		out[oid] = op
		return nil
	})
	return out, err
}

// pgType is what matters of a type: whether it has a binary form, and which types are inside it.
type pgType struct {
	name     string
	sql      string // as a cast names it, without modifier
	system   bool   // in pg_catalog
	domainOf uint32
	category string
	io       bool // has send and receive
	inside   []uint32
}

type typeGraph map[uint32]*pgType

// readTypes reads the given types and all that are reachable from them: elements, domains' bases, attributes, subtypes.
func readTypes(ctx context.Context, conn *pgx.Conn, oids map[uint32]bool) (typeGraph, error) {
	var version int
	if err := conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int`).Scan(&version); err != nil {
		return nil, err
	}
	multirange := "false"
	if version >= 140000 {
		multirange = "g.rngmultitypid = t.oid"
	}
	roots := make([]uint32, 0, len(oids))
	for o := range oids {
		roots = append(roots, o)
	}
	rows, err := conn.Query(ctx, `
		WITH RECURSIVE reach(oid, above) AS (
			SELECT unnest($1::oid[]), 0::oid
			UNION
			SELECT e.oid, t.oid
			FROM reach r JOIN pg_type t ON t.oid = r.oid
			CROSS JOIN LATERAL (
				SELECT t.typelem WHERE t.typelem <> 0
				UNION ALL SELECT t.typbasetype WHERE t.typbasetype <> 0
				UNION ALL SELECT a.atttypid FROM pg_attribute a WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
				UNION ALL SELECT g.rngsubtype FROM pg_range g WHERE g.rngtypid = t.oid OR `+multirange+`
			) e(oid)
		)
		SELECT r.oid, r.above, t.typname::text, format_type(t.oid, -1), n.nspname = 'pg_catalog', t.typbasetype, t.typcategory::text, t.typsend <> 0 AND t.typreceive <> 0
		FROM reach r JOIN pg_type t ON t.oid = r.oid JOIN pg_namespace n ON n.oid = t.typnamespace`, roots)
	if err != nil {
		return nil, err
	}
	g := make(typeGraph)
	edges := make(map[uint32][]uint32)
	var (
		oid, above uint32
		t          pgType
	)
	_, err = pgx.ForEachRow(rows, []any{&oid, &above, &t.name, &t.sql, &t.system, &t.domainOf, &t.category, &t.io}, func() error {
		if g[oid] == nil {
			c := t
			g[oid] = &c
		}
		if above != 0 {
			edges[above] = append(edges[above], oid)
		}
		return nil
	})
	for o, in := range edges {
		if g[o] != nil {
			g[o].inside = in
		}
	}
	return g, err
}

// base is the type below a domain, or the type itself.
func (g typeGraph) base(oid uint32) uint32 {
	for range len(g) {
		t := g[oid]
		if t == nil || t.domainOf == 0 {
			return oid
		}
		oid = t.domainOf
	}
	return oid
}

// deafToEmpty are types whose receive functions refuse what their send functions write of an empty value.
var deafToEmpty = []string{"tsquery", "int2vector", "oidvector"}

// binary reports whether a type's binary form exists and means the same on another server. The reg* types are sent as
// OIDs of the sending server; a type without send or receive function has no binary form, nor has what contains it.
func (g typeGraph) binary(oid uint32) bool {
	seen := make(map[uint32]bool)
	var ok func(uint32) bool
	ok = func(o uint32) bool {
		if seen[o] {
			return true
		}
		seen[o] = true
		t := g[o]
		if t == nil || !t.io || (t.system && (strings.HasPrefix(t.name, "reg") || slices.Contains(deafToEmpty, t.name))) {
			return false
		}
		for _, in := range t.inside {
			if !ok(in) {
				return false
			}
		}
		return true
	}
	return ok(oid)
}
