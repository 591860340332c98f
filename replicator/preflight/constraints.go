package preflight

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// constraints finds unique, primary key and exclusion constraints of sharded tables that lack the realm key: each shard
// enforces them over its own rows only.
func (c *checker) constraints(ctx context.Context, tx pgx.Tx) error {
	if c.in.Shards <= 1 {
		return nil
	}
	oids, of := members(c.cat)
	rows, err := tx.Query(ctx, `
		SELECT i.indrelid, n.nspname::text, ic.relname::text,
		       CASE WHEN i.indisprimary THEN 'primary key' WHEN k.contype = 'x' THEN 'exclusion constraint' WHEN k.contype = 'u' THEN 'unique constraint' ELSE 'unique index' END,
		       ARRAY(SELECT coalesce(a.attname::text, '(expression)') FROM unnest(i.indkey::int2[]) WITH ORDINALITY x(num, ord)
		             LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = x.num WHERE x.ord <= i.indnkeyatts ORDER BY x.ord),
		       ARRAY(SELECT o.oprname = '=' FROM unnest(k.conexclop) WITH ORDINALITY x(op, ord) JOIN pg_operator o ON o.oid = x.op ORDER BY x.ord)
		FROM pg_index i JOIN pg_class ic ON ic.oid = i.indexrelid JOIN pg_namespace n ON n.oid = ic.relnamespace
		LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid AND k.contype IN ('p','u','x')
		WHERE i.indrelid = ANY ($1) AND (i.indisunique OR i.indisexclusion) AND NOT ic.relispartition
		ORDER BY 2, 3`, oids)
	if err != nil {
		return err
	}
	var (
		oid   uint32
		index tenant.TableName
		kind  string
		cols  []string
		equal []bool
	)
	_, err = pgx.ForEachRow(rows, []any{&oid, &index.Schema, &index.Name, &kind, &cols, &equal}, func() error {
		t := of[oid]
		if !t.Sharded() || catalog.IsIdentityIndex(index.Name) {
			return nil
		}
		for i, col := range cols {
			if col == t.RealmKey && (i >= len(equal) || equal[i]) {
				return nil
			}
		}
		c.blockAcceptable("constraint-without-realm", index.String(), fmt.Sprintf("add %s to it", t.RealmKey),
			"the %s %s (%s) of %s lacks the realm key %s: with %d shards each enforces it over its own rows only", kind, index, strings.Join(cols, ", "), t.Name, t.RealmKey, c.in.Shards)
		return nil
	})
	return err
}

// foreignKeys finds those that no shard can enforce, and those that point to what stays behind.
func (c *checker) foreignKeys(ctx context.Context, tx pgx.Tx) error {
	oids, of := members(c.cat)
	rows, err := tx.Query(ctx, `
		SELECT k.conrelid, k.confrelid, k.conname::text, fn.nspname::text, fc.relname::text,
		       ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY x(num, ord) JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = x.num ORDER BY x.ord),
		       ARRAY(SELECT a.attname::text FROM unnest(k.confkey) WITH ORDINALITY x(num, ord) JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = x.num ORDER BY x.ord)
		FROM pg_constraint k JOIN pg_class fc ON fc.oid = k.confrelid JOIN pg_namespace fn ON fn.oid = fc.relnamespace
		WHERE k.contype = 'f' AND k.conparentid = 0 AND k.conrelid = ANY ($1)
		ORDER BY k.conrelid::regclass::text, k.conname`, oids)
	if err != nil {
		return err
	}
	var (
		from, to         uint32
		name             string
		points           tenant.TableName
		cols, pointsCols []string
	)
	_, err = pgx.ForEachRow(rows, []any{&from, &to, &name, &points.Schema, &points.Name, &cols, &pointsCols}, func() error {
		f, t := of[from], of[to]
		object := f.Name.String() + "." + strings.TrimPrefix(tenant.TableName{Schema: "x", Name: name}.String(), "x.")
		if t == nil {
			c.blockAcceptable("foreign-key-to-excluded", object, fmt.Sprintf("replicate %s too, or drop the foreign key", points),
				"foreign key %s of %s points to %s, which is not replicated: it cannot be made at the target", name, f.Name, points)
			return nil
		}
		if c.in.Shards <= 1 || !t.Sharded() {
			return nil // a reference table is whole on every shard
		}
		if f.Sharded() {
			if i := slices.Index(cols, f.RealmKey); i >= 0 && pointsCols[i] == t.RealmKey {
				return nil
			}
			c.blockAcceptable("constraint-without-realm", object, fmt.Sprintf("add the realm key to it: (%s, …) REFERENCES %s (%s, …)", f.RealmKey, t.Name, t.RealmKey),
				"foreign key %s (%s) from %s to %s lacks the realm key: with %d shards the row that it points to may be on another shard", name, strings.Join(cols, ", "), f.Name, t.Name, c.in.Shards)
			return nil
		}
		c.blockAcceptable("constraint-without-realm", object, "drop the foreign key, or give the table a realm key",
			"foreign key %s of the reference table %s points to %s, whose rows are spread over %d shards", name, f.Name, t.Name, c.in.Shards)
		return nil
	})
	return err
}

