package gate

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

const (
	// followLockTimeout bounds the wait for locks at a shard. An autovacuum gives way after deadlock_timeout, 1 s by
	// default; whoever holds on longer is looked at.
	followLockTimeout = 1500 * time.Millisecond
	// firstSetTry and maxSetTry bound each wait for a lock while the fence is set, the gate's change being under way: a
	// client whose statement is refused lets go at once, and one that waits for us, with a lock that we want, would keep
	// both for the server's deadlock_timeout.
	firstSetTry = 25 * time.Millisecond
	maxSetTry   = 400 * time.Millisecond
	// followTries bounds the rounds against deadlocks and dead coordinators.
	followTries = 6
	// shardIdle ends a prelocked shard session whose coordinator vanished. It blocks no writer, only vacuum and rivals.
	shardIdle = 2 * time.Minute
)

// FenceShardTables makes the fence on every table of a shard agree with the shard's gate: standing while the gate is
// closed, out of the way when it is open. Tables that are there already cost one query. It returns how many tables it
// changed. Call it whenever tables may have appeared. ErrNoGate before InstallShard.
func FenceShardTables(ctx context.Context, conn *pgx.Conn) (int, error) {
	changed := 0
	err := withRetry(ctx, conn, func() error {
		return inTx(ctx, conn, func(tx pgx.Tx) error {
			s, err := ReadGate(ctx, tx)
			if err != nil {
				return err
			}
			tables, err := Tables(ctx, tx)
			if err != nil {
				return err
			}
			if changed = len(disagreeing(owned(tables), s.Side)); changed == 0 {
				return nil
			}
			// Locks in the order of every other transaction here: tables, then the gate's row.
			if tables, err = lockShard(ctx, tx); err != nil {
				return err
			}
			if err := tx.QueryRow(ctx, `SELECT side FROM rehome.gate FOR SHARE`).Scan(&s.Side); err != nil {
				return fmt.Errorf("lock the gate: %w", err)
			}
			changed = len(disagreeing(tables, s.Side))
			return setFence(ctx, tx, tables, s.Side)
		})
	})
	if err != nil {
		return 0, fmt.Errorf("fence the shard's tables: %w", err)
	}
	return changed, nil
}

// Follower is a shard's session that holds the prelock, so that opening waits for nobody.
type Follower struct{ conn *pgx.Conn }

// PrepareFollow begins a transaction on conn and takes SHARE UPDATE EXCLUSIVE on the shard's tables: it blocks no writer,
// and keeps autovacuum from delaying the opening. The caller keeps owning conn.
func PrepareFollow(ctx context.Context, conn *pgx.Conn) (*Follower, error) {
	if _, err := conn.Exec(ctx, `BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE`); err != nil {
		return nil, fmt.Errorf("prelock the shard: begin: %w", err)
	}
	if err := commitDurably(ctx, conn); err != nil {
		return nil, fmt.Errorf("prelock the shard: %w", err)
	}
	if err := setLocal(ctx, conn, "idle_in_transaction_session_timeout", shardIdle); err != nil {
		return nil, fmt.Errorf("prelock the shard: %w", err)
	}
	if _, err := lockShard(ctx, conn); err != nil {
		return nil, fmt.Errorf("prelock the shard: %w", err)
	}
	return &Follower{conn: conn}, nil
}

// Follow makes the shard follow the state in the prelocked transaction and commits.
func (f *Follower) Follow(ctx context.Context, s State) (hit bool, err error) {
	hit, err = follow(ctx, f.conn, s)
	if err != nil {
		f.Release(ctx)
		return false, fmt.Errorf("follow the gate: %w", err)
	}
	tag, err := f.conn.Exec(ctx, "COMMIT", pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		return false, fmt.Errorf("follow the gate: commit: %w", err)
	}
	if tag.String() != "COMMIT" {
		return false, fmt.Errorf("follow the gate: %w", ErrNotCommitted)
	}
	return hit, nil
}

// Rehearse does what Follow does, and rolls it back: nobody sees the shard open.
func (f *Follower) Rehearse(ctx context.Context, s State) error {
	defer f.Release(ctx)
	if _, err := follow(ctx, f.conn, s); err != nil {
		return fmt.Errorf("rehearse following the gate: %w", err)
	}
	return nil
}

