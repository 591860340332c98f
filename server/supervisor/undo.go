package supervisor

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// openChanges are the changes of the source that were not taken back yet.
func (r *runner) openChanges(ctx context.Context) ([]tenant.SourceChange, error) {
	rows, err := r.s.cfg.Pool.Query(ctx, `SELECT ordinal, object, description, do_sql, undo_sql FROM rehome_control.source_changes
		WHERE replication = $1 AND undone_at IS NULL ORDER BY ordinal`, r.id)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (c tenant.SourceChange, err error) {
		err = row.Scan(&c.Ordinal, &c.Object, &c.Description, &c.Do, &c.Undo)
		return c, err
	})
}

// undoAtShards takes back at the shards what the schema brought along of our changes of the source: replica identities,
// and the indexes and constraints that were made for them. The shards then have the tenant's schema as it was.
func (r *runner) undoAtShards(ctx context.Context, e *replicator.Engine) error {
	rec, err := r.s.load(ctx, r.id)
	if err != nil {
		return err
	}
	changes, err := r.openChanges(ctx)
	if err != nil {
		return err
	}
	if changes = catalog.Carried(changes); len(changes) == 0 {
		return nil
	}
	return e.AtShards(ctx, func(conn *pgx.Conn) error {
		if err := gate.SetPass(ctx, conn, r.s.pass(rec.database)); err != nil { // a shard that is closed refuses changes of its tables
			return err
		}
		if err := catalog.UndoChanges(ctx, conn, changes); err != nil {
			return fmt.Errorf("take back at the shard what was changed at the source: %w", err)
		}
		return nil
	})
}
