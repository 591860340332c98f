package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

const (
	// cleanUpPatience is how long a cancel keeps trying a source or a shard that cannot be reached before it gives the
	// command back with what is left to do.
	cleanUpPatience = time.Minute
	// askPatience is how long a pause or a resume keeps trying to be recorded: a control database that restarts or fails over
	// is there again by then.
	askPatience = time.Minute
)

// command is a request of a person, as the server recorded it.
type command struct {
	ID      string
	Kind    string
	Args    api.CommandArgs
	By      string
	Started bool // by this or a former worker
}

func (r *runner) openCommands(ctx context.Context) ([]command, error) {
	rows, err := r.s.cfg.Pool.Query(ctx, `SELECT id, kind, args, requested_by, started_at IS NOT NULL FROM rehome_control.replication_commands
		WHERE replication = $1 AND finished_at IS NULL ORDER BY created_at, id`, r.id)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (c command, err error) {
		var args []byte
		if err = row.Scan(&c.ID, &c.Kind, &args, &c.By, &c.Started); err == nil {
			err = json.Unmarshal(args, &c.Args)
		}
		return c, err
	})
}

// execute runs one command. Only an error that ends the runner is returned; all others are the command's answer.
func (r *runner) execute(ctx context.Context, c command, jobs *jobs) error {
	if _, err := r.s.cfg.Pool.Exec(ctx, `UPDATE rehome_control.replication_commands SET started_at = coalesce(started_at, now()) WHERE id = $1`, c.ID); err != nil {
		return nil //nolint:nilerr // the control database is away; the command stays open and is found again
	}
	r.log.Info("command", "kind", c.Kind, "command", c.ID, "by", c.By)
	var result any
	var err error
	switch c.Kind {
	case api.CommandVerify:
		if c.Args.Verify.Continuous || c.Args.Verify.Stop {
			result, err = r.setVerifyMode(ctx, c.Args.Verify)
			break
		}
		working := ctx
		jobs.start(ctx, c.ID, func(ctx context.Context) {
			v, err := r.verify(ctx, c)
			if working.Err() != nil {
				return // this server stops, or is no longer the owner: the next worker runs it
			}
			if ctx.Err() != nil {
				err = tenant.Errorf(tenant.KindConflict, "interrupted", "run it again", "the verification was interrupted by another command")
			}
			r.finish(context.WithoutCancel(ctx), c, v, err)
			r.poke()
		})
		return nil
	case api.CommandPause:
		result, err = r.pause(ctx, c, jobs)
	case api.CommandResume:
		result, err = r.resume(ctx)
	case api.CommandCancel, api.CommandComplete:
		result, err = r.end(ctx, c, jobs)
	case api.CommandCutover:
		result, err = r.cutover(ctx, c)
	case api.CommandRollback:
		result, err = r.rollback(ctx, c)
	default:
		err = tenant.Errorf(tenant.KindInvalid, "unknown-command", "", "there is no command %q", c.Kind)
	}
	if ctx.Err() != nil || errors.Is(err, replicator.ErrFenced) {
		return err // not finished: the next worker goes on with it
	}
	r.finish(ctx, c, result, err)
	return nil
}

// finish answers a command, unless that was done together with its effect.
func (r *runner) finish(ctx context.Context, c command, result any, failure error) {
	if failure != nil {
		r.log.Warn("command failed", "kind", c.Kind, "command", c.ID, "error", failure)
	}
	for try := 0; ; try++ {
		// A former owner answers nothing: the command is the next one's.
		err := r.journal.guarded(ctx, func(tx pgx.Tx) error { return r.answer(ctx, tx, c, result, failure) })
		if err == nil || ctx.Err() != nil || try == 10 || errors.Is(err, replicator.ErrFenced) {
			if err != nil {
				r.log.Error("answer a command", "command", c.ID, "error", err)
			}
			return
		}
		if pauseFor(ctx, lookEvery) != nil {
			return
		}
	}
}

