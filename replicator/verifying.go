package replicator

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
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
	// gaveWayTries is how many positions in a row may bring a verification no further because somebody changes tables, and
	// gaveWayRest how long whoever was given way to has before the next one.
	gaveWayTries, gaveWayRest = 10, time.Second
)

// VerifyOptions tune a verification.
type VerifyOptions struct {
	ID          string        // of the verification; empty: a new one
	Jobs        int           // tables at a time; 0: by the machine
	MaxDiffs    int           // rows named per table; 0: 20
	MaxDuration time.Duration // bounds the whole, since its snapshots hold back vacuum; 0: no bound
	Rest        time.Duration // of each worker after each table or part, for the servers' sake
	OnProgress  func(verify.Progress)

	// Done are parts that were found equal before, by this verification at earlier positions: they are not compared again.
	Done []verify.Part
	// OnPart is told of each part that is found equal, so that the verification can go on after an interruption. Its error
	// ends the verification.
	OnPart func(verify.Part) error
	// Repair copies rows that differ again and compares once more, until nothing differs or nothing helps (see Repair).
	Repair bool

	onDiff func(verify.Diff)
	onPass func() // before each position
}

// Verify compares both sides row by row at one exact position, while both keep moving: the source's snapshot is exactly
// the commits before a position, and each lane stops at that position just long enough to open a snapshot of its shard.
// When MaxDuration is over, or a repair could not be finished, the result so far comes together with the error.
func (e *Engine) Verify(ctx context.Context, opts VerifyOptions) (tenant.Verification, error) {
	if opts.ID == "" {
		opts.ID = NewVerificationID()
	}
	if opts.Repair {
		return e.verifyAndRepair(ctx, opts)
	}
	return e.verifyOnce(ctx, opts)
}

// NewVerificationID makes up a name for a verification.
func NewVerificationID() string { return strings.ToLower(rand.Text()[:12]) }

// verifyOnce compares everything once.
func (e *Engine) verifyOnce(ctx context.Context, opts VerifyOptions) (tenant.Verification, error) {
	return verifyPasses(ctx, e.log, opts, e.verifyAt)
}

// verifyPasses compares everything once: at one position, and what was left out there, because its tables were or were to be
// changed, at later ones.
func verifyPasses(ctx context.Context, log *slog.Logger, opts VerifyOptions, verifyAt func(context.Context, VerifyOptions) (tenant.Verification, error)) (tenant.Verification, error) {
	started, until, told := time.Now().UTC(), time.Now().Add(opts.MaxDuration), opts.OnPart
	opts.Done = slices.Clone(opts.Done)
	further := false
	opts.OnPart = func(p verify.Part) error {
		opts.Done, further = append(opts.Done, p), true // one at a time, and not while a comparison begins
		if told != nil {
			return told(p)
		}
		return nil
	}
	for idle := 0; ; idle++ {
		if opts.onPass != nil {
			opts.onPass()
		}
		further = false
		v, err := verifyAt(ctx, opts)
		v.StartedAt = started
		if further {
			idle = 0
		}
		if te := tenant.AsError(err); te == nil || te.Code != verify.CodeGaveWay || idle == gaveWayTries {
			return v, err
		}
		log.Info("verification goes on at a later position", "because", err)
		if wait(ctx, gaveWayRest) != nil {
			return v, err
		}
		if opts.MaxDuration > 0 {
			opts.MaxDuration = max(time.Until(until), time.Millisecond)
		}
	}
}

// verifyAt compares at one position.
func (e *Engine) verifyAt(ctx context.Context, opts VerifyOptions) (tenant.Verification, error) {
	started := time.Now().UTC()
	at, tries, err := e.findPosition(ctx)
	if err != nil {
		return tenant.Verification{}, err
	}
	defer at.close()
	v, err := e.compare(ctx, at, opts)
	v.ID, v.Replication, v.Attempts, v.StartedAt = opts.ID, e.cfg.Replication, tries, started
	return v, err
}

