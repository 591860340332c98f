package workload

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/tenant"
)

const (
	// defaultPace is a writer's mean wait between two writes: with a handful of writers some hundred writes per second,
	// which leaves a small machine time for the copy.
	defaultPace = 15 * time.Millisecond
	// drainTimeout is how long a stopped writer goes on asking how its last write ended.
	drainTimeout = 15 * time.Second
	// attemptTimeout is longer than a gateway holds a request (10 s), so that a held write is not sent twice.
	attemptTimeout = 20 * time.Second
	// Retries begin at once, as Retry-After: 0 allows, and slow down to a few per second.
	retryFirst, retryMost = 2 * time.Millisecond, 200 * time.Millisecond
)

// WriterConfig says who writes, and where.
type WriterConfig struct {
	Ledger *Ledger // required

	URL         string // where HTTP clients begin: the old side's URL of the database
	HTTPWriters int
	Sockets     int // WebSockets that listen at URL + "/ws"

	Source        tenant.DSN // where direct writers begin
	DirectWriters int
	// Resolve gives a direct writer the database of a realm on the new side. It is asked whenever the source's fence
	// refused a write, and may answer with an error while the new side is not known yet.
	Resolve func(ctx context.Context, realm string) (*pgxpool.Pool, error)

	Pace   time.Duration // mean wait of one writer between two writes
	Seed   uint64
	Logger *slog.Logger
}

// Writers write all the time. A write whose outcome they do not know they send again until they know it.
type Writers struct {
	cfg   WriterConfig
	stats stats
}

// WriterReport is how the writers fared.
type WriterReport struct {
	Counts        Counts           `json:"counts"`
	Retries       map[string]int64 `json:"retries"` // attempts that did not end a write, by their reason
	Redirects     int64            `json:"redirects_followed"`
	SlowestMillis float64          `json:"slowest_write_ms"` // from the first attempt to the acknowledgement
	GapMillis     float64          `json:"longest_gap_ms"`
	GapHTTPMillis float64          `json:"longest_gap_http_ms"`
	GapDirMillis  float64          `json:"longest_gap_direct_ms"`
	Sockets       SocketReport     `json:"websockets"`
}

// stats are counted by all writers at once.
type stats struct {
	redirects atomic.Int64
	slowest   atomic.Int64 // nanoseconds

	mu      sync.Mutex
	retries map[string]int64
	sockets SocketReport
}

func (s *stats) retry(reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retries[reason]++
}

func (s *stats) took(d time.Duration) {
	for {
		old := s.slowest.Load()
		if int64(d) <= old || s.slowest.CompareAndSwap(old, int64(d)) {
			return
		}
	}
}

// NewWriters checks the configuration. Nothing is written before Run.
func NewWriters(cfg WriterConfig) (*Writers, error) {
	switch {
	case cfg.Ledger == nil || len(cfg.Ledger.baseline.Realms) == 0:
		return nil, errors.New("writers need a ledger with a baseline that has realms")
	case cfg.HTTPWriters+cfg.Sockets > 0 && cfg.URL == "":
		return nil, errors.New("HTTP writers need a URL")
	case cfg.DirectWriters > 0 && (cfg.Source == "" || cfg.Resolve == nil):
		return nil, errors.New("direct writers need a source and a resolver")
	}
	if cfg.Pace <= 0 {
		cfg.Pace = defaultPace
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Writers{cfg: cfg, stats: stats{retries: map[string]int64{}, sockets: SocketReport{Closes: map[string]int64{}}}}, nil
}

// Run writes until the context ends; then it takes up no more, and waits (15 s at most) for what is in flight.
func (w *Writers) Run(ctx context.Context) error {
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() {
		timer := time.NewTimer(drainTimeout)
		defer timer.Stop()
		select {
		case <-timer.C:
			cancel(errors.New("the writers were stopped"))
		case <-work.Done():
		}
	})
	defer stop()

	var g errgroup.Group
	for i := range w.cfg.HTTPWriters {
		g.Go(func() error { return newHTTPWriter(w, i).run(ctx, work) })
	}
	for i := range w.cfg.DirectWriters {
		g.Go(func() error { return newDirectWriter(w, i).run(ctx, work) })
	}
	for range w.cfg.Sockets {
		g.Go(func() error { return newSocket(w).run(ctx) })
	}
	return g.Wait()
}

