package shard

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

const (
	purgeBatchRows = 10000                 // large enough to be quick, small enough to hold locks for milliseconds
	purgePause     = 20 * time.Millisecond // leaves room for the server's other work
	slotTries      = 100                   // a terminated walsender lets go of its slot within moments
	slotPause      = 50 * time.Millisecond
)

// Purge destroys a deleted database whose grace is over. It may be repeated after a crash or an error; a purged database
// is no error. An Undelete cannot interfere: the row is locked by name, and the state is read under that lock.
func (c *Catalogue) Purge(ctx context.Context, name string, opts PurgeOptions) (PurgeResult, error) {
	if opts.BatchRows <= 0 {
		opts.BatchRows = purgeBatchRows
	}
	if opts.Pause <= 0 {
		opts.Pause = purgePause
	}
	res := PurgeResult{Database: name}
	unlock, err := c.lockName(ctx, name)
	if err != nil {
		return res, err
	}
	defer unlock()
	d, err := c.Database(ctx, name)
	switch {
	case err != nil:
		return res, err
	case d.State == Purged && d.PurgedAt != nil:
		return res, nil
	case d.State == Purged: // a former purge was interrupted
	case d.State != Deleted:
		return res, wrongState(name, d.State, "delete it first, with: rehome delete-db")
	case !opts.Early && (d.PurgeAfter == nil || c.now().Before(*d.PurgeAfter)):
		return res, wrongState(name, "deleted, and its grace is not over", "wait, or ask for an early purge")
	}
	// From here on nobody can undelete it: half a database must not come back. Purging again is what finishes it.
	tag, err := c.pool.Exec(ctx, `UPDATE rehome_control.databases SET state = 'purged' WHERE name = $1 AND state IN ('deleted', 'purged')`, name)
	if err != nil {
		return res, fmt.Errorf("begin the purge of %s: %w", name, err)
	}
	if tag.RowsAffected() == 0 {
		return res, wrongState(name, "not deleted any more", "it was undeleted meanwhile")
	}
	if err := c.destroy(ctx, d, opts, &res); err != nil {
		c.unlessBegun(ctx, name, res, err)
		return res, err
	}
	return res, c.forget(ctx, d, res)
}

// unlessBegun makes a database deleted again whose purge was refused before anything was destroyed.
func (c *Catalogue) unlessBegun(ctx context.Context, name string, res PurgeResult, cause error) {
	if tenant.AsError(cause).Kind != tenant.KindRefused || len(res.Dropped) > 0 || res.RowsDeleted > 0 {
		return
	}
	if _, err := c.pool.Exec(ctx, `UPDATE rehome_control.databases SET state = 'deleted' WHERE name = $1 AND purged_at IS NULL`, name); err != nil {
		c.log.ErrorContext(ctx, "purge not taken back", "database", name, "error", err)
	}
}

func (c *Catalogue) destroy(ctx context.Context, d Database, opts PurgeOptions, res *PurgeResult) error {
	if d.Kind == KindAdopted {
		return c.destroyAdopted(ctx, d, opts, res)
	}
	for _, s := range d.Shards {
		dropped, err := c.dropOn(ctx, s, d.Name)
		if err != nil {
			return fmt.Errorf("purge database %s from shard %s: %w", d.Name, s, err)
		}
		if dropped {
			res.Dropped = append(res.Dropped, s)
		}
	}
	return nil
}

// forget removes what a purged database leaves in the control database; the name stays for its tombstone.
func (c *Catalogue) forget(ctx context.Context, d Database, res PurgeResult) error {
	err := pgx.BeginFunc(ctx, c.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `DELETE FROM rehome_control.database_shards WHERE database = $1`, d.Name); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `DELETE FROM rehome_control.settings WHERE name = $1`, systemSetting(d.Name)); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE rehome_control.databases SET purged_at = $2, adopted_dsn_sealed = NULL WHERE name = $1`, d.Name, c.now()); err != nil {
			return err
		}
		return notifyRoutes(ctx, tx)
	})
	if err != nil {
		return fmt.Errorf("record the purge of %s: %w", d.Name, err)
	}
	c.log.InfoContext(ctx, "database purged", "database", d.Name, "rows_deleted", res.RowsDeleted, "left", res.Left)
	return nil
}

// dropOn drops our database from a shard, with its leftover sessions and our slots. Not there: no error.
func (c *Catalogue) dropOn(ctx context.Context, shard, name string) (bool, error) {
	dsn, err := c.ShardDSN(ctx, shard)
	if err != nil {
		return false, err
	}
	conn, err := connect(ctx, dsn, connectTimeout)
	if err != nil {
		return false, err
	}
	defer closeConn(ctx, conn)
	comment, exists, err := databaseComment(ctx, conn, name)
	if err != nil || !exists {
		return false, err
	}
	if comment != c.ourComment(name) {
		return false, nil
	}
	if err := dropSlots(ctx, conn, name); err != nil {
		return false, err
	}
	_, err = conn.Exec(ctx, `DROP DATABASE IF EXISTS `+tenant.QuoteIdent(name)+` WITH (FORCE)`)
	return err == nil, err
}

// dropSlots drops Rehome's replication slots of a database: with them it cannot be dropped. Others' are refused.
func dropSlots(ctx context.Context, conn *pgx.Conn, database string) error {
	for range slotTries {
		rows, err := conn.Query(ctx, `SELECT slot_name::text, active_pid FROM pg_replication_slots WHERE database = $1 ORDER BY 1`, database)
		if err != nil {
			return fmt.Errorf("list replication slots: %w", err)
		}
		type slot struct {
			Name string
			Pid  *int32
		}
		slots, err := pgx.CollectRows(rows, pgx.RowToStructByPos[slot])
		if err != nil {
			return fmt.Errorf("list replication slots: %w", err)
		}
		if len(slots) == 0 {
			return nil
		}
		for _, s := range slots {
			switch {
			case !strings.HasPrefix(s.Name, "rehome_"):
				return tenant.Errorf(tenant.KindRefused, "foreign-slot", "drop it with pg_drop_replication_slot once its consumer is gone", "replication slot %q of database %q is not Rehome's", s.Name, database)
			case s.Pid != nil:
				_, err = conn.Exec(ctx, `SELECT pg_terminate_backend($1)`, *s.Pid)
			default:
				_, err = conn.Exec(ctx, `SELECT pg_drop_replication_slot($1)`, s.Name)
			}
			if err != nil && !isCode(err, "42704", "55006") { // undefined_object, object_in_use: look again
				return fmt.Errorf("drop replication slot %s: %w", s.Name, err)
			}
		}
		if err := sleep(ctx, slotPause); err != nil {
			return err
		}
	}
	return tenant.Errorf(tenant.KindUnavailable, "slot-in-use", "stop what reads from it, then try again", "a replication slot of database %q stays in use", database)
}
