package gate

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// InstallBack makes at a shard what is at a source for the stream of the other direction: the tables of markers and
// heartbeats, and what notes a TRUNCATE of a partition. The shard's gate must be there. Idempotent.
func InstallBack(ctx context.Context, conn *pgx.Conn) error {
	err := inTx(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(installLock)); err != nil {
			return fmt.Errorf("wait for another installation: %w", err)
		}
		for _, sql := range []string{createMarker, createHeartbeat, createTruncated, createNoteTruncation, revokeNoteTruncation, revokeAll} {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("install the way back at the shard: %w", err)
	}
	return nil
}

// RemoveBack drops what InstallBack made, unless another replication publishes it from there. The publication and the
// triggers that note truncations must be gone. Idempotent.
func RemoveBack(ctx context.Context, conn *pgx.Conn) error {
	var shared bool
	if err := conn.QueryRow(ctx, othersPublish).Scan(&shared); err != nil || shared {
		return err
	}
	if err := dropTables(ctx, conn); err != nil {
		return fmt.Errorf("remove the way back from the shard: %w", err)
	}
	// A shard that nothing was prepared at has no schema, and IF EXISTS does not forgive that for functions everywhere.
	_, err := conn.Exec(ctx, `DO $do$ BEGIN IF to_regnamespace('rehome') IS NOT NULL THEN DROP FUNCTION IF EXISTS rehome.note_truncation(); END IF; END $do$`)
	if err != nil {
		return fmt.Errorf("remove the way back from the shard: %w", err)
	}
	return nil
}
