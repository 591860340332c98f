package torture

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/tenant"
)

const (
	// txPatience bounds one transaction, also where the source does not answer; its outcome is then unknown.
	txPatience = 20 * time.Second
	// reconnectEvery is how often a client knocks at a source that is down.
	reconnectEvery = 100 * time.Millisecond
)

// Outcome is what a client knows of a transaction that it tried.
type Outcome int

// Outcomes.
const (
	Failed  Outcome = iota // it never asked for the commit, or was told that there was none: nothing of it may be there
	Acked                  // the commit was acknowledged: it must be there, once
	Unknown                // the connection ended between the two: whatever the source has holds
)

// Try is one transaction that was tried. Its row in the table journal is part of it.
type Try struct {
	Realm   string
	ID      int64
	Op      string
	Outcome Outcome
}

// Config says how to load a source.
type Config struct {
	DSN     tenant.DSN
	Seed    uint64
	Realms  int
	Clients int
	Think   time.Duration // between two transactions of a client, on average
	Big     int           // rows of a large transaction
	// ToastMoves moves rows with unchanged TOASTed values to other realms.
	ToastMoves bool
	// DDL changes the schema while the rest goes on, from AllowDDL on.
	DDL bool
}

// Workload is a number of clients who each do one transaction after another and remember what became of it.
type Workload struct {
	cfg   Config
	acked atomic.Int64
	ddl   chan struct{} // closed by AllowDDL
	once  sync.Once
	mu    sync.Mutex
	tries []Try
	fault error // of ours: SQL that is wrong
}

// NewWorkload makes a workload; Run starts it.
func NewWorkload(cfg Config) *Workload { return &Workload{cfg: cfg, ddl: make(chan struct{})} }

// AllowDDL lets the schema change from now on.
func (w *Workload) AllowDDL() { w.once.Do(func() { close(w.ddl) }) }

// Acked is how many transactions were acknowledged so far.
func (w *Workload) Acked() int64 { return w.acked.Load() }

// Tries is every transaction that was tried. Call it when Run has returned.
func (w *Workload) Tries() []Try {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.tries
}

// Run loads the source until the context ends. It returns an error only for statements that are wrong in themselves.
func (w *Workload) Run(ctx context.Context) error {
	var g errgroup.Group
	for i := range w.cfg.Clients {
		c := &client{w: w, n: int64(i + 1), rnd: newRand(w.cfg.Seed, uint64(i+1))}
		g.Go(func() error { c.run(ctx, c.next); return nil })
	}
	if w.cfg.DDL {
		c := &client{w: w, n: int64(w.cfg.Clients + 1), rnd: newRand(w.cfg.Seed, uint64(w.cfg.Clients+1)), slow: 40}
		d := &ddl{c: c}
		g.Go(func() error {
			select {
			case <-w.ddl:
				c.run(ctx, d.next)
			case <-ctx.Done():
			}
			return nil
		})
	}
	_ = g.Wait() // no client fails
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fault
}

func (w *Workload) note(t Try) {
	if t.Outcome == Acked {
		w.acked.Add(1)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tries = append(w.tries, t)
}

func (w *Workload) wrong(op string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fault == nil {
		w.fault = fmt.Errorf("the workload's own %s: %w", op, err)
	}
}

// op is a transaction to try.
type op struct {
	name  string
	realm string // of its row in the journal
	body  func(ctx context.Context, tx pgx.Tx) error
}

// client has one session at a time.
type client struct {
	w    *Workload
	n    int64 // from 1; part of all ids that it makes
	rnd  *rand.Rand
	seq  int64
	slow int // think times it waits between two transactions; 0: one
	conn *pgx.Conn

	bulk []batch
}

// id makes a number that no other client makes.
func (c *client) id() int64 {
	c.seq++
	return c.n<<40 | c.seq
}

func (c *client) realm() string { return realmName(c.rnd.IntN(c.w.cfg.Realms)) }

func (c *client) run(ctx context.Context, next func() op) {
	defer c.hangUp()
	for ctx.Err() == nil {
		if !c.connected(ctx) {
			return
		}
		c.try(ctx, next())
		think := time.Duration(c.rnd.Int64N(int64(2*c.w.cfg.Think)+1)) * time.Duration(max(c.slow, 1))
		if !pause(ctx, think) {
			return
		}
	}
}

func (c *client) hangUp() {
	if c.conn != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = c.conn.Close(ctx)
		c.conn = nil
	}
}

// connected connects, however long it takes.
func (c *client) connected(ctx context.Context) bool {
	for c.conn == nil || c.conn.IsClosed() {
		cctx, cancel := context.WithTimeout(ctx, txPatience)
		conn, err := pgx.Connect(cctx, c.w.cfg.DSN.Reveal())
		if err == nil {
			_, err = conn.Exec(cctx, `SET lock_timeout = '10s'`)
		}
		cancel()
		if err == nil {
			c.conn = conn
			return true
		}
		if !pause(ctx, reconnectEvery) {
			return false
		}
	}
	return true
}

// try runs a transaction with its row in the journal and notes the outcome. The end of the workload does not interrupt it.
func (c *client) try(ctx context.Context, o op) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), txPatience)
	defer cancel()
	t := Try{Realm: o.realm, ID: c.id(), Op: o.name}
	tx, err := c.conn.Begin(ctx)
	if err == nil {
		_, err = tx.Exec(ctx, `INSERT INTO journal (realm_id, id, op) VALUES ($1, $2, $3)`, t.Realm, t.ID, t.Op)
	}
	if err == nil {
		err = o.body(ctx, tx)
	}
	if err != nil {
		c.judge(o.name, err)
		if tx != nil {
			_ = tx.Rollback(ctx) // the session is given up if that does not work
		}
		c.w.note(t)
		return
	}
	switch err := tx.Commit(ctx); {
	case err == nil:
		t.Outcome = Acked
	case errors.Is(err, pgx.ErrTxCommitRollback):
	default:
		t.Outcome = Unknown
		c.hangUp()
	}
	c.w.note(t)
}

// errOnPurpose ends a transaction that is meant to be rolled back.
var errOnPurpose = errors.New("rolled back on purpose")

// judge tells errors that the faults explain from those of our own statements.
func (c *client) judge(op string, err error) {
	pe, ok := errors.AsType[interface {
		error
		SQLState() string
	}](err)
	if errors.Is(err, errOnPurpose) || !ok {
		return
	}
	switch s := pe.SQLState(); {
	case s[:2] == "57" || s[:2] == "08" || s[:2] == "53" || s[:2] == "40" || s == "55P03" || s == "25P02":
	case s[:2] == "23": // two clients wanted the same
	default:
		c.w.wrong(op, err)
	}
}

// pause waits unless the context ends first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
