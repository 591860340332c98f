package schema

import (
	"context"
	"fmt"
	"log/slog"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// Tables whose copies are of different positions do not satisfy together what the source's constraints demand, until the
// stream has brought all of them to one position: a row may be there before the one that it refers to, and one unique
// value twice. What says so is held back then, with what depends on it, and created later from a record at the shard.

// Hold names what RestorePost must leave for later: every foreign key, and of some tables the unique indexes.
type Hold struct {
	// Tables are those whose own rows are of different positions, each with all members of its partition tree, and the
	// column by which they were cut: rows that are equal in it are of one position, so that a unique index over it holds.
	Tables map[tenant.TableName]string
}

// unique is an index that allows no two equal rows, or the one of an exclusion constraint.
type unique struct {
	table      tenant.TableName
	index      tenant.TableName
	constraint string   // "" when it is an index only
	columns    []string // plain columns of its key
	exclusion  bool
}

func readUniques(ctx context.Context, conn *pgx.Conn) ([]unique, error) {
	rows, err := conn.Query(ctx, `
		SELECT tn.nspname::text, t.relname::text, xn.nspname::text, x.relname::text, coalesce(k.conname::text, ''), i.indisexclusion,
		       ARRAY(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY c(num, ord)
		             JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = c.num WHERE c.ord <= i.indnkeyatts)
		FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid JOIN pg_namespace tn ON tn.oid = t.relnamespace
		JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_namespace xn ON xn.oid = x.relnamespace
		LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.contype IN ('p','u','x')
		WHERE (i.indisunique OR i.indisexclusion) AND tn.nspname NOT LIKE 'pg\_%' AND tn.nspname NOT IN ('information_schema', 'rehome', 'rehome_control')`)
	if err != nil {
		return nil, fmt.Errorf("list the unique indexes: %w", err)
	}
	var out []unique
	var u unique
	_, err = pgx.ForEachRow(rows, []any{&u.table.Schema, &u.table.Name, &u.index.Schema, &u.index.Name, &u.constraint, &u.exclusion, &u.columns}, func() error {
		u.columns = slices.Clone(u.columns)
		out = append(out, u)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the unique indexes: %w", err)
	}
	return out, nil
}

// holdBack names the items that wait, with all that depends on them, in the order of the archive.
func (a *Archive) holdBack(hold *Hold, items []*item) []*item {
	if hold == nil {
		return nil
	}
	names := map[string]bool{}
	for _, u := range a.uniques {
		column, mixed := hold.Tables[u.table]
		if !mixed || (!u.exclusion && slices.Contains(u.columns, column)) {
			continue
		}
		names["INDEX "+u.index.Schema+"."+u.index.Name] = true
		if u.constraint != "" {
			names["CONSTRAINT "+u.table.Schema+"."+u.table.Name+" "+u.constraint] = true
		}
	}
	ordered := slices.Clone(items)
	position := make(map[int]int, len(a.items))
	for i, it := range a.items {
		position[it.id] = i
	}
	place := func(it *item) int {
		if p, ok := position[it.id]; ok && it.desc != refresh {
			return p
		}
		return len(a.items) // a refresh comes last
	}
	slices.SortStableFunc(ordered, func(x, y *item) int { return place(x) - place(y) })
	ids := map[int]bool{}
	var out []*item
	for _, it := range ordered {
		if _, left := a.skip[it.key]; left {
			continue
		}
		wait := it.desc == "FK CONSTRAINT" || it.desc == refresh || names[it.String()] || slices.ContainsFunc(it.deps, func(d int) bool { return ids[d] })
		if !wait {
			continue
		}
		if it.desc != refresh {
			ids[it.id] = true
		}
		out = append(out, it)
	}
	return out
}

func without(items, held []*item) []*item {
	return slices.DeleteFunc(items, func(it *item) bool { return slices.Contains(held, it) })
}

const createLater = `CREATE TABLE IF NOT EXISTS rehome.ddl_later (replication text NOT NULL, ordinal integer NOT NULL, item text NOT NULL, kind text NOT NULL,
	namespace text NOT NULL, tag text NOT NULL, sql text NOT NULL, may_fail boolean NOT NULL, PRIMARY KEY (replication, item))`

// recordLater keeps at the shard what is held back: by the time that it is created, the source's schema may be another.
func recordLater(ctx context.Context, conn *pgx.Conn, replication string, a *Archive, held []*item) error {
	if len(held) == 0 {
		return nil
	}
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, createLater); err != nil {
			return err
		}
		for i, it := range held {
			id, accepted := a.foreignKeys[it.key]
			_, err := tx.Exec(ctx, `INSERT INTO rehome.ddl_later (replication, ordinal, item, kind, namespace, tag, sql, may_fail)
				SELECT $1, $2, $3, $4, $5, $6, $7, $8 WHERE NOT EXISTS (SELECT FROM rehome.ddl_done WHERE replication = $1 AND item = $3)
				ON CONFLICT (replication, item) DO NOTHING`,
				replication, i, it.key, it.desc, it.namespace, it.tag, it.sql, accepted && slices.Contains(a.accept, id))
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("record what is created later: %w", err)
	}
	return nil
}

// Later counts what still waits at a shard.
func Later(ctx context.Context, conn *pgx.Conn, replication string) (n int, err error) {
	var there bool
	if err := conn.QueryRow(ctx, `SELECT to_regclass('rehome.ddl_later') IS NOT NULL`).Scan(&there); err != nil || !there {
		return 0, err
	}
	err = conn.QueryRow(ctx, `SELECT count(*)::int FROM rehome.ddl_later WHERE replication = $1`, replication).Scan(&n)
	return n, err
}

// RestoreLater creates what RestorePost held back, in order. Each item commits together with the removal of its record, so
// that it may be repeated after a crash.
func RestoreLater(ctx context.Context, dsn tenant.DSN, replication string, log *slog.Logger, progress func(done, total int, item string)) error {
	a := &Archive{items: []*item{}, skip: map[string]string{}, foreignKeys: map[string]string{}, log: log}
	conn, err := a.open(ctx, dsn)
	if err != nil {
		return fmt.Errorf("create what waited: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if n, err := Later(ctx, conn, replication); err != nil || n == 0 {
		return err
	}
	rows, err := conn.Query(ctx, `SELECT item, kind, namespace, tag, sql, may_fail FROM rehome.ddl_later WHERE replication = $1 ORDER BY ordinal`, replication)
	if err != nil {
		return fmt.Errorf("read what waits: %w", err)
	}
	var it item
	var mayFail bool
	_, err = pgx.ForEachRow(rows, []any{&it.key, &it.desc, &it.namespace, &it.tag, &it.sql, &mayFail}, func() error {
		one := it
		a.items = append(a.items, &one)
		if mayFail {
			a.foreignKeys[it.key] = it.key
			a.accept = append(a.accept, it.key)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read what waits: %w", err)
	}
	run := &postRun{archive: a, replication: replication, progress: progress, total: len(a.items), later: true}
	return run.steps(ctx, conn, a.items)
}
