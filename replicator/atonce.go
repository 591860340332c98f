package replicator

import (
	"context"
	"strconv"
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
//
// Most have none: without a BEGIN, what comes before a synchronisation point is one transaction, which the point commits
// (manual, 55.2.3), and which an error takes back by itself. It is sent whole with its point or not at all.
func (l *lane) applyAtOnce(ctx context.Context, g *group, sts []statement, of []*change) (err error) {
	run, finish := l.startRun(ctx)
	defer func() { err = finish(err) }()
	run.implicit = sendsWhole(sts)
	if !run.implicit {
		run.exec("BEGIN")
	}
	end := max(g.end, l.pos.lsn)
	run.advance(l.pos, end)
	for i, st := range sts {
		if err := run.send(st, expected{change: of[i]}); err != nil {
			return err
		}
	}
	l.groups++
	run.housekeep(l.pos.seq + 1)
	var wal walAt
	before, asks := l.pos.lsn, l.undurable() && l.due()
	switch {
	case !run.implicit:
		wal, err = run.commit(asks)
	case asks:
		run.askWAL()
		fallthrough
	default:
		wal, err = run.end(asks)
	}
	if err != nil {
		return err
	}
	l.committed(position{seq: l.pos.seq + 1, lsn: end}, g.txns, len(g.changes))
	if asks {
		l.heard(wal, before) // this group's COMMIT may come behind the answer
	}
	l.mu.Lock()
	l.small++
	l.mu.Unlock()
	return nil
}

// sendsWhole reports whether a small group's statements need no transaction block: none sets a setting for the transaction,
// and no results are read before all are sent.
func sendsWhole(sts []statement) bool {
	size := 0
	for i := range sts {
		if sts[i].pruned && !sts[i].placed {
			return false // see planFor
		}
		size += sts[i].size()
	}
	return size < flushBytes/2
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
