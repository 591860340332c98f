package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rehomedb/rehome/internal/pgcluster"
)

// Names of the contenders of D and E that aims speak of.
const (
	nativeName = "native subscription, text"
	binaryName = "native subscription, binary"
	streamName = "native subscription, text, streaming"
	readerName = "pg_recvlogical to /dev/null, applies nothing"
	// decoderName is who has no receiver either.
	decoderName = "decoding alone, nothing is sent"
)

// drainWorkload is D: contenders that follow the source are stopped, the source writes a backlog, and each drains it, one
// after the other. All of a round read the same WAL.
type drainWorkload struct {
	scale float64
	only  string // key of the one backlog that is wanted; "" all
}

func (w *drainWorkload) ID() string { return "D" }

func (w *drainWorkload) Prepare(_ context.Context, b *Bench) error {
	w.scale = b.Options.Scale
	return nil
}

// drainCase is the name of a backlog's case in the samples.
func drainCase(l backlog) string { return "D, " + l.name }

func (w *drainWorkload) backlogs() []backlog {
	return slices.DeleteFunc(append(smallBacklogs(w.scale), tpcbBacklog(w.scale)), func(l backlog) bool { return !w.wants(l) })
}

func (w *drainWorkload) wants(l backlog) bool { return w.only == "" || w.only == l.key }

// drainSuite is one source database, its backlogs and those who drain them, for one round: nothing of it is left to the next.
type drainSuite struct {
	bench  *Bench
	run    *Run
	bed    *drainBed
	server *Server
	logs   []backlog
	who    []follower
	cases  []string // of the samples

	// preloaded undoes the loading of pglogical, before databases are dropped: that hangs while it is loaded.
	preloaded *Run
	apart     *pgcluster.Cluster // the target of pglogical; nil: it does not run
	out       map[string]bool    // contenders that take no part any more in this round
	round     int
}

// suiteMaker makes a suite for a round.
type suiteMaker func(ctx context.Context, b *Bench, round int, scale float64) (*drainSuite, error)

func (w *drainWorkload) Round(ctx context.Context, b *Bench, round int) error {
	suites := []suiteMaker{smallSuite}
	if w.wants(tpcbBacklog(w.scale)) {
		suites = append(suites, tpcbSuite)
	}
	for _, make := range suites {
		if err := w.suite(ctx, b, round, make); err != nil {
			return err
		}
	}
	return nil
}

