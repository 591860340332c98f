package cutover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// shardFence is one shard's part of a rollback.
type shardFence struct {
	Shard
	fence *gate.ShardFence
}

// Rollback gives the write authority back to the source after a cutover, or restores the former state: the target writes
// on. The way back (Job.WayBack) must run during the attempt. A dry run returns findings and changes nothing. Errors are
// those of Run, with the codes rollback-refused, rollback-timed-out, rollback-taken-back, rollback-in-doubt and
// rollback-follow: after the last two call ResolveAndFollow.
//
//	R1  each shard: lock, then gate (e+1, closed) and fence, COMMIT
//	R2  a marker behind each fence; the way back has applied all of them at the source
//	R3  the source: gate (e, target) → (e+1, source), sequences, fence disabled; COMMIT = the decision
//	R4  clients are switched, the outcome is recorded, the way back is dropped
func (c *Coordinator) Rollback(ctx context.Context, job Job, at Attempt) (Report, error) {
	r := c.begin(DirectionRollback, job, at)
	if at.DryRun {
		r.rec.Attempt, r.rec.Outcome = "", OutcomeDryRun
		err := r.step("preflight", func() error { return r.preflightRollback(ctx) })
		return r.rec.Report, err
	}
	if _, err := c.ResolveAndFollow(ctx, job); err != nil { // what an earlier server left
		return r.rec.Report, err
	}
	if err := r.step("preflight", func() error { return r.preflightRollback(ctx) }); err != nil {
		return r.rec.Report, err
	}
	if tenant.Blocks(r.rec.Findings) {
		return r.rec.Report, &tenant.Error{
			Kind: tenant.KindRefused, Code: "rollback-refused", Message: "the rollback's preflight found what stands in its way",
			Hint: "see the findings; each names its remedy", Findings: r.rec.Findings,
		}
	}
	if err := r.intend(ctx); err != nil {
		return r.rec.Report, err
	}
	if err := c.crash(StepIntent); err != nil {
		return r.die(err)
	}
	err := r.giveBack(ctx)
	if crashed(err) {
		return r.die(err)
	}
	if err != nil {
		return r.stay(ctx, err)
	}
	return r.returned(ctx, r.decided())
}

// giveBack goes up to and including the decision. nil: the COMMIT was answered.
func (r *run) giveBack(ctx context.Context) error {
	if err := r.mark(ctx, StepPrelock, func() error { return r.openBothSides(ctx) }); err != nil {
		return err
	}
	r.held, r.pausing = time.Now(), true
	r.rec.HeldAt = r.c.cfg.Now().UTC()
	r.deadline = r.held.Add(r.at.MaxPause)
	until := r.c.cfg.Now().Add(r.at.MaxPause)
	cut, cancel := context.WithDeadlineCause(ctx, r.deadline.Add(deadlineGrace), errDeadline)
	defer cancel()
	bound, cancelBound := context.WithDeadlineCause(ctx, r.deadline, errDeadline)
	defer cancelBound()
	steps := []struct {
		name string
		fn   func() error
	}{
		{StepHold, func() error {
			if err := r.back.Arm(cut, r.deadline); err != nil {
				return err
			}
			return r.hold(bound, until.Add(holdGrace))
		}},
		{StepLock, func() error { return r.eachFence(cut, r.lockShard) }},
		{StepFence, func() error { return r.shutShards(cut) }},
		{StepMarker, func() error {
			return r.eachFence(cut, func(ctx context.Context, _ int, f *shardFence) error { return f.fence.Marker(ctx) })
		}},
		{StepDrain, func() error { return r.drainBack(bound, cut) }},
		{StepTake, func() error { return r.back.Take(cut) }},
		{StepSequences, func() error { return r.returnSequences(cut) }},
	}
	for _, s := range steps {
		if err := r.mark(cut, s.name, s.fn); err != nil {
			return err
		}
	}
	if err := r.save(cut, StepCommitting, true); err != nil {
		return err
	}
	if err := r.c.crash(StepCommitting); err != nil {
		return err
	}
	if err := r.step("commit", func() error { return r.back.Commit(cut) }); err != nil {
		return err
	}
	return r.c.crash(StepCommitted)
}

// openBothSides opens every session that the pause will need and locks against maintenance, on both sides.
func (r *run) openBothSides(ctx context.Context) error {
	r.fences = make([]*shardFence, len(r.job.Shards))
	g, gctx := errgroup.WithContext(ctx)
	for i, sh := range r.job.Shards {
		f := &shardFence{Shard: sh}
		r.fences[i] = f
		g.Go(func() (err error) {
			f.fence, err = gate.OpenShardFence(gctx, gate.Config{Source: sh.DSN, Attempt: r.at.ID, Epoch: r.rec.Epoch})
			if err == nil {
				err = f.fence.Prelock(gctx)
			}
			if err != nil {
				return fmt.Errorf("shard %s: %w", sh.Name, err)
			}
			return nil
		})
	}
	g.Go(func() (err error) {
		if r.back, err = gate.OpenReturn(gctx, gate.Config{Source: r.job.Source, Attempt: r.at.ID, Epoch: r.rec.Epoch}); err != nil {
			return err
		}
		return r.back.Prelock(gctx)
	})
	return g.Wait()
}

