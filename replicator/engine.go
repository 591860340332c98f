package replicator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// Shard is one target: the tenant's database on one of its shards.
type Shard struct {
	Name    string
	Ordinal int // the offset of its sequence values
	DSN     tenant.DSN
}

// Journal records what the engine does, in the control database. It shows and remembers; what is applied and copied is
// known by the shards themselves.
type Journal interface {
	// Observe records what was seen; the state that follows comes back.
	Observe(ctx context.Context, o tenant.Observation) (tenant.State, error)
	// SaveOrigin remembers what was published, where, and from which position.
	SaveOrigin(ctx context.Context, o Origin) error
	// ChangeSource records a change of the source before it is made.
	ChangeSource(ctx context.Context, c tenant.SourceChange) error
	// CopiedTable records a relation, or a chunk of it (from 1; 0: it was copied as a whole), that every shard has.
	CopiedTable(ctx context.Context, relation string, chunk int, watermark tenant.LSN, rows, bytes int64) error
	// Note publishes an event: "step", "alarm", "retry"…
	Note(ctx context.Context, event string, data any)
}

// CopiedUnit is a relation, or a chunk of it (from 1; 0: the whole), that every shard has.
type CopiedUnit struct {
	Relation    string
	Chunk       int
	Rows, Bytes int64
}

// JournalOfMany is a Journal that records several at once, which small tables are copied in.
type JournalOfMany interface {
	Journal
	CopiedTables(ctx context.Context, watermark tenant.LSN, units []CopiedUnit) error
}

// Gate makes and uses what the cutover will need at both sides; package gate implements it.
type Gate interface {
	InstallSource(ctx context.Context, conn *pgx.Conn) error
	InstallShard(ctx context.Context, conn *pgx.Conn) error
	// FenceShard closes every table of a shard to all but the engine.
	FenceShard(ctx context.Context, conn *pgx.Conn) error
	// FenceTable makes the statements that do so for one table that is just being made.
	FenceTable(t tenant.TableName) []string
	// Heartbeat writes a row at the source, so that an idle database's slot advances.
	Heartbeat(ctx context.Context, conn *pgx.Conn) error
}

// Origin is what is remembered of the source when its slot was made.
type Origin struct {
	SystemIdentifier string             `json:"system_identifier"`
	Timeline         int32              `json:"timeline"`
	Version          int                `json:"version"`
	StartLSN         tenant.LSN         `json:"start_lsn"`
	Catalogue        *catalog.Catalogue `json:"catalogue,omitempty"`
}

// Config is all that an engine needs to know.
type Config struct {
	Replication string
	Source      tenant.DSN
	Slot        string
	Publication string
	Shards      []Shard
	Placement   tenant.Placement
	Options     tenant.ReplicationOptions
	Epoch       int64         // fencing epoch of the lease that this worker holds
	Pass        tenant.Secret // lets the engine's sessions through the fences
	Origin      *Origin       // nil until a slot was made
	State       tenant.State
	Journal     Journal
	Gate        Gate
	Logger      *slog.Logger
	// Heartbeat is how often an idle source gets a heartbeat row; 0: the default.
	Heartbeat time.Duration
	// Watch is how often slot, lag and phase are looked at; 0: the default.
	Watch time.Duration
	// SpoolMemory is how many bytes of transactions in progress are kept in memory before they go to disk; 0: the default.
	SpoolMemory int
	// AheadFrom is from what size in bytes on a transaction in progress is applied while it still comes; 0: the default,
	// less: none is.
	AheadFrom int64
	// Throttle is what the operator allows at the source; SetThrottle changes it later.
	Throttle tenant.Throttle
	// SlotPatience bounds the wait for the transactions that are in the way of a slot's creation; 0: the default.
	SlotPatience time.Duration

	back *backSide // set: the engine carries a shard's writes back to the source, see Back
}

// defaultHeartbeat keeps an idle slot from holding back more than seconds of the other databases' WAL.
const defaultHeartbeat = 10 * time.Second

// Engine runs one replication.
type Engine struct {
	cfg    Config
	src    *direct
	router *router
	log    *slog.Logger
	stats  stats

	throttle *throttle

	cat   *catalog.Catalogue
	shape shapes // what is known of the source's schema while it streams

	mu      sync.Mutex
	state   tenant.State
	origin  *Origin
	copied  map[uint32]copied
	later   tenant.LSN // what waits for this position at every shard (buildLater); 0: nothing
	stream  *stream
	closed  bool        // the source must not write any more
	mending atomic.Bool // a person asked to take rows from the source anew that stop the stream
	markers map[string]*marker

	aheadTxns  atomic.Int64 // transactions that were applied while they came
	copiedRows atomic.Int64 // rows of theirs that were sent by COPY
	walMissing atomic.Int32 // sessions in a row that ended for want of WAL
}

// New prepares an engine; Run starts it.
func New(cfg Config) (*Engine, error) {
	slot, err := ParseSlotName(cfg.Slot)
	if err != nil {
		return nil, err
	}
	cfg.Options = cfg.Options.WithDefaults()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Heartbeat <= 0 {
		cfg.Heartbeat = defaultHeartbeat
	}
	if cfg.Watch <= 0 {
		cfg.Watch = defaultWatch
	}
	if cfg.SlotPatience <= 0 {
		cfg.SlotPatience = slotTimeout
	}
	r, err := newRouter(cfg.Placement, cfg.Shards)
	if err != nil {
		return nil, err
	}
	e := &Engine{
		cfg: cfg, router: r, log: cfg.Logger.With("replication", cfg.Replication), state: cfg.State, origin: cfg.Origin,
		copied: map[uint32]copied{}, markers: map[string]*marker{}, throttle: newThrottle(cfg.Throttle, cfg.Options.CopyJobs),
	}
	e.src = &direct{label: cfg.label(), dsn: cfg.Source, replication: cfg.Replication, slot: slot, publication: cfg.Publication, blocked: e.stats.setBlocked, patience: cfg.SlotPatience, early: cfg.runsAhead()}
	if cfg.Origin != nil {
		e.cat = cfg.Origin.Catalogue
	}
	if e.cat != nil {
		e.stats.reset(e.cat)
	}
	return e, nil
}

