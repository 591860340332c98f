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
	"github.com/rehomedb/rehome/tenant"
)

const (
	// verifyEvery is how long the continuous mode rests between two verifications: a third of how old a cutover lets one be.
	verifyEvery = 5 * time.Minute
	// verifyAgain is how soon a verification that failed is tried again.
	verifyAgain = 30 * time.Second
	// keptVerifications bounds the clean results that the continuous mode leaves behind.
	keptVerifications = 50
)

// setVerifyMode begins or ends the continuous mode. It is stored with the replication, so that it survives servers.
func (r *runner) setVerifyMode(ctx context.Context, args api.VerifyRequest) (*api.VerifyModeResult, error) {
	if args.Stop {
		return &api.VerifyModeResult{}, r.savePolicy(ctx, nil)
	}
	if !verifies(r.state().Phase) && r.state().Phase != tenant.Paused {
		return nil, tenant.Errorf(tenant.KindConflict, tenant.ErrTransition.Code, "verifications go on while both sides are kept equal", "the replication is %s", r.state().Phase)
	}
	p := &api.VerifyPolicy{EveryMS: args.EveryMS, MaxDurationMS: args.MaxDurationMS, RestMS: args.RestMS, Jobs: args.Jobs}
	if p.EveryMS == 0 {
		p.EveryMS = verifyEvery.Milliseconds()
	}
	return &api.VerifyModeResult{Continuous: true, Policy: p}, r.savePolicy(ctx, p)
}

func (r *runner) savePolicy(ctx context.Context, p *api.VerifyPolicy) error {
	var raw []byte
	if p != nil {
		var err error
		if raw, err = json.Marshal(p); err != nil {
			return err
		}
	}
	err := r.journal.guarded(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `UPDATE rehome_control.replications SET verify_policy = $2 WHERE id = $1`, r.id, raw); err != nil {
			return err
		}
		return r.journal.note(ctx, tx, "verify-mode", api.VerifyModeResult{Continuous: p != nil, Policy: p})
	})
	if err != nil {
		return fmt.Errorf("record the mode of verification: %w", err)
	}
	return nil
}

func (r *runner) policy(ctx context.Context) (*api.VerifyPolicy, error) {
	var p *api.VerifyPolicy
	if err := r.s.cfg.Pool.QueryRow(ctx, `SELECT verify_policy FROM rehome_control.replications WHERE id = $1`, r.id).Scan(&p); err != nil {
		return nil, fmt.Errorf("read the mode of verification: %w", err)
	}
	return p, nil
}

// verifies reports whether verifications go on in a phase: before a cutover and after a rollback of the shards, in between of
// the source, since a rollback needs a fresh one as a cutover does.
func verifies(p tenant.Phase) bool {
	switch p {
	case tenant.CatchingUp, tenant.InSync, tenant.CutOver, tenant.RolledBack:
		return true
	}
	return false
}

// keepVerified compares again and again while the replication's mode asks for it: until the way back is closed, or, where
// there is none, until the cutover.
func (r *runner) keepVerified(ctx context.Context) error {
	var failed time.Time
	for {
		if err := pauseFor(ctx, lookEvery); err != nil {
			return nil //nolint:nilerr // the runner is stopping
		}
		p, err := r.policy(ctx)
		if err != nil || p == nil {
			continue
		}
		if _, err := r.direction(ctx); r.state().Phase.Terminal() || tenant.AsError(err) != nil && tenant.AsError(err).Code == "no-way-back" {
			r.log.Info("the continuous verification ends: there is nothing to compare with any more")
			if err := r.savePolicy(ctx, nil); err != nil && ctx.Err() == nil {
				r.log.Warn("end the continuous verification", "error", err)
			}
			continue
		}
		if time.Since(failed) < verifyAgain || !verifies(r.state().Phase) || r.current() == nil {
			continue
		}
		due, err := r.verificationDue(ctx, *p)
		if err != nil || !due {
			continue
		}
		if err := r.pass(ctx, *p); err != nil {
			failed = time.Now()
			if errors.Is(err, replicator.ErrFenced) {
				return err
			}
			if ctx.Err() == nil {
				r.log.Warn("continuous verification", "error", err)
			}
		}
	}
}

