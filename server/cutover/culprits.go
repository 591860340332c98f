package cutover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/tenant"
)

const (
	// drainPatience is how long a drain goes on unwatched. A healthy one is over by then, and nothing is opened for it.
	drainPatience = 200 * time.Millisecond
	// drainLook is how often it is looked at who blocks the lanes at a shard.
	drainLook = 150 * time.Millisecond
	// blameTimeout bounds looking, at the end, how far the source is; nobody waits for it but the report.
	blameTimeout = time.Second
)

// blame notes who or what was in the way for the report and the error's findings; where: source, shard NAME.
func (r *run) blame(where, remedy, format string, args ...any) {
	f := tenant.Finding{Severity: tenant.Warning, Code: "in-the-way", Object: where, Message: fmt.Sprintf(format, args...), Remedy: remedy}
	r.rec.Culprits = append(r.rec.Culprits, where+": "+f.Message)
	r.culprits = append(r.culprits, f)
}

const endIt = "let it end, or end it: SELECT pg_terminate_backend(pid)"

// blameAll gathers who was in the way of an attempt that failed: at the source's locks, at the shards' lanes, and which
// shard was how far behind.
func (r *run) blameAll(ctx context.Context, cause error) {
	if r.gate != nil {
		for _, c := range r.gate.Culprits() {
			remedy := endIt
			if c.PID == 0 {
				remedy = "COMMIT PREPARED or ROLLBACK PREPARED it"
			}
			r.blame("source", remedy, "%s", c)
		}
	}
	if r.drained != nil {
		r.drained.tell(r)
	}
	var u interface {
		Undrained() (left []string, read bool)
	}
	if !errors.As(cause, &u) {
		return
	}
	left, read := u.Undrained()
	at := r.sourcePosition(ctx)
	positions := r.stream.Progress().Shards
	for _, name := range left {
		behind := ""
		if i := slices.IndexFunc(positions, func(p tenant.ShardPosition) bool { return p.Shard == name }); i >= 0 {
			p := positions[i]
			behind = fmt.Sprintf("; it has everything up to %s on disk", p.Durable)
			if at > p.Durable {
				behind += fmt.Sprintf(", %d bytes behind the source", uint64(at-p.Durable))
			}
		}
		if read {
			r.blame("shard "+name, "see what its server is busy with, and whether it can be reached", "it had not applied the last changes of the source when the time was over%s", behind)
		} else {
			r.blame("shard "+name, "see that the source's server sends (pg_stat_replication), and that every shard takes what it is sent", "the source's last changes had not been read when the time was over%s", behind)
		}
	}
}

// sourcePosition is the source's write position, 0 if it cannot be asked.
func (r *run) sourcePosition(ctx context.Context) tenant.LSN {
	if r.gate == nil || r.gate.Second().IsClosed() {
		return 0
	}
	ctx, cancel := context.WithTimeout(ctx, blameTimeout)
	defer cancel()
	var at tenant.LSN
	if err := r.gate.Second().QueryRow(ctx, `SELECT pg_current_wal_insert_lsn()::text`).Scan(&at); err != nil {
		return 0
	}
	return at
}

// drainWatch looks, beside a drain that takes long, at who blocks the lanes at the shards.
type drainWatch struct {
	mu     sync.Mutex
	found  map[string][]gate.Culprit // by shard
	silent map[string]bool           // shards that did not answer
}

// tell blames what was found, shard by shard.
func (w *drainWatch) tell(r *run) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range r.job.Shards {
		for _, c := range w.found[s.Name] {
			r.blame("shard "+s.Name, endIt, "%s", c)
		}
		if w.silent[s.Name] {
			r.blame("shard "+s.Name, "see that its server runs and answers", "it did not answer during the drain")
		}
	}
}

// watchDrain looks until stop is called, which waits for the last look to end. It uses sessions of its own: those of the
// attempt are needed when the drain succeeds after all.
func (r *run) watchDrain(ctx context.Context) (stop func()) {
	w := &drainWatch{found: map[string][]gate.Culprit{}, silent: map[string]bool{}}
	r.drained = w
	ctx, cancel := context.WithCancel(ctx)
	var g errgroup.Group
	for _, s := range r.job.Shards {
		g.Go(func() error { w.look(ctx, s, r.job.Lanes); return nil })
	}
	return func() {
		cancel()
		_ = g.Wait() // the lookers return no errors
	}
}

// look looks at one shard until the context ends.
func (w *drainWatch) look(ctx context.Context, s Shard, lanes string) {
	if !pauseFor(ctx, drainPatience) {
		return
	}
	silent := func(v bool) { w.mu.Lock(); w.silent[s.Name] = v; w.mu.Unlock() }
	silent(true) // until it answers
	conn, err := gate.ShardSession(ctx, s.DSN)
	if err != nil {
		return
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), blameTimeout)
		defer cancel()
		_ = conn.Close(end)
	}()
	for {
		started := time.Now()
		found, err := gate.SessionsBlockers(ctx, conn, lanes)
		if err != nil {
			// The context ends in the middle of a look as a rule; a server that was slow to answer is silent.
			silent(time.Since(started) > drainLook)
			return
		}
		silent(false)
		w.mu.Lock()
		w.found[s.Name] = gate.Blame(w.found[s.Name], found)
		w.mu.Unlock()
		if !pauseFor(ctx, drainLook) {
			return
		}
	}
}

// pauseFor waits; false says that the context ended first.
func pauseFor(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
