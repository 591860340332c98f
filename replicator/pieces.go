package replicator

import (
	"context"
	"maps"
)

// A transaction that is larger than a group comes in pieces, all of which are one target transaction. Each piece is applied
// like a group: as statements over arrays, and if that does not work out, strictly in order. A savepoint before it is what
// the second try goes back to, since what came before the piece is not kept. Each is a sub-transaction, of which the shard's
// snapshots name 64 at most; with more of them they look into pg_subtrans until the commit, which is slower for readers.

// pieceBegins and pieceEnds enclose a piece that may have to be applied again.
const (
	pieceBegins = "SAVEPOINT rehome_piece"
	pieceEnds   = "RELEASE SAVEPOINT rehome_piece"
	pieceAgain  = "ROLLBACK TO SAVEPOINT rehome_piece"
)

// piece applies a piece of a transaction that is larger than a group.
func (r *pipelineRun) piece(ctx context.Context, g *group) error {
	if g.ordered || g.ddl || len(g.changes) < minSet {
		return r.ordered(ctx, g)
	}
	known, custom := maps.Clone(r.l.prepared), r.custom
	r.exec(pieceBegins)
	err := r.sets(ctx, g.changes)
	if err == nil {
		err = r.results()
	}
	if err == nil {
		r.exec(pieceEnds)
		return nil
	}
	if r.l.ends(ctx, err) && !tooMuch(err) {
		return err
	}
	r.abandon()
	if r.l.conn.IsClosed() {
		return asLost(r.l.conn.PgConn(), err)
	}
	// What was prepared behind the statement that failed does not exist.
	r.l.prepared, r.want, r.sent, r.custom = known, r.want[:0], 0, custom
	r.exec(pieceAgain)
	r.exec(pieceEnds)
	return r.ordered(ctx, g)
}

// ordered applies a piece in its order, and reads all results: what went wrong in it must not show in the next piece, whose
// savepoint would not be there.
func (r *pipelineRun) ordered(ctx context.Context, g *group) error {
	if err := r.changes(ctx, g.changes); err != nil {
		return err
	}
	return r.results()
}
