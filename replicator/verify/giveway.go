package verify

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// A comparison reads tables that are in use, and each table that it reads is locked against changes of the schema (ACCESS
// SHARE) until the transaction ends or goes back to a savepoint. Whoever waits for such a lock is waited for by everybody who
// comes later. Therefore locks are let go after each part, and a part gives way to whoever waits for it.

// CodeGaveWay is the code of the error that says that parts were left out, since their tables were, or were to be, changed.
// At a later position they can be compared.
const CodeGaveWay = "verification-gave-way"

const (
	// lookEvery is how often it is looked who waits for us. Whoever waits in two looks is given way to: after 1 to 2 s.
	lookEvery = time.Second
	// markPart is where the locks of a part are let go (manual, ROLLBACK TO SAVEPOINT), without losing the snapshot.
	markPart, releasePart = `SAVEPOINT part`, `ROLLBACK TO SAVEPOINT part`
)

var (
	errGaveWay = errors.New("somebody waits for a lock that the comparison holds")
	errChanged = errors.New("the table was changed or rewritten after the position")
)

// waiters lists who waits for locks of relations that some sessions hold, with the session. Sessions that Postgres itself runs
// for a query are shown as the one that asked.
const waiters = `SELECT w.pid, b.pid FROM (SELECT DISTINCT pid FROM pg_catalog.pg_locks WHERE NOT granted AND locktype = 'relation'
		AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())) w
	CROSS JOIN LATERAL unnest(pg_catalog.pg_blocking_pids(w.pid)) b(pid) WHERE b.pid = ANY ($1::int[])`

// watch looks, on a session of its own on each side, for those who wait for the comparison.
type watch struct {
	in   Input
	stop context.CancelFunc
	done sync.WaitGroup

	mu    sync.Mutex
	holds map[string]map[int32]context.CancelCauseFunc // by side and process
}

// startWatch watches until end is called.
func startWatch(ctx context.Context, in Input) *watch {
	ctx, stop := context.WithCancel(ctx)
	w := &watch{in: in, stop: stop, holds: map[string]map[int32]context.CancelCauseFunc{}}
	w.done.Go(func() { w.look(ctx, "", in.Source) })
	for name, open := range in.Shards {
		w.done.Go(func() { w.look(ctx, name, open) })
	}
	return w
}

func (w *watch) end() {
	w.stop()
	w.done.Wait()
}

// guard runs f, which uses the sessions, with a context that ends with errGaveWay when somebody waits for them. After that
// the sessions are to be closed. What f managed to finish nevertheless counts.
func (w *watch) guard(ctx context.Context, s *sides, f func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w.mu.Lock()
	for _, one := range s.all() {
		if w.holds[one.name] == nil {
			w.holds[one.name] = map[int32]context.CancelCauseFunc{}
		}
		w.holds[one.name][int32(one.conn.PgConn().PID())] = cancel
	}
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, one := range s.all() {
			delete(w.holds[one.name], int32(one.conn.PgConn().PID()))
		}
	}()
	err := f(ctx)
	switch {
	case err == nil:
		return nil
	case errors.Is(context.Cause(ctx), errGaveWay):
		return errGaveWay
	case changed(err):
		return fmt.Errorf("%w: %w", errChanged, err)
	}
	return err
}

func (w *watch) pids(side string) []int32 {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]int32, 0, len(w.holds[side]))
	for pid := range w.holds[side] {
		out = append(out, pid)
	}
	return out
}

// look watches one side. A session that is lost is opened anew.
func (w *watch) look(ctx context.Context, name string, open Sessions) {
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			closeSession(conn)
		}
	}()
	waited := map[int32]bool{}
	for wait(ctx, lookEvery) == nil {
		pids := w.pids(name)
		if len(pids) == 0 {
			clear(waited)
			continue
		}
		if conn == nil || conn.IsClosed() {
			var err error
			if conn, err = open(ctx); err != nil {
				conn = nil
				continue // the workers' own sessions tell of a server that cannot be reached
			}
		}
		rows, err := conn.Query(ctx, waiters, pids)
		now := map[int32]bool{}
		if err == nil {
			var waiter, holder int32
			_, err = pgx.ForEachRow(rows, []any{&waiter, &holder}, func() error {
				now[waiter] = true
				if waited[waiter] {
					w.giveWay(name, holder)
				}
				return nil
			})
		}
		if err != nil {
			closeSession(conn)
			conn = nil
		}
		waited = now
	}
}

