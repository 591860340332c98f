package replicator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/tenant"
)

const (
	// aheadPatrol is how often a side looks whether anybody waits for it: a lock at the shard is held for about so long
	// against whoever wants it.
	aheadPatrol = time.Second
	// aheadPause is how long a side waits for rows with a COPY open: a source that is in a hurry brings a group each few tens of
	// milliseconds, and where it is not, a long COPY saves nothing that anybody misses.
	aheadPause = aheadPatrol / 5
	// aheadPoll is how often the follower looks whether the lanes are where a block begins.
	aheadPoll = 2 * time.Millisecond
	// aheadLock is how long a side waits for a lock itself, in the units of lock_timeout.
	aheadLock = "1s"
	// aheadForgotten ends the session of a server that was stopped or cut off, which would hold its locks until the network
	// notices. A server that is alive looks each aheadPatrol. The shard counts from a synchronisation point on, see sync. For one
	// that was stopped in the midst of what it sent, so also with a COPY open, it has no bound at all: a server that reads rows
	// heeds none of its timeouts. Such a session is ended by whoever takes the shard over, see endSides.
	aheadForgotten = "30s"
)

// side applies one shard's part of a transaction that runs ahead, on a session of its own, and commits it in its lane's
// turn. The session begins with the part's first row.
type side struct {
	a   *ahead
	l   *lane      // the session and what is prepared there; not the shard's lane
	end tenant.LSN // where the transaction ends; set before the turn comes

	turn    chan position    // of size 1: the lane's position, which the commit follows
	out     chan sideOutcome // of size 1: what became of it, for the lane
	settled chan bool        // of size 1: the same for the reader: whether the shard has the transaction
}

// sideOutcome is what became of a shard's part.
type sideOutcome struct {
	has  bool     // the shard has the part: all of it is committed, or it is empty
	pos  position // with rows: the lane's position behind it
	rows int
	wal  walAt
	err  error // it is not known whether the shard has it: the lane has to be opened anew
}

func newSide(a *ahead, of *lane) *side {
	return &side{
		a: a, l: &lane{shard: of.shard, replication: of.replication, epoch: of.epoch, pass: of.pass, in: newInbox(), prepared: map[string]*pgconn.StatementDescription{}, gifts: newAllowance(), uncopied: of.uncopied, inOrder: of.inOrder},
		turn: make(chan position, 1), out: make(chan sideOutcome, 1), settled: make(chan bool, 1),
	}
}

// run applies the part. Whatever it comes to, the lane gets to know.
func (sd *side) run(ctx context.Context) {
	o, err := sd.apply(ctx)
	closeSoon(sd.l.conn)
	if err != nil {
		sd.a.fail(fmt.Errorf("shard %s: %w", sd.l.shard.Name, err))
		o.has = false
	}
	sd.out <- o
}

// waitedForSQL asks whether any session waits for a lock that this one holds.
const waitedForSQL = `SELECT EXISTS (SELECT FROM pg_locks l WHERE NOT l.granted AND pg_backend_pid() = ANY (pg_blocking_pids(l.pid)))`

// The row that leads the part tells the reverse direction that it is ours, as those of lanes do. It is gone again when the
// part commits, and has a number that nobody takes for a lane's while it is there.
const (
	leadSQL   = `INSERT INTO rehome.progress (replication, seq, epoch, lsn) VALUES ($1, -txid_current(), $2, '0/0')`
	unleadSQL = `DELETE FROM rehome.progress WHERE replication = $1 AND seq = -txid_current()`
)

// apply applies the part as it comes, and commits it in its turn. An error means that the shard does not have it, unless the
// outcome says that this is not known.
func (sd *side) apply(ctx context.Context) (o sideOutcome, err error) {
	var run *pipelineRun
	looked, applied, replan := time.Now(), 0, false
	for whole := false; !whole; {
		idle := aheadPatrol
		if run != nil && run.copy.rel != nil {
			idle = aheadPause
		}
		g, _, err := sd.l.in.take(ctx, idle)
		if err != nil {
			return o, err
		}
		if g == nil && run != nil && run.copy.rel != nil {
			if err := run.rest(); err != nil {
				return o, err
			}
		}
		if g != nil {
			if g.ordered || g.ddl {
				return o, unusual("a row of it brings values to another shard")
			}
			if run == nil && len(g.changes) > 0 {
				if run, err = sd.begin(ctx); err != nil {
					return o, err
				}
				defer func() { _ = run.p.Close() }() // it ended, or the session does
			}
			if run != nil {
				sent := len(run.want)
				if err := run.further(ctx, g.changes); err != nil {
					return o, err
				}
				applied++
				if replan = replan || replanAfter(applied); replan && run.copy.rel == nil {
					run.exec("DISCARD PLANS")
					replan = false
				}
				if err := run.overlap(sent); err != nil {
					return o, err
				}
			}
			o.rows += len(g.changes)
			whole = g.marker == aheadWhole
		}
		if run != nil && time.Since(looked) >= aheadPatrol {
			if err := run.giveWay(); err != nil {
				return o, err
			}
			looked = time.Now()
		}
	}
	if run == nil {
		return sideOutcome{has: true}, nil
	}
	if err := run.synced(); err != nil {
		return o, err
	}
	pos, err := sd.await(ctx, run)
	if err != nil {
		return o, err
	}
	o.pos = position{seq: pos.seq + 1, lsn: max(sd.end, pos.lsn)}
	run.advance(pos, o.pos.lsn)
	run.query(unleadSQL, sd.l.replication)
	if err := run.synced(); err != nil {
		return o, err
	}
	if o.wal, err = run.commit(true); err != nil {
		if pe, ok := errors.AsType[*pgconn.PgError](err); !ok || IsRetryable(pe) {
			o.err = fmt.Errorf("commit what was applied ahead: %w: %w", errConnLost, err)
		}
		return o, err
	}
	o.has = true
	return o, nil
}

