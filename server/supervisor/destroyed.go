package supervisor

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// A source that was destroyed cannot be asked, and nothing can be dropped there. A person may say so: cancel, while
// the source has the authority, and complete, after the cutover, then end the move with the shards alone, and where the outcome of an attempt is in doubt the target is opened first.

// sourceGone refuses while the source answers.
func (r *runner) sourceGone(ctx context.Context) error {
	rec, err := r.s.load(ctx, r.id)
	if err != nil {
		return err
	}
	return r.s.cutovers.SourceGone(ctx, r.job(rec))
}

// forced ends the doubt if a person asked for that: done is true when the target was opened. A request that does not fit is
// answered.
func (r *runner) forced(ctx context.Context) (done bool, err error) {
	open, err := r.openCommands(ctx)
	if err != nil {
		return false, err
	}
	for _, c := range open {
		if c.Kind != api.CommandComplete || !c.Args.SourceDestroyed {
			continue
		}
		rec, err := r.s.load(ctx, r.id)
		if err != nil {
			return false, err
		}
		if err := r.journal.held(ctx); err != nil {
			return false, err
		}
		r.journal.Note(ctx, "source-declared-destroyed", map[string]any{"by": c.By, "command": c.ID})
		if err := r.s.cutovers.ForceTarget(ctx, r.job(rec)); err != nil {
			if tenant.AsError(err).Code == "not-in-doubt" {
				return false, nil // the phase follows what is on record, and the command is executed then
			}
			if te := tenant.AsError(err); te.Kind == tenant.KindRefused || te.Kind == tenant.KindConflict {
				r.finish(ctx, c, nil, err)
				return false, nil
			}
			return false, err
		}
		return true, r.decided(ctx, true) // the command itself is executed next, and completes
	}
	return false, nil
}

// cancelShards is cancel for a source that is gone for good: what was copied goes, and what was made at the source stays there.
func (r *runner) cancelShards(ctx context.Context, database string) error {
	if err := r.back.DiscardShards(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	if err := r.journal.held(ctx); err != nil {
		return err
	}
	return r.s.cfg.Catalogue.ResetDatabase(ctx, database)
}

// cleanUpShards is complete for a source that is gone: everything at the shards is dropped.
func (r *runner) cleanUpShards(ctx context.Context, e *replicator.Engine) error {
	if err := r.back.DiscardShards(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	if err := r.undoAtShards(ctx, e); err != nil {
		return err
	}
	if err := r.journal.held(ctx); err != nil {
		return err
	}
	if err := r.uninstallShards(ctx, e); err != nil {
		return err
	}
	// Nothing is left to be taken back there.
	_, err := r.s.cfg.Pool.Exec(ctx, `UPDATE rehome_control.source_changes SET undone_at = now() WHERE replication = $1 AND undone_at IS NULL`, r.id)
	return err
}

func (r *runner) uninstallShards(ctx context.Context, e *replicator.Engine) error {
	return e.AtShards(ctx, func(conn *pgx.Conn) error {
		if err := gate.UninstallShard(ctx, conn); err != nil {
			return err
		}
		return replicator.UninstallShard(ctx, conn, r.id)
	})
}
