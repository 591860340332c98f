package replicator

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/tenant"
)

// flushEvery is how many statements are sent before the results so far are read: enough to hide the round trip, few
// enough that the results fit the socket's buffers while we are still sending.
const flushEvery = 500

// flushBytes does the same for wide rows, which would otherwise pile up in the send buffer: 500 rows of 1 MB are 500 MB.
const flushBytes = 1 << 20

// flushRun is how many rows a statement over arrays must have for the server to be given it at once: below it takes less time
// than a write to the socket and the wake-up.
const flushRun = 200

// pipelineRun sends the statements of one target transaction without waiting for each, and reads their results in order.
type pipelineRun struct {
	l    *lane
	p    *pgconn.Pipeline
	want []expected // results that are still to be read
	sent int        // bytes of values since results were last read

	copy   copying // its COPY that is open, see further
	custom bool    // plans are made with the values: plan_cache_mode of the transaction, see planFor

	implicit bool // the transaction has no BEGIN: the synchronisation point commits it
	ended    bool // which was sent
}

// expected is what a result must be.
type expected struct {
	change *change   // nil: one of our own statements
	counts bool      // it must hit just as many rows as it names
	set    int       // how many rows it names, when it stands for several changes; 0: one
	sorted bool      // its rows are not in the source's order
	parse  bool      // the answer to a Prepare
	sync   bool      // the answer to a Sync
	carry  *carry    // it returns these values
	copied *relation // it is a COPY of rows of this table
}

func (r *pipelineRun) exec(sql string) {
	r.p.SendQueryParams(sql, nil, nil, nil, nil)
	r.want = append(r.want, expected{})
}

func (r *pipelineRun) query(sql string, args ...string) {
	values := make([][]byte, len(args))
	for i, a := range args {
		values[i] = []byte(a)
	}
	r.p.SendQueryParams(sql, values, nil, nil, nil)
	r.want = append(r.want, expected{})
}

func (r *pipelineRun) advance(last position, to tenant.LSN) {
	const sql = `SELECT rehome.advance($1, $2, $3, $4, $5)`
	r.prepared(sql,
		[]byte(r.l.replication), []byte(strconv.FormatInt(r.l.epoch, 10)), []byte(strconv.FormatInt(last.seq, 10)), []byte(last.lsn.String()), []byte(to.String()))
	r.want = append(r.want, expected{})
}

// prepared sends a statement of our own that is prepared the first time.
func (r *pipelineRun) prepared(sql string, args ...[]byte) {
	st, ok := r.l.prepared[sql]
	if !ok {
		st = r.prepare(sql, sql)
	}
	r.p.SendQueryStatement(st, args, nil, nil)
}

// prepare sends a statement to be prepared. If the transaction fails the session is dropped, so that the map cannot
// name a statement that does not exist.
//
// What it is taken to return is a column of no name. Nobody looks at it, but the driver asks the server to describe the result
// each time where it knows of none. It must be the same for all: after an error the driver takes them for one another's.
func (r *pipelineRun) prepare(shape, sql string) *pgconn.StatementDescription {
	st := &pgconn.StatementDescription{Name: "s" + strconv.Itoa(r.l.named), SQL: sql, Fields: make([]pgconn.FieldDescription, 1)}
	r.l.named++
	r.p.SendPrepare(st.Name, sql, nil)
	r.want = append(r.want, expected{parse: true})
	r.l.prepared[shape] = st
	return st
}

// changes sends changes one by one, in their order.
func (r *pipelineRun) changes(ctx context.Context, cs []change) error {
	for i := range cs {
		if err := r.change(ctx, &cs[i]); err != nil {
			return err
		}
	}
	return nil
}

func (r *pipelineRun) change(ctx context.Context, c *change) error {
	switch {
	case c.op == opDDL:
		return r.schema(c)
	case c.gives != nil:
		return r.give(ctx, c)
	case c.needs != nil:
		return r.receive(ctx, c)
	}
	if c.op == opTruncate && r.l.mends {
		for _, rel := range c.truncate.rels {
			r.query(`DELETE FROM rehome.mended WHERE replication = $1 AND relation = $2`, r.l.replication, strconv.FormatUint(uint64(rel.table.OID), 10))
		}
	}
	st, err := statementFor(c)
	if err != nil {
		return err
	}
	return r.send(st, expected{change: c, counts: st.counts})
}

