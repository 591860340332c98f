package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/replicator/verify"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// verifyPatience is how long a verification waits for a stream that is interrupted.
const verifyPatience = 5 * time.Minute

// verification is one that is under way: what it found equal so far is in the control database, so that any server goes on
// with it.
type verification struct {
	id        string
	command   string // "": of the continuous mode
	direction tenant.Direction
	started   time.Time
	parts     []verify.Part
}

// openVerification begins a verification, or goes on with one: of the same command after a take-over, or with resume the
// last one that was not finished. One from before the writes changed sides is not gone on with: that a part was equal then
// says nothing any more.
func (r *runner) openVerification(ctx context.Context, command string, resume bool) (*verification, error) {
	v := &verification{command: command}
	var err error
	if v.direction, err = r.awaitDirection(ctx); err != nil {
		return nil, err
	}
	moved, err := r.s.cutovers.LastMove(ctx, r.id)
	if err != nil {
		return nil, err
	}
	err = r.journal.guarded(ctx, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, `SELECT id, started_at FROM rehome_control.verifications
			WHERE replication = $1 AND unfinished AND (command = $2 OR $3) AND started_at > $4 ORDER BY command = $2 DESC, started_at DESC LIMIT 1`, r.id, command, resume, moved).Scan(&v.id, &v.started)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			v.id, v.started = replicator.NewVerificationID(), time.Now().UTC()
			_, err = tx.Exec(ctx, `INSERT INTO rehome_control.verifications (id, replication, started_at, command, unfinished) VALUES ($1, $2, $3, $4, true)`, v.id, r.id, v.started, command)
			return err
		case err != nil:
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE rehome_control.verifications SET command = $2 WHERE id = $1`, v.id, command); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `SELECT part FROM rehome_control.verification_parts WHERE verification = $1 ORDER BY relation, number`, v.id)
		if err != nil {
			return err
		}
		v.parts, err = pgx.CollectRows(rows, pgx.RowTo[verify.Part])
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("begin a verification: %w", err)
	}
	if len(v.parts) > 0 {
		r.log.Info("verification goes on", "verification", v.id, "parts", len(v.parts))
	}
	return v, nil
}

// part records what was found equal. The position is part of it.
func (r *runner) part(ctx context.Context, v *verification, p verify.Part) error {
	raw, err := json.Marshal(p)
	if err != nil {
		return err
	}
	err = r.journal.guarded(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO rehome_control.verification_parts (verification, relation, number, part) VALUES ($1, $2, $3, $4)
			ON CONFLICT (verification, relation, number) DO UPDATE SET part = excluded.part`, v.id, p.Table, p.Number, raw)
		return err
	})
	if err != nil {
		return fmt.Errorf("record a part of the verification: %w", err)
	}
	v.parts = append(v.parts, p)
	return nil
}

// verify compares both sides and records the result. One that was not finished has both a result and an error.
func (r *runner) verify(ctx context.Context, c command) (any, error) {
	args := c.Args.Verify
	if args.Repair && r.state().Phase == tenant.CutOver {
		return nil, tenant.Errorf(tenant.KindConflict, "no-repair", "see which rows differ (rehome verify); if the source is to stay behind: rehome complete",
			"rows are not repaired while the shards take the writes: the source gets what is written there, and nothing else")
	}
	if args.Repair {
		r.setMending(true)
		defer r.setMending(false)
	}
	switch st := r.state(); {
	case st.Phase == tenant.Paused && args.Repair && verifies(st.Resume) && st.Resume != tenant.CutOver:
		// What stopped it is mended as it goes on. If something else did, it is paused again, with that reason.
		if _, err := r.journal.Observe(ctx, tenant.Observation{Kind: tenant.AskedResume}); err != nil {
			return nil, err
		}
		r.poke()
	case st.Phase == tenant.Paused || st.Phase.Terminal():
		return nil, tenant.Errorf(tenant.KindConflict, "not-streaming", st.Remedy, "the replication is %s: %s", st.Phase, st.Reason)
	}
	v, err := r.openVerification(ctx, c.ID, args.Resume)
	if err != nil {
		return nil, err
	}
	res, err := r.compare(ctx, v, args)
	if res == nil {
		return nil, err
	}
	return res, err
}

