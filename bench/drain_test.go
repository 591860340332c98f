package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/rehomedb/rehome/internal/pgcluster"
)

// loser is a native subscription that loses one row when it goes on.
type loser struct{ subscription }

func (l *loser) start(ctx context.Context) error {
	return errors.Join(Exec(ctx, l.at.DSN(l.db), "DELETE FROM entries WHERE id = 7"), l.subscription.start(ctx))
}

// TestWhoDrainsOtherRowsHasNoFigure: of two that drain the same backlog, the one that lost a row before has no figure, and takes no
// further part; the other is measured.
func TestWhoDrainsOtherRowsHasNoFigure(t *testing.T) {
	t.Parallel()
	const scale = 0.001
	ctx := t.Context()
	options := pgcluster.Options{Settings: map[string]string{"wal_retrieve_retry_interval": "100ms"}}
	b := &Bench{Options: Options{Scale: scale}, Results: &Results{}, out: &bytes.Buffer{}, began: time.Now()}
	target := pgcluster.StartT(t, options)
	b.Rig = &Rig{Dir: t.TempDir(), Source: pgcluster.StartT(t, options), Control: target, Targets: []*pgcluster.Cluster{target}}
	bed, err := openBed(ctx, b.Rig, smallDB, "realm_id", func(ctx context.Context, bed *drainBed) error { return fillSmall(ctx, bed, scale) })
	if err != nil {
		t.Fatal(err)
	}
	defer bed.src.Close(context.WithoutCancel(ctx))
	if err := bed.exec(ctx, `INSERT INTO entries SELECT 'r1', -g, g, 'there before' FROM generate_series(-20, -1) g`); err != nil {
		t.Fatal(err)
	}
	honest := &subscription{bed: bed, at: b.Rig.Targets[0], name: nativeName, db: "honest", schema: smallDDL}
	lost := &loser{subscription{bed: bed, at: b.Rig.Targets[0], name: "loser", db: "loser", schema: smallDDL}}
	s := &drainSuite{bench: b, bed: bed, logs: smallBacklogs(scale), who: []follower{honest, lost}, out: map[string]bool{}, round: 1}
	for _, l := range s.logs {
		s.cases = append(s.cases, drainCase(l))
	}
	s.join(ctx)
	s.restAll(ctx, func(follower) bool { return true })
	small, updates := s.logs[0], s.logs[2]
	for _, l := range []backlog{small, updates} {
		if err := s.drainAll(ctx, l); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range s.who {
		if err := f.leave(ctx); err != nil {
			t.Error(err)
		}
	}
	if got := b.Results.Failures(drainCase(small), "loser"); len(got) != 1 || !strings.Contains(got[0], "loser: entries has 219 rows, the source 220") {
		t.Errorf("the loser: %q", got)
	}
	if got := b.Results.Good(drainCase(updates), "loser"); len(got) != 0 {
		t.Errorf("the loser was measured again: %v", got)
	}
	for _, l := range []backlog{small, updates} {
		got, ok := b.Results.Good(drainCase(l), nativeName)[1]
		if !ok {
			t.Fatalf("%s: the other has no figure: %q", l.name, b.Results.Failures(drainCase(l), nativeName))
		}
		if want := float64(l.rows) / got.Seconds; got.Values[drainRows] != want || got.Seconds <= 0 {
			t.Errorf("%s: %v rows/s in %v s, want %v", l.name, got.Values[drainRows], got.Seconds, want)
		}
	}
}

func TestPercentilesOfLatencies(t *testing.T) {
	t.Parallel()
	var l latencies
	for n := range 100 {
		l = append(l, time.Duration(n+1)*time.Millisecond)
	}
	for share, want := range map[float64]float64{0.5: 51, 0.95: 96, 0.99: 100, 1: 100} {
		if got := l.at(share); got != want {
			t.Errorf("%v: %v ms, want %v", share, got, want)
		}
	}
	if got := (latencies{}).at(0.5); got != 0 {
		t.Errorf("of none: %v", got)
	}
}

// TestFlatnessLeavesOutWhatAnEmptyDatabaseCosts: the cost of a row is that of the rows alone, and a point without a figure is no proof.
func TestFlatnessLeavesOutWhatAnEmptyDatabaseCosts(t *testing.T) {
	t.Parallel()
	few, many := growthPoint{100_000, 10, 1}, growthPoint{1_000_000, 10, 1}
	sample := func(p growthPoint, cpu float64) Sample {
		return Sample{Case: growthCase, Contender: p.label(), Round: 1, Values: map[string]float64{copyTool: cpu / 2, copySource: cpu / 4, copyTargets: cpu / 4}}
	}
	w, axis := &growthWorkload{}, growthAxis{name: "rows", points: []growthPoint{few, many}}
	r := sampled(sample(growthPoint{}, 2), sample(few, 2.5))
	if got, single := w.flatness(r, axis, true); got.N != 0 || single.N != 0 {
		t.Errorf("with a point missing: %+v", got)
	}
	r.Add(sample(many, 12))
	if got := growthCost(r, few, true); math3(got.Median) != 5 {
		t.Errorf("few rows cost %v s per million, want 5", got.Median)
	}
	if got, _ := w.flatness(r, axis, true); math3(got.Median) != 2 {
		t.Errorf("flatness %v, want 2", got.Median)
	}
	for _, s := range []Sample{sample(growthPoint{}, 2), sample(few, 2.1), sample(many, 3)} {
		s.Round = 3
		r.Add(s)
	}
	s := sample(few, 2.2)
	s.Round = 5 // which has no other point
	r.Add(s)
	// The medians of 5 and 1, and of 10 and 1: 5.5 to 3.
	if got, single := w.flatness(r, axis, true); got.N != 2 || math3(got.Median) != 1.833 || math3(single.Min) != 1 || math3(single.Max) != 2 {
		t.Errorf("flatness of two rounds %+v, of single ones %+v; want 1.833, 1 to 2", got, single)
	}
	for _, s := range []Sample{sample(growthPoint{}, 2), sample(few, 1.9), sample(many, 3)} { // few rows cost less than none
		s.Round = 7
		r.Add(s)
	}
	if got, single := w.flatness(r, axis, true); got.N != 3 || math3(got.Median) != 1 || single.N != 2 {
		t.Errorf("flatness of three rounds %+v, of single ones %+v; want 1, of 2 single ones", got, single)
	}
	if got := (Aim{Limit: growthFlat, Measured: SpreadOf([]float64{1})}).Verdict(); got != "met (n = 1)" { // no range, no noise
		t.Error(got)
	}
}

// math3 rounds to three places.
func math3(v float64) float64 { return float64(int(v*1000+0.5)) / 1000 }
