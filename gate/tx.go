package gate

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// undoTimeout bounds a ROLLBACK: it must also be sent when the caller's context has ended.
const undoTimeout = 5 * time.Second

// inTx runs fn in a transaction of READ COMMITTED, whatever the database's default is: in a stricter level a
// compare-and-set that waited fails instead of seeing the new row.
func inTx(ctx context.Context, conn *pgx.Conn, fn func(pgx.Tx) error) error {
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadWrite})
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	if err := fn(tx); err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		_ = tx.Rollback(undo) // err is what counts; a broken session rolls back by itself
		return err
	}
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

// commitDurably makes the running transaction's COMMIT wait for the disk, also where the role or the database turned
// that off. Stronger settings (remote_apply) stay.
func commitDurably(ctx context.Context, q Querier) error {
	_, err := q.Exec(ctx, durableSQL)
	if err != nil {
		return fmt.Errorf("ask for a durable commit: %w", err)
	}
	return nil
}

const durableSQL = `SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') IN ('off', 'local', 'remote_write')`

// setSQL is setLocal as part of a script: within a pause every round trip to the source counts.
func setSQL(name string, d time.Duration) string {
	return fmt.Sprintf("SET LOCAL %s = %d;\n", name, max(d.Milliseconds(), 1))
}

// script runs several statements in one round trip (simple protocol), each under the timeout that stands when it begins. The
// text holds quoted identifiers and literals only.
func script(ctx context.Context, conn *pgx.Conn, sql string) ([]*pgconn.Result, error) {
	return conn.PgConn().Exec(ctx, sql).ReadAll()
}

// setLocal sets a timeout for the running transaction, at least 1 ms: Postgres reads 0 as "none".
func setLocal(ctx context.Context, q Querier, name string, d time.Duration) error {
	_, err := q.Exec(ctx, `SELECT set_config($1, $2, true)`, name, fmt.Sprintf("%dms", max(d.Milliseconds(), 1)))
	if err != nil {
		return fmt.Errorf("set %s: %w", name, err)
	}
	return nil
}

// sleep waits for d, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// jitter returns between a half and one and a half of d.
func jitter(d time.Duration) time.Duration {
	return d/2 + rand.N(d) //nolint:gosec // it spreads tries, it keeps no secret
}
