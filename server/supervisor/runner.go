package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/tenant"
)

const (
	// reportBusy and reportIdle are how often progress is published: often enough for a live display while something
	// moves, seldom enough to keep the event log small over weeks in sync.
	reportBusy, reportIdle = time.Second, 5 * time.Second
	// eventTables bounds how many tables an event names; the API's progress has all.
	eventTables = 30
)

// runner works on one replication while this server holds its lease.
type runner struct {
	s     *Supervisor
	id    string
	epoch int64
	log   *slog.Logger
	poked chan struct{}
	fence chan struct{} // held by a look at the source's fence, and by the end of the replication

	ddlRight gate.DDLRight // at the source; of whoever holds fence

	rec     *record
	journal *journal
	back    *replicator.Back

	mu      sync.Mutex
	engine  *replicator.Engine
	cancel  context.CancelFunc // stops the engine
	stopped chan struct{}      // closed when the engine's Run returned
	engErr  error
	tidied  time.Time // of the serving goroutine: when tidy looked last
	mending bool      // a repair is asked for: an engine mends rows that stop it
}

func (r *runner) poke() {
	select {
	case r.poked <- struct{}{}:
	default:
	}
}

// run works until the context ends, the replication ended and every command is answered, or the lease was lost.
func (r *runner) run(ctx context.Context) (err error) {
	r.log.Info("working on the replication", "lease_epoch", r.epoch)
	if r.rec, err = r.s.load(ctx, r.id); err != nil {
		return err
	}
	r.journal = &journal{s: r.s, id: r.id, database: r.rec.database, epoch: r.epoch, changed: r.stateChanged}
	if r.back, err = r.makeWayBack(r.rec); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.keepWayBack(ctx) })
	g.Go(func() error { return r.s.keepLease(ctx, r.id, r.epoch) })
	g.Go(func() error { return r.report(ctx) })
	g.Go(func() error { return r.keepVerified(ctx) })
	g.Go(func() error { return r.keepFence(ctx) })
	g.Go(func() error {
		defer r.stopEngine()
		if err := r.recover(ctx); err != nil {
			return err
		}
		r.startEngine(ctx)
		return r.serve(ctx)
	})
	if err := g.Wait(); err != nil && !errors.Is(err, errDone) {
		return err
	}
	return nil
}

// errDone ends a runner whose replication is over.
var errDone = errors.New("the replication is over")

// stateChanged keeps the running engine's idea of the phase up to date.
func (r *runner) stateChanged(st tenant.State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rec.state = st
	if r.engine != nil {
		r.engine.SetState(st)
	}
}

func (r *runner) state() tenant.State {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rec.state
}

func (r *runner) current() *replicator.Engine {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.engine
}

func (r *runner) makeEngine(rec *record) (*replicator.Engine, error) {
	return replicator.New(replicator.Config{
		Replication: r.id, Source: rec.source, Slot: rec.slot, Publication: rec.publication, Shards: rec.shards, Placement: rec.placement,
		Options: rec.options, Epoch: r.epoch, Pass: r.s.pass(rec.database), Origin: rec.origin, State: rec.state, Journal: r.journal,
		Gate: gates{pass: r.s.pass(rec.database), replication: r.id}, Logger: r.s.log,
		Throttle: rec.throttle,
	})
}

// startEngine starts the engine unless the phase asks for none.
func (r *runner) startEngine(ctx context.Context) {
	st := r.state()
	if st.Phase == tenant.Paused || st.Phase.Terminal() {
		return
	}
	rec, err := r.s.load(ctx, r.id)
	if err == nil {
		var e *replicator.Engine
		if e, err = r.makeEngine(rec); err == nil {
			ectx, cancel := context.WithCancel(ctx)
			done := make(chan struct{})
			r.mu.Lock()
			r.rec, r.engine, r.cancel, r.stopped, r.engErr = rec, e, cancel, done, nil
			e.SetMending(r.mending)
			r.mu.Unlock()
			go func() { // stopEngine waits for it
				defer close(done)
				err := e.Run(ectx)
				r.mu.Lock()
				r.engErr = err
				r.mu.Unlock()
				r.poke()
			}()
			return
		}
	}
	switch {
	case ctx.Err() != nil:
	case replicator.IsRetryable(err):
		r.log.Warn("start the engine; trying again", "error", err)
	default:
		r.log.Error("start the engine", "error", err)
		te := tenant.AsError(err)
		if _, err := r.journal.Observe(ctx, tenant.Observation{Kind: tenant.SawProblem, Reason: te.Error(), Remedy: te.Hint}); err != nil {
			r.log.Error("pause the replication", "error", err)
		}
	}
}

// stopEngine stops the engine and waits until it has let go of everything.
func (r *runner) stopEngine() {
	r.mu.Lock()
	cancel, done := r.cancel, r.stopped
	r.mu.Unlock()
	if cancel == nil {
		return
	}
	cancel()
	<-done
	r.mu.Lock()
	r.engine, r.cancel, r.stopped = nil, nil, nil
	r.mu.Unlock()
}

