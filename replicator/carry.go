package replicator

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/replicator/pgoutput"
	"github.com/rehomedb/rehome/tenant"
)

// A row that moves to another shard, by a change of its realm, is deleted at one shard and inserted at another. The source
// does not send its large values that did not change (manual, 55.9: "unchanged TOASTed value"), so the lane of the old
// shard takes them from the row that it deletes and carries them to the lane of the new one:
//
//	old lane: DELETE … RETURNING the values, kept in rehome.carry ──carry──▶ new lane: INSERT with them
//
// The value is what the row has at that point of the stream's order, so values that the same transaction changed before,
// rows that go A→B→A, and changes of the key come out right by themselves.
//
// # Over a crash
//
// The delete and its row of rehome.carry are one target transaction of the old shard. If that shard has the transaction
// and the new one does not, when the stream begins again, the new lane reads the values from there. They are kept until
// every shard has the transaction on disk, whether anybody waits for them now or not: a shard that had the transaction may
// yet lose it, if it was not on its disk.
//
// # Why lanes cannot wait for each other in a circle
//
// A lane waits for another only to have done something earlier in the stream: a need for its gift, which comes just before
// it, and a gift for the use of the same lane's earlier ones, since what is on its way is bounded (allowance). The lane that is furthest
// behind therefore never waits. This holds because a group with carries is applied strictly in its order (group.ordered),
// because the inbox hands such a piece of an open transaction out at once (the reader may be blocked by a lane that waits
// for it), and because what a lane gives is sent and read before it waits for anything.

// carry is the values of one row on their way from one lane to another.
type carry struct {
	from    *Shard
	lsn     tenant.LSN // commit position of the transaction
	ordinal int        // which of the transaction's carries, the same at every reading
	columns []int      // whose values are carried
	self    bool       // the row stays at its shard: nothing has to outlive the transaction
	stored  bool       // the old shard has the transaction already: the values are in its rehome.carry
	unused  bool       // the new shard has the transaction already: nobody waits

	done   chan struct{}
	values [][]byte   // set before done is closed, nil after use
	used   *allowance // of the lane that gave them
}

// carryBytes bounds what one lane has given and others have not used yet; the value that crosses the bound comes on top.
const carryBytes = 8 << 20

// carryPatience bounds one look at another shard's rehome.carry, the connection included.
const carryPatience = 30 * time.Second

// allowance counts what a lane has given and others have not used. Each lane has its own: if lanes shared one, it could be
// filled by gifts that come later in the stream than one that somebody waits for.
type allowance struct {
	mu    sync.Mutex
	bytes int
	freed chan struct{}
}

func newAllowance() *allowance { return &allowance{freed: make(chan struct{}, 1)} }

func (a *allowance) full() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.bytes >= carryBytes
}

func (a *allowance) take(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.bytes += n
}

func (a *allowance) free(n int) {
	a.take(-n)
	signal(a.freed)
}

// wait waits until there is room for one more. Only the lane itself waits.
func (a *allowance) wait(ctx context.Context) error {
	for a.full() {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-a.freed:
		}
	}
	return nil
}

// carryCount numbers the carries of a transaction. Only the reader uses it.
type carryCount struct {
	commit tenant.LSN
	n      int
}

// newCarry makes the carry of a row that goes from one lane to another, or nil if the source sent all of it.
func (s *stream) newCarry(from, to int, row pgoutput.Tuple) *carry {
	var columns []int
	for i := range row {
		if row[i].Kind == pgoutput.Unchanged {
			columns = append(columns, i)
		}
	}
	if columns == nil {
		return nil
	}
	if s.carries.commit != s.commit {
		s.carries = carryCount{commit: s.commit}
	}
	s.carries.n++ // also for lanes that skip the transaction, so that it has the same number at every reading
	return &carry{
		from: &s.lanes[from].shard, lsn: s.commit, ordinal: s.carries.n, columns: columns,
		self: from == to, stored: s.skip[from] && from != to, unused: s.skip[to], done: make(chan struct{}), used: s.lanes[from].gifts,
	}
}

