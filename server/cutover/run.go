package cutover

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/tenant"
)

const (
	// deadlineGrace is how much later than the deadline a statement is cut off by closing its session. The server's own
	// timeouts come first, and leave a session that can still roll back.
	deadlineGrace = 300 * time.Millisecond
	// holdGrace is how much longer than the maximum pause gateways hold: taking an attempt back takes its time too.
	holdGrace = 3 * time.Second
	// resolveTimeout bounds RESOLVE at the end of a failed attempt. The attempt stays unfinished after it, for any
	// server to resolve later.
	resolveTimeout = 20 * time.Second
	// followTimeout bounds FOLLOW at the end of an attempt; a shard that cannot be reached until then is opened later.
	followTimeout = 30 * time.Second
	// followRetry is the pause between two tries to reach a shard.
	followRetry = 250 * time.Millisecond
	// standbyTimeout bounds the wait for visible standbys after the decision; it is reported when it was not enough.
	standbyTimeout = time.Second
	// freezeTries bounds how often sequences are read anew because somebody drew from them meanwhile.
	freezeTries = 20
)

// Errors that end an attempt.
var (
	// ErrKilled is what a Crash hook returns for a death with closed sockets.
	ErrKilled = errors.New("killed by a test")

	errDeadline = errors.New("the maximum pause is over")
	errTaken    = errors.New("another server resolved this attempt")
)

// run is one attempt under way.
type run struct {
	c      *Coordinator
	goes   Direction
	last   string // the last persisted step
	job    Job
	at     Attempt
	stream Stream
	rec    *record
	log    *slog.Logger

	gate     *gate.Attempt
	shards   []*shardSession
	back     *gate.Return  // a rollback's transaction at the source
	fences   []*shardFence // and at the shards
	release  func()
	deadline time.Time
	shardTop int64 // the highest epoch of a shard's gate

	began      time.Time // of the attempt
	held       time.Time // of the pause
	pausing    bool      // writers wait
	committing bool      // a COMMIT may have been sent
	drained    *drainWatch
	behind     *behind // under way beside the drain
	saver      *saver
	culprits   []tenant.Finding // who was in the way
}

// shardSession is what the pause needs at a shard, open and warm: one session holds the prelock and opens, the other sets
// sequences.
type shardSession struct {
	Shard
	conn, aside *pgx.Conn
	follower    *gate.Follower
	before      shardSequences // of a rehearsal
}

// Run moves the write authority to the target, or restores the former state. A dry run returns findings and changes
// nothing. Errors are *tenant.Error:
//
//   - KindRefused, with findings: the preflight; nothing was touched
//   - KindTimeout: the source goes on as before; the report names who was in the way
//   - KindConflict: the gate is not at the source any more
//   - KindUnavailable, code cutover-in-doubt: the source could not be asked for the outcome; call ResolveAndFollow
//   - KindUnavailable, code cutover-follow: the target has the authority, but not every shard could be opened yet; the
//     same
//
// The stream must go on during the attempt and after it.
func (c *Coordinator) Run(ctx context.Context, job Job, stream Stream, at Attempt) (Report, error) {
	r := c.begin(DirectionCutover, job, at)
	r.stream = stream
	if r.at.DryRun {
		r.rec.Attempt, r.rec.Outcome = "", OutcomeDryRun
		err := r.step("preflight", func() error { return r.preflight(ctx) })
		return r.rec.Report, err
	}
	if _, err := c.ResolveAndFollow(ctx, job); err != nil { // what an earlier server left
		return r.rec.Report, err
	}
	if err := r.step("preflight", func() error { return r.preflight(ctx) }); err != nil {
		return r.rec.Report, err
	}
	if tenant.Blocks(r.rec.Findings) {
		return r.rec.Report, &tenant.Error{
			Kind: tenant.KindRefused, Code: "cutover-refused", Message: "the cutover's preflight found what stands in its way",
			Hint: "see the findings; each names its remedy", Findings: r.rec.Findings,
		}
	}
	if err := r.raise(ctx); err != nil {
		return r.rec.Report, err
	}
	if err := r.intend(ctx); err != nil {
		return r.rec.Report, err
	}
	if err := c.crash(StepIntent); err != nil {
		return r.die(err)
	}
	err := r.attempt(ctx)
	if crashed(err) {
		return r.die(err)
	}
	if errors.Is(err, errRehearsed) {
		return r.endRehearsal(ctx)
	}
	if err != nil {
		return r.takeBack(ctx, err)
	}
	return r.complete(ctx, r.decided())
}

