package supervisor

import (
	"context"
	"errors"
	"time"

	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/server/cutover"
	"github.com/rehomedb/rehome/tenant"
)

// rollback runs the protocol that gives the writes back to the source, or answers for an attempt that a former worker
// began.
func (r *runner) rollback(ctx context.Context, c command) (*api.CutoverReport, error) {
	rec, err := r.s.load(ctx, r.id)
	if err != nil {
		return nil, err
	}
	if c.Args.DryRun {
		report, err := r.s.cutovers.Rollback(ctx, r.job(rec), cutover.Attempt{DryRun: true, MaxPause: time.Duration(c.Args.MaxPauseMS) * time.Millisecond})
		return &report, err
	}
	if c.Started {
		if report, err := r.formerAttempt(ctx, c.ID); report != nil || err != nil {
			return report, err
		}
	}
	if err := r.approved(ctx, rec, c.Args); err != nil {
		return nil, err
	}
	if _, _, err := tenant.Next(r.state(), tenant.Observation{Kind: tenant.AskedRollback}); err != nil {
		return nil, err
	}
	b := beginning{r: r, kind: tenant.AskedRollback}
	report, failure := r.s.cutovers.Rollback(ctx, r.job(rec), cutover.Attempt{
		ID: c.ID, MaxPause: time.Duration(c.Args.MaxPauseMS) * time.Millisecond, ApprovedBy: c.Args.ApprovedBy, Begin: b.begin,
	})
	if b.failed {
		err = r.reread(ctx)
	}
	if ctx.Err() != nil {
		return &report, ctx.Err() // the next worker settles it
	}
	if err != nil {
		return &report, err
	}
	// Whatever was said, the phase follows the gate.
	if report.Outcome == cutover.OutcomeSource && failure == nil {
		err = r.decided(ctx, false)
	}
	if r.state().Phase == tenant.RollingBack && !errors.Is(err, replicator.ErrFenced) {
		err = r.settle(ctx) // also when only the recording failed
	}
	if err != nil {
		return &report, err
	}
	if failure != nil && r.state().Phase == tenant.RolledBack {
		// The attempt met trouble after the decision, and has been followed meanwhile.
		if former, err := r.formerAttempt(ctx, c.ID); former != nil && err == nil {
			report, failure = *former, nil
		}
	}
	r.journal.Note(ctx, "rollback", map[string]any{"attempt": report.Attempt, "outcome": report.Outcome, "pause_ms": report.PauseMillis, "steps": report.Steps, "culprits": report.Culprits, "error": errorText(failure)})
	return &report, failure
}

// tidyEvery is how often a way back is looked for that the end of an attempt could not drop.
const tidyEvery = 30 * time.Second

// tidies reports whether a state is one in which nothing needs a way back. A pause changes nothing of that, and its slots hold
// back WAL at the shards all the same.
func tidies(st tenant.State) bool {
	p := st.Phase
	if p == tenant.Paused {
		p = st.Resume
	}
	return p == tenant.RolledBack || p == tenant.InSync || p == tenant.CatchingUp
}

// tidy drops what the end of an attempt left of the way back. It runs between commands, never beside an attempt.
func (r *runner) tidy(ctx context.Context) {
	if !tidies(r.state()) || time.Since(r.tidied) < tidyEvery {
		return
	}
	r.tidied = time.Now()
	rec, err := r.s.load(ctx, r.id)
	if err == nil {
		err = r.s.cutovers.Tidy(ctx, r.job(rec))
	}
	if err != nil && ctx.Err() == nil {
		r.log.Warn("drop what is left of the way back; trying again", "error", err)
		r.journal.Note(ctx, "retry", map[string]any{"reason": err.Error(), "after_ms": tidyEvery.Milliseconds()})
	}
}