// engineEnded reports an engine that stopped by itself, and with what.
func (r *runner) engineEnded() (ended bool, err error) {
	r.mu.Lock()
	done := r.stopped
	r.mu.Unlock()
	if done == nil {
		return false, nil
	}
	select {
	case <-done:
		r.mu.Lock()
		defer r.mu.Unlock()
		return true, r.engErr
	default:
		return false, nil
	}
}

// serve executes commands until the replication is over.
func (r *runner) serve(ctx context.Context) error {
	var jobs jobs
	defer jobs.stop()
	for {
		if ended, err := r.engineEnded(); ended {
			if errors.Is(err, replicator.ErrFenced) {
				return err
			}
			if err != nil {
				r.log.Error("the engine stopped", "error", err)
			}
			r.stopEngine()
			if err != nil {
				if err := pauseFor(ctx, lookEvery); err != nil {
					return nil
				}
			}
		}
		// Whatever became of the last one, an engine runs while the phase asks for it: it may have met a problem in a phase
		// that a problem does not pause, or have been resumed before it had ended.
		if r.current() == nil {
			r.startEngine(ctx)
		}
		r.followThrottle(ctx)
		r.tidy(ctx)
		open, err := r.openCommands(ctx)
		if err != nil && ctx.Err() == nil {
			r.log.Warn("read commands", "error", err)
		}
		for _, c := range open {
			if jobs.has(c.ID) {
				continue
			}
			if err := r.execute(ctx, c, &jobs); err != nil {
				return err
			}
		}
		if err == nil && len(open) == 0 && jobs.none() && r.state().Phase.Terminal() {
			return errDone
		}
		t := time.NewTimer(lookEvery)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-r.poked:
		case <-t.C:
		}
		t.Stop()
	}
}

func pauseFor(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// jobs are commands that run beside the others: verifications.
type jobs struct {
	mu      sync.Mutex
	wg      sync.WaitGroup
	running map[string]context.CancelFunc
}

func (j *jobs) start(ctx context.Context, id string, fn func(context.Context)) {
	ctx, cancel := context.WithCancel(ctx)
	j.mu.Lock()
	if j.running == nil {
		j.running = map[string]context.CancelFunc{}
	}
	j.running[id] = cancel
	j.mu.Unlock()
	j.wg.Go(func() {
		defer func() {
			cancel()
			j.mu.Lock()
			delete(j.running, id)
			j.mu.Unlock()
		}()
		fn(ctx)
	})
}

func (j *jobs) has(id string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.running[id] != nil
}

func (j *jobs) none() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.running) == 0
}

// stop cancels what runs and waits for it.
func (j *jobs) stop() {
	j.mu.Lock()
	for _, cancel := range j.running {
		cancel()
	}
	j.mu.Unlock()
	j.wg.Wait()
}

// report publishes progress: the row for whoever asks, events for whoever watches.
func (r *runner) report(ctx context.Context) error {
	var last []byte
	for {
		every := reportBusy
		if e := r.current(); e != nil {
			p := e.Progress()
			if p.Phase == tenant.InSync || p.Phase == tenant.CutOver {
				every = reportIdle
			}
			err := r.publish(ctx, p, &last)
			if errors.Is(err, replicator.ErrFenced) {
				return err
			}
			if err != nil && ctx.Err() == nil {
				r.log.Warn("publish progress", "error", err)
			}
		}
		if err := pauseFor(ctx, every); err != nil {
			return nil //nolint:nilerr // the runner is stopping
		}
	}
}

func (r *runner) publish(ctx context.Context, p tenant.Progress, last *[]byte) error {
	p.Verification = r.verificationState(ctx)
	p.WayBack = r.wayBack(ctx)
	row, err := json.Marshal(p)
	if err != nil {
		return err
	}
	p.Tables = brief(p.Tables)
	same := p
	same.At = time.Time{}
	event, err := json.Marshal(same)
	if err != nil {
		return err
	}
	// A server that was stopped and wakes up must not show its former progress over that of the owner.
	err = r.journal.guarded(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `UPDATE rehome_control.replications SET progress = $2, updated_at = now() WHERE id = $1`, r.id, row); err != nil {
			return err
		}
		if string(event) == string(*last) {
			return nil
		}
		return r.journal.note(ctx, tx, "progress", p)
	})
	if err != nil {
		return fmt.Errorf("write progress: %w", err)
	}
	*last = event
	return nil
}

// brief keeps the tables that are being worked on, then the largest of the others.
func brief(tables []tenant.TableProgress) []tenant.TableProgress {
	if len(tables) <= eventTables {
		return tables
	}
	out := slices.Clone(tables)
	slices.SortStableFunc(out, func(a, b tenant.TableProgress) int {
		if x, y := a.State == "copying", b.State == "copying"; x != y {
			if x {
				return -1
			}
			return 1
		}
		return int(min(max(b.BytesTotal-a.BytesTotal, -1), 1))
	})
	return out[:eventTables]
}
