package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/internal/seal"
	"github.com/rehomedb/rehome/progress"
	"github.com/rehomedb/rehome/server/cutover"
	"github.com/rehomedb/rehome/shard"
)

// lookEvery is how late a replication is noticed whose NOTIFY was lost, or whose server died.
const lookEvery = time.Second

// Config is what a supervisor works with: the server's own parts.
type Config struct {
	Pool      *pgxpool.Pool // control database
	Seal      *seal.Box
	Catalogue *shard.Catalogue
	Log       *progress.Log
	Gateway   cutover.Gateways
	Signer    cutover.Signer
	Server    string // holder of leases; unique among running servers
	Now       func() time.Time
	Logger    *slog.Logger
	// Crash is for tests: see cutover.Config.
	Crash func(step string) error
}

// Supervisor runs the replications whose leases it can get.
type Supervisor struct {
	cfg      Config
	log      *slog.Logger
	cutovers *cutover.Coordinator

	mu      sync.Mutex
	runners map[string]*runner
}

// New makes a supervisor; Run starts it.
func New(cfg Config) *Supervisor {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Supervisor{cfg: cfg, log: cfg.Logger, runners: map[string]*runner{}, cutovers: cutover.New(cutover.Config{
		Pool: cfg.Pool, Gateways: cfg.Gateway, Signer: cfg.Signer, Logger: cfg.Logger, Now: cfg.Now, Crash: cfg.Crash,
	})}
}

// Run works until the context ends, then lets every runner stop in order and gives its lease back.
func (s *Supervisor) Run(ctx context.Context) error {
	var g errgroup.Group
	wake := make(chan string, 64)
	g.Go(func() error { s.listen(ctx, wake); return nil })
	for ctx.Err() == nil {
		if err := s.look(ctx, &g); err != nil && ctx.Err() == nil {
			s.log.Warn("look for replications", "error", err)
		}
		t := time.NewTimer(lookEvery)
		select {
		case <-ctx.Done():
		case id := <-wake:
			s.poke(id)
		case <-t.C:
		}
		t.Stop()
	}
	return g.Wait()
}

// look starts a runner for every replication that has something to do and whose lease is free.
func (s *Supervisor) look(ctx context.Context, g *errgroup.Group) error {
	rows, err := s.cfg.Pool.Query(ctx, `SELECT r.id FROM rehome_control.replications r
		WHERE r.phase NOT IN ('completed', 'cancelled')
		   OR EXISTS (SELECT 1 FROM rehome_control.replication_commands c WHERE c.replication = r.id AND c.finished_at IS NULL)`)
	if err != nil {
		return err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, id := range ids {
		if s.running(id) {
			continue
		}
		epoch, err := s.takeLease(ctx, id)
		if errors.Is(err, errNoLease) {
			continue
		}
		if err != nil {
			return err
		}
		r := &runner{s: s, id: id, epoch: epoch, log: s.log.With("replication", id), poked: make(chan struct{}, 1), fence: make(chan struct{}, 1)}
		s.mu.Lock()
		s.runners[id] = r
		s.mu.Unlock()
		g.Go(func() error {
			defer s.forget(id)
			if err := r.run(ctx); err != nil && ctx.Err() == nil {
				r.log.Error("replication's worker stopped", "error", err)
			}
			s.dropLease(ctx, id, epoch)
			return nil
		})
	}
	return nil
}

func (s *Supervisor) running(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.runners[id] != nil
}

func (s *Supervisor) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.runners, id)
}

func (s *Supervisor) poke(id string) {
	s.mu.Lock()
	r := s.runners[id]
	s.mu.Unlock()
	if r != nil {
		r.poke()
	}
}

// listen turns notifications into wake-ups. It is a comfort: everything is also found by looking.
func (s *Supervisor) listen(ctx context.Context, wake chan<- string) {
	for ctx.Err() == nil {
		err := s.listenOnce(ctx, wake)
		if ctx.Err() != nil {
			return
		}
		s.log.Debug("listen for commands", "error", err)
		t := time.NewTimer(lookEvery)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

func (s *Supervisor) listenOnce(ctx context.Context, wake chan<- string) error {
	conn, err := pgx.ConnectConfig(ctx, s.cfg.Pool.Config().ConnConfig.Copy())
	if err != nil {
		return err
	}
	defer func() {
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(cctx)
	}()
	if _, err := conn.Exec(ctx, `LISTEN rehome_commands; LISTEN rehome_replications`); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		select {
		case wake <- n.Payload:
		default: // somebody will look soon anyway
		}
	}
}