func sizeOfValues(values [][]byte) (n int) {
	for _, v := range values {
		n += len(v)
	}
	return n
}

// fulfil hands the values over. It happens once: a group with carries is applied once.
func (k *carry) fulfil(values [][]byte) {
	if !k.unused {
		k.used.take(sizeOfValues(values))
		k.values = values
	}
	close(k.done)
}

// release forgets the values after their use.
func (k *carry) release() {
	k.used.free(sizeOfValues(k.values))
	k.values = nil
}

// give deletes a row and hands its values over before anything else is done.
func (r *pipelineRun) give(ctx context.Context, c *change) error {
	k := c.gives
	if r.l.gifts.full() {
		if err := r.results(); err != nil { // an error shows before the wait, not after it
			return err
		}
		if err := r.l.gifts.wait(ctx); err != nil {
			return err
		}
	}
	st, err := r.l.giveStatement(c)
	if err != nil {
		return err
	}
	if !k.self {
		r.l.keptCarry = max(r.l.keptCarry, k.lsn)
	}
	if err := r.send(st, expected{change: c, carry: k}); err != nil {
		return err
	}
	return r.results()
}

// given reads the one row that a give returns.
func (r *pipelineRun) given(w expected, rr *pgconn.ResultReader) error {
	var values [][]byte
	rows := 0
	for rr.NextRow() {
		rows++
		values = make([][]byte, 0, len(w.carry.columns))
		for _, v := range rr.Values() {
			if v == nil {
				values = append(values, nil)
				continue
			}
			values = append(values, append(make([]byte, 0, len(v)), v...))
		}
	}
	if _, err := rr.Close(); err != nil {
		return r.explain(w, err)
	}
	if rows != 1 {
		return errAbsent(r.l.shard.Name, w.change)
	}
	if err := w.carry.check(w.change.rel, values); err != "" {
		return errDivergence(r.l.shard.Name, w.change, err)
	}
	w.carry.fulfil(values)
	return nil
}

// check says what is wrong with values that were read; "" if nothing is. What the source did not send cannot be NULL.
func (k *carry) check(rel *relation, values [][]byte) string {
	for n, i := range k.columns {
		if n >= len(values) || values[n] == nil {
			return "has no value in " + rel.columns[i].Name + ", whose large value the source did not send again"
		}
	}
	return ""
}

