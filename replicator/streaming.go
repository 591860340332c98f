package replicator

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/tenant"
)

const (
	// defaultWatch is how often slot, lag and phase are looked at.
	defaultWatch = 500 * time.Millisecond
	// inSyncBytes and inSyncAge: below them for inSyncSamples looks in a row, a replication is in sync.
	inSyncBytes   = 16 << 20
	inSyncAge     = 2 * time.Second
	inSyncSamples = 3
	// behindAge: above it a replication is no longer in sync. Far from inSyncAge, so that it does not flap.
	behindAge = 60 * time.Second
	// watchPatience bounds each look at the source: one that vanished without a word is noticed by it, while the stream's
	// session would wait for the network's own timeouts.
	watchPatience = 30 * time.Second
)

// streamOnce opens the lanes and the stream and runs them until something fails.
func (e *Engine) streamOnce(ctx context.Context) error {
	s := &stream{e: e, router: e.router, rels: map[uint32]*relation{}, spools: newSpools(e.cfg.SpoolMemory), ackNow: make(chan struct{}, 1), ended: make(chan struct{}), turn: make(chan struct{}, 1), skip: make([]bool, len(e.cfg.Shards))}
	defer s.close()
	for _, sh := range e.cfg.Shards {
		l := &lane{
			shard: sh, replication: e.cfg.Replication, epoch: e.cfg.Epoch, pass: e.cfg.Pass.Reveal(), in: newInbox(), uncopied: new(tableSet), inOrder: new(tableSet),
			back: e.cfg.back, onMarker: e.markerApplied, onDurable: func() { signal(s.ackNow) }, acked: s.ack, onlyOurs: s.onlyOurs,
		}
		if err := l.open(ctx); err != nil {
			return err
		}
		s.lanes = append(s.lanes, l)
		l.start = l.pos.lsn
		if s.start == 0 || l.pos.lsn < s.start {
			s.start = l.pos.lsn
		}
	}
	// Only now: a worker that lost its lease must not end the session of the one that has it.
	if err := e.checkOrigin(ctx); err != nil {
		return err
	}
	if err := e.loadShape(ctx, s); err != nil {
		return err
	}
	if err := e.checkPositions(ctx, s); err != nil {
		return err
	}
	err := e.buildLater(ctx, s.lanes)
	if err != nil {
		return err
	}
	if s.conn, s.gulp, err = e.src.walsender(ctx); err != nil {
		return err
	}
	s.received, s.head = s.start, s.start
	err = pglogrepl.StartReplication(ctx, s.conn, string(e.src.slot), pglogrepl.LSN(s.start), pglogrepl.StartReplicationOptions{
		Mode:       pglogrepl.LogicalReplication,
		PluginArgs: append(protocol(s.conn.ParameterStatus("server_version")), "publication_names "+tenant.QuoteLiteral(tenant.QuoteIdent(e.cfg.Publication))),
	})
	if err != nil {
		return s.lost(err)
	}
	e.mu.Lock()
	e.stream = s
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		e.stream = nil
		e.mu.Unlock()
	}()
	e.stats.setStep("")
	e.log.Info("streaming", "from", s.start.String())
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.run(ctx) })
	g.Go(func() error { return e.watch(ctx, s) })
	if err := g.Wait(); !errors.Is(err, errBuildLater) {
		return err
	}
	return nil
}

// protocol asks for the streaming of transactions in progress where the source can do it: else the source writes a large
// transaction to its own disk, and sends all of it only behind its commit.
func protocol(serverVersion string) []string {
	const since = 14 // manual, release notes of 14
	if major, _, _ := strings.Cut(serverVersion, "."); leadingNumber(major) >= since {
		return []string{"proto_version '2'", "streaming 'on'"}
	}
	return []string{"proto_version '1'"}
}

// leadingNumber reads the digits that a version begins with: 19beta1 is 19.
func leadingNumber(s string) (n int) {
	for _, r := range s {
		if r < '0' || r > '9' {
			break
		}
		n = n*10 + int(r-'0')
	}
	return n
}

func (s *stream) close() {
	close(s.ended)
	if err := s.spools.close(); err != nil {
		s.e.log.Warn("close spooled transactions", "error", err)
	}
	closePgSoon(s.conn)
	for _, l := range s.lanes {
		l.close()
	}
}

// checkPositions refuses a slot that is ahead of a shard: START_REPLICATION would skip forward without an error.
func (e *Engine) checkPositions(ctx context.Context, s *stream) error {
	c, err := e.src.conn(ctx, "setup")
	if err != nil {
		return err
	}
	defer closeSoon(c)
	slot, err := e.src.slotState(ctx, c)
	if err != nil {
		return err
	}
	// Nothing beyond it is acknowledged until the shards say that it is on their disks: what they just told us of may
	// still be lost with a crash, since lanes do not wait for the flush of a commit.
	s.confirmed = slot.confirmed
	for _, l := range s.lanes {
		if slot.confirmed > l.pos.lsn {
			return stop("slot-ahead", "the shard lost transactions, or the slot was moved by others: cancel the replication and start it again",
				"slot %s was acknowledged up to %s, but shard %s has only what came before %s", e.src.slot, slot.confirmed, l.shard.Name, l.pos.lsn)
		}
	}
	return nil
}