// eachFence does something at every shard, side by side.
func (r *run) eachFence(ctx context.Context, fn func(context.Context, int, *shardFence) error) error {
	var g errgroup.Group // without a common end: what one shard's error cuts off could leave another's outcome unknown
	for i, f := range r.fences {
		g.Go(func() error {
			if err := fn(ctx, i, f); err != nil {
				return fmt.Errorf("shard %s: %w", f.Name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// lockShard makes the shard's writers wait. No shard is fenced before all are locked: an attempt that is given up because
// one of them cannot be had has refused nobody then.
func (r *run) lockShard(ctx context.Context, _ int, f *shardFence) error {
	return f.fence.Lock(ctx, r.deadline)
}

// shutShards commits the fence at every shard.
func (r *run) shutShards(ctx context.Context) error {
	shut := func(ctx context.Context, i int, f *shardFence) error {
		start := time.Now()
		if err := f.fence.Shut(ctx); err != nil {
			return err
		}
		r.rec.Fenced[i] = tenant.ShardFenced{Shard: f.Name, Tables: len(f.fence.Tables()), Tries: f.fence.Tries(), Millis: millis(time.Since(start))}
		return nil
	}
	r.rec.Fenced = make([]tenant.ShardFenced, len(r.fences))
	if r.c.cfg.Crash == nil {
		return r.eachFence(ctx, shut)
	}
	for i, f := range r.fences { // one after the other, so that a test can die in between
		if err := shut(ctx, i, f); err != nil {
			return fmt.Errorf("shard %s: %w", f.Name, err)
		}
		if i == 0 {
			if err := r.c.crash(StepFenceOne); err != nil {
				return err
			}
		}
	}
	return nil
}

// drainBack waits until the source has everything up to the markers. Standbys of the shards get the fence meanwhile: one
// that is promoted without it would take writes beside the source.
func (r *run) drainBack(bound, cut context.Context) error {
	var mu sync.Mutex
	var g errgroup.Group
	g.Go(func() (err error) {
		r.rec.Shards, err = r.job.WayBack.WaitMarkers(bound, r.at.ID)
		slices.SortFunc(r.rec.Shards, func(a, b tenant.ShardPosition) int { return strings.Compare(a.Shard, b.Shard) })
		return err
	})
	g.Go(func() error {
		return r.eachFence(cut, func(ctx context.Context, _ int, f *shardFence) error {
			behind, err := gate.WaitStandbys(ctx, f.fence.Second(), standbyTimeout)
			if err != nil || behind == 0 {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			r.rec.Findings = append(r.rec.Findings, tenant.Finding{
				Severity: tenant.Warning, Code: "standby-behind", Object: "shard " + f.Name,
				Message: "a standby of the shard had not received the fence when the source opened", Remedy: "do not fail over to it before it has caught up",
			})
			return nil
		})
	})
	if err := g.Wait(); err != nil {
		return err
	}
	return r.back.Touch(cut)
}

// returnSequences sets the source's ahead of every shard's, in the transaction that decides.
func (r *run) returnSequences(ctx context.Context) error {
	r.rec.Sequences = []tenant.SequenceSet{}
	values, err := r.c.frozen(ctx, r.job.Replication)
	if err != nil || len(values) == 0 {
		return err
	}
	list := sequenceList(values)
	shards := make([][]tenant.SequenceValue, len(r.fences))
	if err := r.eachFence(ctx, func(ctx context.Context, i int, f *shardFence) (err error) {
		shards[i], err = catalog.ReadSequences(ctx, f.fence.Second(), list)
		return err
	}); err != nil {
		return err
	}
	if r.rec.Sequences, err = catalog.ReturnSequences(ctx, r.back.Tx(), values, shards); err != nil {
		return err
	}
	return r.back.Touch(ctx)
}

// sequenceList is a catalogue that has only sequences.
func sequenceList(values []tenant.SequenceValue) *catalog.Catalogue {
	c := &catalog.Catalogue{}
	for _, v := range values {
		c.Sequences = append(c.Sequences, catalog.Sequence{Name: v.Name, Increment: v.Increment, Min: v.Min, Max: v.Max, Start: v.Start, Cycle: v.Cycle})
	}
	return c
}

// stay ends a rollback that met an error: the shards are opened again, unless a COMMIT was under way and won.
func (r *run) stay(ctx context.Context, cause error) (Report, error) {
	r.log.Warn("rollback is taken back", "error", cause)
	ctx = context.WithoutCancel(ctx) // a server that stops still takes back what it began
	_ = r.saved()                    // the end is written by itself
	var undo sync.WaitGroup
	if r.back != nil {
		r.blameLocks("source", r.back.Culprits())
		undo.Go(func() { r.back.Rollback(ctx) })
	}
	for _, f := range r.fences {
		if f == nil || f.fence == nil {
			continue
		}
		r.blameLocks("shard "+f.Name, f.fence.Culprits())
		undo.Go(func() { f.fence.Rollback(ctx) })
	}
	undo.Wait()
	state, err := r.resolve(ctx)
	if err != nil {
		r.closeSessions(ctx) // the hold expires by itself
		return r.rec.Report, &tenant.Error{
			Kind: tenant.KindUnavailable, Code: "rollback-in-doubt", Message: "the source cannot be asked which side may write",
			Hint: "the shards stay closed until it answers; then the attempt is resolved by itself", Err: err,
		}
	}
	v := r.verdict(state)
	if v.Won {
		return r.returned(ctx, state)
	}
	r.closeSessions(ctx)
	if v.Follow {
		if err := r.step("follow", func() error { return r.c.followAll(ctx, r.job, state) }); err != nil {
			return r.rec.Report, &tenant.Error{
				Kind: tenant.KindUnavailable, Code: "rollback-follow", Message: "the target writes on, but not every shard could be opened again yet",
				Hint: "it is carried on by itself as soon as the shard can be reached", Err: errors.Join(cause, err),
			}
		}
	}
	r.endPause()
	r.rec.Outcome, r.rec.Error = v.Outcome, cause.Error()
	if _, err := r.c.finish(ctx, r.rec, nil); err != nil {
		r.log.Error("record the attempt's end", "error", err)
	}
	return r.rec.Report, r.stayed(cause)
}

// blameLocks notes who was in the way of locks.
func (r *run) blameLocks(where string, found []gate.Culprit) {
	for _, c := range found {
		remedy := endIt
		if c.PID == 0 {
			remedy = "COMMIT PREPARED or ROLLBACK PREPARED it"
		}
		r.blame(where, remedy, "%s", c)
	}
}

// stayed is what a person reads of a rollback that was taken back.
func (r *run) stayed(cause error) error {
	err := r.failure(cause)
	if e := tenant.AsError(err); e != nil {
		e.Code = strings.Replace(e.Code, "cutover", "rollback", 1)
		e.Message = strings.Replace(e.Message, "the source goes on", "the target goes on", 1)
	}
	return err
}

// returned is everything after the decision: forward only, idempotent, and finished by another server if this one dies.
func (r *run) returned(ctx context.Context, state gate.State) (Report, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), followTimeout+discardTimeout)
	defer cancel()
	v := r.verdict(state)
	r.rec.Outcome, r.rec.DecidedAt = v.Outcome, r.c.cfg.Now().UTC().Truncate(time.Microsecond)
	if err := r.save(ctx, StepDecided, false); err != nil {
		r.log.Warn("write the decision down", "error", err)
	}
	if err := r.c.crash(StepDecided); err != nil {
		return r.die(err)
	}
	// First of all that is left: held clients wait for it.
	if err := r.step("switch", func() error { return r.c.switchClients(ctx, r.job, state, r.at.ID) }); err != nil {
		r.closeSessions(ctx)
		return r.rec.Report, rollbackFollowError(err)
	}
	r.endPause()
	r.closeSessions(ctx)
	r.rec.WayBackLeft = v.Discard && r.job.WayBack != nil
	r.rec.Rollback = r.c.rollbackRecord(r.job, r.rec, state)
	ours, err := r.c.finish(ctx, r.rec, nil)
	if err != nil {
		return r.rec.Report, rollbackFollowError(err)
	}
	if err := r.c.crash(StepFinished); err != nil {
		return r.die(err)
	}
	if ours {
		r.c.discardWayBack(ctx, r.job, r.rec)
	}
	return r.rec.Report, nil
}

func rollbackFollowError(err error) error {
	return &tenant.Error{
		Kind: tenant.KindUnavailable, Code: "rollback-follow", Message: "the source may write again, but not everything agrees with that yet",
		Hint: "it is carried on by itself as soon as what is missing can be reached", Err: err,
	}
}

// rollbackRecord is what the report keeps of a rollback that went through.
func (c *Coordinator) rollbackRecord(job Job, rec *record, s gate.State) *tenant.Rollback {
	return &tenant.Rollback{
		Database: job.Database, Source: job.SourceLabel, Target: job.TargetURL, Replication: job.Replication, Attempt: rec.Attempt, GateEpoch: s.Epoch,
		Placement: job.Placement, SystemID: rec.SystemID, Fenced: rec.Fenced, Shards: rec.Shards, Verification: rec.Verification, Digest: rec.Digest,
		Sequences: rec.Sequences, PauseMillis: rec.PauseMillis, Steps: rec.Steps, ApprovedBy: rec.ApprovedBy, DecidedAt: rec.DecidedAt,
	}
}
