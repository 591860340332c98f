package redirect

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// leaseTime is how long a gateway that is not heard of delays a hold. Within it a busy control database has time to
	// answer, and of a pause of five seconds something is left.
	leaseTime = 3 * time.Second
	// leaseEvery renews it, so that two renewals may fail.
	leaseEvery = 800 * time.Millisecond
	// leaseTry bounds one renewal: a session whose peer vanished must not take the others' time.
	leaseTry = time.Second
)

// lease is this gateway's word that it hears of holds. It ends by this process' own clock before it ends in the control
// database, since it is counted from before the question.
type lease struct {
	mu     sync.Mutex
	until  time.Time     // zero: never had one
	opened chan struct{} // closed when the lease is there again; nil while nobody waits for that
}

// lapsed returns nil while the lease is live, and otherwise a channel that is closed when it is again.
func (l *lease) lapsed(now time.Time) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Before(l.until) {
		return nil
	}
	if l.opened == nil {
		l.opened = make(chan struct{})
	}
	return l.opened
}

func (l *lease) extend(until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if until.After(l.until) {
		l.until = until
	}
	if l.opened != nil {
		close(l.opened)
		l.opened = nil
	}
}

// closed reports whether this gateway has to keep a database's requests waiting because it has no lease: whoever holds
// the database does not wait for this gateway then. It returns a channel that is closed when the lease is back.
func (g *Gateway) closed(database string) <-chan struct{} {
	if rt := g.route(database); rt == nil || !rt.moving {
		return nil
	}
	return g.lease.lapsed(time.Now())
}

// renew tells the control database that this gateway hears of holds, and returns until when that is believed.
func (g *Gateway) renew(ctx context.Context) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, leaseTry)
	defer cancel()
	asked := time.Now()
	// Nothing is lost with it that would not be renewed, so it does not wait for the disk.
	_, err := g.cfg.Pool.Exec(ctx, `WITH quick AS (SELECT set_config('synchronous_commit', 'off', true))
		INSERT INTO rehome_control.gateways (server, seen_at, lease_expires_at)
		SELECT $1, clock_timestamp(), clock_timestamp() + make_interval(secs => $2) FROM quick
		ON CONFLICT (server) DO UPDATE SET seen_at = excluded.seen_at, lease_expires_at = excluded.lease_expires_at`, g.cfg.Server, leaseTime.Seconds())
	if err != nil {
		return time.Time{}, fmt.Errorf("renew the gateway's lease: %w", err)
	}
	return asked.Add(leaseTime), nil
}

// keepLease renews the lease until ctx ends, and gives it back then. A lease that was lost is there again only after holds
// and routes have been read: those who hold did not wait for this gateway meanwhile.
//
// With each renewal it looks for holds, in case the session that listens hears nothing any more and does not know.
func (g *Gateway) keepLease(ctx context.Context, grp *errgroup.Group) error {
	tick := time.NewTicker(leaseEvery)
	defer tick.Stop()
	var silent bool
	for {
		lapsed := g.lease.lapsed(time.Now()) != nil
		var err error
		var live []liveHold
		if lapsed {
			live, err = g.reload(ctx)
		} else {
			var until time.Time
			if until, err = g.renew(ctx); err == nil {
				g.lease.extend(until)
				live, err = g.look(ctx)
			}
		}
		if err == nil {
			g.acknowledge(ctx, grp, live)
		}
		switch {
		case ctx.Err() != nil:
		case err != nil && lapsed && !silent:
			silent = true
			g.cfg.Logger.WarnContext(ctx, "the control database does not answer: requests of databases that are being moved wait", "error", err)
		case err == nil && silent:
			silent = false
			g.cfg.Logger.InfoContext(ctx, "the control database answers again")
		}
		select {
		case <-ctx.Done():
			g.dropLease(ctx)
			return nil
		case <-tick.C:
		}
		if lapsed { // all that lost it together do not come back together
			wait(ctx, rand.N(leaseEvery/4)) //nolint:gosec // jitter needs no secrecy
		}
	}
}

// dropLease lets nobody wait for a gateway that stops in order.
func (g *Gateway) dropLease(ctx context.Context) {
	dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaseTry)
	defer cancel()
	if _, err := g.cfg.Pool.Exec(dctx, `DELETE FROM rehome_control.gateways WHERE server = $1 OR lease_expires_at < now() - interval '1 day'`, g.cfg.Server); err != nil {
		g.cfg.Logger.DebugContext(dctx, "give the gateway's lease back", "error", err)
	}
}
