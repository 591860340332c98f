package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// latencyRate is how many transactions a second the load is asked for; each is one of the small ones.
	latencyRate = 1000
	// latencySeconds is how long a contender is measured in each round, unless -latency-seconds says otherwise: five rounds make a minute.
	latencySeconds = 12
	latencyClients = 8
	// latencyContenders is how many are measured in a round that has all of them.
	latencyContenders = 3
	// settle is how long the load runs before the first ping, and loadSlack how long it would run after the last one: what takes
	// time in between must not let it end early.
	settle    = time.Second
	loadSlack = 2 * time.Second
	// loadLeast is the share of the asked load below which a latency is no figure, and loadNear the one below which the aims say what
	// was reached: a busy machine costs a contender some of it, and the report shows how much.
	loadLeast = 0.80
	loadNear  = 0.95
	// loadJudged is the shortest time over which a load is held against what was asked. Runs of less try the benchmark itself.
	loadJudged = 2 * time.Second
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

// latency measures one contender, which follows, under load. Wall time, CPU and the load are those of the time in which pings are sent.
func (b *drainBed) latency(ctx context.Context, f follower, items int64, length time.Duration) (s Sample, err error) {
	args := []string{
		"-n", "-M", "prepared", "-c", strconv.Itoa(latencyClients), "-j", "2", "-R", strconv.Itoa(latencyRate),
		"-T", strconv.Itoa(int((settle + length + loadSlack).Seconds())), "-D", "rows=" + strconv.FormatInt(items, 10), "-D", "realms=" + strconv.Itoa(backlogRealms),
	}
	b.notePgbench(smallScript, true, args)
	b.note("$SOURCE: " + pingSQL + " -- every 5 to 15 ms, $1 rises by one")
	load, clean, err := pgbenchCommand(ctx, b.rig.Source, b.database, smallScript, true, args...)
	if err != nil {
		return s, err
	}
	defer clean()
	var said strings.Builder
	load.Stderr = &said
	if err := load.Start(); err != nil {
		return s, fmt.Errorf("start pgbench: %w", err)
	}
	ended := make(chan struct{})
	var loadErr error // after ended
	go func() {
		defer close(ended)
		if err := load.Wait(); err != nil {
			text := strings.TrimSpace(said.String())
			loadErr = fmt.Errorf("pgbench: %w: %s", err, text[max(0, len(text)-600):])
		}
	}()
	s, err = b.underLoad(ctx, f, length, ended)
	if err != nil {
		select {
		case <-ended: // of itself: it says why
			err = errors.Join(err, loadErr)
		default:
			_ = load.Process.Kill()
			<-ended
		}
		return s, err
	}
	<-ended
	return s, loadErr
}

// underLoad is the measured part of latency; ended is closed when the load is at its end.
func (b *drainBed) underLoad(ctx context.Context, f follower, length time.Duration, ended <-chan struct{}) (s Sample, err error) {
	p, err := b.newProbe(ctx, f)
	if err != nil {
		return s, err
	}
	defer func() {
		p.close(context.WithoutCancel(ctx))
		b.last = p.last // also of a turn without a figure: the next one's ids come after it
	}()
	if err := pause(ctx, settle); err != nil {
		return s, err
	}
	before, err := b.cpu(f)
	if err != nil {
		return s, err
	}
	written, err := b.loadWritten(ctx)
	if err != nil {
		return s, err
	}
	began := time.Now()
	var wall time.Duration
	var after CPU
	var rate float64
	got, err := p.run(ctx, began.Add(length), func() error {
		wall = time.Since(began)
		select {
		case <-ended:
			return errors.New("the load ended before the last ping")
		default:
		}
		now, err := b.loadWritten(ctx)
		if err != nil {
			return err
		}
		rate = float64(now-written) / time.Since(began).Seconds()
		after, err = b.cpu(f)
		return err
	})
	if err != nil {
		return s, err
	}
	if err := loadEnough(rate, length); err != nil {
		return s, err
	}
	slices.Sort(got)
	return Sample{Contender: f.label(), Seconds: wall.Seconds(), CPU: after.minus(before), At: began, Values: map[string]float64{
		p50Millis: got.at(0.50), p95Millis: got.at(0.95), p99Millis: got.at(0.99), maxMillis: got.at(1), pingsSent: float64(len(got)),
		loadReached: rate, "looks/s": float64(p.looked) / wall.Seconds(),
	}}, nil
}

// loadWritten is how many transactions the load has made so far: each takes one number of the sequence. That costs the same however
// many there are.
func (b *drainBed) loadWritten(ctx context.Context) (n int64, err error) {
	if err := b.src.QueryRow(ctx, `SELECT last_value FROM entry`).Scan(&n); err != nil {
		return 0, fmt.Errorf("count the transactions of the load: %w", err)
	}
	return n, nil
}

// loadEnough is an error if so little of the load, in transactions a second over some time, was reached that a latency under it is no figure.
func loadEnough(rate float64, over time.Duration) error {
	if over >= loadJudged && rate < loadLeast*latencyRate {
		return fmt.Errorf("the load reached %.0f of %d transactions a second; below %.0f%% a latency is no figure", rate, latencyRate, loadLeast*100)
	}
	return nil
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
