package gate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// dropTry bounds one DROP TRIGGER's wait: it needs an ACCESS EXCLUSIVE lock, and everybody queues behind it.
	dropTry = 100 * time.Millisecond
	// dropPatience bounds the tries of one table.
	dropPatience = 30 * time.Second
)

// UninstallSource drops what InstallSource made. The publication and the slot must be gone. Where the gate says that the
// data has moved, gate and fence stay, so that the old side never accepts a write again, unless dropFence asks for that;
// marker, heartbeat and notes of truncations go in any case. While another replication publishes from this source nothing goes: there is one
// gate for all of them, and the last one takes it along. Otherwise everything goes: triggers, tables, function, and schema rehome if it
// was made here and nothing else is in it. It may be repeated; it waits for an attempt that holds the gate.
func UninstallSource(ctx context.Context, conn *pgx.Conn, dropFence bool) error {
	s, err := ReadGate(ctx, conn)
	if errors.Is(err, ErrNoGate) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("uninstall the gate: %w", err)
	}
	if s.Side != SideSource && !dropFence {
		if err := dropTables(ctx, conn); err != nil {
			return fmt.Errorf("uninstall the gate: %w", err)
		}
		return nil
	}
	if !dropFence {
		var shared bool
		if err := conn.QueryRow(ctx, othersPublish).Scan(&shared); err != nil {
			return fmt.Errorf("uninstall the gate: look for other replications: %w", err)
		}
		if shared {
			return nil
		}
	}
	if err := remove(ctx, conn, s); err != nil {
		return fmt.Errorf("uninstall the gate: %w", err)
	}
	return nil
}

// othersPublish: our own publication is gone when this is asked.
const othersPublish = `
SELECT EXISTS (SELECT FROM pg_catalog.pg_publication_rel WHERE prrelid = to_regclass('rehome.marker'))`

// UninstallShard drops gate, fence function and triggers of a shard that is open, at the end of a replication. A shard
// that is closed refuses with ErrShardClosed: without its fence it would accept writes beside the source. It may be
// repeated.
func UninstallShard(ctx context.Context, conn *pgx.Conn) error {
	s, err := ReadGate(ctx, conn)
	if errors.Is(err, ErrNoGate) {
		return nil
	}
	if err == nil && s.Side != SideTarget {
		err = ErrShardClosed
	}
	if err == nil {
		err = remove(ctx, conn, s)
	}
	if err != nil {
		return fmt.Errorf("uninstall the shard's gate: %w", err)
	}
	return nil
}

// remove drops everything of this package, provided that the gate stays as it was read.
func remove(ctx context.Context, conn *pgx.Conn, s State) error {
	// They would refuse that the others are dropped. Where our role may not make any there are none.
	if stands, err := ddlFenceThere(ctx, conn); err != nil {
		return err
	} else if stands {
		err := inTx(ctx, conn, func(tx pgx.Tx) error {
			if _, err := holdGate(ctx, tx, s); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, openDDLSQL(), pgx.QueryExecModeSimpleProtocol)
			return err
		})
		if err != nil {
			return fmt.Errorf("drop the event triggers: %w", err)
		}
	}
	if err := dropTriggers(ctx, conn, s); err != nil {
		return err
	}
	return inTx(ctx, conn, func(tx pgx.Tx) error {
		made, err := holdGate(ctx, tx, s)
		if err != nil {
			return err
		}
		for _, sql := range []string{
			`DROP TABLE IF EXISTS rehome.marker, rehome.heartbeat, rehome.truncated`, `DROP TABLE rehome.gate`,
			`DROP FUNCTION IF EXISTS rehome.fence()`, `DROP FUNCTION IF EXISTS rehome.fence_ddl()`, `DROP FUNCTION IF EXISTS rehome.note_truncation()`,
		} {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
		if !made {
			return nil
		}
		var empty bool
		if err := tx.QueryRow(ctx, schemaEmpty).Scan(&empty); err != nil {
			return fmt.Errorf("look into schema rehome: %w", err)
		}
		if !empty {
			return nil
		}
		_, err = tx.Exec(ctx, `DROP SCHEMA rehome`) // without CASCADE: what was overlooked refuses
		return err
	})
}

const schemaEmpty = `
SELECT NOT EXISTS (SELECT FROM pg_catalog.pg_depend WHERE refclassid = 'pg_catalog.pg_namespace'::regclass
                   AND refobjid = 'rehome'::regnamespace AND deptype = 'n')`

func dropTables(ctx context.Context, conn *pgx.Conn) error {
	for _, sql := range []string{`DROP TABLE IF EXISTS rehome.marker, rehome.heartbeat, rehome.truncated`, `DROP FUNCTION IF EXISTS rehome.note_truncation()`} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

// holdGate locks the gate's row and refuses if it is not what it was: whoever held the row may have decided, and then
// gate and fence must stay.
func holdGate(ctx context.Context, tx pgx.Tx, was State) (madeSchema bool, err error) {
	var now State
	if err := tx.QueryRow(ctx, `SELECT epoch, side, made_schema FROM rehome.gate FOR UPDATE`).Scan(&now.Epoch, &now.Side, &madeSchema); err != nil {
		return false, fmt.Errorf("lock the gate: %w", err)
	}
	if now.Epoch != was.Epoch || now.Side != was.Side {
		return false, ErrGateMoved
	}
	return madeSchema, nil
}

// dropTriggers drops the fence table by table, each in a transaction of its own with short waits.
func dropTriggers(ctx context.Context, conn *pgx.Conn, was State) error {
	tables, err := Tables(ctx, conn)
	if err != nil {
		return err
	}
	for _, t := range tables {
		if t.fence == "" && t.fenceRow == "" {
			continue
		}
		sql := "DROP TRIGGER IF EXISTS " + TriggerName + " ON " + t.Name.Quoted() + "; DROP TRIGGER IF EXISTS " + RowTriggerName + " ON " + t.Name.Quoted()
		limit := time.Now().Add(dropPatience)
		for {
			err := inTx(ctx, conn, func(tx pgx.Tx) error {
				if err := setLocal(ctx, tx, "lock_timeout", dropTry); err != nil {
					return err
				}
				if _, err := holdGate(ctx, tx, was); err != nil {
					return err
				}
				_, err := tx.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol)
				return err
			})
			if err == nil {
				break
			}
			if !hasCode(err, "55P03", "40P01") || time.Now().After(limit) {
				return fmt.Errorf("drop the fence of %s: %w", t.Name, err)
			}
			if err := sleep(ctx, jitter(2*dropTry)); err != nil {
				return err
			}
		}
	}
	return nil
}