// findPosition opens a position on both sides, trying again where a lane had passed it.
func (e *Engine) findPosition(ctx context.Context) (at *positionView, tries int, err error) {
	for tries = 1; ; tries++ {
		at, err = e.openPosition(ctx, tries >= verifyHoldFrom)
		if errors.Is(err, errPassed) && tries < verifyTries {
			continue
		}
		if err != nil {
			return nil, tries, fmt.Errorf("open a position to compare at: %w", err)
		}
		return at, tries, nil
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
	if p.source != nil {
		p.source.close()
	}
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
	pv.source, err = e.reachTogether(ctx, s, hold, 0, func(ctx context.Context, _ *view, l *lane) error { return pv.openShard(ctx, l.shard.Name) }, nil)
	return pv, err
}

// reachTogether makes a snapshot at the source and runs open in every lane when it has applied just what the snapshot has.
// It gives the snapshot back also with an error, for the caller to close. Before the lanes are asked, prepare may read from
// the snapshot what they will need.
func (e *Engine) reachTogether(ctx context.Context, s *stream, hold bool, most time.Duration,
	open func(context.Context, *view, *lane) error, prepare func(context.Context, *view) error,
) (_ *view, err error) {
	release := func() {}
	if hold {
		release = s.hold()
		defer release()
	}
	at, err := e.src.temporarySnapshot(ctx, "verify")
	if err != nil {
		return nil, err
	}
	if err := e.mayCompare(); err != nil {
		return at, err
	}
	ready, prepared := make(chan struct{}), error(nil)
	b := &barrier{at: at.lsn, most: most, done: make(chan struct{}), open: func(ctx context.Context, l *lane) error {
		select {
		case <-ready:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if prepared != nil {
			return prepared
		}
		return open(ctx, at, l)
	}}
	if err := s.placeBarrier(b); err != nil {
		return at, err
	}
	release()
	defer func() {
		if err != nil {
			b.abandon()
		}
	}()
	if prepare != nil {
		prepared = prepare(ctx, at)
	}
	close(ready)
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
		at.cat = b.cat
		return at, b.err
	case <-s.ended:
		return at, tenant.Errorf(tenant.KindUnavailable, "stream-ended", "try again", "the stream was interrupted while the position was being opened")
	case <-wctx.Done():
		return at, context.Cause(wctx)
	}
}

// mayCompare refuses a position that is not surely before a cutover's decision: while the shards take writes they have more
// than the source. Asked when the position is known: one that was chosen before the cutover began lies before its marker,
// behind which the shards are opened.
func (e *Engine) mayCompare() error {
	if e.cfg.back != nil {
		return nil // whoever asks for positions of the way back knows when they make sense
	}
	switch p := e.State().Phase; {
	case p == tenant.CuttingOver || p == tenant.RollingBack:
		return tenant.Errorf(tenant.KindUnavailable, "deciding", "try again when it is over", "the replication is %s", p)
	case e.sourceClosed():
		return tenant.Errorf(tenant.KindConflict, "cut-over", "verify again: the way back is compared then", "the shards take the writes now")
	}
	return nil
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
		Catalogue: at.source.cat, Placement: e.cfg.Placement, LSN: at.source.lsn, Jobs: opts.Jobs, MaxDiffs: opts.MaxDiffs, OnProgress: opts.OnProgress, Accepted: e.cfg.Options.Accept,
		MaxDuration: opts.MaxDuration, Pause: opts.Rest, Done: opts.Done, OnPart: opts.OnPart, OnDiff: opts.onDiff,
		Source: func(ctx context.Context) (*pgx.Conn, error) { return e.src.reader(ctx, at.source.name, "verify") },
		Shards: map[string]verify.Sessions{},
	}
	defer e.throttle.reading()()
	in.Admit = func(ctx context.Context) error { return e.throttle.wait(ctx, 0) }
	if e.throttle.settings().Limits() {
		in.Pause = max(in.Pause, time.Millisecond) // in parts, so that there is something to wait between
		if err := e.throttle.begin(ctx); err != nil {
			return tenant.Verification{}, err
		}
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
		return tenant.Verification{}, err
	}
	defer closeSoon(c)
	// Sequences are not transactional: their values are those of now, set at the shards only at the cutover.
	v.Sequences, err = catalog.ReadSequences(ctx, c, at.source.cat)
	return v, err
}
