package replicator

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/replicator/pgoutput"
	"github.com/rehomedb/rehome/tenant"
)

const (
	// statusEvery keeps the walsender alive: well below half of wal_sender_timeout's default of 60 s, also for sources
	// that set it to 10 s.
	statusEvery = 3 * time.Second
	// ackEvery bounds how often an advance of the durable position is sent.
	ackEvery = 100 * time.Millisecond
	// barrierOpen bounds how long a lane waits for a snapshot of its shard: two statements on a session that is open.
	barrierOpen = 10 * time.Second
)

// stream reads the slot and feeds the lanes. It lives for one connection; after an error the engine makes another.
type stream struct {
	e      *Engine
	conn   *pgconn.PgConn
	gulp   *gulp // the connection below conn
	lanes  []*lane
	router *router
	dec    pgoutput.Decoder
	spools *spools // transactions that are streamed before they end
	ahead  *ahead  // the one of them that is applied while it comes; nil: none is
	rels   map[uint32]*relation

	// The transaction that is being read.
	inTx     bool
	watching bool       // the decision was for the target: the source must not write any more
	commit   tenant.LSN // its commit position
	xid      uint32     // its number, see visible
	at       tenant.LSN // of what is being read, before the transaction's commit
	skip     []bool     // per lane: the shard has it already
	marker   string
	foreign  string // while watching: a table that was written
	seen     bool   // a change of it was read
	own      bool   // it is the other direction's, see leads
	carries  carryCount
	ddl      ddlState

	// Of the message that is being read: the source's position and clock (microseconds since 2000) when it was sent.
	sentAt    tenant.LSN
	sentClock int64
	late      bool // the transaction is old, see gatherAfter

	ackNow chan struct{}
	ended  chan struct{} // closed when the stream is over
	turn   chan struct{} // of size 1: taken by whoever wants the reader to stop between transactions

	confirmed tenant.LSN // what the slot was acknowledged up to when the stream began

	mu       sync.Mutex
	start    tenant.LSN // where the slowest shard stands; not surely on its disk yet
	received tenant.LSN // everything before it was read
	begun    tenant.LSN // commit position of the last transaction that was begun
	head     tenant.LSN // the source's write position, as it last said
	barriers []*barrier
	ours     tenant.LSN // end of the last transaction that was the other direction's
	others   tenant.LSN // end of the last that was not
}

// run streams until the context ends or something fails; it returns what failed.
func (s *stream) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range s.lanes {
		g.Go(func() error { return l.run(ctx) })
	}
	g.Go(func() error { return s.acknowledge(ctx) })
	g.Go(func() error { return s.drain(ctx, s.read(ctx)) })
	return g.Wait()
}

// ack is what the source may forget: what every shard has on disk.
func (s *stream) ack() tenant.LSN {
	at := tenant.LSN(0)
	for i, l := range s.lanes {
		d := l.position().Durable
		if i == 0 || d < at {
			at = d
		}
	}
	return max(at, s.confirmed) // never 0, which the protocol library would turn into the write position
}

// acknowledge sends the positions on a timer of its own, so that the source stays connected also while the lanes are
// busy, and soon after the durable position moved.
//
// On the timer it asks for an answer: what a source that has nothing to say sends is how a connection that is open on this
// side only is told from a quiet one.
func (s *stream) acknowledge(ctx context.Context) error {
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	for answer := false; ; {
		at := s.ack()
		s.mu.Lock()
		written := max(s.received, at)
		s.mu.Unlock()
		err := pglogrepl.SendStandbyStatusUpdate(ctx, s.conn, pglogrepl.StandbyStatusUpdate{
			WALWritePosition: pglogrepl.LSN(written), WALFlushPosition: pglogrepl.LSN(at), WALApplyPosition: pglogrepl.LSN(at), ReplyRequested: answer,
		})
		if err != nil {
			return fmt.Errorf("acknowledge to the source: %w: %w", errConnLost, err)
		}
		if err := wait(ctx, ackEvery); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
			answer = true
		case <-s.ackNow:
			answer = false
		}
	}
}

// xLogHeader is what precedes a message of the plugin: kind, position, the server's position and its clock (manual, 55.4,
// XLogData).
const xLogHeader = 1 + 8 + 8 + 8

