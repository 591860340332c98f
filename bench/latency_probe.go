package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// pingPause is the middle of the random time between two pings, so that they fall into every phase of the load.
	pingPause = 10 * time.Millisecond
	// lookPause is between two looks at the target while a ping is under way, and so the error of a latency. Nobody looks while
	// none is, so that looking costs the contender little.
	lookPause = 100 * time.Microsecond
	// seenWithin bounds the wait for the pings that are still under way when the last one was sent.
	seenWithin = time.Minute
)

// pingSQL sends a ping.
const pingSQL = `INSERT INTO pings VALUES ('ping', $1)`

// probe measures latencies. A ping is a row of its own at the source; its clock runs from the answer to its commit until a session at
// the target sees the row. A latency can be shorter than nothing where the target is faster than the answer, and then counts as
// nothing. When pings are sent does not depend on when they are seen: a probe that waited for each would send few while the
// target hangs, and the percentiles would leave out most of what others waited then.
type probe struct {
	source, target *pgx.Conn
	first, last    int64        // ids that were sent: first+1 to last
	sent           atomic.Int64 // id of the last ping whose commit is answered
	wake           chan struct{}
	looked         int // how often the target was asked
}

// ping is what was sent, and when its commit was answered. Ids rise by one.
type ping struct {
	id int64
	at time.Time
}

// look is a moment at which a target first showed all pings up to an id.
type look struct {
	id int64
	at time.Time
}

// stamp makes latencies of what was sent and what was seen, both in the order of ids.
func stamp(sent []ping, seen []look) (latencies, error) {
	got := make(latencies, 0, len(sent))
	for _, p := range sent {
		for len(seen) > 0 && seen[0].id < p.id {
			seen = seen[1:]
		}
		if len(seen) == 0 {
			return nil, fmt.Errorf("%d of %d pings were never seen", len(sent)-len(got), len(sent))
		}
		got = append(got, max(0, seen[0].at.Sub(p.at)))
	}
	return got, nil
}

func (b *drainBed) newProbe(ctx context.Context, f follower) (*probe, error) {
	source, err := dial(ctx, b.dsn())
	if err != nil {
		return nil, err
	}
	target, err := dial(ctx, f.targets()[0])
	if err != nil {
		return nil, errors.Join(err, source.Close(ctx))
	}
	p := &probe{source: source, target: target, first: b.last, last: b.last, wake: make(chan struct{}, 1)}
	p.sent.Store(b.last)
	// A plan that was made while the table was empty must not read all of it when it is not.
	if _, err := target.Exec(ctx, `SET enable_seqscan = off`); err != nil {
		p.close(ctx)
		return nil, fmt.Errorf("look for pings: %w", err)
	}
	return p, nil
}

func (p *probe) close(ctx context.Context) {
	_ = p.source.Close(ctx)
	_ = p.target.Close(ctx)
}

// run sends pings until a time, calls done, and waits for those that are still under way.
func (p *probe) run(ctx context.Context, until time.Time, done func() error) (latencies, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	type watched struct {
		seen []look
		err  error
	}
	result := make(chan watched, 1)
	go func() {
		seen, err := p.watch(ctx)
		if err != nil {
			cancel(err) // nobody needs further pings
		}
		result <- watched{seen, err}
	}()
	sent, err := p.send(ctx, until)
	if err == nil {
		err = done()
	}
	if err != nil {
		cancel(err)
		<-result
		return nil, context.Cause(ctx) // what failed first
	}
	late := time.AfterFunc(seenWithin, func() { cancel(fmt.Errorf("not all pings arrived within %s after the last", seenWithin)) })
	defer late.Stop()
	w := <-result
	if w.err != nil {
		return nil, w.err
	}
	return stamp(sent, w.seen)
}

// send sends the pings that are due before a time. One that is late, since the commit before it took so long, goes at once.
func (p *probe) send(ctx context.Context, until time.Time) (sent []ping, err error) {
	defer close(p.wake)
	gap := func() time.Duration { return pingPause/2 + rand.N(pingPause) } //nolint:gosec // no secret depends on it
	for due := time.Now().Add(gap()); due.Before(until); due = due.Add(gap()) {
		if err := pause(ctx, time.Until(due)); err != nil {
			return nil, err
		}
		p.last++ // also one that fails may be there
		if _, err := p.source.Exec(ctx, pingSQL, p.last); err != nil {
			return nil, fmt.Errorf("send a ping: %w", err)
		}
		sent = append(sent, ping{p.last, time.Now()})
		p.sent.Store(p.last)
		select {
		case p.wake <- struct{}{}:
		default: // it is told already
		}
	}
	return sent, nil
}

// watch looks at the target while pings are under way, until it has seen all that were sent and no more will be.
func (p *probe) watch(ctx context.Context) (seen []look, err error) {
	top := p.first
	for more := true; ; {
		for top < p.sent.Load() {
			var newest, n int64
			p.looked++
			if err := p.target.QueryRow(ctx, `SELECT coalesce(max(id), 0), count(*) FROM pings WHERE realm_id = 'ping' AND id > $1`, top).Scan(&newest, &n); err != nil {
				if ctx.Err() != nil {
					err = context.Cause(ctx)
				}
				return nil, fmt.Errorf("look for pings: %w", err)
			}
			if n > 0 && newest == top+n { // else an earlier one is not there yet
				top = newest
				seen = append(seen, look{top, time.Now()})
			}
			if top >= p.sent.Load() {
				break
			}
			if err := doze(ctx, lookPause); err != nil {
				return nil, err
			}
		}
		if !more {
			return seen, nil
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case _, more = <-p.wake:
		}
	}
}
