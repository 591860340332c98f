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
	// leaseEvery renews it, so that two renewals may fail, or each take two seconds: the next does not wait for it. A renewal
	// counts from before it was asked for, so one may take as long as it can be of use, which is leaseTime.
	leaseEvery = 800 * time.Millisecond
)

// lease is this gateway's word that it hears of holds. It ends by this process' own clock before it ends in the control
// database, since it is counted from before the question.
//
// One that was lost is there again only when holds and routes have been read that were asked for after it was renewed: those
// who hold did not wait for this gateway meanwhile.
type lease struct {
	mu     sync.Mutex
	until  time.Time     // the control database believes this gateway until then; zero: never did
	since  time.Time     // and did so, without a gap, since then at the latest
	heard  bool          // holds and routes were read since
	opened chan struct{} // closed when the lease is there again; nil while nobody waits for that
}

// lapsed returns nil while the lease is live, and otherwise a channel that is closed when it is again.
func (l *lease) lapsed(now time.Time) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.heard && now.Before(l.until) {
		return nil
	}
	if l.opened == nil {
		l.opened = make(chan struct{})
	}
	return l.opened
}

// renewed takes note of a renewal that was asked for and has been answered. Several may be under way, and be answered in any
// order.
func (l *lease) renewed(asked, answered time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !answered.Before(l.until) { // the one before may have ended in the control database
		l.since, l.heard = answered, false
	}
	if until := asked.Add(leaseTime); until.After(l.until) {
		l.until = until
	}
}

// believed reports whether the control database has the lease, though it may be lapsed for want of a reading.
func (l *lease) believed(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return now.Before(l.until)
}

// read takes note that holds and routes were read, which were asked for at a time, and are in force.
func (l *lease) read(asked, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if asked.Before(l.since) || !now.Before(l.until) {
		return
	}
	l.heard = true
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

// Believed reports whether the control database has this gateway's lease: it answered what was asked of it less than leaseTime
// ago.
func (g *Gateway) Believed() bool { return g.lease.believed(time.Now()) }

// renew tells the control database that this gateway hears of holds.
func (g *Gateway) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, leaseTime)
	defer cancel()
	asked := time.Now()
	// Nothing is lost with it that would not be renewed, so it does not wait for the disk. The clock is read when the row is
	// locked: one that waited for another must not take back what that one promised.
	_, err := g.cfg.Pool.Exec(ctx, `WITH quick AS (SELECT set_config('synchronous_commit', 'off', true))
		INSERT INTO rehome_control.gateways (server, seen_at, lease_expires_at)
		SELECT $1, clock_timestamp(), clock_timestamp() + make_interval(secs => $2) FROM quick
		ON CONFLICT (server) DO UPDATE SET seen_at = clock_timestamp(), lease_expires_at = clock_timestamp() + make_interval(secs => $2)`,
		g.cfg.Server, leaseTime.Seconds())
	if err != nil {
		return fmt.Errorf("renew the gateway's lease: %w", err)
	}
	g.lease.renewed(asked, time.Now())
	return nil
}

// keepLease renews the lease until ctx ends, and gives it back then.
func (g *Gateway) keepLease(ctx context.Context) error {
	keepRenewed(ctx, g.renew)
	g.dropLease(ctx)
	return nil
}

// keepRenewed calls renew every leaseEvery, also while earlier calls have not returned: a slow answer is as good as a quick
// one, and a session whose peer vanished must not take the others' time. Since each lasts leaseTime at most, there are four of
// them at most. That one failed is seen by who looks for holds.
func keepRenewed(ctx context.Context, renew func(context.Context) error) {
	var tries sync.WaitGroup
	defer tries.Wait()
	tick := time.NewTicker(leaseEvery)
	defer tick.Stop()
	for {
		tries.Go(func() { _ = renew(ctx) })
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// keepLooking looks for holds as often as the lease is renewed, in case the session that listens hears nothing any more and
// does not know, and reads all anew when the lease was lost.
func (g *Gateway) keepLooking(ctx context.Context, grp *errgroup.Group) error {
	tick := time.NewTicker(leaseEvery)
	defer tick.Stop()
	var silent bool
	for {
		lapsed := g.lease.lapsed(time.Now()) != nil
		read := g.look
		if lapsed {
			read = g.reload
		}
		live, err := read(ctx)
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
	dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaseTime)
	defer cancel()
	if _, err := g.cfg.Pool.Exec(dctx, `DELETE FROM rehome_control.gateways WHERE server = $1 OR lease_expires_at < now() - interval '1 day'`, g.cfg.Server); err != nil {
		g.cfg.Logger.DebugContext(dctx, "give the gateway's lease back", "error", err)
	}
}
