package replicator

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/rehomedb/rehome/replicator/pgoutput"
	"github.com/rehomedb/rehome/tenant"
)

// A large transaction that the source streams before it ends is applied at the shards while it still comes, each shard's
// part in a transaction of a session of its own (side), and commits in its turn: when the lane has applied everything that
// comes before it, the side session records the position and commits. So the source's decoding and the shards' work overlap.
//
//	reader ──▶ spool ──▶ follower ─route─▶ inbox of each side ──▶ side session ┄┄ COMMIT in the lane's turn
//
// It gives itself up: the spool stays whole until the commit, and whenever anything is not plainly ordinary the side
// sessions roll back, and the transaction is applied from its spool as if it had never run ahead.
//
// # Why the order holds
//
// A block of the transaction is read at the source after everything that the stream brought before it was committed. So a
// side waits at each block until its lane has applied what was given to it by then. What commits at the source between
// the transaction's blocks and its own end cannot have written the same rows or keys, for which it would have waited
// there. Where it could (a sub-transaction that was rolled back, a TRUNCATE or a change of the schema), the transaction
// gives way before the lanes are given that; and at the shard it gives way to whoever waits for it.

const (
	// defaultAheadFrom is from what size on a transaction in progress runs ahead: one that takes the shards some tenths of
	// a second. What comes before is time in which they wait.
	defaultAheadFrom = 6 << 20
	// aheadTries is how often a transaction runs ahead that had to give way, each time when it has doubled since.
	aheadTries = 4
	// aheadTell is how much is spooled between two words to the follower.
	aheadTell = 64 << 10
	// aheadLook is how much is spooled between two looks whether a transaction may run ahead.
	aheadLook = 1 << 20
)

// aheadTry is what a spool knows of its running ahead.
type aheadTry struct {
	from  int64 // size from which it may; 0: not looked at yet
	tries int
}

// ahead is the one transaction that is applied while it comes.
type ahead struct {
	s      *stream
	sp     *spool
	gone   map[uint32]struct{} // sub-transactions that were rolled back before it began
	routes *stream             // gives the changes to the sides instead of the lanes
	sides  []*side
	cancel context.CancelCauseFunc
	ended  chan struct{} // closed when nothing of it is left
	told   int64         // size of the spool when the follower was last told. The reader's.

	mu        sync.Mutex
	blocks    []aheadBlock
	described []pgoutput.Relation
	whole     bool // the source has committed it: no more comes
	read      bool // the follower has read all of it
	why       error
	news      chan struct{} // of size 1: blocks, whole or the spool changed
}

// aheadBlock says what every lane must have applied before what the transaction has from an offset on.
type aheadBlock struct {
	from  int64
	given []tenant.LSN
}

var (
	errGaveWay = errors.New("it is not ordinary")
	errStopped = errors.New("stopped by the reader of the stream")
)

// runsAhead reports whether transactions of this replication may run ahead at all.
func (c Config) runsAhead() bool { return c.AheadFrom >= 0 && !c.Options.NoRunAhead && c.back == nil }

// runAhead begins to apply the transaction whose block is being read, if it is large enough and nothing speaks against it.
func (s *stream) runAhead(ctx context.Context) {
	sp := s.spools.open
	from := s.e.cfg.AheadFrom
	switch {
	case sp.ahead.from == 0 && !s.e.cfg.runsAhead():
		sp.ahead.from = math.MaxInt64
	case sp.ahead.from == 0 && from == 0:
		sp.ahead.from = defaultAheadFrom
	case sp.ahead.from == 0:
		sp.ahead.from = from
	}
	if sp.size() < sp.ahead.from {
		return
	}
	if !s.mayRunAhead() {
		sp.ahead.from = sp.size() + aheadLook
		return
	}
	if sp.ahead.tries++; sp.ahead.tries >= aheadTries {
		sp.ahead.from = math.MaxInt64
	} else {
		sp.ahead.from = 2 * sp.size()
	}
	s.ahead = newAhead(ctx, s, sp)
}

// mayRunAhead reports whether all that is known says that the transaction being read will be applied, by every shard.
func (s *stream) mayRunAhead() bool {
	if p := s.e.State().Phase; (p != tenant.CatchingUp && p != tenant.InSync) || s.e.sourceClosed() {
		return false
	}
	// It commits behind what is being read: behind what every shard has, and what every table's copy has.
	if _, copied := s.e.watermarks(); s.at < copied {
		return false
	}
	for _, l := range s.lanes {
		if s.at < l.start || l.mends {
			return false
		}
	}
	return true
}