// begin makes an attempt, with a name and a maximum pause.
func (c *Coordinator) begin(d Direction, job Job, at Attempt) *run {
	if at.ID == "" {
		at.ID = strings.ToLower(rand.Text()[:16])
	}
	if at.MaxPause <= 0 {
		at.MaxPause = DefaultMaxPause
	}
	if at.Rehearse {
		d = DirectionRehearsal
	}
	return &run{
		c: c, goes: d, began: time.Now(), job: job, at: at, log: c.cfg.Logger.With("replication", job.Replication, "attempt", at.ID, "direction", string(d)),
		rec: &record{Report: Report{Attempt: at.ID}},
	}
}

// decided is the state that our own answered COMMIT made, or that of a rehearsal would make.
func (r *run) decided() gate.State {
	if r.goes == DirectionRollback {
		return gate.State{Epoch: r.rec.Epoch + 1, Side: gate.SideSource, Attempt: r.at.ID}
	}
	return gate.State{Epoch: r.rec.Epoch + 1, Side: gate.SideTarget, Attempt: r.at.ID, NewURL: r.job.TargetURL}
}

// verdict judges a decided state of the gate. That our own name stands there says that it is not a foreign one; any other
// decision for a target is none of ours.
func (r *run) verdict(s gate.State) Verdict {
	return Decide(r.goes, r.rec.Epoch, r.at.ID, s, false)
}

// attempt goes up to and including the decision. nil: the COMMIT was answered.
func (r *run) attempt(ctx context.Context) error {
	if err := r.mark(ctx, StepWayBack, func() error { return r.prepareWayBack(ctx) }); err != nil {
		return err
	}
	if err := r.mark(ctx, StepPrelock, func() error { return r.prelock(ctx) }); err != nil {
		return err
	}
	if err := r.rememberSequences(ctx); err != nil {
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
	drain, failed := context.WithCancelCause(bound)
	defer failed(nil)

	steps := []struct {
		name string
		fn   func() error
	}{
		{StepHold, func() error {
			return r.hold(bound, until.Add(holdGrace))
		}},
		{StepFence, func() error { return r.gate.Fence(cut, r.deadline) }},
		{StepMarker, func() error {
			r.beginBehind(cut, func(err error) { failed(&behindError{err}) })
			return r.gate.Marker(cut)
		}},
		{StepDrain, func() error { return r.drain(drain, cut) }},
		{StepSequences, r.joinBehind},
		{StepTail, func() error {
			if r.at.Tail == nil {
				return nil
			}
			if err := r.at.Tail(cut, r.gate.Tx()); err != nil {
				return err
			}
			return r.gate.Touch(cut)
		}},
	}
	for _, s := range steps {
		if err := r.mark(cut, s.name, s.fn); err != nil {
			return err
		}
	}
	if err := r.step("last-look", func() error { return r.lastLook(cut) }); err != nil {
		return err
	}
	if err := r.c.crash(StepCommitting); err != nil {
		return err
	}
	if r.at.Rehearse {
		return r.rehearseEnd(cut)
	}
	r.committing = true
	if err := r.step("commit", func() error { return r.gate.Commit(cut) }); err != nil {
		return err
	}
	return r.c.crash(StepCommitted)
}

// lastLook writes down, durably, what the certificate needs, and looks a last time at the tables: what was made behind the
// fence would stay behind.
func (r *run) lastLook(ctx context.Context) error {
	if err := r.saved(); err != nil {
		return err
	}
	raw, err := r.draft(StepCommitting)
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.write(gctx, StepCommitting, raw, true) })
	g.Go(func() error { return r.gate.LastLook(gctx) })
	return g.Wait()
}

