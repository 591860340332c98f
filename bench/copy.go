package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/tenant"
)

// Copier copies a dataset to fresh databases. It begins the clock of the run, and ends it when all tables, rows, keys and
// indexes are there; making the tables is inside the clock.
type Copier interface {
	Name() string
	// Missing says why it cannot run here; "" if it can.
	Missing(ctx context.Context, rig *Rig) string
	// Copy copies; targets are clusters whose database TargetDB does not exist yet.
	Copy(ctx context.Context, r *Run, d *Dataset, targets []*pgcluster.Cluster) error
}

// rehomeName and floorName are the contenders that always run: ratios are to them.
const (
	rehomeName = "Rehome"
	floorName  = "floor"
)

// copyWorkload copies one dataset: Rehome to 1 target and, of dataset A, to 2 and 3; peers to one.
type copyWorkload struct {
	data    *Dataset
	targets []int // of Rehome; default 1
	peers   []Copier
	limited bool // measure what COPY alone allows, too
	odd     bool // in odd rounds only: what no aim is about has fewer rounds, so that the whole ends in time
}

func (w *copyWorkload) ID() string { return w.data.Name }

func (w *copyWorkload) Prepare(ctx context.Context, b *Bench) error { return w.data.Load(ctx, b) }

// copyCase is the name of a case in the samples.
func copyCase(data string, targets int) string {
	if targets == 1 {
		return data + ", 1 target"
	}
	return fmt.Sprintf("%s, %d targets", data, targets)
}

// copyTurn is a contender with the number of its targets.
type copyTurn struct {
	copier  Copier
	targets int
}

func (w *copyWorkload) turns() []copyTurn {
	turns := []copyTurn{{rehomeCopier{}, 1}, {floorCopier{}, 1}}
	for _, p := range w.peers {
		turns = append(turns, copyTurn{p, 1})
	}
	for _, n := range w.targets {
		turns = append(turns, copyTurn{rehomeCopier{}, n})
	}
	return turns
}

func (w *copyWorkload) Round(ctx context.Context, b *Bench, round int) error {
	if w.odd && even(round) {
		return nil
	}
	for _, t := range Rotate(w.turns(), round) {
		if t.targets == 2 && even(round) { // no aim is about it
			continue
		}
		name, inCase := t.copier.Name(), copyCase(w.data.Name, t.targets)
		always := name == rehomeName || name == floorName
		if !always && !b.Wants(name) {
			b.Absent(inCase, name, "not asked for")
			continue
		}
		if why := t.copier.Missing(ctx, b.Rig); why != "" {
			b.Absent(inCase, name, why)
			continue
		}
		if b.Resting(inCase, name) {
			continue
		}
		if err := w.turn(ctx, b, round, t); err != nil {
			return err
		}
	}
	b.Rest(copyCase(w.data.Name, 1), peersOf(b.Results, copyCase(w.data.Name, 1)))
	if w.limited && round <= limitRounds {
		return w.limits(ctx, b, round)
	}
	return nil
}

func even(round int) bool { return round%2 == 0 }

func (w *copyWorkload) turn(ctx context.Context, b *Bench, round int, t copyTurn) error {
	targets := b.Rig.Targets[:t.targets]
	var dsns []tenant.DSN
	for _, c := range targets {
		dsns = append(dsns, c.DSN(TargetDB))
	}
	do := func(ctx context.Context, r *Run) error {
		r.Name(w.data.DB(), "$SOURCE")
		for i, c := range targets {
			r.Name(dsns[i], fmt.Sprintf("$TARGET%d", i+1))
			r.Cleanup(func(ctx context.Context) error { return DropDatabase(ctx, c, TargetDB) })
		}
		return t.copier.Copy(ctx, r, w.data, targets)
	}
	check := func(ctx context.Context, _ *Run) error { return w.data.Check(ctx, dsns...) }
	return b.Turn(ctx, copyCase(w.data.Name, t.targets), t.copier.Name(), round, do, check)
}

// peersOf are the contenders of a case that move data with a tool of their own: neither we nor the floor.
func peersOf(r *Results, inCase string) []string {
	return slices.DeleteFunc(r.Contenders(inCase), func(n string) bool { return n == rehomeName || n == floorName })
}
