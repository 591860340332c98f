package replicator

import (
	"context"
	"strconv"

	"github.com/rehomedb/rehome/tenant"
)

// A small group, as a lane has it that keeps up, takes less time to apply than a round trip to the server, so it is sent
// with its COMMIT. The counts, which else are seen before the COMMIT is sent, are then looked at by the server: a statement
// that hits another number of rows than it names fails, by a division by zero, and nothing that follows it up to the
// synchronisation point is executed (manual, 55.2.3), the COMMIT least of all. The group is then applied again, as a large
// one is.

// atOnceRows is the most changes of such a group. More are cheaper as statements over arrays, and outweigh a round trip.
const atOnceRows = 8

// atOnce makes the statements of a small group; false: it cannot be sent with its COMMIT.
func (l *lane) atOnce(g *group) ([]statement, []*change, bool) {
	if len(g.changes) == 0 || len(g.changes) > atOnceRows || g.open || g.ordered || g.ddl || g.marker != "" {
		return nil, nil, false
	}
	sts, of := l.few[:0], l.fewOf[:0]
	for i := range g.changes {
		c := &g.changes[i]
		if c.op == opTruncate || c.op == opDDL || c.gives != nil || c.needs != nil {
			return nil, nil, false
		}
		st, err := statementFor(c)
		if err != nil {
			return nil, nil, false // which is told when it is applied in order
		}
		if c.op == opUpdate && (len(c.rel.numbered()) > 0 || !c.setsAny()) {
			return nil, nil, false // not one UPDATE
		}
		if st.counts {
			plain := st.sql
			st.shape = "1" + st.shape
			st.sql = func() string { return hitsOne(plain()) }
		}
		sts, of = append(sts, st), append(of, c)
	}
	l.few, l.fewOf = sts, of
	return sts, of, true
}

// hitsOne makes a statement fail that does not change just one row.
func hitsOne(sql string) string {
	return "WITH hit AS (" + sql + " RETURNING 1) SELECT 1 / (count(*) = 1)::int FROM hit"
}

// applyAtOnce sends a small group with its COMMIT. After an error the transaction is to be rolled back.
func (l *lane) applyAtOnce(ctx context.Context, g *group, sts []statement, of []*change) (err error) {
	run, finish := l.startRun(ctx)
	defer func() { err = finish(err) }()
	run.exec("BEGIN")
	end := max(g.end, l.pos.lsn)
	run.advance(l.pos, end)
	for i, st := range sts {
		if err := run.send(st, expected{change: of[i]}); err != nil {
			return err
		}
	}
	l.groups++
	run.housekeep(l.pos.seq + 1)
	flushed, inserted, err := run.commit()
	if err != nil {
		return err
	}
	l.committed(position{seq: l.pos.seq + 1, lsn: end}, inserted, flushed, g.txns, len(g.changes))
	l.mu.Lock()
	l.small++
	l.mu.Unlock()
	return nil
}

// housekeep adds what is done every now and then in a group's transaction, whose last progress row is number seq.
func (r *pipelineRun) housekeep(seq int64) {
	l := r.l
	if l.groups%pruneEvery == 0 {
		r.query(`DELETE FROM rehome.progress WHERE replication = $1 AND seq < $2`, l.replication, strconv.FormatInt(seq-keepRows, 10))
	}
	if l.replan() {
		r.exec("DISCARD PLANS")
	}
	r.pruneCarries(l.groups%pruneEvery == 0)
}

// committed takes note of a group that is committed.
func (l *lane) committed(pos position, inserted, flushed tenant.LSN, txns, rows int) {
	l.pos = pos
	l.mu.Lock()
	l.applied = pos.lsn
	l.txns += int64(txns)
	l.rows += int64(rows)
	l.pending = append(l.pending, flushMark{wal: inserted, pos: pos.lsn})
	l.mu.Unlock()
	l.settle(flushed)
}
