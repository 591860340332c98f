package supervisor

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/tenant"
)

// makeWayBack makes the way back of a replication, as a thing that can be prepared, run and dropped. One serves the runner
// for its whole life: the coordinator prepares it, keepWayBack runs it, and the end of the replication drops it.
func (r *runner) makeWayBack(rec *record) (*replicator.Back, error) {
	return replicator.NewBack(replicator.BackConfig{
		Replication: r.id, Source: rec.source, Slot: rec.slot, Publication: rec.publication, Shards: rec.shards, Placement: rec.placement,
		Options: rec.options, Epoch: r.epoch, Pass: r.s.pass(rec.database), Journal: r.journal, Gate: backGates{r.id}, Logger: r.s.log,
	})
}

// keepWayBack carries the shards' writes back to the source while the target has the authority: from the decision on, and
// also while a rollback is under way. It goes on while the replication is paused, whose own stream then only waits: what
// it carries cannot be made up for later at will.
func (r *runner) keepWayBack(ctx context.Context) error {
	var stop context.CancelFunc
	var done chan error
	end := func() error {
		if stop == nil {
			return nil
		}
		stop()
		err := <-done
		stop = nil
		return err
	}
	defer func() { _ = end() }() // what failed is said by whoever ended the runner
	for {
		switch open := hasWayBack(r.state()); {
		case open && stop == nil:
			wctx, cancel := context.WithCancel(ctx)
			stop, done = cancel, make(chan error, 1)
			go func() { done <- r.back.Run(wctx) }() // end waits for it
		case !open && stop != nil:
			if err := end(); err != nil {
				return err
			}
		}
		select {
		case err := <-done: // it ends by itself only when another server took over
			stop()
			stop, done = nil, nil
			if err != nil {
				return fmt.Errorf("way back: %w", err)
			}
		default:
		}
		if err := pauseFor(ctx, lookEvery); err != nil {
			return nil
		}
	}
}

// hasWayBack reports whether a state is one in which the shards' writes are carried back.
func hasWayBack(st tenant.State) bool {
	p := st.Phase
	if p == tenant.Paused {
		p = st.Resume
	}
	return p == tenant.CutOver || p == tenant.RollingBack
}

// wayBack is what is shown of the way back; nil before a cutover and after a rollback.
func (r *runner) wayBack(ctx context.Context) *tenant.WayBack {
	if !hasWayBack(r.state()) {
		return nil
	}
	w := r.back.Progress()
	if w.State != tenant.WayBackNone {
		return &w
	}
	if wanted, err := r.s.cutovers.WantsWayBack(ctx, r.id); err == nil && wanted && r.back.Looked() {
		w.State, w.Reason, w.Remedy = tenant.WayBackBroken, "what the way back needs at the source is gone: it was dropped by others", "rehome complete"
	}
	return &w
}

// backGates gives the way back what it needs of package gate. It implements replicator.BackGate.
type backGates struct{ replication string }

func (backGates) InstallBack(ctx context.Context, c *pgx.Conn) error { return gate.InstallBack(ctx, c) }

func (backGates) RemoveBack(ctx context.Context, c *pgx.Conn) error { return gate.RemoveBack(ctx, c) }

func (g backGates) Heartbeat(ctx context.Context, c *pgx.Conn) error {
	return gate.Heartbeat(ctx, c, g.replication)
}

// dropWayBack drops the way back at the end of a replication, on both sides, the slots first.
func (r *runner) dropWayBack(ctx context.Context) error {
	if err := r.back.Discard(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return ctx.Err()
}