// answer writes a command's answer and its event, once.
func (r *runner) answer(ctx context.Context, tx pgx.Tx, c command, result any, failure error) error {
	var res, prob []byte
	var err error
	if result != nil {
		if res, err = json.Marshal(result); err != nil {
			failure = errors.Join(failure, err)
		}
	}
	outcome := "ok"
	if failure != nil {
		outcome = "failed"
		te := tenant.AsError(failure)
		prob, err = json.Marshal(api.Problem{Title: te.Kind.String(), Status: te.Kind.HTTPStatus(), Detail: te.Error(), Code: te.Code, Kind: te.Kind.String(), Hint: te.Hint, Findings: te.Findings})
		if err != nil {
			return err
		}
	}
	tag, err := tx.Exec(ctx, `UPDATE rehome_control.replication_commands SET finished_at = now(), result = $2, error = $3 WHERE id = $1 AND finished_at IS NULL`, c.ID, res, prob)
	if err != nil || tag.RowsAffected() == 0 {
		return err
	}
	return r.journal.note(ctx, tx, c.Kind+"-finished", map[string]any{"command": c.ID, "outcome": outcome, "error": errorText(failure)})
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func (r *runner) pause(ctx context.Context, c command, jobs *jobs) (tenant.State, error) {
	reason := c.Args.Reason
	if reason == "" {
		reason = "paused by " + c.By
	}
	o := tenant.Observation{Kind: tenant.AskedPause, Reason: reason, Remedy: "rehome resume-replication"}
	if _, _, err := tenant.Next(r.state(), o); err != nil {
		return r.state(), err
	}
	jobs.stop()
	r.stopEngine()
	return r.observeAsked(ctx, o)
}

// observeAsked records what a person asked for. It may be recorded twice, where nobody knows what became of the first time: the
// second changes nothing.
func (r *runner) observeAsked(ctx context.Context, o tenant.Observation) (tenant.State, error) {
	for began := time.Now(); ; {
		st, err := r.journal.Observe(ctx, o)
		if err == nil || ctx.Err() != nil || !replicator.IsRetryable(err) || time.Since(began) > askPatience {
			return st, err
		}
		r.log.Warn("recording a command's effect tries again", "error", err)
		if err := pauseFor(ctx, lookEvery); err != nil {
			return st, err
		}
	}
}

func (r *runner) resume(ctx context.Context) (tenant.State, error) {
	st, err := r.observeAsked(ctx, tenant.Observation{Kind: tenant.AskedResume})
	if err == nil && r.current() == nil {
		r.startEngine(ctx)
	}
	return st, err
}

// end cancels or completes: everything that was made at the source goes, and for a cancel what was copied too. The phase
// changes only when all of it is gone.
func (r *runner) end(ctx context.Context, c command, jobs *jobs) (tenant.State, error) {
	o := tenant.Observation{Kind: tenant.AskedCancel}
	if c.Kind == api.CommandComplete {
		o.Kind = tenant.AskedComplete
	}
	if _, _, err := tenant.Next(r.state(), o); err != nil {
		return r.state(), err
	}
	if c.Args.SourceDestroyed {
		if err := r.sourceGone(ctx); err != nil {
			return r.state(), err
		}
	}
	jobs.stop()
	r.stopEngine()
	release, err := r.leaveFence(ctx)
	if err != nil {
		return r.state(), err
	}
	defer release()
	began := time.Now()
	for {
		err := r.cleanUp(ctx, c)
		if err == nil {
			// With the answer: the event of the last phase is then the stream's last, and whoever watches may stop there.
			var st tenant.State
			if st, err = r.journal.observe(ctx, o, func(tx pgx.Tx, next tenant.State) error { return r.answer(ctx, tx, c, next, nil) }); err == nil {
				return st, nil
			}
		}
		if ctx.Err() != nil || errors.Is(err, replicator.ErrFenced) {
			return r.state(), err
		}
		if !replicator.IsRetryable(err) || time.Since(began) > cleanUpPatience {
			te := tenant.AsError(err)
			reason := "to " + c.Kind + " is not finished: " + te.Error()
			remedy := "make both sides reachable, then: rehome " + c.Kind + "-replication; if the source is gone for good: rehome cancel-replication --force source-destroyed"
			if c.Kind == api.CommandComplete {
				remedy = "make both sides reachable, then: rehome complete; if the source is gone for good: rehome complete --force source-destroyed"
			}
			if _, err := r.journal.Observe(ctx, tenant.Observation{Kind: tenant.SawProblem, Reason: reason, Remedy: remedy}); err != nil {
				r.log.Error("record the problem", "error", err)
			}
			return r.state(), tenant.Errorf(tenant.KindUnavailable, "not-cleaned-up", remedy, "%s", reason)
		}
		r.log.Warn("cleaning up tries again", "error", err)
		if err := pauseFor(ctx, lookEvery); err != nil {
			return r.state(), err
		}
	}
}

func (r *runner) cleanUp(ctx context.Context, c command) error {
	rec, err := r.s.load(ctx, r.id)
	if err != nil {
		return err
	}
	if st := rec.state; st.Phase == tenant.Created || (st.Phase == tenant.Paused && st.Resume == tenant.Created) {
		// Nothing was made anywhere yet, and the source may be one that never answered.
		return r.journal.held(ctx)
	}
	e, err := r.makeEngine(rec)
	if err != nil {
		return err
	}
	// Each step that destroys something asks first whether this server is still the owner: had it been stopped for a while,
	// another might have ended this replication and begun the next one on the same database.
	if err := r.journal.held(ctx); err != nil {
		return err
	}
	if c.Args.SourceDestroyed && c.Kind == api.CommandCancel {
		return r.cancelShards(ctx, rec.database)
	}
	if c.Args.SourceDestroyed {
		return r.cleanUpShards(ctx, e)
	}
	if err := r.dropWayBack(ctx); err != nil {
		return err
	}
	if err := e.CleanUp(ctx); err != nil {
		return err
	}
	if err := r.journal.held(ctx); err != nil {
		return err
	}
	if c.Kind == api.CommandComplete {
		// Before the source's: those are then done with, and a repetition would not find them.
		if err := r.undoAtShards(ctx, e); err != nil {
			return err
		}
	}
	err = e.AtSource(ctx, func(conn *pgx.Conn) error {
		if err := gate.SetPass(ctx, conn, r.s.pass(rec.database)); err != nil { // a fence that stays refuses changes of the tables
			return err
		}
		if err := r.undoChanges(ctx, conn); err != nil {
			return err
		}
		if c.Args.DropFence {
			// A side that may be written again needs its sequences, which the cutover had stopped.
			if err := r.s.cutovers.ThawSource(ctx, r.id, conn); err != nil {
				return err
			}
		}
		return gate.UninstallSource(ctx, conn, c.Args.DropFence)
	})
	if err != nil {
		return err
	}
	if err := r.journal.held(ctx); err != nil {
		return err
	}
	if c.Kind == api.CommandComplete {
		return r.uninstallShards(ctx, e)
	}
	return r.s.cfg.Catalogue.ResetDatabase(ctx, rec.database)
}

func (r *runner) undoChanges(ctx context.Context, conn *pgx.Conn) error {
	changes, err := r.openChanges(ctx)
	if err != nil || len(changes) == 0 {
		return err
	}
	if err := catalog.UndoChanges(ctx, conn, changes); err != nil {
		return fmt.Errorf("take back what was changed at the source: %w", err)
	}
	_, err = r.s.cfg.Pool.Exec(ctx, `UPDATE rehome_control.source_changes SET undone_at = now() WHERE replication = $1 AND undone_at IS NULL`, r.id)
	return err
}
