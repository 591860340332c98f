package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Workload is one letter of the report.
type Workload interface {
	ID() string
	// Prepare loads what the rounds need, once.
	Prepare(ctx context.Context, b *Bench) error
	// Round lets each contender have its turn. A contender that fails is a sample without a figure; an error ends the run.
	Round(ctx context.Context, b *Bench, round int) error
	// Report is the workload's part of the report, made of the samples.
	Report(r *Results) []Section
	// Aims are judged by the samples.
	Aims(r *Results) []Aim
}

// Section of the report: text, then a table, either may be empty.
type Section struct {
	Title string
	Text  string
	Head  []string
	Rows  [][]string
}

// Bench is one run of the benchmark.
type Bench struct {
	Options   Options
	Rig       *Rig
	Results   *Results
	workloads []Workload
	out       io.Writer
	began     time.Time
	machine   Machine
	ended     error // why the run ended before its last round
}

// New starts the clusters for the workloads that the options name.
func New(ctx context.Context, o Options, out io.Writer) (*Bench, error) {
	return newBench(ctx, o, out, targetsMax, all())
}

func newBench(ctx context.Context, o Options, out io.Writer, targets int, known []Workload) (*Bench, error) {
	b := &Bench{Options: o, Results: &Results{}, out: out, began: time.Now()}
	for _, w := range known {
		if len(o.Workloads) == 0 || slices.Contains(o.Workloads, w.ID()) {
			b.workloads = append(b.workloads, w)
		}
	}
	if len(b.workloads) == 0 {
		return nil, fmt.Errorf("there is no workload %s", strings.Join(o.Workloads, ","))
	}
	rig, err := StartRig(ctx, o, targets)
	if err != nil {
		return nil, err
	}
	b.Rig = rig
	if b.machine, err = machineOf(ctx, rig); err != nil {
		return nil, errors.Join(err, rig.Close(false))
	}
	return b, nil
}

// Run runs all rounds and removes the clusters.
func (b *Bench) Run(ctx context.Context) (err error) {
	defer func() {
		b.ended = err
		err = errors.Join(err, b.Rig.Close(b.Options.Keep))
	}()
	if b.Options.Keep {
		b.Say("working directory %s", b.Rig.Dir)
	}
	b.Say("%d rounds of %s will take about %s", b.Options.Rounds, strings.Join(b.ids(), ", "), b.estimate().Round(time.Minute))
	for _, w := range b.workloads {
		began := time.Now()
		if err := w.Prepare(ctx, b); err != nil {
			return fmt.Errorf("prepare %s: %w", w.ID(), err)
		}
		b.Say("%s prepared in %s", w.ID(), time.Since(began).Round(time.Second/10))
	}
	last := map[string][2]time.Duration{} // how long each workload's last even and odd rounds took: odd ones have more
	for round := 1; round <= b.Options.Rounds; round++ {
		roundBegan := time.Now()
		for _, w := range b.workloads {
			lasts := last[w.ID()]
			if b.Options.Limit > 0 && time.Since(b.began)+cmp.Or(lasts[round%2], lasts[1]) > b.Options.Limit {
				b.Absent(w.ID(), fmt.Sprintf("everybody, round %d", round), fmt.Sprintf("it would not have ended within %s", b.Options.Limit))
				continue
			}
			workloadBegan := time.Now()
			if err := w.Round(ctx, b, round); err != nil {
				return fmt.Errorf("round %d of %s: %w", round, w.ID(), err)
			}
			if ctx.Err() != nil {
				return fmt.Errorf("interrupted in round %d of %s: %w", round, w.ID(), context.Cause(ctx))
			}
			lasts[round%2] = time.Since(workloadBegan)
			last[w.ID()] = lasts
		}
		took := time.Since(roundBegan)
		b.Say("round %d of %d took %s; about %s to go", round, b.Options.Rounds, took.Round(time.Second), (took * time.Duration(b.Options.Rounds-round)).Round(time.Second))
		if err := b.Write(); err != nil {
			return err
		}
	}
	return nil
}

// roundSeconds is about how long a round of a workload takes on two cores of 2026: what grows with the rows, at scale 1, and what does
// not. It is for the first estimate only; after each round the run says what it measured.
func roundSeconds(id string) (scaled, fixed float64) {
	switch id {
	case "A":
		return 190, 35
	case "B":
		return 15, 12
	case "C":
		return 20, 12
	case "D":
		return 190, 30
	case "E":
		return 40, 15
	case "F":
		return 30, 8
	case "growth":
		return 100, 40
	}
	return 0, 0
}

func (b *Bench) estimate() time.Duration {
	seconds := 0.0
	for _, id := range b.ids() {
		scaled, fixed := roundSeconds(id)
		if id == "E" {
			scaled += float64(latencyContenders * (b.Options.LatencySeconds - latencySeconds))
		}
		seconds += scaled*b.Options.Scale + fixed
	}
	return time.Duration(seconds * float64(b.Options.Rounds) * float64(time.Second))
}

func (b *Bench) ids() (ids []string) {
	for _, w := range b.workloads {
		ids = append(ids, w.ID())
	}
	return ids
}

