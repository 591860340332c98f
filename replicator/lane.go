package replicator

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/tenant"
)

const (
	// idleRecord is how often a lane that has nothing to apply records how far it is, so that the slot can advance.
	idleRecord = 5 * time.Second
	// ownRecord is the same where all that was read came from the other direction.
	ownRecord = 30 * time.Second
	// keepRows is how many progress rows are kept at a shard, for people; only the last one counts.
	keepRows, pruneEvery = 100, 200
)

// lane applies one shard's changes, group by group, on one session.
type lane struct {
	shard       Shard
	replication string
	epoch       int64
	pass        string
	in          *inbox
	back        *backSide // set: it writes to the source, see Back
	onMarker    func(shard, attempt string, pos tenant.ShardPosition)
	onDurable   func()

	conn     *pgx.Conn
	pos      position
	prepared map[string]*pgconn.StatementDescription
	asked    time.Time  // when the shard last said how far its WAL is, see durable.go
	plan     runPlanner // of the group that is being applied
	room     reserve
	uncopied *tableSet   // the shard's tables that take no COPY, though they take INSERTs; for sides
	inOrder  *tableSet   // the shard's tables whose updates needed the source's order; also for sides
	copied   int64       // rows that a side sent by COPY
	few      []statement // of the small group that is being applied, see atOnce
	fewOf    []*change
	named    int // statements that were ever prepared: a name is not used twice
	groups   int
	start    tenant.LSN // the shard had everything before it when the stream began

	gifts     *allowance            // values on their way to other lanes
	peers     map[string]*pgx.Conn  // sessions at other shards, for values that they kept
	acked     func() tenant.LSN     // what every shard has on disk
	onlyOurs  func(tenant.LSN) bool // see stream.onlyOurs
	keptCarry tenant.LSN            // the latest transaction that may have rows in rehome.carry; 0: none has

	mended map[uint32]map[string]tenant.LSN // by table and key: commits before it are at the shard already; the reader's
	mends  bool                             // there were such keys when the lane was opened

	mu      sync.Mutex
	applied tenant.LSN  // recorded in a committed transaction
	durable tenant.LSN  // the same, surely on disk
	pending []flushMark // see durable.go
	current time.Time   // commit time of the oldest transaction being applied; zero: none
	txns    int64
	rows    int64
	small   int64 // groups that were sent with their COMMIT
}

// errDivergence is what a change that does not fit the shard's rows becomes.
func errDivergence(shard string, c *change, what string) error {
	return diverges(stop("divergence", divergenceRemedy, "shard %s: %s (%s) %s", shard, c.rel.name, c.rel.keyText(c), what), c)
}

// divergenceRemedy is true also while the replication is paused (see mended.go).
const divergenceRemedy = "the shard was written by others; rehome overwrites nothing by itself. To take the rows from the source again: rehome verify --repair"

// errAbsent is what becomes of a change whose row is not at the shard.
func errAbsent(shard string, c *change) error {
	if c.rel.blind {
		return stop("realm-changed",
			"if the row's realm was changed: cancel the replication and start it again with --fix-identity and without --realms-never-change for this table. "+
				"Else compare with: rehome verify",
			"shard %s: %s (%s) is not there, though the source changed it: either its %s was changed, which --realms-never-change asserts never to happen, or the shard was written by others",
			shard, c.rel.name, c.rel.keyText(c), c.rel.columns[c.rel.realm].Name)
	}
	return errDivergence(shard, c, "is not there, though the source changed it")
}

func laneSettings(pass string) map[string]string {
	return map[string]string{
		"session_replication_role": "replica",
		"synchronous_commit":       "off", // acknowledged only when flushed, see durable
		"rehome.pass":              pass,
		"lock_timeout":             "30s", // a forgotten session at the shard must show as an error, not as silence
		"jit":                      "off",
		// Plans are made without looking at the values, so for few rows: by the key's index, however many rows the arrays
		// have; else a scan of the whole table may look cheaper than some thousand keys. See replan, and planFor for partitions.
		"plan_cache_mode": "force_generic_plan",
	}
}

