package cutover

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// discardTimeout bounds dropping the way back at the end of an attempt that was taken back: the source writes already,
// and whatever stays is dropped by the next Prepare, by complete or by cancel.
const discardTimeout = 20 * time.Second

// WayBack is the replication from the shards back to the source, as the engine has it.
type WayBack interface {
	// Prepare makes everything it needs while the shards are still fenced: its slots hold every write from the first one
	// on. It is idempotent and replaces what an earlier attempt left.
	Prepare(ctx context.Context) error
	// Discard drops it on both sides, slots first. It is idempotent.
	Discard(ctx context.Context) error
	// WaitMarkers blocks until the markers of the attempt, one behind each shard's fence, are durably applied at the
	// source, and everything before them, and returns the shards' positions.
	WaitMarkers(ctx context.Context, attempt string) ([]tenant.ShardPosition, error)
	// Progress is the state of now, from memory.
	Progress() tenant.WayBack
}

// prepareWayBack makes the way back before the pause, unless none is wanted.
func (r *run) prepareWayBack(ctx context.Context) error {
	r.rec.NoWayBack = r.at.NoWayBack || r.job.WayBack == nil
	if r.rec.NoWayBack {
		return nil
	}
	return r.job.WayBack.Prepare(ctx)
}

// discardWayBack drops it once the attempt has ended at the source. A failure is reported, but it is no failure of the
// attempt: the source writes as before.
func (r *run) discardWayBack(ctx context.Context) {
	start := time.Now()
	if r.job.WayBack == nil || r.rec.NoWayBack {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, discardTimeout)
	defer cancel()
	if err := r.job.WayBack.Discard(ctx); err != nil {
		r.log.Error("drop the way back", "error", err)
		r.rec.Findings = append(r.rec.Findings, tenant.Finding{
			Severity: tenant.Warning, Code: "way-back-left", Object: r.job.Database,
			Message: fmt.Sprintf("the way back could not be dropped: %v", err),
			Remedy:  "the next cutover, complete or cancel drops it; until then its slots hold back WAL at the shards",
		})
	}
	r.took("discard", start)
}

// WantsWayBack reports whether the cutover that moved the replication to its target was to keep a way back. False where
// none was decided.
func (c *Coordinator) WantsWayBack(ctx context.Context, replication string) (bool, error) {
	var wanted bool
	err := c.cfg.Pool.QueryRow(ctx, `SELECT NOT coalesce((report->>'no_way_back')::boolean, false) FROM rehome_control.cutovers
		WHERE replication = $1 AND direction = 'cutover' AND (outcome = 'target' OR outcome IS NULL) ORDER BY gate_epoch DESC LIMIT 1`, replication).Scan(&wanted)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read whether a way back is wanted: %w", err)
	}
	return wanted, nil
}
