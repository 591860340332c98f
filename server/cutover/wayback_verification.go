package cutover

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// LastMove is when the writes changed sides last, by a cutover or a rollback of this replication; zero if they never did. A
// verification from before says nothing of what was written since.
func (c *Coordinator) LastMove(ctx context.Context, replication string) (time.Time, error) {
	var at time.Time
	err := c.cfg.Pool.QueryRow(ctx, `SELECT coalesce((report->>'decided_at')::timestamptz, finished_at) FROM rehome_control.cutovers
		WHERE replication = $1 AND finished_at IS NOT NULL AND (direction, outcome) IN (('cutover', 'target'), ('rollback', 'source'))
		ORDER BY gate_epoch DESC LIMIT 1`, replication).Scan(&at)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return at, fmt.Errorf("read when the writes changed sides last: %w", err)
	}
	return at, nil
}
