package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/server/cutover"
	"github.com/rehomedb/rehome/tenant"
)

// settleMax is how late the return of a source or a shard is noticed while the outcome of a cutover is open.
const settleMax = 15 * time.Second

// job is the replication as the coordinator of cutovers wants it.
func (r *runner) job(rec *record) cutover.Job {
	j := cutover.Job{
		Replication: r.id, Database: rec.database, Source: rec.source, SourceLabel: rec.sourceLabel, TargetURL: rec.targetURL,
		Publication: rec.publication, Lanes: replicator.LaneName(r.id), Placement: rec.placement.Epoch, Accept: rec.options.Accept, WayBack: r.back,
	}
	if rec.origin != nil {
		j.Catalogue = rec.origin.Catalogue
	}
	for _, s := range rec.shards {
		j.Shards = append(j.Shards, cutover.Shard{Name: s.Name, Ordinal: s.Ordinal, DSN: s.DSN})
	}
	return j
}

// recover ends what a former worker left of a cutover, before anything else happens. While the source cannot be asked
// the shards stay closed and everything waits: the outcome is never guessed.
func (r *runner) recover(ctx context.Context) error {
	switch r.state().Phase {
	case tenant.CuttingOver, tenant.RollingBack:
		return r.settle(ctx)
	case tenant.CutOver:
		// Recorded when everything had followed. A source that cannot be asked any more may be gone for good: then
		// complete is to be served, and nothing is in doubt.
		if err := r.settleOnce(ctx); err != nil && (ctx.Err() != nil || errors.Is(err, replicator.ErrFenced)) {
			return err
		} else if err != nil {
			r.log.Warn("the gate at the source cannot be followed; going on", "error", err)
			r.journal.Note(ctx, "retry", map[string]any{"reason": err.Error()})
		}
	}
	return nil
}

// settleOnce resolves, follows and records the phase that the gate decided.
func (r *runner) settleOnce(ctx context.Context) error {
	rec, err := r.s.load(ctx, r.id)
	if err != nil {
		return err
	}
	res, err := r.s.cutovers.ResolveAndFollow(ctx, r.job(rec))
	if err != nil {
		return err
	}
	return r.decided(ctx, res.Decided())
}

// settle resolves and follows until it is done, and records the phase that the gate decided. Where nothing is in doubt, but
// the gate cannot be asked, what is on record says it.
func (r *runner) settle(ctx context.Context) error {
	// A source may be away for hours: look often at first, then seldom enough not to fill the event log.
	for pause := lookEvery; ; pause = min(2*pause, settleMax) {
		err := r.settleOnce(ctx)
		if err == nil || errors.Is(err, replicator.ErrFenced) {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if done, serr := r.standing(ctx); done || errors.Is(serr, replicator.ErrFenced) {
			return serr
		}
		if done, ferr := r.forced(ctx); done || errors.Is(ferr, replicator.ErrFenced) {
			return ferr
		} else if ferr != nil {
			err = errors.Join(err, ferr)
		}
		r.log.Warn("the outcome of a cutover is not settled yet", "error", err)
		r.journal.Note(ctx, "retry", map[string]any{"reason": err.Error(), "after_ms": pause.Milliseconds()})
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-r.poked: // a command may end the doubt
		case <-t.C:
		}
		t.Stop()
	}
}

func (r *runner) decided(ctx context.Context, target bool) error {
	o := tenant.Observation{Kind: tenant.SawDecidedSource}
	if target {
		o.Kind = tenant.SawDecidedTarget
	}
	if e := r.current(); e != nil {
		e.CloseSource(target)
	}
	_, err := r.journal.Observe(ctx, o)
	return err
}