// reserve is a send buffer that is used again: the driver begins each with a kilobyte and drops it when it is sent, so that
// a statement of a megabyte would be copied ten times, and two megabytes thrown away.
type reserve struct{ buf []byte }

// reserveFrom is what a statement's values must be for it: smaller ones fit the driver's own buffer soon.
const reserveFrom = 8 << 10

// ahead makes room for so many bytes. Only between a flush and the next is the buffer the driver's.
func (s *reserve) ahead(c *pgconn.PgConn, bytes int) {
	if bytes < reserveFrom || bytes > 2*groupBytes {
		return
	}
	if cap(s.buf) < bytes {
		s.buf = make([]byte, 0, bytes+bytes/8+reserveFrom)
	}
	c.Frontend().Send(s)
}

// Encode implements pgproto3.FrontendMessage with nothing to send: what is in the driver's buffer goes on in ours.
func (s *reserve) Encode(dst []byte) ([]byte, error) {
	if cap(dst) >= cap(s.buf) {
		return dst, nil // it is ours already
	}
	return append(s.buf[:0], dst...), nil
}

// Decode and Frontend implement pgproto3.FrontendMessage.
func (s *reserve) Decode([]byte) error { return errors.ErrUnsupported }

// Frontend marks it as a message that a client sends.
func (s *reserve) Frontend() {}

// begin lets the server work on what was sent so far, while the rest is being made.
func (r *pipelineRun) begin() error {
	if err := r.p.Flush(); err != nil {
		return asLost(r.l.conn.PgConn(), err)
	}
	return nil
}

// sets sends changes as statements over arrays where that is possible.
func (r *pipelineRun) sets(ctx context.Context, cs []change) error {
	if len(cs) >= flushRun {
		if err := r.begin(); err != nil {
			return err
		}
	}
	for _, run := range r.l.plan.plan(cs) {
		if err := r.set(ctx, run); err != nil {
			return err
		}
	}
	return nil
}

// set sends a run as one statement over arrays, or one by one.
func (r *pipelineRun) set(ctx context.Context, run *changeRun) error {
	if run.op == 0 || run.op == opTruncate || run.op == opDDL || len(run.rows) < minSet || !run.rel.arrays {
		for _, c := range run.rows {
			if err := r.change(ctx, c); err != nil {
				return err
			}
		}
		return nil
	}
	sorted := r.arrange(run)
	st := r.l.plan.setStatement(run)
	if err := r.send(st, expected{change: run.rows[0], counts: !run.rows[0].anywhere, set: len(run.rows), sorted: sorted}); err != nil {
		return err
	}
	if len(run.rows) >= flushRun {
		return r.begin()
	}
	return nil
}

// planFor sets what the server plans a statement with. A plan that is made without the values has all partitions of its
// tables, and locks them whenever it is used, though only one is looked into: with some thousands of them the server's lock
// table is too small. One that is made with the values has, and locks, those that they belong to.
func (r *pipelineRun) planFor(st statement) {
	if st.placed || st.pruned == r.custom {
		return
	}
	r.custom = st.pruned
	mode := "force_generic_plan" // of laneSettings
	if r.custom {
		mode = "force_custom_plan"
	}
	r.exec("SET LOCAL plan_cache_mode = " + mode)
}

func (r *pipelineRun) send(st statement, want expected) error {
	r.planFor(st)
	known, ok := r.l.prepared[st.shape]
	if !ok {
		known = r.prepare(st.shape, st.sql())
	}
	size := st.size()
	r.l.room.ahead(r.l.conn.PgConn(), r.sent+size)
	r.p.SendQueryStatement(known, st.args, nil, nil)
	r.want = append(r.want, want)
	r.sent += size
	if len(r.want) >= flushEvery || r.sent >= flushBytes {
		return r.results()
	}
	return nil
}

// results reads everything that was sent so far.
func (r *pipelineRun) results() error {
	r.endCopy()
	r.p.SendFlushRequest()
	if err := r.p.Flush(); err != nil {
		return asLost(r.l.conn.PgConn(), err)
	}
	for _, w := range r.want {
		if err := r.one(w); err != nil {
			return err
		}
	}
	r.want, r.sent = r.want[:0], 0
	return nil
}

