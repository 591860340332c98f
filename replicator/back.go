package replicator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/tenant"
)

// The way back is the engine with its ends swapped: after a cutover one reverse Engine per shard reads the shard's slot and
// has a single lane, which writes to the tenant's source. So what holds for the replication holds here: a shard's
// transactions arrive whole, once, in their order, whatever dies. The order between two shards is not given (see
// backconflict.go).
//
//	source ◀─one transaction, led by a row of rehome.progress─ lane ◀─ slot rehome_<id>_back_<ordinal> ─ shard
//
// What its existence rests on are rows of rehome.back at the source, one a shard; Prepare writes them last, Discard removes
// them first of what is there. The position is the source's row of rehome.progress, as at a shard.

const (
	// backKeySeparator stands between a replication's id and the shard in the keys of the way back at the source. Ids have
	// no dot.
	backKeySeparator = "."
	// backSlotPatience bounds the creation of a shard's slot, which waits for all transactions that are open on the shard's
	// server. A cutover waits for it, before its pause.
	backSlotPatience = 30 * time.Second
	// backRetry is the pause after a problem that needs a person: it may have been mended meanwhile.
	backRetry = 10 * time.Second
	// backGrace is how long a stream may be away, as with a connection that broke, before the way back counts as broken.
	backGrace = 10 * time.Second
	// backSteady is for how long it must stream before the next problem is told of though it is the same as the last; and for
	// how long it must be away before that is told of as one.
	backSteady = time.Minute
	// backLook is how often it is looked for a way back while there is none.
	backLook = time.Second
	// backSchemaEvery is how often a shard's schema is compared with what it was when the way back was made.
	backSchemaEvery = 15 * time.Second
)

// BackGate makes and uses what the way back needs of package gate at a shard.
type BackGate interface {
	// InstallBack makes the tables of markers, heartbeats and truncations at a shard.
	InstallBack(ctx context.Context, shard *pgx.Conn) error
	// RemoveBack drops them.
	RemoveBack(ctx context.Context, shard *pgx.Conn) error
	// Heartbeat writes a row at a shard, so that an idle shard's slot advances.
	Heartbeat(ctx context.Context, shard *pgx.Conn) error
}

// BackConfig is all that a way back needs to know. The first fields are those of the replication that it belongs to.
type BackConfig struct {
	Replication string
	Source      tenant.DSN
	Slot        string // of the replication; those at the shards are named after it
	Publication string // the same
	Shards      []Shard
	Placement   tenant.Placement
	Options     tenant.ReplicationOptions
	Epoch       int64         // fencing epoch of the lease that this worker holds
	Pass        tenant.Secret // lets its sessions through the fences of both sides
	Journal     Journal       // of the replication: gets alarms, and says whether this worker still owns it
	Gate        BackGate
	Logger      *slog.Logger
	Heartbeat   time.Duration // 0: the default
	Watch       time.Duration // how often the shards are looked at; 0: the default
	SpoolMemory int           // 0: the default
	// SlotPatience bounds the wait for the transactions that are in the way of a shard's slot; 0: the default.
	SlotPatience time.Duration
	// ConflictPatience is how long a lane waits for another shard's row to go before the way back counts as broken; 0: the
	// default.
	ConflictPatience time.Duration
}

// Back is a replication's way back.
type Back struct {
	cfg  BackConfig
	log  *slog.Logger
	side []*backSide // one a shard

	// busy is held by whoever works on it: a session of Run, Prepare or Discard.
	busy      chan struct{}
	mu        sync.Mutex
	wanted    int                // Prepare and Discard that wait for busy
	interrupt context.CancelFunc // ends the session of Run
	state     tenant.WayBackState
	looked    bool      // it is known whether there is one
	problem   problem   // of all of it
	failing   time.Time // since when all of it does; zero: it does not
}

// problem is why something does not work, and what to do.
type problem struct{ reason, remedy string }

// backSide is the way back from one shard.
type backSide struct {
	replication string // that it belongs to
	key         string // at the source: of its rows of rehome.applier and rehome.progress
	shard       Shard
	several     bool                // there are other shards
	home        bool                // its rows of reference tables count
	patience    time.Duration       // of a lane with another shard's row
	owned       func(string) string // the condition that a realm, an SQL expression, belongs to the shard
	engine      *Engine
	journal     *backJournal

	mu       sync.Mutex
	origin   identity  // the shard's server when it was made
	schema   string    // digest of the shard's schema then
	streamed time.Time // when it was last seen streaming
	steady   time.Time // since when it streams without a break; zero: it does not
	problem  problem   // of the engine
	drift    problem   // the shard's schema is another one
	told     string    // the reason that an alarm was raised for
	strays   []string  // reference tables that were written here though this is not their home
}