func (s *stream) read(ctx context.Context) error {
	defer s.stopAhead("the stream ends")
	var m pgoutput.Message
	defer s.gulp.watch(ctx)()
	from := s.conn.Frontend()
	for {
		raw, err := from.Receive()
		if err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return s.lost(err)
		}
		switch raw := raw.(type) {
		case *pgproto3.CopyData:
			if len(raw.Data) == 0 {
				continue
			}
			switch raw.Data[0] {
			case pglogrepl.PrimaryKeepaliveMessageByteID:
				k, err := pglogrepl.ParsePrimaryKeepaliveMessage(raw.Data[1:])
				if err != nil {
					return fmt.Errorf("stream: %w", err)
				}
				s.keepalive(tenant.LSN(k.ServerWALEnd))
				if k.ReplyRequested {
					signal(s.ackNow)
				}
			case pglogrepl.XLogDataByteID:
				if len(raw.Data) < xLogHeader {
					return fmt.Errorf("stream: a message of %d bytes is cut short", len(raw.Data))
				}
				s.at = tenant.LSN(binary.BigEndian.Uint64(raw.Data[1:]))
				s.sentAt, s.sentClock = tenant.LSN(binary.BigEndian.Uint64(raw.Data[9:])), int64(binary.BigEndian.Uint64(raw.Data[17:]))
				if err := s.data(ctx, raw.Data[xLogHeader:], &m); err != nil {
					return err
				}
			}
		case *pgproto3.ErrorResponse:
			return s.lost(pgconn.ErrorResponseToPgError(raw))
		case *pgproto3.CopyDone:
			return fmt.Errorf("%w: the source ended the stream", errConnLost)
		}
	}
}

// data takes one message of the plugin: at once, or into the spool of the transaction in progress that it belongs to.
func (s *stream) data(ctx context.Context, raw []byte, m *pgoutput.Message) error {
	if s.ahead.over() { // it makes room for another, or for itself when it has doubled
		s.stopAhead("it gave way")
	}
	if s.dec.Streaming() && len(raw) > 0 && pgoutput.Kind(raw[0]) != pgoutput.StreamStop {
		if err := s.spools.add(raw); err != nil {
			return err
		}
		if s.ahead == nil {
			s.runAhead(ctx)
		} else {
			s.ahead.more(s.spools.open)
		}
		return nil
	}
	if err := s.dec.Decode(raw, m); err != nil {
		return badMessage(err)
	}
	switch m.Kind {
	case pgoutput.StreamStart:
		s.gulp.behind.Store(true) // nobody waits for a transaction that has not ended
		s.spools.begin(m.XID)
		s.ahead.block(s.spools.open)
	case pgoutput.Begin:
		sent := pgoutput.Clock(s.sentClock)
		s.gulp.began(m.Time, sent)
		if late := sent.Sub(m.Time) > gatherAfter; late != s.late {
			s.late = late
			for _, l := range s.lanes {
				l.in.late(late)
			}
		}
		return s.message(ctx, m)
	case pgoutput.StreamAbort:
		if s.ahead.of(m.XID) {
			s.stopAhead("the source takes back what it did")
		}
		return s.spools.abort(m.XID, m.SubXID)
	case pgoutput.StreamCommit:
		return s.streamed(ctx, m)
	case pgoutput.StreamStop:
		s.ahead.tell()
	default:
		return s.message(ctx, m)
	}
	return nil
}

// streamed takes a transaction that was streamed before it ended as if it came whole just now. It does so also if every
// shard has it: the tables' descriptions within are not sent again.
func (s *stream) streamed(ctx context.Context, m *pgoutput.Message) error {
	described, done, err := s.endAhead(ctx, m)
	if err != nil {
		return err
	}
	s.xid = m.XID
	if err := s.begin(ctx, m.LSN, m.Time); err != nil {
		return err
	}
	if done { // all that is left are the tables' descriptions
		for i := range described {
			if err := s.message(ctx, &described[i]); err != nil {
				return err
			}
		}
		err = s.spools.drop(m.XID)
	} else {
		err = s.spools.commit(m.XID, func(row *pgoutput.Message) error { return s.message(ctx, row) })
	}
	if err != nil {
		return err
	}
	return s.commitTx(ctx, m)
}

func badMessage(err error) error {
	return stop("bad-message", "report this with the source's version", "the source's stream cannot be understood: %v", err)
}

// walRetries is how often in a row a session may end for want of WAL before the slot counts as lost. Once need not mean
// it: an acknowledgement may move the slot beyond what a session that has just begun still reads, and a checkpoint then
// removes that. The next session begins where the slot is. A slot that is lost for good says so in its wal_status.
const walRetries = 5