// Release ends the transaction without following.
func (f *Follower) Release(ctx context.Context) {
	if f == nil || f.conn.IsClosed() || f.conn.PgConn().TxStatus() == 'I' {
		return
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	_, _ = f.conn.Exec(undo, "ROLLBACK", pgx.QueryExecModeSimpleProtocol) // a broken session rolls back by itself
}

// Follow makes a shard follow the source's decided state: in one transaction the shard's gate moves up and its fence
// opens (side target) or closes. It reports whether this call moved the gate; a shard that is at this epoch or above is
// left as it is. It may be repeated, by rivals too. The state must come from Resolve or from a COMMIT that was answered.
func Follow(ctx context.Context, conn *pgx.Conn, s State) (hit bool, err error) {
	err = withRetry(ctx, conn, func() error {
		return inTx(ctx, conn, func(tx pgx.Tx) error {
			if err := commitDurably(ctx, tx); err != nil {
				return err
			}
			at, err := ReadGate(ctx, tx)
			if err != nil {
				return err
			}
			if at.Epoch >= s.Epoch {
				hit = false
				return nil
			}
			if _, err := lockShard(ctx, tx); err != nil {
				return err
			}
			hit, err = follow(ctx, tx, s)
			return err
		})
	})
	if err != nil {
		return false, fmt.Errorf("follow the gate: %w", err)
	}
	return hit, nil
}

// follow runs inside a transaction that holds the prelock.
func follow(ctx context.Context, q Querier, s State) (bool, error) {
	tag, err := q.Exec(ctx, `UPDATE rehome.gate SET epoch = $1, side = $2, attempt = $3, new_url = $4, changed_at = clock_timestamp() WHERE epoch < $1`,
		s.Epoch, string(s.Side), s.Attempt, s.NewURL)
	if err != nil {
		return false, fmt.Errorf("move the shard's gate: %w", err)
	}
	if tag.RowsAffected() == 0 {
		return false, nil
	}
	tables, err := Tables(ctx, q)
	if err != nil {
		return false, err
	}
	return true, setFence(ctx, q, owned(tables), s.Side)
}

// lockShard locks every table in SHARE UPDATE EXCLUSIVE mode, in order.
func lockShard(ctx context.Context, q Querier) ([]Table, error) {
	if err := setLocal(ctx, q, "lock_timeout", followLockTimeout); err != nil {
		return nil, err
	}
	tables, err := Tables(ctx, q)
	if err != nil {
		return nil, err
	}
	tables = owned(tables)
	if sql := lockSQL(tables, "SHARE UPDATE EXCLUSIVE"); sql != "" {
		if _, err := q.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			return nil, fmt.Errorf("lock the tables: %w", err)
		}
	}
	return tables, nil
}

// disagreeing lists the tables whose fence is not as the side asks.
func disagreeing(tables []Table, side Side) []Table {
	var out []Table
	for _, t := range tables {
		if side == SideTarget && !t.Open() || side != SideTarget && !t.Closed() {
			out = append(out, t)
		}
	}
	return out
}

// setFence makes a shard's fence agree with the side.
func setFence(ctx context.Context, q Querier, tables []Table, side Side) error {
	wrong := disagreeing(tables, side)
	sql := closeSQL(wrong)
	if side == SideTarget {
		sql = openSQL(wrong)
	}
	if sql == "" {
		return nil
	}
	return setLetting(ctx, q, lockSQL(wrong, "SHARE ROW EXCLUSIVE")+";\n"+sql)
}

// setLetting runs statements that lock several tables against their writers. Clients lock tables in their own order, also
// on a side where they are refused: a pipeline of statements locks what it names when it is parsed. So this lets go of all
// and tries again, as the fence at the source does, rather than wait for the server to find a deadlock. Without success
// within followLockTimeout the last error is returned, and the transaction is as it was before.
func setLetting(ctx context.Context, q Querier, sql string) error {
	limit := time.Now().Add(followLockTimeout)
	for try := firstSetTry; ; try = min(2*try, maxSetTry) {
		if err := setLocal(ctx, q, "lock_timeout", try); err != nil {
			return err
		}
		_, err := q.Exec(ctx, "SAVEPOINT rehome_set;\n"+sql+"\nRELEASE SAVEPOINT rehome_set", pgx.QueryExecModeSimpleProtocol)
		if err == nil {
			return nil
		}
		if !hasCode(err, "55P03", "40P01") {
			return fmt.Errorf("set the fence: %w", err)
		}
		if _, err := q.Exec(ctx, "ROLLBACK TO SAVEPOINT rehome_set", pgx.QueryExecModeSimpleProtocol); err != nil {
			return fmt.Errorf("set the fence: %w", err)
		}
		if time.Now().After(limit) {
			return fmt.Errorf("set the fence: %w", err)
		}
		if err := sleep(ctx, jitter(firstSetTry/2)); err != nil {
			return err
		}
	}
}

// withRetry repeats a transaction that lost a deadlock or waited too long; in the latter case it first ends sessions of
// coordinators that hold the shard's prelock: they are rivals, and what they may still do the gate's epoch prevents.
func withRetry(ctx context.Context, conn *pgx.Conn, fn func() error) error {
	for try := 1; ; try++ {
		err := fn()
		if err == nil || try == followTries || !hasCode(err, "40P01", "55P03", "42P01", "40001") {
			return err
		}
		if hasCode(err, "55P03") {
			if _, err := conn.Exec(ctx, endRivals, AppName+"%"); err != nil {
				return fmt.Errorf("end a rival's prelock: %w", err)
			}
		}
		if err := sleep(ctx, jitter(lockPause)); err != nil {
			return err
		}
	}
}

const endRivals = `
SELECT count(pg_terminate_backend(a.pid)) FROM pg_catalog.pg_stat_activity a
WHERE a.datname = current_database() AND a.usename = current_user AND a.application_name LIKE $1
  AND a.state LIKE 'idle in transaction%' AND a.pid <> pg_backend_pid()
  AND EXISTS (SELECT FROM pg_catalog.pg_locks l WHERE l.pid = a.pid AND l.mode = 'ShareUpdateExclusiveLock' AND l.granted)`

// ShardSession opens a session to a shard's tenant database under a name by which a successor recognises it.
func ShardSession(ctx context.Context, dsn tenant.DSN) (*pgx.Conn, error) {
	return connect(ctx, dsn, "shard")
}