// Run works until the context ends, the replication is paused by a problem (nil: the journal has the reason), or another
// worker took over (ErrFenced).
func (e *Engine) Run(ctx context.Context) error {
	retry := backoff.NewExponentialBackOff()
	retry.InitialInterval = 200 * time.Millisecond
	retry.MaxInterval = 15 * time.Second // a shard that restarts is noticed within seconds
	mends := 0
	for {
		began := time.Now()
		err := e.cared(ctx, e.step)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // stopped on purpose: what was under way failed with the context
		}
		err = e.mendAfter(ctx, err, &mends)
		if errors.Is(err, ErrFenced) {
			return err
		}
		if err == nil {
			retry.Reset()
			if e.idle() {
				return nil
			}
			continue
		}
		if !IsRetryable(err) {
			reason, remedy := describe(err)
			e.log.Error("replication paused", "error", err)
			if _, oerr := e.observe(ctx, tenant.Observation{Kind: tenant.SawProblem, Reason: reason, Remedy: remedy}); oerr != nil {
				return oerr
			}
			e.noteAsked(ctx, err)
			return nil
		}
		if time.Since(began) > time.Minute {
			retry.Reset()
		}
		pause := retry.NextBackOff()
		e.log.Warn("trying again", "error", err, "after", pause.Round(time.Millisecond))
		e.stats.setBlocked(err.Error())
		e.cfg.Journal.Note(ctx, "retry", map[string]any{"reason": err.Error(), "after_ms": pause.Milliseconds()})
		if wait(ctx, pause) != nil {
			return nil //nolint:nilerr // stopped on purpose while waiting to try again
		}
		e.stats.setBlocked("")
	}
}

func (e *Engine) idle() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.state.Phase == tenant.Paused || e.state.Phase.Terminal()
}

// step does what the phase asks for, once.
func (e *Engine) step(ctx context.Context) error {
	_, action, err := tenant.Next(e.State(), tenant.Observation{Kind: tenant.SawOwned})
	if err != nil {
		return err
	}
	switch action {
	case tenant.DoPrepare:
		return e.prepare(ctx)
	case tenant.DoCopy:
		return e.copyAll(ctx)
	case tenant.DoStream, tenant.DoCutover, tenant.DoResolve, tenant.DoFollow:
		// While a cutover is decided or followed by the coordinator, the stream goes on.
		return e.streamOnce(ctx)
	}
	return nil
}

// State is the replication's state as this worker knows it.
func (e *Engine) State() tenant.State {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.state
}

// SetState tells the engine of a transition that somebody else recorded.
func (e *Engine) SetState(s tenant.State) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.state = s
	if s.Phase == tenant.RollingBack || s.Phase == tenant.RolledBack {
		e.closed = false // what was decided before is being taken back
	}
}

// CloseSource says that the decision was for the target (or, with false, that it was not): rows that still arrive from
// the source are an alarm and are not applied.
func (e *Engine) CloseSource(closed bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = closed
}

func (e *Engine) sourceClosed() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	// From a rollback on the stream applies again what is not its own: until the decision nobody can write there.
	return e.state.Phase == tenant.CutOver || e.closed
}

// Catalogue is what is replicated; nil before it was described.
func (e *Engine) Catalogue() *catalog.Catalogue {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.cat
}

func (e *Engine) observe(ctx context.Context, o tenant.Observation) (tenant.State, error) {
	st, err := e.cfg.Journal.Observe(ctx, o)
	if err != nil {
		return st, err
	}
	e.SetState(st)
	return st, nil
}

// shardSession opens a session at a shard that passes its fences and fires no user triggers.
func (e *Engine) shardSession(ctx context.Context, sh Shard, role string) (*pgx.Conn, error) {
	c, err := connect(ctx, sh.DSN, "rehome-"+role+"-"+e.cfg.Replication, map[string]string{
		"session_replication_role": "replica",
		"synchronous_commit":       "on",
		"rehome.pass":              e.cfg.Pass.Reveal(),
	})
	if err != nil {
		return nil, fmt.Errorf("shard %s: %w", sh.Name, err)
	}
	return c, nil
}

// eachShard runs fn on a session at every shard, one shard after the other.
func (e *Engine) eachShard(ctx context.Context, role string, fn func(Shard, *pgx.Conn) error) error {
	for _, sh := range e.cfg.Shards {
		c, err := e.shardSession(ctx, sh, role)
		if err != nil {
			return err
		}
		err = fn(sh, c)
		closeSoon(c)
		if err != nil {
			return fmt.Errorf("shard %s: %w", sh.Name, err)
		}
	}
	return nil
}

func (e *Engine) alarm(ctx context.Context, code, text string) {
	e.log.Error("alarm", "code", code, "detail", text)
	e.stats.mu.Lock()
	e.stats.alarm = text
	e.stats.mu.Unlock()
	e.cfg.Journal.Note(ctx, "alarm", map[string]any{"code": code, "detail": text})
}