// compare runs a verification until it has a result. A stream that is interrupted meanwhile is waited for, and only what was
// not found equal yet is compared then.
func (r *runner) compare(ctx context.Context, v *verification, args api.VerifyRequest) (*tenant.Verification, error) {
	var lastNote time.Time
	began := time.Now()
	limit := time.Duration(args.MaxDurationMS) * time.Millisecond
	opts := replicator.VerifyOptions{
		ID: v.id, Jobs: args.Jobs, Rest: time.Duration(args.RestMS) * time.Millisecond, Repair: args.Repair,
		OnPart: func(p verify.Part) error { return r.part(ctx, v, p) },
		OnProgress: func(p verify.Progress) {
			if time.Since(lastNote) < reportBusy {
				return
			}
			lastNote = time.Now()
			r.journal.Note(ctx, "verifying", map[string]any{"verification": v.id, "table": p.Table, "tables_done": p.TablesDone, "tables_total": p.TablesTotal, "rows": p.Rows, "rows_total": p.RowsTotal})
		},
	}
	lost := time.Time{} // since when there is no stream
	for {
		if st := r.state(); st.Phase == tenant.Paused || st.Phase.Terminal() {
			return nil, tenant.Errorf(tenant.KindConflict, "not-streaming", st.Remedy, "the replication is %s: %s", st.Phase, st.Reason)
		}
		if limit > 0 {
			opts.MaxDuration = max(limit-time.Since(began), time.Millisecond)
		}
		opts.Done = append([]verify.Part(nil), v.parts...)
		res, err := r.compareNow(ctx, v, opts)
		timeout := tenant.AsError(err) != nil && tenant.AsError(err).Code == "verification-timeout"
		if err == nil || timeout {
			res.StartedAt = v.started
			return &res, errors.Join(r.saveVerification(ctx, v, res), err)
		}
		if len(opts.Done) < len(v.parts) || lost.IsZero() {
			lost = time.Now() // it came further
		}
		if ctx.Err() != nil || !replicator.IsRetryable(err) || time.Since(lost) > verifyPatience {
			return nil, err
		}
		r.log.Warn("verification tries again", "error", err)
		if pauseFor(ctx, lookEvery) != nil {
			return nil, err
		}
	}
}

// saveVerification records a result. One that is not finished counts as the latest only if it found a difference: what is
// equal so far proves nothing yet, and what differs is known.
func (r *runner) saveVerification(ctx context.Context, v *verification, res tenant.Verification) error {
	raw, err := json.Marshal(res)
	if err != nil {
		return err
	}
	unfinished := res.Unfinished > 0 || res.Error != ""
	var finished *time.Time
	differs := len(res.Schema) > 0 || anyDiffers(res.Tables)
	if !unfinished || differs {
		finished = &res.FinishedAt
	}
	return r.journal.guarded(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE rehome_control.verifications SET finished_at = $2, lsn = $3::pg_lsn, clean = $4, digest = $5, result = $6, unfinished = $7, compared_at = $8 WHERE id = $1`,
			v.id, finished, res.LSN.String(), res.Clean, res.Digest, raw, unfinished, res.ComparedAt)
		if err == nil && !unfinished {
			_, err = tx.Exec(ctx, `DELETE FROM rehome_control.verification_parts WHERE verification = $1`, v.id)
		}
		if err != nil {
			return fmt.Errorf("record the verification: %w", err)
		}
		data := map[string]any{"verification": res.ID, "clean": res.Clean, "differs": differs, "lsn": res.LSN, "rows": res.Rows, "digest": res.Digest, "attempts": res.Attempts}
		if unfinished {
			data["unfinished_tables"], data["error"] = res.Unfinished, res.Error
		}
		if res.Repair != nil {
			data["repair"] = res.Repair
		}
		return r.journal.note(ctx, tx, "verified", data)
	})
}

func anyDiffers(tables []tenant.TableVerification) bool {
	for i := range tables {
		if !tables[i].Equal || tables[i].Misplaced > 0 {
			return true
		}
	}
	return false
}

// setMending tells this and later engines whether to mend rows that stop them.
func (r *runner) setMending(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mending = on
	if r.engine != nil {
		r.engine.SetMending(on)
	}
}