// lost explains the end of the stream. A slot whose WAL is gone can never go on.
func (s *stream) lost(err error) error {
	if pe, ok := errors.AsType[*pgconn.PgError](err); ok {
		removed := strings.Contains(pe.Message, "has already been removed")
		if removed && s.e.walMissing.Add(1) <= walRetries {
			return tenant.Errorf(tenant.KindUnavailable, "wal-missing", "", "the source's walsender read WAL that slot %s no longer holds: %s", s.e.src.slot, pe.Message)
		}
		if removed || pe.Code == "58P01" || pe.Code == "55000" {
			return stop("slot-lost", "cancel the replication and start it again; raise max_slot_wal_keep_size at the source before",
				"the source no longer has the changes that slot %s needs: %s", s.e.src.slot, pe.Message)
		}
		return fmt.Errorf("stream: %w", err)
	}
	return fmt.Errorf("stream: %w: %w", errConnLost, err)
}

// keepalive is the source's word that all before end was sent.
func (s *stream) keepalive(end tenant.LSN) {
	s.mu.Lock()
	s.head = max(s.head, end)
	s.mu.Unlock()
	if s.inTx {
		return
	}
	s.mu.Lock()
	s.placeBarriers(end)
	s.received = max(s.received, end)
	s.mu.Unlock()
	for _, l := range s.lanes {
		l.in.advance(end)
	}
}

func (s *stream) message(ctx context.Context, m *pgoutput.Message) error {
	switch m.Kind {
	case pgoutput.Begin:
		s.xid = m.XID
		return s.begin(ctx, m.LSN, m.Time)
	case pgoutput.Commit:
		return s.commitTx(ctx, m)
	case pgoutput.RelationKind:
		rel, err := s.e.relate(ctx, s.commit, m.Relation.Clone(), s.rels[m.Relation.OID])
		if err != nil {
			return err
		}
		s.rels[m.Relation.OID] = rel
	case pgoutput.Insert, pgoutput.Update, pgoutput.Delete:
		rel := s.rels[m.OID]
		if rel == nil {
			return stop("unknown-relation", "report this", "the source sent a row of table %d without its description", m.OID)
		}
		switch {
		case s.leads(rel, m):
			return nil
		case rel.special == markerTable:
			if m.Kind == pgoutput.Insert {
				s.marker = markerAttempt(rel, m.New)
			}
			return nil
		case rel.special == ddlTable:
			if m.Kind == pgoutput.Insert {
				return s.ddlRow(ctx, rel, m.New)
			}
			return nil
		case rel.special == truncatedTable && m.Kind == pgoutput.Insert:
			return s.partitionTruncated(ctx, rel, m.New)
		case rel.special == heartbeatTable, rel.special == truncatedTable, s.commit < rel.skip:
			return nil
		case rel.special == undescribed && !catalog.Included(s.e.cfg.Options, rel.name):
			return nil // published, but left out by the options
		case rel.special == undescribed:
			return stop("unknown-table", "cancel the replication and start it again", "table %s is published but was not there when the replication began", rel.name)
		case s.watching:
			s.foreign = rel.name.String()
			return nil
		case s.elsewhere(ctx, rel.table):
			return nil
		case rel.marks.mixedAt(s.commit):
			return s.dispatchMixed(ctx, rel, m)
		}
		return s.dispatch(ctx, rel, m)
	case pgoutput.Truncate:
		return s.truncate(ctx, m)
	}
	return nil
}