// prelock opens every session that the pause will need and locks against maintenance, on both sides.
func (r *run) prelock(ctx context.Context) error {
	var err error
	r.gate, err = gate.Open(ctx, gate.Config{Source: r.job.Source, Attempt: r.at.ID, Epoch: r.rec.Epoch, NewURL: r.job.TargetURL})
	if err != nil {
		return err
	}
	r.shards = make([]*shardSession, len(r.job.Shards))
	g, gctx := errgroup.WithContext(ctx)
	for i, sh := range r.job.Shards {
		s := &shardSession{Shard: sh}
		r.shards[i] = s
		g.Go(func() (err error) {
			if s.conn, err = gate.ShardSession(gctx, sh.DSN); err != nil {
				return fmt.Errorf("shard %s: %w", sh.Name, err)
			}
			if s.aside, err = gate.ShardSession(gctx, sh.DSN); err != nil {
				return fmt.Errorf("shard %s: %w", sh.Name, err)
			}
			if s.follower, err = gate.PrepareFollow(gctx, s.conn); err != nil {
				return fmt.Errorf("shard %s: %w", sh.Name, err)
			}
			return nil
		})
	}
	g.Go(func() error { return r.gate.Prelock(gctx) })
	return g.Wait()
}

// takeBack ends an attempt that met an error: nothing of it stays, unless a COMMIT was under way and won.
func (r *run) takeBack(ctx context.Context, cause error) (Report, error) {
	r.log.Warn("cutover attempt is taken back", "error", cause)
	ctx = context.WithoutCancel(ctx) // a server that stops still takes back what it began
	r.leaveSource()
	if r.gate != nil {
		r.gate.Rollback(ctx)
	}
	if !r.committing {
		r.endPause() // the source writes again, whatever else is slow
	}
	if r.behind != nil {
		_ = r.joinBehind() // the cause is known
	}
	_ = r.saved() // the end is written by itself
	r.blameAll(ctx, cause)
	state, err := r.resolve(ctx)
	if err != nil {
		r.closeSessions(ctx) // the hold expires by itself
		return r.rec.Report, inDoubt(err)
	}
	v := r.verdict(state)
	if v.Won {
		return r.complete(ctx, state)
	}
	r.endPause()
	if r.at.Rehearse {
		r.restoreSequences(ctx)
	}
	r.closeSessions(ctx)
	r.rec.Outcome = v.Outcome
	r.rec.Error = cause.Error()
	r.rec.WayBackLeft = v.Discard && r.job.WayBack != nil && !r.rec.NoWayBack
	if ours, err := r.c.finish(ctx, r.rec, nil); err != nil {
		r.log.Error("record the attempt's end", "error", err)
	} else if ours { // otherwise whoever ended it drops the way back, or has begun to make the next one
		r.c.discardWayBack(ctx, r.job, r.rec)
	}
	return r.rec.Report, r.failure(cause)
}

// failure is what a person reads of an attempt that was taken back.
func (r *run) failure(cause error) error {
	e := &tenant.Error{Kind: tenant.KindTimeout, Code: "cutover-taken-back", Message: "the " + r.noun() + " met an error and was taken back; the source goes on", Hint: "mend the cause, then try again", Err: cause}
	if errors.Is(cause, errDeadline) || errors.Is(cause, gate.ErrNotFenced) || errors.Is(cause, context.DeadlineExceeded) {
		e.Code, e.Message = "cutover-timed-out", fmt.Sprintf("the %s did not fit into the maximum pause of %s and was taken back; the source goes on", r.noun(), r.at.MaxPause)
		e.Hint = "try again at a quieter time, or with a longer --max-pause"
	}
	if errors.Is(cause, gate.ErrGateMoved) {
		e.Kind = tenant.KindConflict
	}
	if n := len(r.rec.Culprits); n > 0 {
		e.Hint = "in the way: " + strings.Join(r.rec.Culprits, "; ")
		e.Findings = append(e.Findings, r.culprits...)
	}
	return e
}

func (r *run) closeSessions(ctx context.Context) {
	if r.gate != nil {
		r.gate.Close(ctx)
	}
	if r.back != nil {
		r.back.Close(ctx)
	}
	for _, f := range r.fences {
		if f != nil && f.fence != nil {
			f.fence.Close(ctx)
		}
	}
	for _, s := range r.shards {
		if s == nil {
			continue
		}
		for _, conn := range []*pgx.Conn{s.conn, s.aside} {
			if conn != nil {
				_ = conn.Close(ctx) // its transaction is over, or is to be rolled back
			}
		}
	}
}
