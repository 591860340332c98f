package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// latencyWorkload is E: the time from a commit at the source to its sight at the target, under a steady load, one contender
// at a time.
type latencyWorkload struct {
	scale float64
	whole time.Duration // at scale 1
}

const latencyCase = "E, latency at 1,000 tps"

// Further figures of a latency.
const (
	p50Millis = "p50 ms"
	p95Millis = "p95 ms"
	p99Millis = "p99 ms"
	maxMillis = "max ms"
	pingsSent = "pings"
)

// loadName stands for who writes in E, in the list of commands.
const loadName = "the load"

func (w *latencyWorkload) ID() string { return "E" }

func (w *latencyWorkload) Prepare(_ context.Context, b *Bench) error {
	w.scale, w.whole = b.Options.Scale, time.Duration(b.Options.LatencySeconds)*time.Second
	return nil
}

// length is the time of measuring a contender in one round.
func (w *latencyWorkload) length() time.Duration {
	return max(time.Second/2, min(w.whole, time.Duration(w.scale*float64(w.whole))))
}

func (w *latencyWorkload) Round(ctx context.Context, b *Bench, round int) (err error) {
	s, err := smallSource(ctx, b, round, w.scale)
	if s != nil {
		defer func() { err = errors.Join(err, s.close(context.WithoutCancel(ctx))) }()
	}
	if err != nil {
		return err
	}
	s.cases = []string{latencyCase}
	at := b.Rig.Targets[0]
	s.add(
		&subscription{bed: s.bed, at: at, name: nativeName, db: "d_text", schema: smallDDL},
		&rehomeFollower{bed: s.bed, server: s.server, db: "d1", shards: 1},
		&pglogical{bed: s.bed, at: s.apart, db: "d_pglogical", schema: smallDDL},
	)
	s.who = slices.DeleteFunc(s.who, func(f follower) bool { return !s.wanted(ctx, f) })
	s.join(ctx)
	for _, f := range s.who {
		if !s.out[f.label()] {
			if err := within(ctx, stopWithin, f.stop); err != nil {
				s.fails(ctx, f, s.cases, err)
			}
		}
	}
	for _, f := range Rotate(s.who, turnOf(round)) {
		if s.out[f.label()] {
			continue
		}
		s.bed.log = &Run{}
		sample, err := w.turn(ctx, s, f)
		b.noteCommands(latencyCase, loadName, s.bed.log.Noted())
		s.bed.log = nil
		s.note(f)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			s.fails(ctx, f, s.cases, err)
			continue
		}
		sample.Case, sample.Round = latencyCase, round
		b.record(sample)
	}
	return nil
}

// turn lets one contender catch up, measures it alone, compares what it has, and stops it again.
func (w *latencyWorkload) turn(ctx context.Context, s *drainSuite, f follower) (sample Sample, err error) {
	if err := f.start(ctx); err != nil {
		return sample, err
	}
	if err := s.bed.caughtUp(ctx, f); err != nil {
		return sample, err
	}
	if sample, err = s.bed.latency(ctx, f, scaled(backlogRows, w.scale), w.length()); err != nil {
		return sample, err
	}
	err = errors.Join(s.bed.caughtUp(ctx, f), s.bed.same(ctx, f, []string{"items", "entries", "pings"}))
	return sample, errors.Join(err, f.stop(ctx))
}

// Report of E.
func (w *latencyWorkload) Report(r *Results) []Section {
	s := Section{
		Title: "E: latency at 1,000 transactions a second",
		Text: "pgbench is asked for 1,000 small transactions (1 update and 1 insert) a second by 8 clients, durably; load txn/s is what it made while pings were sent. Below 80% of that a turn has no figure. Beside it a probe commits " +
			"a row at the source every 5 to 15 ms, whether those before have arrived or not; a row's latency is the time from the answer to its commit until a session at the target sees it, which asks every 0.1 ms while any row is " +
			"under way. One contender follows at a time. CPU in seconds per second.\n\n" +
			fmt.Sprintf("A percentile is that of one round, in which pings are sent for %g s; shown is the median of the rounds' percentiles, not the percentile of all their pings. pings is how many a round has: "+
				"its p99 is the latency that only the slowest hundredth of them exceed.", w.length().Seconds()),
		Head: []string{"contender", ">p50 ms", ">p95 ms", ">p99 ms", ">slowest ms", ">p50 x native", ">p99 x native", ">pings", ">load txn/s", ">CPU tool", ">source", ">targets", ">n"},
	}
	for _, name := range []string{nativeName, pglogicalName, rehomeShards(1)} {
		n := r.Spread(latencyCase, name, Wall).N
		if n == 0 {
			continue
		}
		at := func(v string) string { return r.Spread(latencyCase, name, Value(v)).String() }
		x := func(v string) string {
			return r.Ratio(latencyCase, name, Value(v), latencyCase, nativeName, Value(v)).String()
		}
		cpu := func(f func(CPU) float64) string {
			return r.Spread(latencyCase, name, func(s Sample) float64 { return f(s.CPU) / s.Seconds }).Middle()
		}
		s.Rows = append(s.Rows, []string{
			name, at(p50Millis), at(p95Millis), at(p99Millis), at(maxMillis), x(p50Millis), x(p99Millis), r.Spread(latencyCase, name, Value(pingsSent)).Middle(), at(loadReached), cpu(func(c CPU) float64 { return c.Tool + c.Control }),
			cpu(func(c CPU) float64 { return c.Source }), cpu(func(c CPU) float64 { return c.Targets }), digitsInt(n),
		})
	}
	return []Section{s}
}

// Aims of E. The note names who had clearly less than the load that they speak of.
func (w *latencyWorkload) Aims(r *Results) []Aim {
	var short []string
	for _, name := range []string{nativeName, rehomeShards(1)} {
		if load := r.Spread(latencyCase, name, Value(loadReached)); load.N > 0 && load.Min < loadNear*latencyRate {
			short = append(short, fmt.Sprintf("load of %s: %s txn/s", name, load))
		}
	}
	var aims []Aim
	for _, p := range []string{p50Millis, p99Millis} {
		aims = append(aims, Aim{
			What: "latency at 1,000 tps, " + p[:3], Bound: "≤ 1.5 × native's", Limit: 1.5, Note: strings.Join(short, "; "),
			Measured: r.Ratio(latencyCase, rehomeShards(1), Value(p), latencyCase, nativeName, Value(p)),
		})
	}
	return aims
}
