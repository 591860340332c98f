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

// discardWayBack drops it once an attempt has ended at the source, and notes that in the attempt's record. A failure is
// reported, but it is no failure of the attempt: the source writes as before. Tidy tries again.
func (c *Coordinator) discardWayBack(ctx context.Context, job Job, rec *record) {
	if !rec.WayBackLeft || job.WayBack == nil {
		return
	}
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, discardTimeout)
	defer cancel()
	err := job.WayBack.Discard(ctx)
	if err == nil {
		err = c.discarded(ctx, rec.Attempt)
	}
	rec.Steps = append(rec.Steps, stepTime("discard", start))
	if err != nil {
		c.cfg.Logger.Error("drop the way back", "replication", job.Replication, "attempt", rec.Attempt, "error", err)
		rec.Findings = append(rec.Findings, tenant.Finding{
			Severity: tenant.Warning, Code: "way-back-left", Object: job.Database, Message: fmt.Sprintf("the way back could not be dropped: %v", err),
			Remedy: "make the shards reachable: it is tried again; until then its slots hold back WAL there",
		})
		return
	}
	rec.WayBackLeft = false
}

func (c *Coordinator) discarded(ctx context.Context, attempt string) error {
	if _, err := c.cfg.Pool.Exec(ctx, `UPDATE rehome_control.cutovers SET report = report - 'way_back_left' WHERE attempt = $1`, attempt); err != nil {
		return fmt.Errorf("write down that the way back is dropped: %w", err)
	}
	return nil
}

// Tidy drops a way back that the end of an attempt left: its server died just then, or a shard could not be reached. It does
// nothing while an attempt is unfinished or after the target got the authority. It must not run beside an attempt of the
// same server.
func (c *Coordinator) Tidy(ctx context.Context, job Job) error {
	if job.WayBack == nil {
		return nil
	}
	var left []string
	err := c.cfg.Pool.QueryRow(ctx, `SELECT coalesce(array_agg(attempt) FILTER (WHERE report->>'way_back_left' = 'true'), '{}') FROM rehome_control.cutovers
		WHERE replication = $1 HAVING bool_and(finished_at IS NOT NULL) AND (array_agg(outcome ORDER BY gate_epoch DESC, started_at DESC))[1] = 'source'`, job.Replication).Scan(&left)
	if errors.Is(err, pgx.ErrNoRows) || (err == nil && len(left) == 0) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for a way back that was left: %w", err)
	}
	if err := job.WayBack.Discard(ctx); err != nil {
		return fmt.Errorf("drop the way back: %w", err)
	}
	for _, attempt := range left {
		if err := c.discarded(ctx, attempt); err != nil {
			return err
		}
	}
	return nil
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