func newAhead(ctx context.Context, s *stream, sp *spool) *ahead {
	ctx, cancel := context.WithCancelCause(ctx)
	a := &ahead{
		s: s, sp: sp, gone: maps.Clone(sp.aborted), cancel: cancel, ended: make(chan struct{}), news: make(chan struct{}, 1),
		routes: &stream{e: s.e, router: s.router, rels: map[uint32]*relation{}, skip: make([]bool, len(s.lanes)), commit: s.at},
	}
	var wg sync.WaitGroup
	for _, l := range s.lanes {
		sd := newSide(a, l)
		a.sides = append(a.sides, sd)
		a.routes.lanes = append(a.routes.lanes, sd.l)
		sd.l.in.begin(s.at, time.Now())
		wg.Go(func() { sd.run(ctx) })
	}
	a.block(sp)
	a.blocks[0].from = 0
	wg.Go(func() {
		if err := a.follow(ctx); err != nil {
			a.fail(err)
		}
	})
	go func() {
		wg.Wait()
		cancel(nil)
		close(a.ended)
	}()
	return a
}

// of reports whether it is a transaction's.
func (a *ahead) of(xid uint32) bool { return a != nil && a.sp.xid == xid }

// block takes note of a block of the transaction: it comes behind all that the lanes were given.
func (a *ahead) block(sp *spool) {
	if a == nil || a.sp != sp {
		return
	}
	given := make([]tenant.LSN, len(a.s.lanes))
	for i, l := range a.s.lanes {
		given[i] = l.in.lastGiven()
	}
	a.mu.Lock()
	a.blocks = append(a.blocks, aheadBlock{sp.size(), given})
	a.mu.Unlock()
}

// more tells the follower of a message now and then.
func (a *ahead) more(sp *spool) {
	if a.sp == sp && sp.size()-a.told >= aheadTell {
		a.tell()
	}
}

// tell tells the follower of what is in the spool.
func (a *ahead) tell() {
	if a != nil {
		a.told = a.sp.size()
		signal(a.news)
	}
}

// fail gives it up: for all shards while there is more to come, since none can go on alone. Under the lock, so that no shard
// has its turn by then: see follow.
func (a *ahead) fail(why error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.why == nil && !errors.Is(why, errStopped) {
		a.why = why
	}
	if !a.read {
		a.cancel(why)
	}
}

// over reports whether it has given itself up, with nothing left of it.
func (a *ahead) over() bool {
	if a == nil {
		return false
	}
	select {
	case <-a.ended:
		return true
	default:
		return false
	}
}

// stopAhead rolls back what runs ahead, and waits until that is done.
func (s *stream) stopAhead(why string) {
	a := s.ahead
	if a == nil {
		return
	}
	s.ahead = nil
	a.cancel(errStopped)
	<-a.ended
	a.report(why)
}

func (a *ahead) report(why string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.why != nil && !errors.Is(a.why, context.Canceled) {
		why = a.why.Error()
	}
	a.s.e.log.Info("a large transaction does not run ahead of its commit", "because", why)
}

// endAhead has the transaction that ran ahead commit in the turn of each lane. It is done when every shard has it; described are
// the tables' descriptions within. Shards that do not have it get it from the spool.
func (s *stream) endAhead(ctx context.Context, m *pgoutput.Message) (described []pgoutput.Message, done bool, err error) {
	a := s.ahead
	if !a.of(m.XID) {
		return nil, false, nil
	}
	if err := s.enter(ctx, m.LSN); err != nil {
		return nil, false, err
	}
	if s.e.sourceClosed() { // behind enter, which may have waited for the decision
		s.stopAhead("the shards take the writes now")
		return nil, false, nil
	}
	a.mu.Lock()
	a.whole = true
	a.mu.Unlock()
	a.tell()
	for i, sd := range a.sides {
		sd.end = m.EndLSN
		s.lanes[i].in.turn(sd, m.Time)
	}
	done = true
	for i, sd := range a.sides {
		select {
		case has := <-sd.settled:
			if has {
				s.lanes[i].start = m.EndLSN // the lane skips the transaction
			}
			done = done && has
		case <-ctx.Done():
			return nil, false, context.Cause(ctx)
		}
	}
	if !done {
		s.stopAhead("a shard could not apply it so")
		return nil, false, nil
	}
	<-a.ended
	s.ahead = nil
	s.e.aheadTxns.Add(1)
	for _, sd := range a.sides {
		s.e.copiedRows.Add(sd.l.copied)
	}
	for i := range a.described {
		described = append(described, pgoutput.Message{Kind: pgoutput.RelationKind, OID: a.described[i].OID, Relation: a.described[i]})
	}
	return described, true, nil
}