// begin opens the session and the transaction.
func (sd *side) begin(ctx context.Context) (*pipelineRun, error) {
	settings := laneSettings(sd.l.pass)
	settings["lock_timeout"] = aheadLock
	settings["idle_in_transaction_session_timeout"] = aheadForgotten
	conn, err := connectBy(ctx, sd.l.shard.DSN, aheadName(sd.l.replication), settings, copyFrontend)
	if err != nil {
		return nil, err
	}
	sd.l.conn = conn
	run := &pipelineRun{l: sd.l, p: conn.PgConn().StartPipeline(ctx)}
	run.exec("BEGIN")
	run.query(leadSQL, sd.l.replication, strconv.FormatInt(sd.l.epoch, 10))
	return run, nil
}

// await waits for the lane's turn.
func (sd *side) await(ctx context.Context, run *pipelineRun) (position, error) {
	tick := time.NewTicker(aheadPatrol)
	defer tick.Stop()
	for {
		select {
		case pos := <-sd.turn:
			return pos, nil
		case <-ctx.Done():
			return position{}, context.Cause(ctx)
		case <-tick.C:
			if err := run.giveWay(); err != nil {
				return position{}, err
			}
		}
	}
}

// sync ends what is queued with a synchronisation point. The transaction stays open (manual, 55.2.3), and only behind one
// does the server take the session for idle, whose idle_in_transaction_session_timeout runs then.
func (r *pipelineRun) sync() {
	r.endCopy()
	r.p.SendPipelineSync()
	r.want = append(r.want, expected{sync: true})
}

// synced reads everything that was sent so far, and leaves the session idle.
func (r *pipelineRun) synced() error {
	r.sync()
	return r.results()
}

// rest leaves the session idle without waiting for what it has to say.
func (r *pipelineRun) rest() error {
	r.sync()
	return r.begin()
}

// overlap sends what is queued, and reads the first results only: those of what the server had before. While a COPY is open it
// reads nothing: a synchronisation point would end it, and nobody would notice a peer that swallows the answers, since a server
// that waits for rows rightly waits for us (package halfopen). What is left unread is a few answers a COPY, up to the next patrol.
func (r *pipelineRun) overlap(results int) error {
	if r.copy.rel != nil {
		return nil
	}
	if err := r.rest(); err != nil {
		return err
	}
	n := min(results, len(r.want))
	for _, w := range r.want[:n] {
		if err := r.one(w); err != nil {
			return err
		}
	}
	r.want, r.sent = slices.Delete(r.want, 0, n), 0
	return nil
}

// giveWay fails if anybody waits for the session.
func (r *pipelineRun) giveWay() error {
	if err := r.results(); err != nil {
		return err
	}
	r.p.SendQueryParams(waitedForSQL, nil, nil, nil, nil)
	r.p.SendPipelineSync()
	if err := r.p.Flush(); err != nil {
		return asLost(r.l.conn.PgConn(), err)
	}
	res, err := r.p.GetResults()
	if err != nil {
		return asLost(r.l.conn.PgConn(), err)
	}
	rr, ok := res.(*pgconn.ResultReader)
	if !ok {
		return errNoResult
	}
	waits := false
	for rr.NextRow() {
		waits = string(rr.Values()[0]) == "t"
	}
	if _, err := rr.Close(); err != nil {
		return asLost(r.l.conn.PgConn(), err)
	}
	if err := r.one(expected{sync: true}); err != nil {
		return err
	}
	if waits {
		return unusual("somebody waits for it")
	}
	return nil
}

// turn has a transaction that was applied ahead commit in its place. If the shard does not have it then, it follows from
// its spool.
func (l *lane) turn(ctx context.Context, sd *side, at time.Time) error {
	l.mu.Lock()
	l.current = at
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		l.current = time.Time{}
		l.mu.Unlock()
	}()
	sd.turn <- l.pos
	var o sideOutcome
	select {
	case o = <-sd.out:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if o.err != nil {
		return o.err
	}
	if o.has && o.rows > 0 {
		l.committed(o.pos, 1, o.rows)
		l.heard(o.wal, o.pos.lsn)
	}
	sd.settled <- o.has
	return nil
}
