package replicator

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/replicator/catalog"
)

// isGone reports whether a table and all its partitions were dropped before a snapshot. One that was renamed, detached or
// attached elsewhere is still there, with its rows.
func (e *Engine) isGone(ctx context.Context, snap *view, t *catalog.Table) (gone bool, err error) {
	c, err := e.src.reader(ctx, snap.name, "copy")
	if err != nil {
		return false, err
	}
	defer closeSoon(c)
	oids := []uint32{t.OID}
	for _, l := range t.Leaves {
		oids = append(oids, l.OID)
	}
	for _, b := range t.Branches {
		oids = append(oids, b.OID)
	}
	err = c.QueryRow(ctx, `SELECT NOT EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = ANY ($1))`, oids).Scan(&gone)
	if err != nil {
		return false, fmt.Errorf("look for table %s: %w", t.Name, err)
	}
	return gone, nil
}

// copyNothing notes at every shard that a dropped table is copied, without rows, as of the snapshot: the stream has nothing
// of it any more but its drop, since whatever was committed before is older than the watermark.
func (e *Engine) copyNothing(ctx context.Context, snap *view, t *catalog.Table) error {
	p := &planner{e: e}
	if err := p.write(ctx, t, t.Name.String(), nil); err != nil { // empties it, whatever was copied of it
		return err
	}
	err := e.eachShard(ctx, "copy", func(_ Shard, c *pgx.Conn) error {
		return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
			if err := e.ownShared(ctx, tx); err != nil {
				return err
			}
			for _, l := range t.Leaves {
				_, err := tx.Exec(ctx, `INSERT INTO rehome.copied (replication, relation, watermark, rows, bytes) VALUES ($1, $2, $3::pg_lsn, 0, 0)`,
					e.cfg.Replication, l.Name.String(), snap.lsn.String())
				if err != nil {
					return err
				}
			}
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("note that table %s was dropped: %w", t.Name, err)
	}
	e.cfg.Journal.Note(ctx, "step", map[string]any{"step": fmt.Sprintf("table %s was dropped at the source before it was copied", t.Name)})
	return e.noteCopied(ctx)
}