// follow reads the spool behind the reader of the stream and gives the changes to the sides.
func (a *ahead) follow(ctx context.Context) error {
	r := follower{a: a}
	var m pgoutput.Message
	for {
		raw, err := r.next(ctx)
		if err != nil {
			return err
		}
		if raw == nil {
			break
		}
		_, xid, err := pgoutput.Peek(raw, true)
		if err == nil {
			if _, gone := a.gone[xid]; gone && xid != 0 {
				continue
			}
			err = pgoutput.Parse(raw, true, &m)
		}
		if err != nil {
			return badMessage(err)
		}
		if err := a.route(ctx, &m); err != nil {
			return err
		}
	}
	a.mu.Lock()
	if a.why != nil {
		defer a.mu.Unlock()
		return a.why
	}
	a.read = true
	a.mu.Unlock()
	for _, sd := range a.sides {
		sd.l.in.commit(a.routes.commit, aheadWhole)
	}
	return nil
}

// aheadWhole marks the last group of a side.
const aheadWhole = "whole"

// unusual is why a transaction does not run ahead.
func unusual(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errGaveWay, fmt.Sprintf(format, args...))
}

// route gives a change to the sides that own it. Everything but changes of rows of tables whose shape is known is left to the
// transaction's turn.
func (a *ahead) route(ctx context.Context, m *pgoutput.Message) error {
	s := a.routes
	switch m.Kind {
	case pgoutput.RelationKind:
		d := m.Relation.Clone()
		table, special := s.e.Catalogue().Table(d.OID), specialOf(&d)
		if special == userTable && table != nil && !describes(table, &d) {
			return unusual("it changes the shape of %s", table.Name)
		}
		rel, err := s.e.join(s.commit, d, special, table, s.rels[d.OID])
		if err != nil {
			return err
		}
		s.rels[d.OID] = rel
		a.mu.Lock()
		a.described = append(a.described, d)
		a.mu.Unlock()
	case pgoutput.Insert, pgoutput.Update, pgoutput.Delete:
		rel := s.rels[m.OID]
		switch {
		case rel == nil:
			return unusual("a table of it is not described")
		case rel.special == heartbeatTable:
			return nil
		case rel.special != userTable, rel.full, rel.marks != nil, s.commit < rel.skip:
			return unusual("it writes to %s", rel.name)
		}
		return s.dispatch(ctx, rel, m)
	case pgoutput.Truncate:
		return unusual("it truncates")
	}
	return nil
}

// follower reads the messages of a spool behind its writer.
type follower struct {
	a    *ahead
	buf  []byte
	off  int64 // in the spool, of what is behind buf
	used int
}

// next gives the next message, which stays valid until the next call, or nil at the transaction's end.
func (f *follower) next(ctx context.Context) ([]byte, error) {
	for need := 4; ; {
		if have := len(f.buf) - f.used; have >= need {
			if need == 4 {
				if need += int(binary.BigEndian.Uint32(f.buf[f.used:])); have < need {
					continue
				}
			}
			raw := f.buf[f.used+4 : f.used+need]
			if err := f.a.await(ctx, f.off-int64(have)); err != nil {
				return nil, err
			}
			f.used += need
			return raw, nil
		}
		if end, err := f.fill(ctx, need); end || err != nil {
			return nil, err
		}
	}
}

// fill reads on, and waits while there is nothing.
func (f *follower) fill(ctx context.Context, need int) (end bool, err error) {
	have := copy(f.buf[:cap(f.buf)], f.buf[f.used:])
	f.used = 0
	if size := max(need, spoolBuffer); cap(f.buf) < size || (cap(f.buf) > 4*spoolBuffer && size == spoolBuffer) {
		f.buf = append(make([]byte, 0, size), f.buf[:have]...)
	}
	f.buf = f.buf[:have]
	for {
		f.a.mu.Lock()
		whole := f.a.whole
		f.a.mu.Unlock()
		n, err := f.a.sp.readAt(f.buf[have:cap(f.buf)], f.off)
		if err != nil {
			return false, fmt.Errorf("read a spooled transaction: %w", err)
		}
		if n > 0 {
			f.buf, f.off = f.buf[:have+n], f.off+int64(n)
			return false, nil
		}
		if whole {
			if have > 0 {
				return false, errors.New("read a spooled transaction: it is cut short")
			}
			return true, nil
		}
		select {
		case <-ctx.Done():
			return false, context.Cause(ctx)
		case <-f.a.news:
		}
	}
}

// await waits until the lanes have applied what comes before an offset of the transaction.
func (a *ahead) await(ctx context.Context, offset int64) error {
	a.mu.Lock()
	n := 0
	for n < len(a.blocks) && a.blocks[n].from <= offset {
		n++
	}
	if n == 0 {
		a.mu.Unlock()
		return nil
	}
	given := slices.Clone(a.blocks[n-1].given)
	a.blocks = a.blocks[n:]
	a.mu.Unlock()
	for i, l := range a.s.lanes {
		for l.position().LSN < given[i] {
			if err := wait(ctx, aheadPoll); err != nil {
				return err
			}
		}
	}
	return nil
}
