package redirect

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// switchTry bounds one try to record a switch, and switchAgain is between two.
	switchTry   = 3 * time.Second
	switchAgain = 200 * time.Millisecond
)

// Sides of a route, as the gate names them.
const (
	sideSource = "source"
	sideTarget = "target"
)

// Switch records which side the clients of a database go to since an epoch of its replication's gate, and ends the holds
// of the attempts that are over. Both become visible at once, so no gateway lets a held request go by an older route. An
// epoch that is not newer than the recorded one changes no route. It tries until ctx ends: the decision is made, and held
// requests wait for it.
func (g *Gateway) Switch(ctx context.Context, database, replication string, epoch int64, target bool, attempts ...string) error {
	side := sideSource
	if target {
		side = sideTarget
	}
	for {
		err := g.trySwitch(ctx, database, replication, epoch, side, attempts)
		if err == nil {
			return nil
		}
		g.cfg.Logger.WarnContext(ctx, "the new route is not recorded yet", "database", database, "side", side, "error", err)
		wait(ctx, switchAgain)
		if ctx.Err() != nil {
			return fmt.Errorf("switch %s to its %s: %w", database, side, errors.Join(context.Cause(ctx), err))
		}
	}
}

func (g *Gateway) trySwitch(ctx context.Context, database, replication string, epoch int64, side string, attempts []string) error {
	ctx, cancel := context.WithTimeout(ctx, switchTry)
	defer cancel()
	if attempts == nil {
		attempts = []string{}
	}
	err := pgx.BeginFunc(ctx, g.cfg.Pool, func(tx pgx.Tx) error {
		b := &pgx.Batch{}
		b.Queue(`INSERT INTO rehome_control.routes AS r (database, replication, epoch, side) SELECT name, $2, $3, $4 FROM rehome_control.databases WHERE name = $1
			ON CONFLICT (database) DO UPDATE SET replication = $2, epoch = $3, side = $4, changed_at = clock_timestamp()
			WHERE r.replication <> excluded.replication OR r.epoch < excluded.epoch`, database, replication, epoch, side)
		b.Queue(`DELETE FROM rehome_control.holds WHERE database = $1 AND attempt = ANY($2)`, database, attempts)
		b.Queue(`SELECT pg_notify($1, '')`, RoutesChannel)
		return tx.SendBatch(ctx, b).Close()
	})
	if err != nil {
		return fmt.Errorf("record the route of %s: %w", database, err)
	}
	return g.Reload(ctx)
}
