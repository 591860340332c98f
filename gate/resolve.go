package gate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

const (
	// resolvePatience is how long RESOLVE waits for whoever holds the gate row before it ends that session. Writers at
	// the source wait as long; a COMMIT that is under way takes milliseconds.
	resolvePatience = 1500 * time.Millisecond
	// resolveTries bounds the rounds of ending holders: a rival may come again and again.
	resolveTries = 5
	// resolver names the sessions of resolvers: they hold the gate for a moment only and do not end each other.
	resolver = "resolve"
)

// Resolve ends the doubt about the attempt that began at epoch e and returns the decided state. It moves the gate from e
// to e+2 without changing the side: if that hits, the attempt is aborted for ever; if not, the gate has moved on and
// what it says is committed. It waits for whoever holds the row and, after a bound, terminates them. It may be called
// any number of times, by rivals too; an error means that the doubt remains and the shards must stay closed.
func Resolve(ctx context.Context, source tenant.DSN, e int64) (State, error) {
	for try := 1; ; try++ {
		s, err := resolveBySession(ctx, source, e)
		if err == nil {
			return s, nil
		}
		// A session that was lost may have been ended by a rival; the gate is still the one to ask.
		if !hasCode(err, "55P03", "57P01", "25P03", "40001") || try == resolveTries || ctx.Err() != nil {
			return State{}, fmt.Errorf("resolve the outcome: %w", err)
		}
	}
}

// resolveBySession tries once, by a session of its own. If it had to wait too long it ends who holds the gate and
// returns the error of the wait.
func resolveBySession(ctx context.Context, source tenant.DSN, e int64) (State, error) {
	conn, err := connect(ctx, source, resolver)
	if err != nil {
		return State{}, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	s, err := resolveOnce(ctx, conn, e)
	if hasCode(err, "55P03") {
		if err := endHolders(ctx, conn); err != nil {
			return State{}, err
		}
	}
	return s, err
}

func resolveOnce(ctx context.Context, conn *pgx.Conn, e int64) (State, error) {
	var s State
	err := inTx(ctx, conn, func(tx pgx.Tx) error {
		if err := commitDurably(ctx, tx); err != nil {
			return err
		}
		for _, timeout := range []string{"lock_timeout", "idle_in_transaction_session_timeout"} {
			if err := setLocal(ctx, tx, timeout, resolvePatience); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(ctx, `UPDATE rehome.gate SET epoch = $1 + 2, changed_at = clock_timestamp() WHERE epoch = $1`, e); err != nil {
			return err
		}
		// A new snapshot: it sees the row that the UPDATE waited for, and its own change.
		var err error
		s, err = ReadGate(ctx, tx)
		return err
	})
	if err != nil {
		return State{}, err
	}
	if s.Epoch <= e {
		return State{}, tenant.Errorf(tenant.KindRefused, "gate-went-back", "see whether the source was restored from a backup or failed over to a standby that was behind; decide by hand",
			"the gate at the source is at epoch %d, before attempt's epoch %d", s.Epoch, e)
	}
	return s, nil
}

// endHolders terminates the sessions that have changed the gate row and not ended their transaction, but for other
// resolvers. Only the gate's owner changes it, so they are our own.
func endHolders(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, `SELECT pid, pg_terminate_backend(pid) FROM (
		SELECT DISTINCT l.pid FROM pg_catalog.pg_locks l
		WHERE l.locktype = 'relation' AND l.relation = 'rehome.gate'::regclass AND l.mode = 'RowExclusiveLock' AND l.granted
		  AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
		  AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_activity a WHERE a.pid = l.pid AND a.application_name = $1)) h`, AppName+" "+resolver)
	if err != nil {
		return fmt.Errorf("end who holds the gate: %w", err)
	}
	rows.Close()
	if err := rows.Err(); err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("end who holds the gate: %w", err)
	}
	return nil
}
