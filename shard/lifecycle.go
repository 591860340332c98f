package shard

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

func wrongState(name, state, hint string) error {
	return tenant.Errorf(tenant.KindConflict, "database-wrong-state", hint, "database %q is %s", name, state)
}

type lockedDatabase struct {
	kind, state string
	purgeAfter  *time.Time
}

// lockDatabase reads a database's row and keeps it until the transaction ends.
func lockDatabase(ctx context.Context, tx pgx.Tx, name string) (lockedDatabase, error) {
	var d lockedDatabase
	err := tx.QueryRow(ctx, `SELECT kind, state, purge_after FROM rehome_control.databases WHERE name = $1 FOR UPDATE`, name).Scan(&d.kind, &d.state, &d.purgeAfter)
	if errors.Is(err, pgx.ErrNoRows) {
		return d, databaseUnknown(name)
	}
	if err != nil {
		return d, fmt.Errorf("lock database %s: %w", name, err)
	}
	return d, nil
}

// change runs one step of a database's life: allowed decides from the locked row, then the update runs.
func (c *Catalogue) change(ctx context.Context, name string, allowed func(lockedDatabase) (bool, error), sql string, args ...any) (Database, error) {
	err := pgx.BeginFunc(ctx, c.pool, func(tx pgx.Tx) error {
		d, err := lockDatabase(ctx, tx, name)
		if err != nil {
			return err
		}
		if ok, err := allowed(d); err != nil || !ok {
			return err
		}
		if err := refuseReplicating(ctx, tx, name); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, sql, append([]any{name}, args...)...); err != nil {
			return fmt.Errorf("change the state of database %s: %w", name, err)
		}
		return notifyRoutes(ctx, tx)
	})
	if err != nil {
		return Database{}, err
	}
	return c.Database(ctx, name)
}

// refuseReplicating keeps a database that a replication works on.
func refuseReplicating(ctx context.Context, tx pgx.Tx, name string) error {
	var id, phase string
	err := tx.QueryRow(ctx, `SELECT id, phase FROM rehome_control.replications WHERE database = $1 AND phase NOT IN ('completed', 'cancelled')`, name).Scan(&id, &phase)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for replications of %s: %w", name, err)
	}
	return tenant.Errorf(tenant.KindRefused, "replication-active", "cancel or complete it first", "replication %s of database %q is %s", id, name, phase)
}

// BeginDelete: active or stopped becomes deleting, which waits for the second confirmation. Again is no error.
func (c *Catalogue) BeginDelete(ctx context.Context, name string) (Database, error) {
	return c.change(ctx, name, func(d lockedDatabase) (bool, error) {
		switch d.state {
		case Active, Stopped:
			return true, nil
		case Deleting:
			return false, nil
		}
		return false, wrongState(name, d.state, "it is deleted already")
	}, `UPDATE rehome_control.databases SET state = 'deleting' WHERE name = $1`)
}

// SoftDelete: active, stopped or deleting becomes deleted; the data stays for grace. Again is no error and does not
// lengthen the grace.
func (c *Catalogue) SoftDelete(ctx context.Context, name string, grace time.Duration) (Database, error) {
	now := c.now()
	return c.change(ctx, name, func(d lockedDatabase) (bool, error) {
		switch d.state {
		case Active, Stopped, Deleting:
			return true, nil
		case Deleted:
			return false, nil
		}
		return false, wrongState(name, d.state, "it is purged already")
	}, `UPDATE rehome_control.databases SET state = 'deleted', deleted_at = $2, purge_after = $3 WHERE name = $1`, now, now.Add(max(grace, 0)))
}

// Undelete: deleting or deleted becomes active again. Again is no error.
func (c *Catalogue) Undelete(ctx context.Context, name string) (Database, error) {
	return c.change(ctx, name, func(d lockedDatabase) (bool, error) {
		switch d.state {
		case Deleting, Deleted:
			return true, nil
		case Active:
			return false, nil
		}
		return false, wrongState(name, d.state, "only a deleted database whose data is still there can come back")
	}, `UPDATE rehome_control.databases SET state = 'active', deleted_at = NULL, purge_after = NULL WHERE name = $1`)
}

// DuePurges names the deleted databases whose grace is over, the longest first, and those whose purge was
// interrupted.
func (c *Catalogue) DuePurges(ctx context.Context) ([]string, error) {
	rows, err := c.pool.Query(ctx, `SELECT name FROM rehome_control.databases WHERE (state = 'deleted' AND purge_after <= $1) OR (state = 'purged' AND purged_at IS NULL) ORDER BY purge_after, name`, c.now())
	if err != nil {
		return nil, fmt.Errorf("list due purges: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("list due purges: %w", err)
	}
	return names, nil
}