// verificationDue reports whether the last result, whoever asked for it, is old enough. While a person is asked for the code
// of a cutover or a rollback nothing is compared: the code is bound to the newest verification.
func (r *runner) verificationDue(ctx context.Context, p api.VerifyPolicy) (due bool, err error) {
	err = r.s.cfg.Pool.QueryRow(ctx, `SELECT
			NOT EXISTS (SELECT FROM rehome_control.verifications WHERE replication = $1 AND (result->>'finished_at')::timestamptz > now() - make_interval(secs => $2))
			AND NOT EXISTS (SELECT FROM rehome_control.challenges WHERE database = $3 AND action IN ('cutover', 'rollback') AND used_at IS NULL AND closed_at IS NULL AND expires_at > now())`,
		r.id, float64(p.EveryMS)/1000, r.journal.database).Scan(&due)
	if err != nil {
		return false, fmt.Errorf("look for the last verification: %w", err)
	}
	return due, nil
}

// pass is one verification of the continuous mode. It ends early when the mode does, or when a cutover begins.
func (r *runner) pass(ctx context.Context, p api.VerifyPolicy) error {
	working, began := ctx, r.state().Phase
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watched := make(chan struct{})
	defer func() { cancel(nil); <-watched }()
	go func() { // ends with the pass
		defer close(watched)
		for pauseFor(ctx, lookEvery) == nil {
			now, err := r.policy(ctx)
			if phase := r.state().Phase; !verifies(phase) || (phase == tenant.CutOver) != (began == tenant.CutOver) || (err == nil && now == nil) {
				cancel(errPassEnded)
				return
			}
		}
	}()
	v, err := r.openVerification(ctx, "", false)
	if err != nil {
		return err
	}
	res, err := r.compare(ctx, v, api.VerifyRequest{MaxDurationMS: p.MaxDurationMS, RestMS: p.RestMS, Jobs: p.Jobs})
	if working.Err() == nil && errors.Is(context.Cause(ctx), errPassEnded) {
		return nil
	}
	detail := "the continuous verification found differences; see: rehome verify --last; mend rows with: rehome verify --repair"
	if began == tenant.CutOver {
		detail = "the continuous verification found that the source does not have what the shards have: a rollback is refused; see: rehome verify --last"
	}
	if res != nil && !res.Clean && (len(res.Schema) > 0 || anyDiffers(res.Tables)) {
		r.journal.Note(working, "alarm", map[string]any{
			"code": "verification-not-clean", "verification": res.ID,
			"detail": detail,
		})
	}
	if err != nil && tenant.AsError(err).Code == "verification-timeout" {
		err = nil // the next pass goes on with it
	}
	if err != nil {
		return err
	}
	_, err = r.s.cfg.Pool.Exec(working, `DELETE FROM rehome_control.verifications WHERE replication = $1 AND command = '' AND clean AND id NOT IN
		(SELECT id FROM rehome_control.verifications WHERE replication = $1 AND command = '' AND clean ORDER BY finished_at DESC LIMIT $2)`, r.id, keptVerifications)
	return err
}

// errPassEnded ends a verification of the continuous mode.
var errPassEnded = errors.New("the continuous mode ended")

// verificationState is what the progress shows of it; nil when it cannot be read, or there is nothing.
func (r *runner) verificationState(ctx context.Context) *tenant.VerificationState {
	var s tenant.VerificationState
	var p *api.VerifyPolicy
	var id, lsn *string
	var clean *bool
	var at, started *time.Time
	var direction string
	err := r.s.cfg.Pool.QueryRow(ctx, `SELECT r.verify_policy, v.id, v.clean, v.lsn::text, coalesce(v.compared_at, v.finished_at), v.started_at, coalesce(v.result->>'direction', '') FROM rehome_control.replications r
		LEFT JOIN LATERAL (SELECT * FROM rehome_control.verifications v WHERE v.replication = r.id AND v.finished_at IS NOT NULL ORDER BY v.finished_at DESC LIMIT 1) v ON true
		WHERE r.id = $1`, r.id).Scan(&p, &id, &clean, &lsn, &at, &started, &direction)
	if err != nil || (p == nil && id == nil) {
		return nil
	}
	if p != nil {
		s.Continuous, s.EverySeconds = true, float64(p.EveryMS)/1000
	}
	if id != nil {
		s.ID, s.Clean, s.Direction = *id, clean != nil && *clean, tenant.Direction(direction)
		moved, err := r.s.cutovers.LastMove(ctx, r.id)
		if err != nil {
			return nil
		}
		s.Outdated = started != nil && started.Before(moved)
		if at != nil {
			s.ComparedAt = at.UTC()
		}
		if lsn != nil {
			if s.LSN, err = tenant.ParseLSN(*lsn); err != nil {
				return nil
			}
		}
	}
	return &s
}