// open connects and takes the shard over.
func (l *lane) open(ctx context.Context) error {
	settings := laneSettings(l.pass)
	if l.back != nil {
		delete(settings, "session_replication_role") // it is not permitted everywhere, see asReplica
	}
	conn, err := connect(ctx, l.shard.DSN, laneName(l.replication), settings)
	if err == nil && l.back != nil {
		if err = asReplica(ctx, conn, l.back.published()); err != nil {
			closeSoon(conn)
		}
	}
	if err != nil {
		return fmt.Errorf("shard %s: %w", l.shard.Name, err)
	}
	pos, err := takeLane(ctx, conn, l.replication, l.epoch)
	if err == nil && pos.seq == 0 {
		err = stop("no-position", "cancel the replication and start it again", "shard %s has no position of replication %s", l.shard.Name, l.replication)
	}
	if err != nil {
		closeSoon(conn)
		return fmt.Errorf("shard %s: %w", l.shard.Name, err)
	}
	l.conn, l.pos, l.prepared = conn, pos, map[string]*pgconn.StatementDescription{}
	l.gifts = newAllowance()
	if l.back == nil {
		l.keptCarry = 1 // what a former worker kept is not known
		err = l.loadMended(ctx)
	}
	if err != nil {
		l.close()
		return fmt.Errorf("shard %s: read what was mended: %w", l.shard.Name, err)
	}
	l.mu.Lock()
	l.applied, l.durable, l.pending = pos.lsn, 0, nil
	l.mu.Unlock()
	// What is there may still be in the WAL buffers of a server that is up: it counts once it is flushed.
	if err = l.pollFlush(ctx); err != nil {
		l.close()
		return fmt.Errorf("shard %s: %w", l.shard.Name, err)
	}
	return nil
}

func (l *lane) close() {
	closeSoon(l.conn)
	l.conn = nil
	for _, c := range l.peers {
		closeSoon(c)
	}
	clear(l.peers)
}

// run applies until the context ends or something fails. The caller reopens the lane after an error.
func (l *lane) run(ctx context.Context) error {
	if err := l.loop(ctx); ctx.Err() == nil {
		return fmt.Errorf("shard %s: %w", l.shard.Name, err)
	}
	return context.Cause(ctx)
}

// loop ends with an error only.
func (l *lane) loop(ctx context.Context) error {
	recorded := time.Now()
	for {
		idle := idleRecord
		if l.undurable() {
			idle = flushPoll
		}
		g, pos, err := l.in.take(ctx, idle)
		if err != nil {
			return err
		}
		switch {
		case g == nil:
			if l.undurable() {
				if err := l.pollFlush(ctx); err != nil {
					return err
				}
			}
			if pos <= l.pos.lsn || time.Since(recorded) < idleRecord || (time.Since(recorded) < ownRecord && l.onlyOurs(l.pos.lsn)) {
				continue
			}
			err = l.apply(ctx, &group{end: pos})
			recorded = time.Now()
		case g.barrier != nil:
			g.barrier.reached(ctx, l)
		case g.side != nil:
			err = l.turn(ctx, g.side, g.first)
			recorded = time.Now()
		default:
			again := !g.open && !g.ordered && !g.ddl // no other lane has hold of a change, and it is one piece
			err = l.apply(ctx, g)
			recorded = time.Now()
			if err == nil && again {
				l.in.done(g)
				continue
			}
			if d, ok := errors.AsType[*divergence](err); ok {
				for i := range g.changes { // others of them may not fit either
					d.add(&g.changes[i])
				}
			}
		}
		if err != nil {
			return err
		}
	}
}

// apply runs a group as one target transaction: as statements over arrays if it is a whole one, and if that does not work
// out strictly in order, which succeeds or names the row that is in the way.
func (l *lane) apply(ctx context.Context, g *group) error {
	l.mu.Lock()
	l.current = g.first
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		l.current = time.Time{}
		l.mu.Unlock()
	}()
	err := l.applyGroup(ctx, g)
	if l.back != nil && l.back.several && l.meets(err) {
		return l.applyAfterOthers(ctx, g, err)
	}
	return err
}

func (l *lane) applyGroup(ctx context.Context, g *group) error {
	if sts, of, ok := l.atOnce(g); ok {
		err := l.applyAtOnce(ctx, g, sts, of)
		if err == nil || l.ends(ctx, err) {
			return err
		}
		if err := l.rollback(ctx); err != nil {
			return err
		}
		return l.applyOnce(ctx, g, false)
	}
	if g.open || g.ordered || g.ddl || len(g.changes) < minSet {
		return l.applyOnce(ctx, g, false)
	}
	err := l.applyOnce(ctx, g, true)
	if err == nil || (l.ends(ctx, err) && !tooMuch(err)) {
		return err
	}
	if err := l.rollback(ctx); err != nil {
		return err
	}
	return l.applyOnce(ctx, g, false)
}

// ends reports whether a group that failed is not to be tried again on the session.
func (l *lane) ends(ctx context.Context, err error) bool {
	return ctx.Err() != nil || l.conn.IsClosed() || IsRetryable(err) || errors.Is(err, ErrFenced)
}

// tooMuch reports whether the server had no memory for a statement, as its lock table has not for one over arrays that is
// about a table of thousands of partitions: it locks all of them. A single row's locks its own.
func tooMuch(err error) bool {
	pe, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pe.Code == "53200"
}

// txIdle is the status of a session that is in no transaction (manual, 55.7, ReadyForQuery).
const txIdle = 'I'