// Say writes a line about what goes on.
func (b *Bench) Say(format string, args ...any) {
	_, _ = fmt.Fprintf(b.out, "%7.1fs  %s\n", time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
}

// Wants reports whether -contenders lets a contender run.
func (b *Bench) Wants(name string) bool {
	if len(b.Options.Contenders) == 0 {
		return true
	}
	for _, part := range b.Options.Contenders {
		if strings.Contains(strings.ToLower(name), strings.ToLower(part)) {
			return true
		}
	}
	return false
}

// Absent notes, once, that a contender does not run in a case.
func (b *Bench) Absent(inCase, contender, why string) {
	a := Absence{Case: inCase, Contender: contender, Why: why}
	if !slices.Contains(b.Results.Missing, a) {
		b.Results.Missing = append(b.Results.Missing, a)
		b.Say("%s: %s does not run: %s", inCase, contender, why)
	}
}

// restAfter is how many rounds a peer has to show what it can.
const restAfter = 2

// Resting reports whether a peer rests in a case.
func (b *Bench) Resting(inCase, peer string) bool {
	return slices.ContainsFunc(b.Results.Resting, func(a Absence) bool { return a.Case == inCase && a.Contender == peer })
}

// Rest lets peers of a case rest that are far behind the best of them, so that the rounds that are left go to those who may be the
// best one. The report says so.
func (b *Bench) Rest(inCase string, peers []string) {
	if b.Options.PeerLimit <= 0 {
		return
	}
	for _, p := range peers {
		ratio := b.Results.RatioToBest(inCase, p, peers, Wall)
		if ratio.N >= restAfter && ratio.Min > b.Options.PeerLimit && !b.Resting(inCase, p) {
			why := fmt.Sprintf("rests after %d rounds: at least %.2f × the best peer in each", ratio.N, ratio.Min)
			b.Results.Resting = append(b.Results.Resting, Absence{Case: inCase, Contender: p, Why: why})
			b.Say("%s: %s %s", inCase, p, why)
		}
	}
}

// Turn gives one contender its turn in a case: a checkpoint, then do, which begins and ends the clock, then check (may be nil),
// then what do asked to be cleaned up. A failure becomes a sample without a figure. Only what the others' turns would suffer
// from is an error: a clean-up that did not work.
func (b *Bench) Turn(ctx context.Context, inCase, contender string, round int, do, check func(context.Context, *Run) error) error {
	r := b.newRun(inCase, contender, round)
	err := b.Rig.Checkpoint(ctx)
	if err == nil {
		turn, cancel := context.WithTimeoutCause(ctx, turnWithin, fmt.Errorf("not done within %s", turnWithin))
		err = do(turn, r)
		if err == nil && r.wall == 0 {
			err = errors.New("the clock was not stopped")
		}
		if err == nil && check != nil {
			err = check(turn, r)
		}
		cancel()
	}
	s := Sample{Case: inCase, Contender: contender, Round: round, Seconds: r.wall.Seconds(), CPU: r.cpu, Values: r.Values, At: time.Now()}
	if err != nil {
		s.Failed = err.Error()
	}
	tidied := r.tidy(ctx)
	if ctx.Err() != nil {
		return errors.Join(context.Cause(ctx), tidied) // what was under way then is no figure
	}
	b.Results.Add(s)
	if !slices.ContainsFunc(b.Results.Commands, func(c Commands) bool { return c.Case == inCase && c.Contender == contender }) {
		b.Results.Commands = append(b.Results.Commands, Commands{Case: inCase, Contender: contender, Lines: r.commands})
	}
	if err := b.keep(s); err != nil {
		return err
	}
	if s.Failed != "" {
		b.Say("%d %s, %s: no figure: %s", round, inCase, contender, s.Failed)
	} else {
		b.Say("%d %s, %s: %.2f s; CPU tool %.2f source %.2f targets %.2f control %.2f%s", round, inCase, contender, s.Seconds, s.CPU.Tool, s.CPU.Source, s.CPU.Targets, s.CPU.Control, values(s.Values))
	}
	return tidied
}

// Hold is a turn without a figure, for what several turns need: do is given a Run to start things with, and what it asked to be
// cleaned up is, when it returns. Its error is the case's failure: it is noted as a sample of the contender, not returned.
func (b *Bench) Hold(ctx context.Context, inCase, contender string, round int, do func(context.Context, *Run) error) error {
	r := b.newRun(inCase, contender, round)
	err := do(ctx, r)
	tidied := r.tidy(ctx)
	if ctx.Err() != nil {
		return errors.Join(context.Cause(ctx), tidied)
	}
	if err != nil {
		b.Results.Add(Sample{Case: inCase, Contender: contender, Round: round, Values: r.Values, Failed: err.Error(), At: time.Now()})
		b.Say("%d %s, %s: no figure: %v", round, inCase, contender, err)
	}
	return tidied
}

func (b *Bench) newRun(inCase, contender string, round int) *Run {
	return &Run{Rig: b.Rig, Case: inCase, Contender: contender, Round: round}
}

func values(v map[string]float64) string {
	var out strings.Builder
	for _, name := range sortedKeys(v) {
		fmt.Fprintf(&out, "; %s %.4g", name, v[name])
	}
	return out.String()
}

// keep appends a sample to the raw file.
func (b *Bench) keep(s Sample) error {
	if b.Options.Raw == "" {
		return nil
	}
	f, err := os.OpenFile(b.Options.Raw, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644) //nolint:gosec // figures are no secret
	if err != nil {
		return fmt.Errorf("keep a sample: %w", err)
	}
	return errors.Join(json.NewEncoder(f).Encode(s), f.Close())
}

// Write writes the report of what there is so far.
func (b *Bench) Write() error {
	text := b.report()
	if err := os.MkdirAll(filepath.Dir(b.Options.Out), 0o755); err != nil { //nolint:gosec // a report is no secret
		return fmt.Errorf("write the report: %w", err)
	}
	if err := os.WriteFile(b.Options.Out, []byte(text), 0o644); err != nil { //nolint:gosec // the same
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// Rotate turns a list so that each round begins with another one.
func Rotate[T any](list []T, round int) []T {
	if len(list) == 0 {
		return nil
	}
	n := (round - 1) % len(list)
	return append(slices.Clone(list[n:]), list[:n]...)
}
