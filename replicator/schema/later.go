package schema

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/replicator/ddl"
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
	// Objects are the source's keys and indexes as the shards know them, by the names of their items; nil: not known.
	Objects map[string]ddl.Held
}

func (h *Hold) objects() map[string]ddl.Held {
	if h == nil {
		return nil
	}
	return h.Objects
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
func (a *Archive) holdBack(hold *Hold, items []*item, place func(*item) int) []*item {
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

// places tells where an item comes in the archive's order, which respects dependencies; a refresh comes last.
func (a *Archive) places() func(*item) int {
	position := make(map[*item]int, len(a.items))
	for i, it := range a.items {
		position[it] = i
	}
	return func(it *item) int {
		if p, ok := position[it]; ok {
			return p
		}
		return len(position)
	}
}

func without(items, held []*item) []*item {
	return slices.DeleteFunc(items, func(it *item) bool { return slices.Contains(held, it) })
}

const createLater = `CREATE TABLE IF NOT EXISTS rehome.ddl_later (replication text NOT NULL, ordinal integer NOT NULL, item text NOT NULL, kind text NOT NULL,
	namespace text NOT NULL, tag text NOT NULL, sql text NOT NULL, may_fail boolean NOT NULL,
	object bigint, state text, -- the source's OID and definition of it, where its changes are followed
	PRIMARY KEY (replication, item))`

// recordLater keeps at the shard what is held back: by the time that it is created, the source's schema may be another.
func recordLater(ctx context.Context, conn *pgx.Conn, replication string, a *Archive, held []*item, place func(*item) int, objects map[string]ddl.Held) error {
	if len(held) == 0 {
		return nil
	}
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, createLater); err != nil {
			return err
		}
		for _, it := range held {
			if err := recordOne(ctx, tx, replication, a, it, place(it), objects); err != nil {
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

func recordOne(ctx context.Context, tx pgx.Tx, replication string, a *Archive, it *item, ordinal int, objects map[string]ddl.Held) error {
	id, accepted := a.foreignKeys[it.key]
	var object *int64
	var state *string
	if h, ok := objects[it.String()]; ok {
		n := int64(h.OID)
		object, state = &n, &h.Is
	}
	_, err := tx.Exec(ctx, `INSERT INTO rehome.ddl_later (replication, ordinal, item, kind, namespace, tag, sql, may_fail, object, state)
		SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10 WHERE NOT EXISTS (SELECT FROM rehome.ddl_done WHERE replication = $1 AND item = $3)
		ON CONFLICT (replication, item) DO NOTHING`,
		replication, ordinal, it.key, it.desc, it.namespace, it.tag, it.sql, accepted && slices.Contains(a.accept, id), object, state)
	return err
}

// mustWait reports whether an item depends on one that was put off.
func (r *postRun) mustWait(it *item) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(it.deps, func(d int) bool { return r.waiting[d] })
}

// mayWait reports whether an item failed for rows (SQLSTATE classes 22 and 23) that may be of several positions: what the
// source dropped or changed before the later ones were copied may not hold for them, and the stream brings that.
func (r *postRun) mayWait(err error) bool {
	var pg *pgconn.PgError
	return r.mayPutOff && errors.As(err, &pg) && (strings.HasPrefix(pg.Code, "22") || strings.HasPrefix(pg.Code, "23"))
}

// putOff leaves an item for RestoreLater.
func (r *postRun) putOff(ctx context.Context, tx pgx.Tx, it *item) error {
	r.mu.Lock()
	if it.desc != refresh {
		r.waiting[it.id] = true
	}
	r.mu.Unlock()
	if err := recordOne(ctx, tx, r.replication, r.archive, it, r.place(it), r.objects); err != nil {
		return err
	}
	return tx.Commit(ctx)
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
// that it may be repeated after a crash. now is the source's schema at the shard's position, nil when it is not followed:
// what is gone by then is left out, and what changed is made as it is then.
func RestoreLater(ctx context.Context, dsn tenant.DSN, replication string, now *ddl.Shape, log *slog.Logger, progress func(done, total int, item string)) error {
	a := &Archive{items: []*item{}, skip: map[string]string{}, foreignKeys: map[string]string{}, log: log}
	conn, err := a.open(ctx, dsn)
	if err != nil {
		return fmt.Errorf("create what waited: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if n, err := Later(ctx, conn, replication); err != nil || n == 0 {
		return err
	}
	rows, err := conn.Query(ctx, `SELECT item, kind, namespace, tag, sql, may_fail, object, state FROM rehome.ddl_later WHERE replication = $1 ORDER BY ordinal`, replication)
	if err != nil {
		return fmt.Errorf("read what waits: %w", err)
	}
	renewed := newRenewal(now)
	var it item
	var mayFail bool
	var object *int64
	var state *string
	_, err = pgx.ForEachRow(rows, []any{&it.key, &it.desc, &it.namespace, &it.tag, &it.sql, &mayFail, &object, &state}, func() error {
		one := it
		if object != nil && state != nil {
			if why := renewed.renew(&one, uint32(*object), *state); why != "" {
				a.skip[it.key] = why
			}
		}
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
	run := &postRun{archive: a, replication: replication, progress: progress, total: len(a.items), later: true, followed: now != nil}
	return run.steps(ctx, conn, a.items)
}

// keyKinds are the kinds of items that ddl.Held describes; one that begins like another comes first.
var keyKinds = [...]string{"INDEX ATTACH", "INDEX", "FK CONSTRAINT", "CHECK CONSTRAINT", "CONSTRAINT"}

// renewal knows the source's keys and indexes as they are now.
type renewal struct {
	byOID   map[string]ddl.Held // "KIND number"
	byState map[string]bool     // numbers change in silence (REINDEX CONCURRENTLY)
}

func newRenewal(now *ddl.Shape) *renewal {
	if now == nil {
		return nil
	}
	r := &renewal{byOID: map[string]ddl.Held{}, byState: map[string]bool{}}
	for name, h := range now.Objects() {
		r.byState[h.Is] = true
		for _, kind := range keyKinds {
			if strings.HasPrefix(name, kind+" ") {
				r.byOID[fmt.Sprint(kind, " ", h.OID)] = h
				break
			}
		}
	}
	return r
}

// renew makes an item what it is at the source now, and says why it is left out, if it is.
func (r *renewal) renew(it *item, oid uint32, state string) (leftOut string) {
	if r == nil || r.byState[state] {
		return ""
	}
	h, there := r.byOID[fmt.Sprint(it.desc, " ", oid)]
	switch {
	case !there:
		return "it was dropped at the source meanwhile"
	case h.SQL == "":
		return "it changed at the source meanwhile, and is made along with what it is a part of"
	}
	it.sql = h.SQL
	return ""
}

// leavesOut reports whether an item of a schema that is followed cannot be made because of what changed at the source:
// what it depends on is gone or another (SQLSTATE class 42), or the stream has brought one of its name.
func (r *postRun) leavesOut(it *item, err error) bool {
	var pg *pgconn.PgError
	if !r.later || !r.followed || !errors.As(err, &pg) {
		return false
	}
	if slices.Contains(keyKinds[:], it.desc) {
		return pg.Code == "42P07" || pg.Code == "42710"
	}
	return strings.HasPrefix(pg.Code, "42") && pg.Code != "42501"
}