// enter comes to a transaction: what was asked for before it goes to the lanes.
func (s *stream) enter(ctx context.Context, commit tenant.LSN) error {
	select { // waits while a position is being chosen
	case s.turn <- struct{}{}:
		<-s.turn
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	s.mu.Lock()
	s.head = max(s.head, s.sentAt)
	s.placeBarriers(commit)
	s.begun = commit // under the same lock: a barrier that comes later must find that it is too late
	s.mu.Unlock()
	return nil
}

// begin opens a transaction in the lanes that do not have it.
func (s *stream) begin(ctx context.Context, commit tenant.LSN, at time.Time) error {
	if err := s.enter(ctx, commit); err != nil {
		return err
	}
	s.inTx, s.commit, s.marker, s.foreign = true, commit, "", ""
	s.seen, s.own = false, false
	s.ddl = ddlState{}
	s.watching = s.e.sourceClosed()
	for i, l := range s.lanes {
		s.skip[i] = commit < l.start
		if !s.skip[i] {
			l.in.begin(commit, at)
		}
	}
	return nil
}

func (s *stream) commitTx(ctx context.Context, m *pgoutput.Message) error {
	if err := s.endDDL(ctx); err != nil {
		return err
	}
	s.inTx = false
	s.e.walMissing.Store(0)
	for i, l := range s.lanes {
		if s.skip[i] {
			l.in.advance(m.EndLSN)
			if s.marker != "" {
				l.in.again(m.EndLSN, m.Time, s.marker)
			}
			continue
		}
		l.in.commit(m.EndLSN, s.marker)
	}
	s.mu.Lock()
	s.received = max(s.received, m.EndLSN)
	if s.own {
		s.ours = m.EndLSN
	} else {
		s.others = m.EndLSN
	}
	s.mu.Unlock()
	if s.marker != "" {
		s.e.markerRead(s.marker, m.LSN)
	}
	if s.foreign != "" {
		s.e.alarm(ctx, "source-written", fmt.Sprintf("%s was written at the source after the cutover, at %s", s.foreign, m.LSN))
	}
	return nil
}

func (s *stream) truncate(ctx context.Context, m *pgoutput.Message) error {
	s.seen = true
	if s.own {
		return nil
	}
	t := &truncation{restartIdentity: m.Flags&pgoutput.TruncateRestartIdentity != 0}
	for _, oid := range m.OIDs {
		rel := s.rels[oid]
		if rel == nil {
			return stop("unknown-relation", "report this", "the source truncated table %d without its description", oid)
		}
		switch {
		case rel.special != userTable:
		case s.commit < rel.skip:
			t.apart = true
		default:
			t.apart = t.apart || rel.marks.mixedAt(s.commit)
			t.rels = append(t.rels, rel)
		}
	}
	if len(t.rels) == 0 {
		return nil
	}
	if s.watching {
		s.foreign = t.rels[0].name.String()
		return nil
	}
	steps := []*truncation{t}
	switch {
	case s.e.cfg.back != nil:
		steps = s.backTruncations(ctx, t)
	case t.apart:
		steps = nil
		for _, rel := range t.rels {
			steps = append(steps, &truncation{rels: []*relation{rel}, apart: true, where: rel.truncatedPart(s.commit)})
		}
	}
	for i := range s.lanes {
		for _, step := range steps {
			if err := s.add(ctx, i, change{op: opTruncate, rel: step.rels[0], truncate: step}); err != nil {
				return err
			}
		}
	}
	return nil
}

func markerAttempt(rel *relation, row pgoutput.Tuple) string {
	for i, c := range rel.columns {
		if c.Name == "attempt" && i < len(row) && row[i].Kind == pgoutput.Text {
			return string(row[i].Data)
		}
	}
	return ""
}

// hold stops the reader before its next transaction until release is called. The source stays connected meanwhile.
func (s *stream) hold() (release func()) {
	s.turn <- struct{}{}
	return sync.OnceFunc(func() { <-s.turn })
}

// barrier is a position at which every lane stops, just long enough to open a snapshot of its shard, or to repair rows.
type barrier struct {
	at   tenant.LSN
	cat  *catalog.Catalogue // the source's at that position
	open func(ctx context.Context, l *lane) error
	most time.Duration // that a lane waits for open; 0: barrierOpen
	mu   sync.Mutex
	left int // lanes that are still to come; 0: all did, or nobody waits any more
	err  error
	done chan struct{}
}

// reached runs in a lane that has applied everything before the barrier and nothing after it. A snapshot that fails fails
// whoever asked for it, not the lane.
func (b *barrier) reached(ctx context.Context, l *lane) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left == 0 {
		return // abandoned
	}
	// The lane waits meanwhile: a session that hangs must fail the verification, not stop the shard.
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(b.most, barrierOpen))
	defer cancel()
	if err := b.open(ctx, l); err != nil && b.err == nil {
		b.err = fmt.Errorf("shard %s: %w", l.shard.Name, err)
	}
	if b.left--; b.left == 0 {
		close(b.done)
	}
}

// abandon makes lanes that come to the barrier later pass it. It waits for one that is just opening its snapshot.
func (b *barrier) abandon() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left = 0
}

// errPassed says that a lane was already beyond the position that a barrier was asked for.
var errPassed = errors.New("the stream was already beyond the snapshot's position")

// placeBarrier asks for a barrier before the first transaction that commits at or after its position.
func (s *stream) placeBarrier(b *barrier) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.begun >= b.at {
		return errPassed
	}
	b.left = len(s.lanes)
	s.barriers = append(s.barriers, b)
	return nil
}

// placeBarriers puts the barriers that belong before next into the lanes. Only the reader calls it, between transactions,
// and holds s.mu.
func (s *stream) placeBarriers(next tenant.LSN) {
	rest := s.barriers[:0]
	for _, b := range s.barriers {
		if next < b.at {
			rest = append(rest, b)
			continue
		}
		b.cat = s.e.Catalogue()
		for _, l := range s.lanes {
			l.in.barrier(b)
		}
	}
	s.barriers = rest
}
