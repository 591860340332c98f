package catalog

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/tenant"
)

const (
	// changeLockTimeout bounds how long a change waits for its lock: whoever comes after it in the lock's queue waits too.
	changeLockTimeout = 500 * time.Millisecond
	// changeTries bounds the tries of one change; with the pauses between them about two minutes.
	changeTries = 40
	// changePause is the longest pause between tries, jittered, so that writers get through.
	changePause = 5 * time.Second
)

// ApplyChanges makes the changes in their order. Each is written ahead through record, then done; a change that is already
// done is done again without effect. A lock that cannot be had soon is tried again, so that no writer queues behind it.
// A change that fails stays recorded: undoing it is safe.
func ApplyChanges(ctx context.Context, conn *pgx.Conn, changes []tenant.SourceChange, record func(tenant.SourceChange) error) error {
	return withLockTimeout(ctx, conn, func() error {
		for _, c := range changes {
			if err := record(c); err != nil {
				return fmt.Errorf("record a change of %s: %w", c.Object, err)
			}
			if err := applyChange(ctx, conn, c); err != nil {
				return fmt.Errorf("%s: %w", c.Description, err)
			}
		}
		return nil
	})
}

// UndoChanges takes changes back, the last one first, whatever their order here. It goes on after a failure, and returns
// all failures joined.
func UndoChanges(ctx context.Context, conn *pgx.Conn, changes []tenant.SourceChange) error {
	ordered := slices.Clone(changes)
	slices.SortStableFunc(ordered, func(a, b tenant.SourceChange) int { return b.Ordinal - a.Ordinal })
	return withLockTimeout(ctx, conn, func() error {
		var errs []error
		for _, c := range ordered {
			if c.Undo == "" {
				continue
			}
			if err := retry(ctx, func() error { return runPatiently(ctx, conn, c.Undo) }); err != nil {
				errs = append(errs, fmt.Errorf("undo %q: %w", c.Description, err))
			}
		}
		return errors.Join(errs...)
	})
}

// Carried picks the changes whose effect goes to the shards with the schema: identities, indexes and constraints do,
// triggers of ours do not.
func Carried(changes []tenant.SourceChange) []tenant.SourceChange {
	return slices.DeleteFunc(slices.Clone(changes), func(c tenant.SourceChange) bool { return c.Undo == "" || strings.Contains(c.Undo, "DROP TRIGGER") })
}

func withLockTimeout(ctx context.Context, conn *pgx.Conn, do func() error) error {
	set := fmt.Sprintf("SET lock_timeout = %d; SET statement_timeout = 0", changeLockTimeout.Milliseconds())
	if err := run(ctx, conn, set); err != nil {
		return err
	}
	err := do()
	if conn.IsClosed() {
		return err
	}
	return errors.Join(err, run(context.WithoutCancel(ctx), conn, "RESET lock_timeout; RESET statement_timeout"))
}

func applyChange(ctx context.Context, conn *pgx.Conn, c tenant.SourceChange) error {
	if !strings.HasPrefix(c.Do, createConcurrently) {
		return retry(ctx, func() error { return run(ctx, conn, c.Do) })
	}
	index := strings.TrimPrefix(c.Undo, dropConcurrently)
	return retry(ctx, func() error {
		// A build that failed or was interrupted leaves an invalid index, which IF NOT EXISTS would take for the real one.
		var invalid bool
		err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass($1) AND NOT indisvalid)`, index).Scan(&invalid)
		if err != nil {
			return err
		}
		if invalid {
			if err := runPatiently(ctx, conn, c.Undo); err != nil {
				return err
			}
		}
		return runPatiently(ctx, conn, c.Do)
	})
}

// runPatiently runs CONCURRENTLY statements without lock_timeout: they wait for every transaction that is older, which may
// take long, but block nobody meanwhile. Others run as they are.
func runPatiently(ctx context.Context, conn *pgx.Conn, sql string) error {
	if !strings.HasPrefix(sql, createConcurrently) && !strings.HasPrefix(sql, dropConcurrently) {
		return run(ctx, conn, sql)
	}
	if err := run(ctx, conn, "SET lock_timeout = 0"); err != nil {
		return err
	}
	err := run(ctx, conn, sql)
	if conn.IsClosed() {
		return err
	}
	return errors.Join(err, run(context.WithoutCancel(ctx), conn, fmt.Sprintf("SET lock_timeout = %d", changeLockTimeout.Milliseconds())))
}

// run sends one statement by the simple protocol: outside a transaction, as CONCURRENTLY needs.
func run(ctx context.Context, conn *pgx.Conn, sql string) error {
	_, err := conn.PgConn().Exec(ctx, sql).ReadAll()
	return err
}

// retry repeats what failed for a lock (55P03) or a deadlock (40P01).
func retry(ctx context.Context, do func() error) error {
	for try := 1; ; try++ {
		err := do()
		var pg *pgconn.PgError
		if err == nil || !errors.As(err, &pg) || (pg.Code != "55P03" && pg.Code != "40P01") || try == changeTries {
			return err
		}
		pause := min(changePause, time.Duration(try)*100*time.Millisecond)
		pause = pause/2 + rand.N(pause/2) //nolint:gosec // jitter
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		case <-timer.C:
		}
	}
}