// NewBack makes a way back; Prepare makes what it needs at both sides, Run works on it.
func NewBack(cfg BackConfig) (*Back, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.SlotPatience <= 0 {
		cfg.SlotPatience = backSlotPatience
	}
	if cfg.ConflictPatience <= 0 {
		cfg.ConflictPatience = conflictPatience
	}
	b := &Back{cfg: cfg, log: cfg.Logger.With("replication", cfg.Replication), busy: make(chan struct{}, 1), state: tenant.WayBackNone}
	home := cfg.Placement.Home
	if !slices.Contains(cfg.Placement.Shards(), home) {
		home = cfg.Placement.Shards()[0]
	}
	opts := cfg.Options
	opts.NoHeartbeat = false // it is about the source's heartbeats
	for _, sh := range cfg.Shards {
		s := &backSide{
			replication: cfg.Replication, key: cfg.Replication + backKeySeparator + sh.Name, shard: sh, several: len(cfg.Shards) > 1, patience: cfg.ConflictPatience, home: sh.Name == home,
			owned: func(realm string) string { return ownedRealms(cfg.Placement, sh.Name, realm) },
		}
		s.journal = &backJournal{b: b, s: s}
		var err error
		s.engine, err = New(Config{
			Replication: s.key, Source: sh.DSN, Slot: BackSlot(cfg.Slot, sh.Ordinal), Publication: BackPublication(cfg.Publication),
			Shards: []Shard{{Name: backLane, DSN: cfg.Source}}, Placement: tenant.Placement{Ranges: []tenant.Range{{To: tenant.Buckets - 1, Shard: backLane}}, Home: backLane},
			Options: opts, Epoch: cfg.Epoch, Pass: cfg.Pass, State: tenant.State{Phase: tenant.InSync}, Journal: s.journal, Gate: backGates{BackGate: cfg.Gate},
			Logger: cfg.Logger.With("way_back_from", sh.Name), Heartbeat: cfg.Heartbeat, Watch: cfg.Watch, SpoolMemory: cfg.SpoolMemory, SlotPatience: cfg.SlotPatience, back: s,
		})
		if err != nil {
			return nil, err
		}
		b.side = append(b.side, s)
	}
	return b, nil
}

// backLane is what the engine's messages call the tenant's source, its only target.
const backLane = "source"

// BackSlot names the slot of the way back at a shard, after the replication's own. Several tenants' replications may share a
// shard's server.
func BackSlot(slot string, ordinal int) string { return fmt.Sprintf("%s_back_%d", slot, ordinal) }

// BackPublication names the publication of the way back at the shards.
func BackPublication(publication string) string { return publication + backPublicationEnd }

const backPublicationEnd = "_back"

func (c Config) label() string {
	if c.back != nil {
		return "shard " + c.back.shard.Name
	}
	return "source"
}

// Run works on the way back until the context ends, or another worker took the replication over (ErrFenced). Where there is
// none it waits for one. A problem does not end it: it is shown, raised as an alarm, and tried again.
func (b *Back) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		err := b.session(ctx)
		if errors.Is(err, ErrFenced) {
			return err
		}
		if err != nil && ctx.Err() == nil {
			b.setProblem(err)
			b.log.Warn("way back: trying again", "error", err)
		}
		if wait(ctx, backLook) != nil {
			return nil //nolint:nilerr // stopped on purpose
		}
	}
	return nil
}

// session works until the context ends, Prepare or Discard want their turn, or there is nothing to work on.
func (b *Back) session(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	b.mu.Lock()
	if b.wanted > 0 {
		b.mu.Unlock()
		return nil
	}
	b.interrupt = cancel
	b.mu.Unlock()
	select {
	case b.busy <- struct{}{}:
	case <-ctx.Done():
		return nil
	}
	defer func() { <-b.busy }()
	there, err := b.load(ctx)
	if err != nil {
		return err
	}
	if !there {
		b.setState(tenant.WayBackNone)
		return nil
	}
	now := time.Now()
	for _, s := range b.side {
		s.begin(now) // before it is shown: what was never seen streaming would be away since ever
	}
	b.setState(tenant.WayBackRunning)
	var g errgroup.Group
	for _, s := range b.side {
		g.Go(func() error {
			err := b.runSide(ctx, s)
			cancel()
			return err
		})
		g.Go(func() error { b.watchSchema(ctx, s); return nil })
	}
	return g.Wait()
}

// runSide carries a shard's writes until the context ends or the lease is lost.
func (b *Back) runSide(ctx context.Context, s *backSide) error {
	for {
		err := s.engine.Run(ctx)
		if err != nil || ctx.Err() != nil {
			return err
		}
		if wait(ctx, backRetry) != nil {
			return nil //nolint:nilerr // stopped on purpose
		}
	}
}