func (r *pipelineRun) one(w expected) error {
	res, err := r.p.GetResults()
	if err == nil && res == nil {
		err = errNoResult
	}
	if err != nil {
		return r.explain(w, err)
	}
	if w.parse {
		return nil
	}
	if _, synced := res.(*pgconn.PipelineSync); synced && w.sync {
		return nil
	}
	rr, ok := res.(*pgconn.ResultReader)
	if !ok || w.sync {
		return fmt.Errorf("apply: unexpected result %T", res)
	}
	if w.carry != nil {
		return r.given(w, rr)
	}
	tag, err := rr.Close()
	if err != nil {
		return r.explain(w, err)
	}
	if w.set > 0 {
		if w.counts && tag.RowsAffected() != int64(w.set) {
			return errInOrder // which says whose row is missing
		}
		return nil
	}
	if w.counts && tag.RowsAffected() != 1 {
		return errAbsent(r.l.shard.Name, w.change)
	}
	return nil
}

// explain names the row that a server's error is about.
func (r *pipelineRun) explain(w expected, err error) error {
	pe, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return asLost(r.l.conn.PgConn(), err)
	}
	if pe.Code == sqlstateFenced {
		return fmt.Errorf("%w: %s", ErrFenced, pe.Message)
	}
	if w.copied != nil {
		r.noCopy(w.copied, pe)
	}
	if w.change == nil || IsRetryable(pe) {
		return pe
	}
	conflicts := pe.Code == "23505" || pe.Code == "23P01"
	if conflicts && w.sorted && w.change.op == opUpdate {
		r.l.inOrder.add(w.change.rel.table.OID)
	}
	if w.change.op == opDDL {
		return ddlFailed(r.l.shard.Name, w.change.ddl, pe)
	}
	if b := r.l.back; b != nil && b.several && conflicts {
		return &conflictError{row: w.change.rel.name.String() + " (" + w.change.rel.keyText(w.change) + ")", err: pe}
	}
	if pe.Code[:2] == "23" {
		return errDivergence(r.l.shard.Name, w.change, "cannot be written: "+pe.Message)
	}
	return stop("apply-failed", "mend the cause at the shard, then: rehome resume-replication",
		"%s (%s): %s (SQLSTATE %s)", w.change.rel.name, w.change.rel.keyText(w.change), pe.Message, pe.Code)
}

// abandon reads what is still to come of a run that failed, so that the session can be used again: a pipeline that is
// closed without a synchronisation point closes its connection.
//
// A connection that broke is left alone: the driver says goodbye to the server in the background, and must not be written to
// meanwhile (it panics).
func (r *pipelineRun) abandon() {
	if r.l.conn.IsClosed() {
		return
	}
	if r.implicit && !r.ended {
		return // the point would commit what was sent: the session is closed instead
	}
	r.failCopy()
	if err := r.p.Sync(); err != nil {
		return
	}
	for {
		res, err := r.p.GetResults()
		switch res := res.(type) {
		case *pgconn.PipelineSync:
			return
		case *pgconn.ResultReader:
			_, _ = res.Close() // it failed or is rolled back
		case nil:
			if _, ok := errors.AsType[*pgconn.PgError](err); !ok {
				return
			}
		}
	}
}

// commit ends the transaction. If asks is set it then asks how far the WAL is. What was sent before and not read yet is not
// executed any more from the first error on.
func (r *pipelineRun) commit(asks bool) (wal walAt, err error) {
	r.exec("COMMIT")
	if asks {
		r.askWAL()
	}
	return r.end(asks)
}

// askWAL asks how far the WAL is, as the last statement of a run.
func (r *pipelineRun) askWAL() { r.prepared(walAtSQL) }

// end sends everything with a synchronisation point, and reads all that is still to come: the answer to askWAL last.
func (r *pipelineRun) end(asked bool) (wal walAt, err error) {
	r.ended = true
	if err := r.p.Sync(); err != nil {
		return wal, asLost(r.l.conn.PgConn(), err)
	}
	for _, w := range r.want {
		if err := r.one(w); err != nil {
			return wal, err
		}
	}
	r.want = r.want[:0]
	if asked {
		res, err := r.p.GetResults()
		if err != nil {
			return wal, r.explain(expected{}, err)
		}
		rr, ok := res.(*pgconn.ResultReader)
		if !ok {
			return wal, errNoResult
		}
		if wal, err = readWAL(rr); err != nil {
			return wal, r.explain(expected{}, err)
		}
	}
	if err := r.one(expected{sync: true}); err != nil {
		return wal, err
	}
	return wal, nil
}
