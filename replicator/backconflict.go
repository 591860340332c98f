package replicator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/tenant"
)

// A row that moves from one shard to another, since the application gave it another realm, is deleted there and inserted
// here. The source is told of both by different shards, in any order, and the same holds for a value that is unique at the
// source and passes from a row of one shard to one of another.
//
// A lane whose row meets another row at the source therefore waits until the other shard's lane has removed or changed it,
// and tries the transaction again. Nothing is overwritten, so a delete that arrives late finds the row that it was meant
// for, never the one that came in its place. Waiting is the lane's alone: the other shards' go on.
//
// What does not end by waiting is told as it is: two shards that hold a row each, of which the source can have only one
// (a value that is unique within a shard only, since the shards do not know of each other), and two rows that change places
// in two transactions, each of which waits for the other. The way back is broken then, until one of the rows goes.

const (
	// conflictPatience is how long a lane waits for another's before the way back counts as broken. Lanes are seconds apart
	// at most while they keep up.
	conflictPatience = 30 * time.Second
	// conflictPause is the pause between two tries.
	conflictPause = 100 * time.Millisecond
)

// errWaitsForShard makes the stream begin again at a large transaction that meets a row of another shard: the parts of it
// that were applied are taken back, and the lane does not have them any more.
var errWaitsForShard = &tenant.Error{Kind: tenant.KindUnavailable, Code: "waits-for-shard", Message: "a large transaction waits for another shard's row to go"}

// meets reports whether a group failed because of a row that is at the source.
func (l *lane) meets(err error) bool {
	pe, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pe.Code == "23505" || pe.Code == "23P01") // unique_violation, exclusion_violation
}

// conflictError names the row that cannot be written yet.
type conflictError struct {
	row string
	err *pgconn.PgError
}

func (e *conflictError) Error() string { return e.row + " cannot be written: " + e.err.Message }
func (e *conflictError) Unwrap() error { return e.err }

// applyAfterOthers applies the transactions of a group one by one, each as soon as the other shards' lanes let it. One by
// one, since transactions that have nothing to do with each other must not wait together: two lanes could wait for what
// the other has in the same group.
func (l *lane) applyAfterOthers(ctx context.Context, g *group, err error) error {
	if g.open {
		return fmt.Errorf("%w: %w", errWaitsForShard, err)
	}
	defer l.back.waits(nil)
	for _, p := range g.split() {
		began := time.Now()
		for err = l.applyAgain(ctx, p); l.meets(err); err = l.applyAgain(ctx, p) {
			if time.Since(began) > l.back.patience {
				return stop("row-on-two-shards", "remove or change the row at the shard where it does not belong",
					"%v. For %s no other shard has let go of the row that is in its place: two shards hold rows of which only one can be there", err, l.back.patience)
			}
			l.back.waits(err)
			if err := wait(ctx, conflictPause); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// applyAgain applies a transaction on a session on which one has failed.
func (l *lane) applyAgain(ctx context.Context, g *group) error {
	if l.conn.IsClosed() {
		return errConnLost
	}
	if err := l.rollback(ctx); err != nil {
		return err
	}
	return l.applyOnce(ctx, g, false)
}

// split makes a group of each of its transactions.
func (g *group) split() []*group {
	if len(g.parts) < 2 {
		return []*group{g}
	}
	out := make([]*group, 0, len(g.parts))
	from := 0
	for _, p := range g.parts {
		out = append(out, &group{changes: g.changes[from:p.changes], txns: 1, first: g.first, end: p.end, ordered: g.ordered})
		from = p.changes
	}
	return out
}

// waits shows what a lane waits for; nil: for nothing any more.
func (s *backSide) waits(err error) {
	if err == nil {
		s.engine.stats.setBlocked("")
		return
	}
	s.engine.stats.setBlocked("waits for another shard: " + err.Error())
}