// Report is how they have fared so far.
func (w *Writers) Report() WriterReport {
	l := w.cfg.Ledger
	r := WriterReport{
		Counts: l.Counts(), Redirects: w.stats.redirects.Load(),
		SlowestMillis: float64(w.stats.slowest.Load()) / float64(time.Millisecond),
		GapMillis:     l.LongestGap(GapAll).Millis(), GapHTTPMillis: l.LongestGap(GapHTTP).Millis(), GapDirMillis: l.LongestGap(GapDirect).Millis(),
	}
	w.stats.mu.Lock()
	defer w.stats.mu.Unlock()
	r.Retries = maps.Clone(w.stats.retries)
	r.Sockets = w.stats.sockets.clone()
	return r
}

// generator makes writes. Each writer has its own, and edits documents of its own only, so that the last acknowledged
// state of a document is known.
type generator struct {
	rng    *rand.Rand
	realms []Realm
	docs   []document
	number int
}

type document struct{ realm, id string }

func newGenerator(w *Writers, stream uint64) *generator {
	return &generator{
		rng:    rand.New(rand.NewPCG(w.cfg.Seed^stream<<32, rand.Uint64())), //nolint:gosec // ids must differ between runs, not be secret
		realms: w.cfg.Ledger.baseline.Realms,
	}
}

// realm picks one; the large ones, which come first, more often.
func (g *generator) realm() Realm {
	n := len(g.realms)
	return g.realms[min(g.rng.IntN(n), g.rng.IntN(n))]
}

func (g *generator) transfer() Op {
	realm := g.realm()
	t := Transfer{From: 1 + g.rng.IntN(realm.Accounts), Cents: int64(1 + g.rng.IntN(20_00))}
	t.To = 1 + (t.From+g.rng.IntN(realm.Accounts-1))%realm.Accounts
	return Op{ID: newUUID(g.rng), Realm: realm.ID, Kind: KindTransfer, Transfer: &t}
}

func (g *generator) document() Op {
	op := Op{ID: newUUID(g.rng), Kind: KindDocument, Document: &DocumentEdit{Title: prose(g.rng, 20)}}
	what := g.rng.IntN(10)
	if len(g.docs) < 5 || what < 3 {
		op.Realm = g.realm().ID
		op.Document.Document, op.Document.Action = newUUID(g.rng), PutDocument
		g.docs = append(g.docs, document{op.Realm, op.Document.Document})
	} else {
		i := g.rng.IntN(len(g.docs))
		op.Realm, op.Document.Document = g.docs[i].realm, g.docs[i].id
		switch {
		case what < 7:
			op.Document.Action = RenameDocument
		case what < 9:
			op.Document.Action = PutDocument
		default:
			op.Document.Action, op.Document.Title = DeleteDocument, ""
		}
	}
	if op.Document.Action == PutDocument {
		length := g.rng.IntN(500)
		if g.rng.IntN(6) == 0 {
			length = 10_000 + g.rng.IntN(60_000) // stored out of line
			op.Document.Attachment = randomBytes(g.rng, 5000)
		}
		op.Document.Body = prose(g.rng, length)
	}
	return op
}

func (g *generator) other(kind Kind) Op {
	g.number++
	return Op{ID: newUUID(g.rng), Realm: g.realm().ID, Kind: kind, Number: g.number}
}

// pause waits between two writes; false: the context ended.
func (g *generator) pause(ctx context.Context, pace time.Duration) bool {
	return wait(ctx, time.Duration(g.rng.Int64N(int64(2*pace))))
}

// backoff is how long to wait before the n-th retry.
func (g *generator) backoff(n int) time.Duration {
	d := min(retryFirst<<min(n, 10), retryMost)
	return d/2 + time.Duration(g.rng.Int64N(int64(d)))
}

// wait reports whether the time passed before the context ended.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