func (w *drainWorkload) suite(ctx context.Context, b *Bench, round int, make suiteMaker) (err error) {
	s, err := make(ctx, b, round, w.scale)
	if s != nil {
		defer func() { err = errors.Join(err, s.close(context.WithoutCancel(ctx))) }()
	}
	if err != nil {
		return err
	}
	s.logs = slices.DeleteFunc(s.logs, func(l backlog) bool { return !w.wants(l) })
	for _, l := range s.logs {
		s.cases = append(s.cases, drainCase(l))
	}
	s.who = slices.DeleteFunc(s.who, func(f follower) bool { return !s.wanted(ctx, f) })
	s.join(ctx)
	s.restAll(ctx, func(f follower) bool { return !largeOnly(f) })
	for i, l := range s.logs {
		if l.large() && (i == 0 || !s.logs[i-1].large()) {
			s.joinAll(ctx, largeOnly)
			s.restAll(ctx, largeOnly)
		}
		if err := s.drainAll(ctx, l); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// largeOnly reports whether a contender takes part in backlogs of one large transaction only. It follows from before the first of
// them on; they come last.
func largeOnly(f follower) bool {
	l, ok := f.(interface{ largeOnly() bool })
	return ok && l.largeOnly()
}

// casesOf are those of the suite's cases that a contender takes part in.
func (s *drainSuite) casesOf(f follower) (cases []string) {
	if !largeOnly(f) {
		return s.cases
	}
	for _, l := range s.logs {
		if l.large() {
			cases = append(cases, drainCase(l))
		}
	}
	return cases
}

// due reports whether a contender takes part in this round. Those that no aim is about have odd rounds only, so that the whole
// ends in time.
func (s *drainSuite) due(name string) bool {
	return !even(s.round) || name == nativeName || name == rehomeShards(1)
}

// wanted reports whether a contender runs, and notes why not.
func (s *drainSuite) wanted(ctx context.Context, f follower) bool {
	if !s.due(f.label()) {
		return false
	}
	why := ""
	if p, ok := f.(interface {
		missing(context.Context) string
	}); ok {
		why = p.missing(ctx)
	}
	if name := f.label(); why == "" && !s.bench.Wants(name) && name != nativeName && name != rehomeShards(1) {
		why = "not asked for"
	}
	if why == "" {
		return true
	}
	for _, c := range s.casesOf(f) {
		s.bench.Absent(c, f.label(), why)
	}
	return false
}

// join lets everyone copy what is there, but for those who follow later. Who cannot has no figure in this round.
func (s *drainSuite) join(ctx context.Context) {
	s.out = map[string]bool{}
	s.joinAll(ctx, func(f follower) bool { return !largeOnly(f) })
}

func (s *drainSuite) joinAll(ctx context.Context, now func(follower) bool) {
	for _, f := range s.who {
		if !now(f) {
			continue
		}
		began := time.Now()
		if err := within(ctx, joinWithin, f.join); err != nil {
			s.fails(ctx, f, s.casesOf(f), fmt.Errorf("begin to follow: %w", err))
			continue
		}
		s.bench.Say("%s: %s follows after %.1f s", s.bed.database, f.label(), time.Since(began).Seconds())
	}
}

// backlogName stands for whoever writes what the contenders drain, in the list of commands.
const backlogName = "the backlog"

// note lists, once, what a contender has run until the end of its first drain.
func (s *drainSuite) note(f follower) {
	s.bench.noteCommands(s.casesOf(f)[0], f.label(), f.transcript().Noted())
}

// fails notes that a contender has no figure in some cases, and lets it take no further part.
func (s *drainSuite) fails(ctx context.Context, f follower, cases []string, err error) {
	s.out[f.label()] = true
	if ctx.Err() != nil {
		return // what was under way when the run was interrupted is no figure
	}
	for _, c := range cases {
		s.bench.record(Sample{Case: c, Contender: f.label(), Round: s.round, Failed: err.Error()})
	}
}

// restAll stops those who have copied what is there.
func (s *drainSuite) restAll(ctx context.Context, who func(follower) bool) {
	for _, f := range s.who {
		if who(f) && !s.out[f.label()] {
			if err := s.rest(ctx, f); err != nil {
				s.fails(ctx, f, s.casesOf(f), err)
			}
		}
	}
}

// rest stops a contender when its slot has nothing to decode once more. Else whoever drained last and was stopped at once would
// decode the backlog before again with the next: a slot's restart_lsn moves when the source logs its running transactions,
// every 15 s and with a checkpoint, and the contender confirms what came with them.
func (s *drainSuite) rest(ctx context.Context, f follower) error {
	if err := s.bed.settle(ctx, f); err != nil {
		return err
	}
	if err := within(ctx, stopWithin, f.stop); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	return nil
}

// turnOf counts the rounds that have the same contenders: all of them, or only those that aims are about.
func turnOf(round int) int { return (round + 1) / 2 }

// drainAll writes a backlog while everyone is stopped, and lets each drain it alone, in an order that begins with another one each
// time that the same contenders drain. Who cannot be stopped takes no part in the later ones.
func (s *drainSuite) drainAll(ctx context.Context, l backlog) error {
	takes := func(f follower) bool { return !s.out[f.label()] && (l.large() || !largeOnly(f)) }
	s.bed.log = &Run{}
	err := errors.Join(l.write(ctx, s.bed), s.bed.sentinel(ctx))
	s.bench.noteCommands(drainCase(l), backlogName, s.bed.log.Noted())
	s.bed.log = nil
	if err != nil {
		return err
	}
	for _, f := range Rotate(s.who, turnOf(s.round)) {
		if !takes(f) {
			continue
		}
		f.transcript().Note("# the source has written the backlog")
		sample, err := s.turn(ctx, f, l)
		s.note(f)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			s.fails(ctx, f, []string{drainCase(l)}, err)
			_ = within(ctx, stopWithin, f.stop) // not beside the others, if it can be
			continue
		}
		sample.Case, sample.Round = drainCase(l), s.round
		s.bench.record(sample)
		if err := s.rest(ctx, f); err != nil {
			cases := s.casesOf(f)
			s.fails(ctx, f, cases[slices.Index(cases, drainCase(l))+1:], err)
		}
	}
	return nil
}

// turn is one contender's drain, with the comparison of what it left.
func (s *drainSuite) turn(ctx context.Context, f follower, l backlog) (sample Sample, err error) {
	if err := s.checkpoint(ctx); err != nil {
		return sample, err
	}
	spill, err := s.bed.spilled(ctx, f)
	if err != nil {
		return sample, err
	}
	peak := int64(0)
	if _, ok := f.(*rehomeFollower); ok {
		if err := forgetPeak(s.server.Pid()); err != nil {
			return sample, err
		}
		peak, err = watchSpool(ctx, s.server.Pid(), func() (err error) {
			sample, err = s.bed.drain(ctx, f)
			return err
		})
		if err != nil {
			return sample, err
		}
		rss, err := s.server.PeakRSS()
		if err != nil {
			return sample, err
		}
		sample.Values[peakRSS], sample.Values[spoolMB] = rss, float64(peak)/1e6
	} else if sample, err = s.bed.drain(ctx, f); err != nil {
		return sample, err
	}
	after, err := s.bed.spilled(ctx, f)
	if err != nil {
		return sample, err
	}
	sample.Values[sourceSpillMB] = float64(after-spill) / 1e6
	sample.Values[drainRows], sample.Values[drainTxns] = float64(l.rows)/sample.Seconds, float64(l.txns)/sample.Seconds
	if len(f.targets()) == 0 {
		return sample, nil
	}
	return sample, s.bed.same(ctx, f, l.tables)
}

// checkpoint lets a turn begin without dirty buffers, at pglogical's own server too.
func (s *drainSuite) checkpoint(ctx context.Context) error {
	err := s.bench.Rig.Checkpoint(ctx)
	if s.apart != nil {
		err = errors.Join(err, Exec(ctx, s.apart.DSN("postgres"), "CHECKPOINT"))
	}
	return err
}

// close ends everyone and drops all databases.
func (s *drainSuite) close(ctx context.Context) error {
	var errs []error
	for _, f := range slices.Backward(s.who) {
		// Whoever did not begin has nothing to leave; what stays is dropped with the databases.
		_ = within(ctx, leaveWithin, f.leave)
	}
	undo := slices.Concat(s.run.cleanup, s.preloaded.cleanup)
	for _, fn := range slices.Backward(undo) {
		errs = append(errs, fn(ctx))
	}
	return errors.Join(errs...)
}

// within bounds what a contender does: one that hangs must not cost the others their figures.
func within(ctx context.Context, d time.Duration, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, d, fmt.Errorf("not done within %s", d))
	defer cancel()
	return do(ctx)
}

// record takes a sample of D, E or growth.
func (b *Bench) record(s Sample) {
	b.Results.Add(s)
	if err := b.keep(s); err != nil {
		b.Say("%v", err)
	}
	if s.Failed != "" {
		b.Say("%d %s, %s: no figure: %s", s.Round, s.Case, s.Contender, s.Failed)
		return
	}
	b.Say("%d %s, %s: %.2f s; CPU tool %.2f source %.2f targets %.2f control %.2f%s", s.Round, s.Case, s.Contender, s.Seconds, s.CPU.Tool, s.CPU.Source, s.CPU.Targets, s.CPU.Control, values(s.Values))
}
