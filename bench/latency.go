package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"
)

const (
	// latencyRate is how many transactions a second the load commits; each is one of the small ones.
	latencyRate = 1000
	// latencySeconds is how long a contender is measured in each round: five rounds make a minute.
	latencySeconds = 12
	latencyClients = 8
	// pingPause is the middle of the random time between two pings, so that they fall into every phase of the load.
	pingPause = 10 * time.Millisecond
	// lookPause is between two looks at the target while a ping is under way, and so the error of a latency. Nobody looks in
	// between, so that looking costs the contender little.
	lookPause = 100 * time.Microsecond
	// settle is how long the load runs before the first ping.
	settle = time.Second
)

// latencies are the times from commits at the source to their sight at the target, sorted.
type latencies []time.Duration

// at is a percentile in milliseconds.
func (l latencies) at(share float64) float64 {
	if len(l) == 0 {
		return 0
	}
	return float64(l[min(int(share*float64(len(l))), len(l)-1)].Microseconds()) / 1000
}

// latency measures one contender, which follows, under load. A ping is a row of its own at the source. Its clock runs from the
// answer to its commit until a session at the target sees the row: a latency can be shorter than nothing where the target
// is faster than the answer, and then counts as nothing.
func (b *drainBed) latency(ctx context.Context, f follower, items int64, length time.Duration) (s Sample, err error) {
	load, done, err := pgbenchCommand(ctx, b.rig.Source, b.database, smallScript, true, "-n", "-M", "prepared", "-c", strconv.Itoa(latencyClients), "-j", "2",
		"-R", strconv.Itoa(latencyRate), "-T", strconv.Itoa(int((settle+length).Seconds()+1)), "-D", "rows="+strconv.FormatInt(items, 10), "-D", "realms="+strconv.Itoa(backlogRealms))
	if err != nil {
		return s, err
	}
	defer done()
	if err := load.Start(); err != nil {
		return s, fmt.Errorf("start pgbench: %w", err)
	}
	var got latencies
	var before, after CPU
	var began time.Time
	var wall time.Duration
	err = func() (err error) {
		if err := pause(ctx, settle); err != nil {
			return err
		}
		if before, err = b.cpu(f); err != nil {
			return err
		}
		began = time.Now()
		if got, err = b.pings(ctx, f, began.Add(length)); err != nil {
			return err
		}
		wall = time.Since(began)
		after, err = b.cpu(f)
		return err
	}()
	if err != nil {
		_ = load.Process.Kill()
	}
	if waitErr := load.Wait(); err == nil && waitErr != nil {
		err = fmt.Errorf("pgbench: %w", waitErr)
	}
	if err != nil {
		return s, err
	}
	slices.Sort(got)
	return Sample{Contender: f.label(), Seconds: wall.Seconds(), CPU: after.minus(before), At: began, Values: map[string]float64{
		p50Millis: got.at(0.50), p95Millis: got.at(0.95), p99Millis: got.at(0.99), "max ms": got.at(1), "pings": float64(len(got)),
	}}, nil
}

// pings sends pings until a time, one after the other.
func (b *drainBed) pings(ctx context.Context, f follower, until time.Time) (latencies, error) {
	source, err := dial(ctx, b.dsn())
	if err != nil {
		return nil, err
	}
	defer source.Close(ctx)
	target, err := dial(ctx, f.targets()[0])
	if err != nil {
		return nil, err
	}
	defer target.Close(ctx)
	var got latencies
	for time.Now().Before(until) {
		b.last++
		if _, err := source.Exec(ctx, `INSERT INTO pings VALUES ('ping', $1)`, b.last); err != nil {
			return nil, fmt.Errorf("send a ping: %w", err)
		}
		sent := time.Now()
		var seen time.Time
		for seen.IsZero() {
			var there bool
			if err := target.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pings WHERE realm_id = 'ping' AND id = $1)`, b.last).Scan(&there); err != nil {
				return nil, fmt.Errorf("look for a ping: %w", err)
			}
			switch {
			case there:
				seen = time.Now()
			case time.Since(sent) > time.Minute:
				return nil, errors.New("a ping did not arrive within a minute")
			default:
				if err := doze(ctx, lookPause); err != nil {
					return nil, err
				}
			}
		}
		got = append(got, seen.Sub(sent))
		if err := pause(ctx, pingPause/2+rand.N(pingPause)); err != nil { //nolint:gosec // no secret depends on it
			return nil, err
		}
	}
	return got, nil
}

// pause waits.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
