package replicator

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/replicator/verify"
	"github.com/rehomedb/rehome/tenant"
)

const (
	// verifyTries is how often a position is chosen anew because a lane was already beyond it; the last tries hold the
	// stream while the snapshot is made.
	verifyTries, verifyHoldFrom = 6, 3
	// barrierTimeout bounds the wait for the lanes to reach the position: they may be behind, but not for ever.
	barrierTimeout = 10 * time.Minute
)

// VerifyOptions tune a verification.
type VerifyOptions struct {
	Jobs       int // tables at a time; 0: by the machine
	OnProgress func(verify.Progress)
}

// Verify compares both sides row by row at one exact position, while both keep moving: the source's snapshot is exactly
// the commits before a position, and each lane stops at that position just long enough to open a snapshot of its shard.
func (e *Engine) Verify(ctx context.Context, opts VerifyOptions) (tenant.Verification, error) {
	started := time.Now().UTC()
	for try := 1; ; try++ {
		at, err := e.openPosition(ctx, try >= verifyHoldFrom)
		if errors.Is(err, errPassed) && try < verifyTries {
			continue
		}
		if err != nil {
			return tenant.Verification{}, fmt.Errorf("open a position to compare at: %w", err)
		}
		defer at.close()
		v, err := e.compare(ctx, at, opts)
		v.ID, v.Replication, v.Attempts, v.StartedAt = strings.ToLower(rand.Text()[:12]), e.cfg.Replication, try, started
		return v, err
	}
}

// positionView is one position seen on both sides: snapshots that are open until close.
type positionView struct {
	source *view
	mu     sync.Mutex
	shards map[string]*shardView
}

type shardView struct {
	conn *pgx.Conn
	name string
}

func (p *positionView) close() {
	p.source.close()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.shards {
		closeSoon(s.conn)
	}
}

func (e *Engine) currentStream() (*stream, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stream == nil {
		return nil, tenant.Errorf(tenant.KindUnavailable, "not-streaming", "see: rehome replication-progress", "the replication is not streaming just now")
	}
	return e.stream, nil
}

// openPosition makes a snapshot at the source and has every lane open one at the same position.
func (e *Engine) openPosition(ctx context.Context, hold bool) (_ *positionView, err error) {
	s, err := e.currentStream()
	if err != nil {
		return nil, err
	}
	pv := &positionView{shards: map[string]*shardView{}}
	defer func() {
		if err != nil {
			pv.close()
		}
	}()
	// Connected before the barrier, so that a lane waits for two statements and not for a connection.
	for _, sh := range e.cfg.Shards {
		c, err := connect(ctx, sh.DSN, "rehome-verify-"+e.cfg.Replication, nil)
		if err != nil {
			return nil, fmt.Errorf("shard %s: %w", sh.Name, err)
		}
		pv.shards[sh.Name] = &shardView{conn: c}
	}
	release := func() {}
	if hold {
		release = s.hold()
		defer release()
	}
	if pv.source, err = e.src.temporarySnapshot(ctx, "verify"); err != nil {
		return nil, err
	}
	b := &barrier{at: pv.source.lsn, done: make(chan struct{}), open: pv.openShard}
	if err := s.placeBarrier(b); err != nil {
		return nil, err
	}
	release()
	defer func() {
		if err != nil {
			b.abandon()
		}
	}()
	// A commit behind the snapshot, so that the position is reached at once also on an idle source.
	if c, err := e.src.conn(ctx, "verify"); err == nil {
		err = e.cfg.Gate.Heartbeat(ctx, c)
		closeSoon(c)
		if err != nil {
			e.log.Warn("heartbeat for a verification", "error", err)
		}
	}
	wctx, cancel := context.WithTimeoutCause(ctx, barrierTimeout, errors.New("the shards did not reach the position in time"))
	defer cancel()
	select {
	case <-b.done:
		return pv, b.err
	case <-s.ended:
		return nil, tenant.Errorf(tenant.KindUnavailable, "stream-ended", "try again", "the stream was interrupted while the position was being opened")
	case <-wctx.Done():
		return nil, context.Cause(wctx)
	}
}

// openShard runs in the lane, at the position.
func (p *positionView) openShard(ctx context.Context, shard string) error {
	p.mu.Lock()
	sv := p.shards[shard]
	p.mu.Unlock()
	if _, err := sv.conn.Exec(ctx, "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"); err != nil {
		return err
	}
	return sv.conn.QueryRow(ctx, "SELECT pg_export_snapshot()").Scan(&sv.name)
}

func (e *Engine) compare(ctx context.Context, at *positionView, opts VerifyOptions) (tenant.Verification, error) {
	in := verify.Input{
		Catalogue: e.cat, Placement: e.cfg.Placement, LSN: at.source.lsn, Jobs: opts.Jobs, OnProgress: opts.OnProgress, Accepted: e.cfg.Options.Accept,
		Source: func(ctx context.Context) (*pgx.Conn, error) { return e.src.reader(ctx, at.source.name, "verify") },
		Shards: map[string]verify.Sessions{},
	}
	for _, sh := range e.cfg.Shards {
		name := at.shards[sh.Name].name
		in.Shards[sh.Name] = func(ctx context.Context) (*pgx.Conn, error) {
			c, err := connect(ctx, sh.DSN, "rehome-verify-"+e.cfg.Replication, nil)
			if err != nil {
				return nil, fmt.Errorf("shard %s: %w", sh.Name, err)
			}
			if err := useSnapshot(ctx, c, name); err != nil {
				closeSoon(c)
				return nil, fmt.Errorf("shard %s: %w", sh.Name, err)
			}
			return c, nil
		}
	}
	v, err := verify.Compare(ctx, in)
	if err != nil {
		return v, err
	}
	c, err := e.src.conn(ctx, "verify")
	if err != nil {
		return v, err
	}
	defer closeSoon(c)
	// Sequences are not transactional: their values are those of now, set at the shards only at the cutover.
	v.Sequences, err = catalog.ReadSequences(ctx, c, e.cat)
	return v, err
}