// exclusive runs fn while no session of Run works.
func (b *Back) exclusive(ctx context.Context, fn func() error) error {
	b.mu.Lock()
	b.wanted++
	if b.interrupt != nil {
		b.interrupt()
	}
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		b.wanted--
		b.mu.Unlock()
	}()
	select {
	case b.busy <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-b.busy }()
	return fn()
}

// WaitMarkers blocks until the attempt's marker of every shard, and everything before it there, is durably applied at the
// source, and returns the shards' positions. It ends with the context.
func (b *Back) WaitMarkers(ctx context.Context, attempt string) ([]tenant.ShardPosition, error) {
	out := make([]tenant.ShardPosition, len(b.side))
	g, ctx := errgroup.WithContext(ctx)
	for i, s := range b.side {
		g.Go(func() error {
			_, pos, err := s.engine.WaitMarker(ctx, attempt)
			if err != nil {
				return fmt.Errorf("shard %s: %w", s.shard.Name, err)
			}
			out[i] = pos[0]
			out[i].Shard = s.shard.Name
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return out, nil
}

// Progress is the way back as it is just now, from memory.
func (b *Back) Progress() tenant.WayBack {
	b.mu.Lock()
	w := tenant.WayBack{State: b.state, Reason: b.problem.reason, Remedy: b.problem.remedy}
	b.mu.Unlock()
	if w.State != tenant.WayBackRunning {
		return w
	}
	now := time.Now()
	for _, s := range b.side {
		p := s.engine.Progress()
		away, what := s.look(now, p)
		w.LagBytes, w.SlotWAL = max(w.LagBytes, p.LagBytes), max(w.SlotWAL, p.SlotWAL)
		w.LagMillis = max(w.LagMillis, p.LagMillis, float64(away.Milliseconds()))
		for _, pos := range p.Shards {
			pos.Shard = s.shard.Name
			w.Shards = append(w.Shards, pos)
		}
		if what.reason != "" && w.State != tenant.WayBackBroken {
			w.Reason, w.Remedy = what.reason, what.remedy
			if away > backGrace || s.isBroken() {
				w.State = tenant.WayBackBroken
			}
		}
	}
	return w
}

func (b *Back) setState(s tenant.WayBackState) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.state, b.looked, b.problem, b.failing = s, true, problem{}, time.Time{}
}

// Looked reports whether it has been looked for a way back: until then there may be one though Progress says none.
func (b *Back) Looked() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.looked
}

func (b *Back) setProblem(err error) {
	reason, remedy := describe(err)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.problem = problem{reason, remedy}
	again := !b.failing.IsZero()
	if !again {
		b.failing = time.Now()
	}
	if b.state == tenant.WayBackNone || b.state == tenant.WayBackRunning || (again && b.state == tenant.WayBackPreparing) {
		b.state = tenant.WayBackBroken // whether there is one is not known, and that it runs neither
		if IsRetryable(err) && time.Since(b.failing) < backGrace {
			b.state = tenant.WayBackPreparing // as when the source restarts: it passes by itself
		}
	}
}

func (s *backSide) begin(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streamed, s.steady, s.problem, s.drift = now, time.Time{}, problem{}, problem{}
}

// look says for how long the side has not streamed, and what is in its way.
func (s *backSide) look(now time.Time, p tenant.Progress) (away time.Duration, what problem) {
	streaming := s.engine.streaming()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !streaming {
		s.steady = time.Time{}
	} else {
		s.streamed = now
		if s.steady.IsZero() {
			s.steady = now
		}
		if now.Sub(s.steady) > backSteady && s.drift.reason == "" {
			s.told = "" // whatever comes now is news
		}
		if s.drift.reason != "" {
			return 0, s.drift
		}
		if p.Blocked != "" {
			return 0, problem{s.words(p.Blocked), ""}
		}
		if p.Care != nil && p.Care.Warning != "" {
			return 0, problem{s.words(p.Care.Warning), ""}
		}
		return 0, problem{}
	}
	what = s.problem
	if what.reason == "" && p.Blocked != "" {
		what.reason = s.words(p.Blocked)
	}
	if what.reason == "" {
		what.reason = "the way back from shard " + s.shard.Name + " is being connected"
	}
	return now.Sub(s.streamed), what
}

// isBroken reports whether the side has met something that does not pass by itself.
func (s *backSide) isBroken() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.problem.reason != "" || s.drift.reason != ""
}

// words lets the engine's messages speak of the ends as they are: its source is the shard.
func (s *backSide) words(text string) string {
	return strings.NewReplacer("the replication then has to start again", "the way back then ends", "rehome cancel-replication", "rehome complete", "shard "+backLane, "the source", "the source", "shard "+s.shard.Name, "The source", "Shard "+s.shard.Name).Replace(text)
}

func (e *Engine) streaming() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.stream != nil
}
