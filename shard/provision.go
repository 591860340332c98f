package shard

import (
	"context"
	_ "embed"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

//go:embed provision.sql
var provisionSQL string

// provisionLock keeps two servers from provisioning one database at once: CREATE … IF NOT EXISTS races with itself.
const provisionLock = 0x7265686f6d65 // "rehome"

// Provision makes the schema rehome of a tenant database on a shard: bucket(), owned, pinned, owns(). Idempotent.
func Provision(ctx context.Context, conn *pgx.Conn) error {
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(provisionLock)); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, provisionSQL)
		return err
	})
	if err != nil {
		return fmt.Errorf("provision schema rehome: %w", err)
	}
	return nil
}

// ApplyPlacement writes to a shard what it owns under p. What is there already at the same or a later epoch stays: the
// epoch of a shard only rises.
func ApplyPlacement(ctx context.Context, conn *pgx.Conn, p tenant.Placement, shard string) error {
	return applyPlacement(ctx, conn, p, shard, false)
}

// applyPlacement writes the same epoch once more if again is set.
func applyPlacement(ctx context.Context, conn *pgx.Conn, p tenant.Placement, shard string, again bool) error {
	if err := p.Validate(); err != nil {
		return err
	}
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `LOCK TABLE rehome.owned, rehome.pinned IN SHARE ROW EXCLUSIVE MODE`); err != nil {
			return err
		}
		var there int64
		err := tx.QueryRow(ctx, `SELECT COALESCE(max(epoch), 0) FROM (SELECT epoch FROM rehome.owned UNION ALL SELECT epoch FROM rehome.pinned) e`).Scan(&there)
		if err != nil || there > p.Epoch || there == p.Epoch && !again {
			return err
		}
		if _, err := tx.Exec(ctx, `DELETE FROM rehome.owned`); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `DELETE FROM rehome.pinned`); err != nil {
			return err
		}
		for _, r := range p.Ranges {
			if r.Shard != shard {
				continue
			}
			if _, err := tx.Exec(ctx, `INSERT INTO rehome.owned (bucket_from, bucket_to, epoch) VALUES ($1, $2, $3)`, r.From, r.To, p.Epoch); err != nil {
				return err
			}
		}
		var realms []string
		var here []bool
		for realm, s := range p.Pins {
			realms, here = append(realms, realm), append(here, s == shard)
		}
		_, err = tx.Exec(ctx, `INSERT INTO rehome.pinned (realm, here, epoch) SELECT r, h, $3 FROM unnest($1::text[], $2::bool[]) AS u(r, h)`, realms, here, p.Epoch)
		return err
	})
	if err != nil {
		return fmt.Errorf("write placement epoch %d to shard %s: %w", p.Epoch, shard, err)
	}
	return nil
}