// watch looks after the slot and the phase while the stream runs.
func (e *Engine) watch(ctx context.Context, s *stream) error {
	c, err := e.src.conn(ctx, "watch")
	if err != nil {
		return err
	}
	defer closeSoon(c)
	var lastBeat time.Time
	good := 0
	for {
		lctx, cancel := context.WithTimeout(ctx, watchPatience)
		slot, err := e.src.slotState(lctx, c)
		cancel()
		if err != nil {
			return err
		}
		if !slot.exists {
			// A server that was promoted or exchanged has no such slot either: that is said first.
			if err := e.checkOrigin(ctx); err != nil {
				return err
			}
			return stop("slot-missing", "cancel the replication and start it again", "replication slot %s is gone from the source", e.src.slot)
		}
		e.stats.mu.Lock()
		e.stats.slotWAL, e.stats.head = int64(slot.current-min(slot.restart, slot.current)), slot.current
		e.stats.mu.Unlock()
		s.mu.Lock()
		s.head = max(s.head, slot.current)
		s.mu.Unlock()
		if !e.cfg.Options.NoHeartbeat && time.Since(lastBeat) >= e.cfg.Heartbeat {
			bctx, cancel := context.WithTimeout(ctx, watchPatience)
			err := e.cfg.Gate.Heartbeat(bctx, c)
			cancel()
			if err != nil {
				return fmt.Errorf("heartbeat at the source: %w", err)
			}
			lastBeat = time.Now()
		}
		if e.canBuildLater(s) {
			return errBuildLater // before the stream begins again
		}
		if good, err = e.judge(ctx, s, good); err != nil {
			return err
		}
		if err := wait(ctx, e.cfg.Watch); err != nil {
			return err
		}
	}
}

// judge moves between catching_up and in_sync.
func (e *Engine) judge(ctx context.Context, s *stream, good int) (int, error) {
	var p tenant.Progress
	s.fill(&p)
	age := time.Duration(p.LagMillis * float64(time.Millisecond))
	switch e.State().Phase {
	case tenant.CatchingUp:
		if p.LagBytes > inSyncBytes || age > inSyncAge || e.waitsForStream() {
			return 0, nil
		}
		if good++; good < inSyncSamples {
			return good, nil
		}
		_, err := e.observe(ctx, tenant.Observation{Kind: tenant.SawCaughtUp})
		return 0, err
	case tenant.InSync:
		if age > behindAge {
			_, err := e.observe(ctx, tenant.Observation{Kind: tenant.SawFellBehind})
			return 0, err
		}
	}
	return 0, nil
}

// marker is a cutover's marker on its way through the lanes.
type marker struct {
	lsn   tenant.LSN
	read  bool
	left  map[string]bool
	pos   []tenant.ShardPosition
	done  chan struct{}
	ended bool
}

// markerOf finds an attempt's marker, or begins to look out for it. The caller holds e.mu.
func (e *Engine) markerOf(attempt string) *marker {
	m := e.markers[attempt]
	if m == nil {
		m = &marker{left: map[string]bool{}, done: make(chan struct{})}
		for _, sh := range e.cfg.Shards {
			m.left[sh.Name] = true
		}
		e.markers[attempt] = m
	}
	return m
}

// WaitMarker waits until every shard has durably applied everything up to the attempt's marker, and returns the marker's
// commit position and the shards' positions. It ends with the context, and says then who is behind: *Undrained.
func (e *Engine) WaitMarker(ctx context.Context, attempt string) (tenant.LSN, []tenant.ShardPosition, error) {
	e.mu.Lock()
	m := e.markerOf(attempt)
	e.mu.Unlock()
	select {
	case <-ctx.Done():
		return 0, nil, e.undrained(m, context.Cause(ctx))
	case <-m.done:
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.markers, attempt)
	return m.lsn, m.pos, nil
}

func (e *Engine) markerRead(attempt string, lsn tenant.LSN) {
	e.mu.Lock()
	defer e.mu.Unlock()
	m := e.markerOf(attempt)
	m.lsn, m.read = lsn, true
	m.settle()
}

func (e *Engine) markerApplied(shard, attempt string, pos tenant.ShardPosition) {
	e.mu.Lock()
	defer e.mu.Unlock()
	m := e.markerOf(attempt)
	if !m.left[shard] {
		return
	}
	delete(m.left, shard)
	m.pos = append(m.pos, pos)
	m.settle()
}

func (m *marker) settle() {
	if m.read && len(m.left) == 0 && !m.ended {
		m.ended = true
		close(m.done)
	}
}