// dependents finds views and inheritance children that cannot be made at the target, because what they are made of stays behind.
func (c *checker) dependents(ctx context.Context, tx pgx.Tx) error {
	rows, err := tx.Query(ctx, `
		SELECT DISTINCT vn.nspname::text, v.relname::text, rn.nspname::text, r.relname::text, r.relkind::text, rootn.nspname::text, root.relname::text
		FROM pg_rewrite w
		JOIN pg_class v ON v.oid = w.ev_class AND v.relkind IN ('v','m') JOIN pg_namespace vn ON vn.oid = v.relnamespace
		JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> v.oid
		JOIN pg_class r ON r.oid = d.refobjid JOIN pg_namespace rn ON rn.oid = r.relnamespace
		JOIN pg_class root ON root.oid = CASE WHEN r.relispartition THEN pg_partition_root(r.oid) ELSE r.oid END JOIN pg_namespace rootn ON rootn.oid = root.relnamespace
		WHERE vn.nspname NOT LIKE 'pg\_%' AND vn.nspname NOT IN ('information_schema', 'rehome', 'rehome_control')
		  AND rn.nspname NOT LIKE 'pg\_%' AND rn.nspname <> 'information_schema' AND r.relpersistence <> 't'
		  AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_class'::regclass AND e.objid IN (v.oid, r.oid) AND e.deptype = 'e')
		ORDER BY 1, 2, 3, 4`)
	if err != nil {
		return err
	}
	var view, rel, root tenant.TableName
	var kind string
	_, err = pgx.ForEachRow(rows, []any{&view.Schema, &view.Name, &rel.Schema, &rel.Name, &kind, &root.Schema, &root.Name}, func() error {
		if catalog.MatchesAny(c.in.Options.Exclude, view) {
			return nil
		}
		gone := kind == "f" || rel.Schema == "rehome" || rel.Schema == "rehome_control"
		switch kind {
		case "r", "p":
			gone = gone || !catalog.Included(c.in.Options, root)
		case "v", "m":
			gone = gone || catalog.MatchesAny(c.in.Options.Exclude, rel)
		}
		if gone {
			c.block("view-on-excluded", view.String(), "leave the view out too: --exclude "+shellQuote(view.String()), "view %s reads %s, which is not carried: it cannot be made at the target", view, rel)
		}
		return nil
	})
	if err != nil {
		return err
	}
	oids, of := members(c.cat)
	rows, err = tx.Query(ctx, `
		SELECT i.inhrelid, i.inhparent, n.nspname::text, p.relname::text
		FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace n ON n.oid = p.relnamespace
		WHERE i.inhrelid = ANY ($1)`, oids)
	if err != nil {
		return err
	}
	var child, parent uint32
	_, err = pgx.ForEachRow(rows, []any{&child, &parent, &rel.Schema, &rel.Name}, func() error {
		if of[parent] == nil {
			t := of[child]
			c.block("inherits-excluded", t.Name.String(), fmt.Sprintf("replicate %s too, or ALTER TABLE %s NO INHERIT %s", rel, t.Name.Quoted(), rel.Quoted()),
				"%s inherits from %s, which is not replicated: it cannot be made at the target", t.Name, rel)
		}
		return nil
	})
	return err
}

// hashPartitions finds trees that spread rows by the hash of an enumeration, or of what contains one: it is computed from
// the OID of the label, which differs between servers, so that rows belong into other partitions there.
func (c *checker) hashPartitions(ctx context.Context, tx pgx.Tx) error {
	oids, of := members(c.cat)
	rows, err := tx.Query(ctx, `
		WITH RECURSIVE reach(rel, oid) AS (
			SELECT p.partrelid, a.atttypid FROM pg_partitioned_table p JOIN pg_attribute a ON a.attrelid = p.partrelid AND a.attnum > 0 AND NOT a.attisdropped
			WHERE p.partstrat = 'h' AND p.partrelid = ANY ($1) AND (a.attnum = ANY (p.partattrs::int2[]) OR 0 = ANY (p.partattrs::int2[]))
			UNION
			SELECT r.rel, e.oid FROM reach r JOIN pg_type t ON t.oid = r.oid CROSS JOIN LATERAL (
				SELECT t.typelem WHERE t.typelem <> 0
				UNION ALL SELECT t.typbasetype WHERE t.typbasetype <> 0
				UNION ALL SELECT a.atttypid FROM pg_attribute a WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
				UNION ALL SELECT g.rngsubtype FROM pg_range g WHERE g.rngtypid = t.oid
			) e(oid)
		)
		SELECT DISTINCT r.rel, t.oid::regtype::text FROM reach r JOIN pg_type t ON t.oid = r.oid WHERE t.typtype = 'e'`, oids)
	if err != nil {
		return err
	}
	var oid uint32
	var enum string
	_, err = pgx.ForEachRow(rows, []any{&oid, &enum}, func() error {
		t := of[oid]
		c.block("hash-partitions-of-enum", t.Name.String(), "partition it by LIST of the enumeration, or by the hash of its text, or leave it out (--exclude "+shellQuote(t.Name.String())+")",
			"%s is partitioned by the hash of %s, an enumeration: its rows belong into other partitions on another server", t.Name, enum)
		return nil
	})
	return err
}
