package schema

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/replicator/ddl"
	"github.com/rehomedb/rehome/tenant"
)

// refresh is the kind of our own items that fill a materialized view.
const refresh = "REFRESH"

// preDone is the row of rehome.ddl_done that says that pre-data is there.
const preDone = "pre-data"

// sessionSettings are what pg_restore sets: nothing times out, function bodies may name what comes later.
const sessionSettings = `SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0; SET client_encoding = 'UTF8';
	SET standard_conforming_strings = on; SET check_function_bodies = off; SET xmloption = content; SET client_min_messages = warning;
	SET row_security = off; SET default_tablespace = ''; SET search_path = ''; SET datestyle = 'ISO'; SET intervalstyle = 'postgres'; SET array_nulls = on;
	SET default_transaction_read_only = off`

const createDone = `CREATE SCHEMA IF NOT EXISTS rehome;
	CREATE TABLE IF NOT EXISTS rehome.ddl_done (replication text NOT NULL, item text NOT NULL, done_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (replication, item))`

// RestorePre creates everything that rows need, and nothing that slows them: types, tables, functions, views. It is one
// transaction; inTx run at its end, inside. Done already: it does nothing, and inTx do not run.
func (a *Archive) RestorePre(ctx context.Context, dsn tenant.DSN, replication string, inTx ...func(context.Context, pgx.Tx) error) error {
	if a.items == nil {
		return errNotDumped
	}
	conn, err := a.open(ctx, dsn)
	if err != nil {
		return fmt.Errorf("create the schema: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	done, err := doneItems(ctx, conn, replication)
	if err != nil || done[preDone] {
		return err
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		return fmt.Errorf("create the schema: %w", err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if _, err := tx.Exec(ctx, `INSERT INTO rehome.ddl_done (replication, item) VALUES ($1, $2)`, replication, preDone); err != nil {
		return fmt.Errorf("create the schema: %w", err)
	}
	var pre []*item
	for _, it := range a.items {
		if it.section == sectionPre {
			pre = append(pre, it)
		}
	}
	for items := range slices.Chunk(pre, itemsAtOnce) {
		if err := a.createAll(ctx, conn, items); err != nil {
			return err
		}
	}
	for _, f := range inTx {
		if err := f(ctx, tx); err != nil {
			return fmt.Errorf("create the schema: %w", err)
		}
	}
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("create the schema: %w", err)
	}
	return nil
}

func (a *Archive) open(ctx context.Context, dsn tenant.DSN) (*pgx.Conn, error) {
	conn, err := connect(ctx, dsn)
	if err != nil {
		return nil, err
	}
	if err := simple(ctx, conn, sessionSettings+a.stringSyntax()); err != nil {
		_ = conn.Close(context.WithoutCancel(ctx))
		return nil, err
	}
	return conn, nil
}

// stringSyntax is the setting under which pg_dump wrote string literals: the source's, whose backslashes may escape.
func (a *Archive) stringSyntax() string {
	for _, it := range a.items {
		if it.settings() {
			return "; " + it.sql
		}
	}
	return ""
}

// doneItems makes rehome.ddl_done where it is missing and reads what is done.
func doneItems(ctx context.Context, conn *pgx.Conn, replication string) (map[string]bool, error) {
	var there bool
	if err := conn.QueryRow(ctx, `SELECT to_regclass('rehome.ddl_done') IS NOT NULL`).Scan(&there); err != nil {
		return nil, fmt.Errorf("read what is done: %w", err)
	}
	if !there {
		if err := simple(ctx, conn, createDone); err != nil {
			return nil, fmt.Errorf("make rehome.ddl_done: %w", err)
		}
	}
	rows, err := conn.Query(ctx, `SELECT item FROM rehome.ddl_done WHERE replication = $1`, replication)
	if err != nil {
		return nil, fmt.Errorf("read what is done: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("read what is done: %w", err)
	}
	out := make(map[string]bool, len(names))
	for _, n := range names {
		out[n] = true
	}
	return out, nil
}

// itemsAtOnce is how many items of pre-data go to a shard in one round trip: so many that it counts for little, so few that
// one which fails is soon found.
const itemsAtOnce = 100

// createAll runs items in the session's open transaction, in one round trip. One that is refused is found, and some may
// be, by running them one by one.
func (a *Archive) createAll(ctx context.Context, conn *pgx.Conn, items []*item) error {
	var sql strings.Builder
	sql.WriteString("SAVEPOINT items;\n")
	for _, it := range items {
		sql.WriteString(a.statements(ctx, it))
		sql.WriteString("\n;\n")
	}
	sql.WriteString("RELEASE SAVEPOINT items")
	err := simple(ctx, conn, sql.String())
	if err == nil {
		return nil
	}
	if ctx.Err() != nil || conn.IsClosed() {
		return fmt.Errorf("create %d items, %s the first: %w", len(items), items[0], err)
	}
	if rerr := simple(ctx, conn, "ROLLBACK TO SAVEPOINT items; RELEASE SAVEPOINT items"); rerr != nil {
		return fmt.Errorf("create %d items, %s the first: %w", len(items), items[0], errors.Join(err, rerr))
	}
	for _, it := range items {
		if err := a.create(ctx, conn, it); err != nil {
			return fmt.Errorf("create %s: %w", it, err)
		}
	}
	return nil
}

// create runs one item in the session's open transaction.
func (a *Archive) create(ctx context.Context, conn *pgx.Conn, it *item) error {
	if it.desc == "COMMENT" {
		return a.comment(ctx, conn, it)
	}
	return simple(ctx, conn, a.statements(ctx, it))
}

// statements are those that create an item: none where it is left out.
func (a *Archive) statements(ctx context.Context, it *item) string {
	if why, ok := a.skip[it.key]; ok {
		a.log.InfoContext(ctx, "schema item left out", "item", it.String(), "reason", why)
		return ""
	}
	sql := it.sql
	switch it.desc {
	case "ENCODING", "STDSTRINGS", "SEARCHPATH":
		return "" // the session has them
	case "SCHEMA":
		if strings.HasPrefix(sql, "--") {
			return "" // public, which every database has
		}
		sql = "CREATE SCHEMA IF NOT EXISTS " + tenant.QuoteIdent(it.tag)
	}
	if it.tableAM != "" {
		sql = "SET LOCAL default_table_access_method = " + tenant.QuoteIdent(it.tableAM) + ";\n" + sql
	}
	return sql
}

// comment runs a COMMENT, which may be refused (SQLSTATE 42501, on what another role owns): a comment stops nothing.
func (a *Archive) comment(ctx context.Context, conn *pgx.Conn, it *item) error {
	if err := simple(ctx, conn, "SAVEPOINT comment"); err != nil {
		return err
	}
	err := simple(ctx, conn, it.sql)
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "42501" {
		a.log.WarnContext(ctx, "comment left out", "item", it.String(), "error", err)
		return simple(ctx, conn, "ROLLBACK TO comment")
	}
	return err
}

// simple sends statements by the simple protocol: several at once, no parameters.
func simple(ctx context.Context, conn *pgx.Conn, sql string) error {
	_, err := conn.PgConn().Exec(ctx, sql).ReadAll()
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Detail != "" {
		return fmt.Errorf("%w: %s", err, pg.Detail)
	}
	return err
}

// RestorePost creates indexes and keys (per table, by jobs sessions at once), then the rest in the archive's order, and
// refreshes materialized views last. Each item commits together with its row in rehome.ddl_done; those that are done are
// skipped. progress is called after each item, never at the same time as itself, with how many of all are done.
//
// A foreign key that was accepted although it lacks the realm key is left out at a shard whose rows do not satisfy it.
// What hold names is not created but recorded at the shard, for RestoreLater, and so is what the rows of the several
// positions do not satisfy yet. nil: nothing waits.
func (a *Archive) RestorePost(ctx context.Context, dsn tenant.DSN, replication string, jobs int, hold *Hold, progress func(done, total int, item string)) error {
	if a.items == nil {
		return errNotDumped
	}
	if progress == nil {
		progress = func(int, int, string) {}
	}
	groups, rest := a.plan()
	conn, err := a.open(ctx, dsn)
	if err != nil {
		return fmt.Errorf("create indexes and constraints: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	done, err := doneItems(ctx, conn, replication)
	if err != nil {
		return err
	}
	place := a.places()
	held := a.holdBack(hold, append(slices.Concat(groups...), rest...), place)
	if err := recordLater(ctx, conn, replication, a, held, place, hold.objects()); err != nil {
		return err
	}
	for i := range groups {
		groups[i] = without(groups[i], held)
	}
	rest = without(rest, held)
	run := &postRun{archive: a, replication: replication, done: done, progress: progress, total: len(rest)}
	if hold != nil {
		run.mayPutOff, run.waiting, run.place, run.objects = true, map[int]bool{}, place, hold.objects()
		if err := simple(ctx, conn, createLater); err != nil {
			return fmt.Errorf("record what is created later: %w", err)
		}
	}
	for _, g := range groups {
		run.total += len(g)
	}

	work := make(chan []*item)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(work)
		for _, group := range groups {
			select {
			case work <- group:
			case <-gctx.Done():
				return nil
			}
		}
		return nil
	})
	for range max(1, min(jobs, len(groups))) {
		g.Go(func() error {
			worker, err := a.open(gctx, dsn)
			if err != nil {
				return fmt.Errorf("create indexes and constraints: %w", err)
			}
			defer func() { _ = worker.Close(context.WithoutCancel(gctx)) }()
			for group := range work {
				if err := run.steps(gctx, worker, group); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return run.steps(ctx, conn, rest)
}

// plan divides post-data: indexes and keys that depend on nothing else in it, in groups by table, and the rest in the
// archive's order, which respects dependencies.
func (a *Archive) plan() (groups [][]*item, rest []*item) {
	byID := make(map[int]*item, len(a.items))
	for _, it := range a.items {
		byID[it.id] = it
	}
	at := map[int]int{} // table's item -> group
	early := map[int]bool{}
	for _, it := range a.items {
		if it.section != sectionPost {
			continue
		}
		table, free := 0, it.desc == "INDEX" || it.desc == "CONSTRAINT"
		for _, d := range it.deps {
			dep := byID[d]
			switch {
			case dep == nil:
			case dep.section == sectionPost && !early[d]:
				free = false
			case table == 0 && (dep.desc == "TABLE" || dep.desc == "MATERIALIZED VIEW"):
				table = d
			}
		}
		if !free || table == 0 {
			rest = append(rest, it)
			continue
		}
		early[it.id] = true
		i, ok := at[table]
		if !ok {
			i = len(groups)
			at[table] = i
			groups = append(groups, nil)
		}
		groups[i] = append(groups[i], it)
	}
	for _, m := range a.materialized {
		rest = append(rest, &item{
			desc: refresh, namespace: m.Schema, tag: m.Name, key: "REFRESH " + m.String(),
			section: sectionPost, sql: "REFRESH MATERIALIZED VIEW " + m.Quoted(),
		})
	}
	return groups, rest
}

// postRun is one call of RestorePost.
type postRun struct {
	archive     *Archive
	replication string
	total       int
	done        map[string]bool // read only
	progress    func(done, total int, item string)
	later       bool // the items come from rehome.ddl_later

	mayPutOff bool // rows of several positions may be in an item's way: it is left for RestoreLater
	place     func(*item) int
	objects   map[string]ddl.Held
	followed  bool // changes of the source\'s schema are known

	mu       sync.Mutex
	finished int
	waiting  map[int]bool // ids of items that were found to have to wait
}

func (r *postRun) steps(ctx context.Context, conn *pgx.Conn, items []*item) error {
	for _, s := range items {
		if !r.done[s.key] {
			if err := r.step(ctx, conn, s); err != nil {
				return fmt.Errorf("create %s: %w", s, err)
			}
		}
		r.report(s.String())
	}
	return nil
}

func (r *postRun) report(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.finished++
	r.progress(r.finished, r.total, name)
}

func (r *postRun) step(ctx context.Context, conn *pgx.Conn, s *item) error {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if err := simple(ctx, conn, "SAVEPOINT item"); err != nil {
		return err
	}
	if r.mustWait(s) {
		return r.putOff(ctx, tx, s)
	}
	if err := r.archive.create(ctx, conn, s); err != nil {
		if r.mayWait(err) {
			r.archive.log.InfoContext(ctx, "rows of several positions are in the way of a schema item; it waits for the stream", "item", s.String(), "error", err)
			if err := simple(ctx, conn, "ROLLBACK TO item"); err != nil {
				return err
			}
			return r.putOff(ctx, tx, s)
		}
		switch {
		case r.leavesOut(s, err):
			r.archive.log.WarnContext(ctx, "schema item left out, because of what changed at the source meanwhile", "item", s.String(), "error", err)
		case r.archive.mayFail(s, err):
			r.archive.log.WarnContext(ctx, "foreign key left out, because rows of this shard do not satisfy it", "item", s.String(), "error", err)
		default:
			return err
		}
		if err := simple(ctx, conn, "ROLLBACK TO item"); err != nil {
			return err
		}
	}
	if r.later {
		if _, err := tx.Exec(ctx, `DELETE FROM rehome.ddl_later WHERE replication = $1 AND item = $2`, r.replication, s.key); err != nil {
			return err
		}
	}
	if _, err := tx.Exec(ctx, `INSERT INTO rehome.ddl_done (replication, item) VALUES ($1, $2)`, r.replication, s.key); err != nil {
		return err
	}
	return tx.Commit(ctx)
}

// mayFail reports whether an item is a foreign key across realms that was accepted by name, and failed for its rows
// (SQLSTATE 23503) or for a key that its target lacks at the shard (42830).
func (a *Archive) mayFail(it *item, err error) bool {
	var pg *pgconn.PgError
	id, ok := a.foreignKeys[it.key]
	return ok && errors.As(err, &pg) && (pg.Code == "23503" || pg.Code == "42830") && slices.Contains(a.accept, id)
}
