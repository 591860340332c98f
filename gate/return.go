package gate

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Return gives the write authority back to the source: one transaction there, the decision of a rollback. Its methods are
// called in order, by one goroutine: OpenReturn, Prelock, Arm, then, when every shard is shut and drained, Take, whatever
// must commit with the decision in Tx, Commit; at last Close.
type Return struct{ a *Attempt }

// OpenReturn opens and warms the sessions at the source.
func OpenReturn(ctx context.Context, cfg Config) (*Return, error) {
	a, err := Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return &Return{a: a}, nil
}

// Prelock begins the transaction and takes SHARE UPDATE EXCLUSIVE on every table: the way back goes on writing, autovacuum
// and rivals are kept out.
func (r *Return) Prelock(ctx context.Context) error { return r.a.Prelock(ctx) }

// Arm ends the transaction by itself at the deadline if its coordinator vanishes.
func (r *Return) Arm(ctx context.Context, deadline time.Time) error {
	r.a.deadline = deadline
	return r.a.armed(ctx)
}

// Culprits names who was in the way of the locks.
func (r *Return) Culprits() []Culprit { return r.a.Culprits() }

// Take sets the gate from (e, target) to (e+1, source) and takes the fence out of the way, neither of them visible before
// Commit: only the fence's own triggers are disabled, each by its name (OpenSource), so that every other trigger stays as it was.
// ErrGateMoved if the gate is not (e, target); ErrNotFenced if the tables could not be locked before the deadline.
func (r *Return) Take(ctx context.Context) error {
	a := r.a
	if err := setLocal(ctx, a.fence, "statement_timeout", time.Until(a.deadline)); err != nil {
		return err
	}
	tag, err := a.fence.Exec(ctx, `UPDATE rehome.gate SET epoch = epoch + 1, side = 'source', attempt = $2, new_url = '', changed_at = clock_timestamp()
		WHERE epoch = $1 AND side = 'target'`, a.cfg.Epoch, a.cfg.Attempt)
	if hasCode(err, "57014") {
		return ErrNotFenced
	}
	if err != nil {
		return fmt.Errorf("set the gate: %w", err)
	}
	if tag.RowsAffected() == 0 {
		return ErrGateMoved
	}
	if err := a.lockTables(ctx, a.deadline); err != nil {
		return err
	}
	if err := OpenSource(ctx, a.fence); err != nil {
		return err
	}
	return a.armed(ctx)
}

// Tx is the transaction that decides; see Attempt.Tx. Touch follows whatever is done in it.
func (r *Return) Tx() pgx.Tx { return r.a.tx }

// Touch arms the transaction's own end anew, after a step on its session.
func (r *Return) Touch(ctx context.Context) error { return r.a.armed(ctx) }

// Commit is the decision: the source accepts writes from here on. ErrNotFenced past the deadline. Any other error means
// that the outcome is unknown, and Resolve must find it out.
func (r *Return) Commit(ctx context.Context) error { return r.a.commit(ctx) }

// Rollback takes everything back. It also works when ctx has ended.
func (r *Return) Rollback(ctx context.Context) { r.a.Rollback(ctx) }

// Close ends the sessions.
func (r *Return) Close(ctx context.Context) { r.a.Close(ctx) }

// Abandon leaves the sessions as a dying process does; see Attempt.Abandon.
func (r *Return) Abandon(cut bool) { r.a.Abandon(cut) }

// commit ends the transaction within the deadline.
func (a *Attempt) commit(ctx context.Context) error {
	if time.Until(a.deadline) <= 0 {
		return ErrNotFenced
	}
	// A statement timeout must not end the wait for a synchronous standby halfway.
	results, err := a.fence.PgConn().Exec(ctx, "SET LOCAL statement_timeout = 0; COMMIT").ReadAll()
	if err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	if tag := results[len(results)-1].CommandTag.String(); tag != "COMMIT" { // an aborted transaction answers ROLLBACK, without an error
		return ErrNotCommitted
	}
	return nil
}
