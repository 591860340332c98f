package replicator

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/replicator/verify"
	"github.com/rehomedb/rehome/tenant"
)

// A comparison while the way back is open needs one cut through all sides. Each shard has a stream of its own, so there is
// no position of all of them; but the source has a state in which it has of every shard just what was committed there up
// to some position, if every lane stands still once:
//
//	shard 1  ──────P1──────▶     a snapshot exported at P1; the lane stands when it has applied all before P1
//	shard 2  ────────P2────▶     the same at P2
//	source   ─────────S────▶     exported when all lanes stand: all before P1 and P2, nothing of behind
//
// A lane stands only until the last one has come and the source's snapshot is exported, a statement.

const (
	// backStand is how long a lane stands for the others. They are milliseconds apart while they keep up; one may wait for
	// what another will do behind its position (see backconflict.go), which only ends with giving up. A rollback that begins
	// meanwhile waits for it, within its pause.
	backStand = 3 * time.Second
	// backSlow is the lag up to which lanes count as close together, so that it is worth letting one stand for the others.
	backSlow = 2 * time.Second
	// backLooks is how often a lane that stands asks whether it still should.
	backLooks = 50 * time.Millisecond
)

// errApart ends an attempt to bring the lanes to their positions.
var errApart = &tenant.Error{Kind: tenant.KindUnavailable, Code: "lanes-apart", Message: "the shards' lanes of the way back did not come to their positions together", Hint: "see: rehome replication-progress"}

// ErrNotCutOver says that the shards do not take the writes, or not any more.
var ErrNotCutOver = &tenant.Error{Kind: tenant.KindConflict, Code: "not-cut-over", Message: "the writes are changing sides, or have done so", Hint: "verify again when it is over"}

// BackVerifyOptions are what a comparison of the way back needs beyond VerifyOptions.
type BackVerifyOptions struct {
	Catalogue *catalog.Catalogue // what is replicated
	// Open reports whether the shards take the writes and no rollback has begun. When it does not any more, positions are
	// not waited for, and a source's snapshot that was made just then does not count. Nil: they do.
	Open func() bool
}

// Verify compares the source with what was committed at the shards, row by row, while the shards take writes and the way
// back goes on: at one cut, see above. Of opts, Repair is refused: rows at the source are nobody's to mend while the shards
// are authoritative, and the way back cannot copy them anew.
func (b *Back) Verify(ctx context.Context, back BackVerifyOptions, opts VerifyOptions) (tenant.Verification, error) {
	if opts.Repair {
		return tenant.Verification{}, tenant.Errorf(tenant.KindConflict, "no-repair", "see which rows differ; if the source is to stay behind: rehome complete",
			"rows are not repaired while the shards take the writes: the source would have to get them outside of the way back")
	}
	if opts.ID == "" {
		opts.ID = NewVerificationID()
	}
	if back.Open == nil {
		back.Open = func() bool { return true }
	}
	return verifyPasses(ctx, b.log, opts, func(ctx context.Context, opts VerifyOptions) (tenant.Verification, error) {
		return b.verifyAt(ctx, back, opts)
	})
}

// Home is the shard whose rows of reference tables the source gets.
func (b *Back) Home() string {
	for _, s := range b.side {
		if s.home {
			return s.shard.Name
		}
	}
	return ""
}

func (b *Back) verifyAt(ctx context.Context, back BackVerifyOptions, opts VerifyOptions) (tenant.Verification, error) {
	started := time.Now().UTC()
	at, tries, err := b.findCut(ctx, back)
	if err != nil {
		return tenant.Verification{}, err
	}
	defer at.close()
	in := verify.Input{
		Catalogue: back.Catalogue, Placement: b.cfg.Placement, Home: b.Home(), LSN: at.lsn, Jobs: opts.Jobs, MaxDiffs: opts.MaxDiffs, OnProgress: opts.OnProgress,
		Accepted: b.cfg.Options.Accept, MaxDuration: opts.MaxDuration, Pause: opts.Rest, Done: opts.Done, OnPart: opts.OnPart, OnDiff: opts.onDiff,
		Source: b.reader(b.cfg.Source, "source", at.name), Shards: map[string]verify.Sessions{},
	}
	for i, s := range b.side {
		in.Shards[s.shard.Name] = b.reader(s.shard.DSN, "shard "+s.shard.Name, at.views[i].name)
	}
	v, err := verify.Compare(ctx, in)
	v.ID, v.Replication, v.Attempts, v.StartedAt, v.Direction = opts.ID, b.cfg.Replication, tries, started, tenant.DirectionBack
	for i, s := range b.side {
		v.Shards = append(v.Shards, tenant.ShardPosition{Shard: s.shard.Name, LSN: at.views[i].lsn})
	}
	return v, err
}

// reader opens sessions of the comparison with an exported snapshot.
func (b *Back) reader(dsn tenant.DSN, label, snapshot string) verify.Sessions {
	return func(ctx context.Context) (*pgx.Conn, error) {
		c, err := connect(ctx, dsn, "rehome-verify-"+b.cfg.Replication, nil)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", label, err)
		}
		if err := useSnapshot(ctx, c, snapshot); err != nil {
			closeSoon(c)
			return nil, fmt.Errorf("%s: %w", label, err)
		}
		return c, nil
	}
}

// cutView is one cut: snapshots that are open until close.
type cutView struct {
	views []*view // of the shards, as in Back.side
	conn  *pgx.Conn
	name  string     // of the source's snapshot
	lsn   tenant.LSN // the source's position then
}

func (c *cutView) close() {
	for _, v := range c.views {
		v.close()
	}
	closeSoon(c.conn)
}