// rollback takes back a group that failed, so that it can be tried again on the same session.
func (l *lane) rollback(ctx context.Context) error {
	if l.conn.PgConn().TxStatus() != txIdle { // as one is that its synchronisation point has ended
		if _, err := l.conn.Exec(ctx, "ROLLBACK"); err != nil {
			return asLost(l.conn.PgConn(), err)
		}
	}
	// What was prepared behind the statement that failed does not exist.
	if err := l.conn.DeallocateAll(ctx); err != nil {
		return asLost(l.conn.PgConn(), err)
	}
	clear(l.prepared)
	return nil
}

// startRun begins a run of statements on the lane's session. finish ends it, whatever became of it, and passes its error on.
func (l *lane) startRun(ctx context.Context) (run *pipelineRun, finish func(error) error) {
	p := l.conn.PgConn().StartPipeline(ctx)
	run = &pipelineRun{l: l, p: p}
	kept := l.keptCarry
	return run, func(err error) error {
		if err != nil {
			run.abandon()
			l.keptCarry = max(l.keptCarry, kept)
		}
		if cerr := p.Close(); err == nil && cerr != nil {
			err = cerr
		}
		return err
	}
}

// applyOnce runs a group, and the pieces that follow while its last transaction is open, as one target transaction.
//
// The progress row goes first: the reverse direction recognises our transactions by the row that leads them. When the
// end of the last transaction is not known yet, the row carries its commit position, and a second one at the end carries
// the end.
func (l *lane) applyOnce(ctx context.Context, g *group, sets bool) (err error) {
	run, finish := l.startRun(ctx)
	defer func() { err = finish(err) }()
	run.exec("BEGIN")
	pos, end, marker, txns, rows := l.pos, max(g.end, l.pos.lsn), g.marker, 0, 0
	lead := end
	if g.open {
		lead = max(g.commit, pos.lsn+1)
	}
	run.advance(pos, lead)
	pos = position{seq: pos.seq + 1, lsn: lead}
	if marker != "" {
		run.exec("SET LOCAL synchronous_commit = on")
	}
	for pieces, applied := g.open, 1; ; applied++ {
		var err error
		switch {
		case pieces:
			if err = run.piece(ctx, g); err == nil && replanAfter(applied) {
				run.exec("DISCARD PLANS")
			}
		case sets:
			err = run.sets(ctx, g.changes)
		default:
			err = run.changes(ctx, g.changes)
		}
		if err != nil {
			return err
		}
		txns += g.txns
		rows += len(g.changes)
		if !g.open {
			end = max(g.end, pos.lsn) // a marker that the shard has already lies before what it has since
			break
		}
		if g, err = l.more(ctx); err != nil {
			return err
		}
		if g.marker != "" {
			marker = g.marker
			run.exec("SET LOCAL synchronous_commit = on")
		}
	}
	if end != pos.lsn {
		run.advance(pos, end)
		pos = position{seq: pos.seq + 1, lsn: end}
	}
	l.groups++
	run.housekeep(pos.seq)
	// All counts are read before the COMMIT is sent: a change that hit no row must not be committed.
	if err := run.results(); err != nil {
		return err
	}
	asks := marker == "" && l.due()
	wal, err := run.commit(asks)
	if err != nil {
		return err
	}
	l.committed(pos, txns, rows)
	if asks {
		l.heard(wal, pos.lsn)
	}
	if marker != "" {
		l.flushed() // the commit itself waited for it
		l.onMarker(l.shard.Name, marker, l.position())
	}
	return nil
}

// replan reports whether plans are to be made anew: a table that was small when its statements were planned may be large by
// now. The server does so by itself only when a table was analysed.
func (l *lane) replan() bool { return replanAfter(l.groups) }

// replanAfter says behind which groups, or pieces of one transaction, plans are made anew: at first each time that there are
// twice as many.
func replanAfter(n int) bool {
	return n%pruneEvery == 0 || (n < pruneEvery && n&(n-1) == 0)
}

// more waits for the next piece of a transaction that is open.
func (l *lane) more(ctx context.Context) (*group, error) {
	for {
		g, _, err := l.in.take(ctx, idleRecord)
		if err != nil || g != nil {
			return g, err
		}
	}
}

func (l *lane) position() tenant.ShardPosition {
	l.mu.Lock()
	defer l.mu.Unlock()
	return tenant.ShardPosition{Shard: l.shard.Name, LSN: l.applied, Durable: l.durable}
}

// oldest is when the oldest transaction that this shard has not committed yet was committed at the source.
func (l *lane) oldest() time.Time {
	l.mu.Lock()
	at := l.current
	l.mu.Unlock()
	if !at.IsZero() {
		return at
	}
	return l.in.oldest()
}

func (l *lane) counts() (txns, rows int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.txns, l.rows
}

var errNoResult = errors.New("the server sent no result")

// asLost marks an error of a broken connection as one that a new connection may mend.
func asLost(conn *pgconn.PgConn, err error) error {
	if _, ok := errors.AsType[*pgconn.PgError](err); !ok && conn.IsClosed() {
		return fmt.Errorf("%w: %w", errConnLost, err)
	}
	return err
}