// receive inserts a row with the values that were carried to it.
func (r *pipelineRun) receive(ctx context.Context, c *change) error {
	k := c.needs
	if k.stored {
		if err := r.l.fetchCarry(ctx, c); err != nil {
			return err
		}
	}
	select {
	case <-k.done:
	default:
		if err := r.results(); err != nil {
			return err
		}
		select {
		case <-k.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	for n, i := range k.columns {
		c.row[i] = pgoutput.Value{Kind: pgoutput.Text, Data: k.values[n]}
	}
	defer func() { // sent or failed: not needed again, since a group with carries is never applied a second time
		for _, i := range k.columns {
			c.row[i] = pgoutput.Value{Kind: pgoutput.Unchanged}
		}
		k.release()
	}()
	st, err := insertStatement(c)
	if err != nil {
		return err
	}
	return r.send(st, expected{change: c, counts: st.counts})
}

// giveStatement deletes the row, keeps the values and returns them, in the form in which the type's output function writes
// them. (A cast to text is not always that: it may be a function of the user's.)
func (l *lane) giveStatement(c *change) (statement, error) {
	k, rel := c.gives, c.rel
	where, args, shape, err := rel.match(c, 0)
	if err != nil {
		return statement{}, err
	}
	n := len(args)
	var names, kept []string
	var mask strings.Builder
	for j, i := range k.columns {
		names = append(names, tenant.QuoteIdent(rel.columns[i].Name)+" AS c"+strconv.Itoa(j))
		kept = append(kept, "("+tenant.QuoteLiteral(rel.columns[i].Name)+"::text, format('%s', gone.c"+strconv.Itoa(j)+"))")
		mask.WriteString("," + strconv.Itoa(i))
	}
	gone := func() string {
		return "WITH gone AS (DELETE FROM " + rel.target() + " WHERE " + where() + " RETURNING " + strings.Join(names, ", ") + ")"
	}
	if k.self {
		return statement{shape: rel.shape('g', shape+mask.String()), args: args, pruned: rel.table.Partitioned, sql: func() string { return gone() + " SELECT * FROM gone" }}, nil
	}
	args = append(args, []byte(l.replication), []byte(k.lsn.String()), []byte(strconv.Itoa(k.ordinal)))
	return statement{shape: rel.shape('G', shape+mask.String()), args: args, pruned: rel.table.Partitioned, sql: func() string {
		return fmt.Sprintf(`%s, kept AS (INSERT INTO rehome.carry (replication, lsn, ordinal, name, value)
			SELECT $%d::text, $%d::pg_lsn, $%d::int, v.name, v.value FROM gone, LATERAL (VALUES %s) v(name, value))
			SELECT * FROM gone`, gone(), n+1, n+2, n+3, strings.Join(kept, ", "))
	}}, nil
}

// fetchCarry reads what the old shard kept when it applied the transaction, before the stream began anew.
func (l *lane) fetchCarry(ctx context.Context, c *change) error {
	k := c.needs
	ctx, cancel := context.WithTimeoutCause(ctx, carryPatience, fmt.Errorf("read values that shard %s kept: %w", k.from.Name, errConnLost))
	defer cancel()
	conn := l.peers[k.from.Name]
	if conn == nil {
		var err error
		if conn, err = connect(ctx, k.from.DSN, "rehome-carry-"+l.replication, nil); err != nil {
			return fmt.Errorf("shard %s: %w", k.from.Name, err)
		}
		if l.peers == nil {
			l.peers = map[string]*pgx.Conn{}
		}
		l.peers[k.from.Name] = conn
	}
	rows, err := conn.Query(ctx, `SELECT name, value FROM rehome.carry WHERE replication = $1 AND lsn = $2::pg_lsn AND ordinal = $3`, l.replication, k.lsn.String(), k.ordinal)
	if err != nil {
		return fmt.Errorf("read values that shard %s kept: %w", k.from.Name, err)
	}
	found := map[string][]byte{}
	var name string
	var value []byte
	_, err = pgx.ForEachRow(rows, []any{&name, &value}, func() error {
		found[name] = append([]byte{}, value...)
		return nil
	})
	if err != nil {
		return fmt.Errorf("read values that shard %s kept: %w", k.from.Name, err)
	}
	values := make([][]byte, 0, len(k.columns))
	for _, i := range k.columns {
		v, ok := found[c.rel.columns[i].Name]
		if !ok {
			return stop("carry-missing", "cancel the replication and start it again",
				"a row of %s (%s) moved from shard %s to shard %s, and the value of column %s, which the source did not send again, is not kept at shard %s",
				c.rel.name, c.rel.keyText(c), k.from.Name, l.shard.Name, c.rel.columns[i].Name, k.from.Name)
		}
		values = append(values, v)
	}
	k.fulfil(values)
	return nil
}

// pruneCarries removes what no shard can need any more: see ack.
func (r *pipelineRun) pruneCarries(periodic bool) {
	l := r.l
	if l.keptCarry == 0 {
		return
	}
	ack := l.acked()
	if ack <= l.keptCarry && !periodic {
		return
	}
	r.query(`DELETE FROM rehome.carry WHERE replication = $1 AND lsn < $2`, l.replication, ack.String())
	if ack > l.keptCarry {
		l.keptCarry = 0
	}
}