// findCut opens a cut, trying again where lanes had passed their positions or did not come together.
func (b *Back) findCut(ctx context.Context, back BackVerifyOptions) (*cutView, int, error) {
	wctx, cancel := context.WithTimeoutCause(ctx, barrierTimeout, errors.New("the way back did not come close enough to the shards in time"))
	defer cancel()
	for tries := 1; ; tries++ {
		if err := b.waitClose(wctx, back); err != nil {
			return nil, tries, err
		}
		at, err := b.openCut(wctx, back, tries >= verifyHoldFrom)
		if err == nil {
			return at, tries, nil
		}
		if again := errors.Is(err, errPassed) || errors.Is(err, errApart); !again || tries == verifyTries {
			return nil, tries, fmt.Errorf("open a position to compare at: %w", err)
		}
		b.log.Info("a cut through the way back is tried again", "because", err)
		if errors.Is(err, errApart) {
			if err := b.probe(wctx); err != nil {
				return nil, tries, err
			}
		}
	}
}

// probe waits, with no lane standing, for whoever is in the way of a slot's creation at a shard, and names them if it takes
// too long.
func (b *Back) probe(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range b.side {
		g.Go(func() error {
			v, err := s.engine.src.temporarySnapshot(ctx, "verify")
			v.close()
			if err != nil {
				return fmt.Errorf("shard %s: %w", s.shard.Name, s.translated(err))
			}
			return nil
		})
	}
	return g.Wait()
}

// waitClose waits until every lane streams and is close behind its shard.
func (b *Back) waitClose(ctx context.Context, back BackVerifyOptions) error {
	for {
		if !back.Open() {
			return ErrNotCutOver
		}
		p := b.Progress()
		if p.State == tenant.WayBackNone || p.State == tenant.WayBackBroken {
			return tenant.Errorf(tenant.KindUnavailable, "no-way-back", p.Remedy, "the way back is %s, so there is nothing to compare with: %s", p.State, p.Reason)
		}
		if p.State == tenant.WayBackRunning && p.Reason == "" && p.LagMillis < float64(backSlow.Milliseconds()) {
			return nil
		}
		if wait(ctx, defaultWatch) != nil {
			return context.Cause(ctx)
		}
	}
}

// meeting is where the lanes wait for each other.
type meeting struct {
	back BackVerifyOptions
	cut  *cutView

	mu   sync.Mutex
	left int           // lanes that are still to come
	done chan struct{} // closed when the source's snapshot is there, or could not be made
	err  error         // why not; to be read behind done
	off  chan struct{} // closed when nobody wants it any more
	end  func()        // closes off
}

// openCut makes a snapshot at every shard and has the lanes stand at them together.
func (b *Back) openCut(ctx context.Context, back BackVerifyOptions, hold bool) (_ *cutView, err error) {
	cut := &cutView{views: make([]*view, len(b.side))}
	defer func() {
		if err != nil {
			cut.close()
		}
	}()
	// Connected before, so that the lanes stand for a statement and not for a connection.
	if cut.conn, err = connect(ctx, b.cfg.Source, "rehome-verify-"+b.cfg.Replication, nil); err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	m := &meeting{back: back, cut: cut, left: len(b.side), done: make(chan struct{}), off: make(chan struct{})}
	m.end = sync.OnceFunc(func() { close(m.off) })
	defer m.end()
	g, gctx := errgroup.WithContext(ctx)
	defer context.AfterFunc(gctx, m.end)() // whoever stands need not wait for one that failed
	for i, s := range b.side {
		g.Go(func() error { return b.meet(gctx, s, m, i, hold) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return cut, nil
}

// meet brings one lane to its position.
func (b *Back) meet(ctx context.Context, s *backSide, m *meeting, i int, hold bool) error {
	stream, err := s.engine.currentStream()
	if err != nil {
		return err
	}
	if hold {
		// The reader stands still while the slot is made, which may take long if somebody is in its way.
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, 2*backStand, errApart)
		defer cancel()
		defer context.AfterFunc(ctx, m.end)()
	}
	m.cut.views[i], err = s.engine.reachTogether(ctx, stream, hold, backStand, func(ctx context.Context, _ *view, _ *lane) error { return m.stand(ctx) }, nil)
	if err != nil && errors.Is(context.Cause(ctx), errApart) {
		return errApart
	}
	if err != nil {
		return fmt.Errorf("shard %s: %w", s.shard.Name, s.translated(err))
	}
	return nil
}

// stand runs in a lane, at its position, until all lanes are at theirs and the source's snapshot is made.
func (m *meeting) stand(ctx context.Context) error {
	m.mu.Lock()
	m.left--
	last := m.left == 0
	m.mu.Unlock()
	if last {
		switch m.err = m.cut.export(ctx); {
		case m.err != nil && ctx.Err() != nil:
			m.err = errApart
		case m.err == nil && !m.back.Open():
			m.err = ErrNotCutOver // a rollback may have let the source be written just then
		}
		close(m.done)
	}
	tick := time.NewTicker(backLooks)
	defer tick.Stop()
	for {
		select {
		case <-m.done:
			return m.err
		case <-m.off:
			return errApart
		case <-ctx.Done(): // stood for long enough, or the stream ends
			m.end()
			return errApart
		case <-tick.C:
			if !m.back.Open() {
				m.end()
				return ErrNotCutOver
			}
		}
	}
}

// export makes the source's snapshot.
func (c *cutView) export(ctx context.Context) error {
	if _, err := c.conn.Exec(ctx, "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"); err != nil {
		return fmt.Errorf("source: %w", err)
	}
	if err := c.conn.QueryRow(ctx, "SELECT pg_export_snapshot(), pg_current_wal_lsn()::text").Scan(&c.name, &c.lsn); err != nil {
		return fmt.Errorf("source: export a snapshot: %w", err)
	}
	return nil
}
