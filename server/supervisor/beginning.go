package supervisor

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/server/cutover"
	"github.com/rehomedb/rehome/tenant"
)

// beginning moves the phase in the transaction that writes an attempt's intent down: a replication is never in the midst of a
// cutover or rollback that was refused, or of which nothing is on record.
type beginning struct {
	r      *runner
	kind   tenant.ObservationKind
	failed bool // also by an error that leaves open whether it was committed
}

// begin is a cutover.Attempt's Begin.
func (b *beginning) begin(ctx context.Context, write func(pgx.Tx) error) error {
	_, err := b.r.journal.observe(ctx, tenant.Observation{Kind: b.kind}, func(tx pgx.Tx, _ tenant.State) error { return write(tx) })
	b.failed = err != nil
	return err
}

// reread takes over the phase as it is recorded, after a transaction that may have moved it.
func (r *runner) reread(ctx context.Context) error {
	for {
		rec, err := r.s.load(ctx, r.id)
		if err == nil {
			r.stateChanged(rec.state)
			return nil
		}
		r.log.Warn("read the phase; trying again", "error", err)
		if err := pauseFor(ctx, lookEvery); err != nil {
			return err
		}
	}
}

// standing ends a wait for the gate when nothing is in doubt: every attempt on record has ended, so that the side that the
// last one left is the one that has the authority. done is false when the gate has to be asked.
func (r *runner) standing(ctx context.Context) (done bool, err error) {
	rec, err := r.s.load(ctx, r.id)
	if err != nil {
		return false, err
	}
	conn, err := gate.SourceSession(ctx, rec.source)
	if err == nil { // it answers: what it says counts, and what went wrong was something else
		_ = conn.Close(context.WithoutCancel(ctx))
		return false, nil
	}
	target, known, err := r.s.cutovers.Standing(ctx, r.id)
	if err != nil || !known || ctx.Err() != nil {
		return false, err
	}
	side := cutover.OutcomeSource
	if target {
		side = cutover.OutcomeTarget
	}
	r.log.Warn("the source does not answer, and no attempt is in doubt: going on by what is on record", "side", side)
	r.journal.Note(ctx, "settled-by-record", map[string]any{"side": side})
	return true, r.decided(ctx, target)
}
