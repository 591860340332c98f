package cutover

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/tenant"
)

// ErrSourceReachable refuses what only a person may ask for who declares the source destroyed.
var ErrSourceReachable = &tenant.Error{
	Kind: tenant.KindRefused, Code: "source-reachable", Message: "the source answers: it is not destroyed",
	Hint: "what is in doubt is resolved by itself as soon as the source lets Rehome in; nothing needs --force then",
}

// SourceGone refuses with ErrSourceReachable if the source answers, be it that it lets nobody in: too many connections, a
// password that was changed, a start that is under way. Its clients may write all the same. That it does not answer proves
// nothing: whoever calls this acts for a person who declared it destroyed.
func (c *Coordinator) SourceGone(ctx context.Context, job Job) error {
	conn, err := gate.SourceSession(ctx, job.Source)
	if pe, ok := errors.AsType[*pgconn.PgError](err); ok {
		return fmt.Errorf("%w, though it refuses the session (SQLSTATE %s)", ErrSourceReachable, pe.Code)
	}
	if err != nil {
		return ctx.Err()
	}
	_ = conn.Close(context.WithoutCancel(ctx))
	return ErrSourceReachable
}

// ForceTarget opens the target while the outcome of an attempt is in doubt, for a person who declares the source destroyed.
// It is the one decision that the gate at the source does not make: should that source come back with a gate that says
// otherwise, both sides write. What the shards had not received is lost. ErrSourceReachable while the source answers;
// KindConflict, code not-in-doubt, if nothing is unfinished. No certificate is signed.
func (c *Coordinator) ForceTarget(ctx context.Context, job Job) error {
	recs, err := c.unfinished(ctx, job.Replication)
	if err != nil {
		return err
	}
	if len(recs) == 0 {
		return tenant.Errorf(tenant.KindConflict, "not-in-doubt", "see rehome replications", "no cutover or rollback is in doubt")
	}
	if err := c.SourceGone(ctx, job); err != nil {
		return err
	}
	state := gate.State{Side: gate.SideTarget, NewURL: job.TargetURL}
	attempts := make([]string, 0, len(recs))
	for _, rec := range recs {
		// Above whatever the attempt, or a resolution of it, can have left at a shard.
		state.Epoch, state.Attempt = max(state.Epoch, rec.Epoch+2), rec.Attempt
		attempts = append(attempts, rec.Attempt)
	}
	c.cfg.Logger.Error("the target is opened by force: the source was declared destroyed", "replication", job.Replication, "gate_epoch", state.Epoch)
	if err := c.followAll(ctx, job, state); err != nil {
		return followUpError(err)
	}
	if err := c.switchClients(ctx, job, state, attempts...); err != nil {
		return followUpError(err)
	}
	for _, rec := range recs {
		rec.Outcome, rec.Error = OutcomeTarget, "in doubt, and the source was declared destroyed: the target was opened by force"
		if _, err := c.finish(ctx, rec, nil); err != nil {
			return followUpError(err)
		}
	}
	return nil
}

// Standing tells which side has the authority by the attempts on record, for when the gate cannot be asked. Attempts that
// ended say so for certain: their outcome was written down after the gate's. known is false while one has not ended.
func (c *Coordinator) Standing(ctx context.Context, replication string) (target, known bool, err error) {
	// The authority goes to where the last attempt that moved it says; one that was taken back names the side that kept it.
	err = c.cfg.Pool.QueryRow(ctx, `SELECT coalesce((SELECT outcome = 'target' FROM rehome_control.cutovers
			WHERE replication = $1 AND finished_at IS NOT NULL AND direction IN ('cutover', 'rollback', 'rehearsal') ORDER BY gate_epoch DESC, started_at DESC LIMIT 1), false),
		NOT EXISTS (SELECT FROM rehome_control.cutovers WHERE replication = $1 AND finished_at IS NULL)`, replication).Scan(&target, &known)
	if err != nil {
		return false, false, fmt.Errorf("read which side has the authority: %w", err)
	}
	return target, known, nil
}