func (w *watch) giveWay(side string, pid int32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if cancel := w.holds[side][pid]; cancel != nil {
		cancel(errGaveWay)
	}
}

// release lets the locks of a part go, and takes back its settings.
func (s *sides) release(ctx context.Context) error {
	var group errgroup.Group
	for _, one := range s.all() {
		group.Go(func() error {
			if _, err := one.conn.Exec(ctx, releasePart); err != nil {
				return fmt.Errorf("%s: %w", one, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// changedSince reports whether a table that a snapshot has is another one by now. Tables are read as the snapshot has them in
// pg_class, and as they are now through functions, which do not care for snapshots; while it holds a lock of the table, a
// transaction learns so whether what it read was what the snapshot has: TRUNCATE and whatever rewrites a table take its rows
// from older snapshots too (manual, "Caveats" of concurrency control), and columns and tables are found by their names.
const changedSince = `WITH RECURSIVE root AS (
		SELECT c.oid, c.relkind FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2
	), tree AS (
		SELECT oid, relkind FROM root
		UNION ALL SELECT c.oid, c.relkind FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid WHERE t.relkind = 'p'
	)
	SELECT NOT EXISTS (SELECT FROM root WHERE oid = pg_catalog.to_regclass($3))
		OR EXISTS (SELECT FROM tree t JOIN pg_catalog.pg_class c ON c.oid = t.oid WHERE c.relkind = 'r' AND c.relfilenode IS DISTINCT FROM pg_catalog.pg_relation_filenode(c.oid))
		OR EXISTS (SELECT FROM root JOIN pg_catalog.pg_attribute a ON a.attrelid = root.oid
			WHERE a.attnum > 0 AND NOT a.attisdropped AND pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'SELECT') IS NULL)
		OR EXISTS (SELECT FROM root WHERE relkind = 'p' AND EXISTS (
			(SELECT oid FROM tree EXCEPT SELECT relid::oid FROM pg_catalog.pg_partition_tree(root.oid))
			UNION ALL (SELECT relid::oid FROM pg_catalog.pg_partition_tree(root.oid) EXCEPT SELECT oid FROM tree)))`

// ChangedSince reports whether a table was changed, in a way that matters to who reads it, after the snapshot of a session's
// transaction. To be asked after it was read, in the same transaction.
func ChangedSince(ctx context.Context, c *pgx.Conn, t tenant.TableName) (bool, error) {
	var is bool
	if err := c.QueryRow(ctx, changedSince, t.Schema, t.Name, t.Quoted()).Scan(&is); err != nil {
		return false, fmt.Errorf("look whether %s was changed: %w", t, err)
	}
	return is, nil
}

// unchanged fails if the table that was just read was changed after the snapshots, on any side.
func (s *sides) unchanged(ctx context.Context, t *catalog.Table) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, one := range s.all() {
		group.Go(func() error {
			is, err := ChangedSince(ctx, one.conn, t.Name)
			if err != nil {
				return fmt.Errorf("%s: %w", one, err)
			}
			if is {
				return fmt.Errorf("%s: %w", one, errChanged)
			}
			return nil
		})
	}
	return group.Wait()
}

// changed reports whether a failure is that of a statement over what the snapshot has and the server has no more.
func changed(err error) bool {
	if errors.Is(err, errChanged) {
		return true
	}
	pe, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return false
	}
	switch pe.Code {
	case "42P01", "42703", "42704": // undefined_table, undefined_column, undefined_object
		return true
	case "XX000": // dropped just between two looks
		return strings.HasPrefix(pe.Message, "could not open relation with OID") || strings.HasPrefix(pe.Message, "cache lookup failed for")
	}
	return false
}

// setAside takes note of units that gave way, or whose table was changed. The others go on.
func (c *comparison) setAside(units []unit, why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, u := range units {
		c.aside[unitAt{u.table, u.number}] = true
		c.why = fmt.Errorf("%s: %w", c.in.Catalogue.Tables[u.table].Name, why)
	}
}

// unitAt names a unit within a comparison.
type unitAt struct{ table, number int }

func (c *comparison) isAside(u unit) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.aside[unitAt{u.table, u.number}]
}

// gaveWay is the error of a comparison that left something out; nil if it did not.
func (c *comparison) gaveWay() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.why == nil {
		return nil
	}
	return tenant.Errorf(tenant.KindUnavailable, CodeGaveWay, "go on with it: rehome verify --resume", "the comparison did not finish: %s", c.why)
}