// cutover runs the protocol, or answers for an attempt that a former worker began: an attempt has its command's id, so
// that one approval never starts two.
func (r *runner) cutover(ctx context.Context, c command) (*api.CutoverReport, error) {
	rec, err := r.s.load(ctx, r.id)
	if err != nil {
		return nil, err
	}
	if c.Args.DryRun {
		e := r.current()
		if e == nil {
			return nil, tenant.Errorf(tenant.KindConflict, "not-streaming", "see: rehome replication-progress", "the replication is not running")
		}
		report, err := r.s.cutovers.Run(ctx, r.job(rec), e, cutover.Attempt{DryRun: true, MaxPause: time.Duration(c.Args.MaxPauseMS) * time.Millisecond, NoWayBack: c.Args.NoWayBack})
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
	if _, _, err := tenant.Next(r.state(), tenant.Observation{Kind: tenant.AskedCutover}); err != nil {
		return nil, err
	}
	e := r.current()
	if e == nil {
		return nil, tenant.Errorf(tenant.KindConflict, "not-streaming", "see: rehome replication-progress", "the replication is not running")
	}
	b := beginning{r: r, kind: tenant.AskedCutover}
	report, failure := r.s.cutovers.Run(ctx, r.job(rec), e, cutover.Attempt{
		ID: c.ID, MaxPause: time.Duration(c.Args.MaxPauseMS) * time.Millisecond, ApprovedBy: c.Args.ApprovedBy, NoWayBack: c.Args.NoWayBack, Rehearse: c.Args.Rehearse,
		Begin: b.begin,
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
	if report.Outcome == cutover.OutcomeTarget && failure == nil {
		err = r.decided(ctx, true)
	}
	if r.state().Phase == tenant.CuttingOver && !errors.Is(err, replicator.ErrFenced) {
		err = r.settle(ctx) // also when only the recording failed
	}
	if err != nil {
		return &report, err
	}
	if failure != nil && r.state().Phase == tenant.CutOver {
		// The attempt met trouble after the decision, and has been followed meanwhile.
		if former, err := r.formerAttempt(ctx, c.ID); former != nil && err == nil {
			report, failure = *former, nil
		}
	}
	r.journal.Note(ctx, "cutover", map[string]any{"attempt": report.Attempt, "outcome": report.Outcome, "pause_ms": report.PauseMillis, "steps": report.Steps, "culprits": report.Culprits, "error": errorText(failure)})
	return &report, failure
}

// formerAttempt reads the outcome of an attempt that was resolved after its worker had gone; nil if there was none.
func (r *runner) formerAttempt(ctx context.Context, attempt string) (*api.CutoverReport, error) {
	var outcome *string
	var raw, cert []byte
	var direction cutover.Direction
	err := r.s.cfg.Pool.QueryRow(ctx, `SELECT direction, outcome, report, certificate FROM rehome_control.cutovers WHERE attempt = $1`, attempt).Scan(&direction, &outcome, &raw, &cert)
	if errors.Is(err, pgx.ErrNoRows) || (err == nil && outcome == nil) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read attempt %s: %w", attempt, err)
	}
	var report api.CutoverReport
	if err := json.Unmarshal(raw, &report); err != nil {
		return nil, fmt.Errorf("read attempt %s: %w", attempt, err)
	}
	if report.Outcome != cutover.OutcomeRehearsed {
		report.Outcome = *outcome
	}
	if cert != nil {
		report.Certificate = &tenant.Certificate{}
		if err := json.Unmarshal(cert, report.Certificate); err != nil {
			return nil, fmt.Errorf("read the certificate of attempt %s: %w", attempt, err)
		}
	}
	if direction == cutover.DirectionRollback {
		if report.Outcome == cutover.OutcomeTarget {
			return &report, tenant.Errorf(tenant.KindTimeout, "rollback-taken-back", "try again", "the server that ran the rollback went away before the decision; the target goes on")
		}
		return &report, nil
	}
	if report.Outcome == cutover.OutcomeSource {
		return &report, tenant.Errorf(tenant.KindTimeout, "cutover-taken-back", "try again", "the server that ran the cutover went away before the decision; the source goes on")
	}
	return &report, nil
}

// approved makes sure that what the person approved is still what is about to happen.
func (r *runner) approved(ctx context.Context, rec *record, a api.CommandArgs) error {
	if a.PlacementEpoch != 0 && a.PlacementEpoch != rec.placement.Epoch {
		return tenant.Errorf(tenant.KindConflict, "plan-changed", "ask for a new code", "the placement changed since the cutover was approved")
	}
	if a.Verification == "" {
		return nil
	}
	var digest *string
	err := r.s.cfg.Pool.QueryRow(ctx, `SELECT digest FROM rehome_control.verifications WHERE id = $1 AND replication = $2 AND clean`, a.Verification, r.id).Scan(&digest)
	if errors.Is(err, pgx.ErrNoRows) || (err == nil && (digest == nil || *digest != a.VerificationDigest)) {
		return tenant.Errorf(tenant.KindConflict, "plan-changed", "ask for a new code", "the verification that was approved is not there any more")
	}
	return err
}
