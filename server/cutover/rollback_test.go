package cutover_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/server/cutover"
	"github.com/rehomedb/rehome/tenant"
)

// long asks for every case, and not only for those that differ most: make protocol.
func long() bool { return os.Getenv("REHOME_LONG") != "" }

// newWayWorld is a world with a way back.
func newWayWorld(t *testing.T, shards int) (*world, *carrier) {
	t.Helper()
	w := newWorld(t, shards)
	c := &carrier{source: w.job.Source, shards: w.job.Shards, state: tenant.WayBackNone}
	w.job.WayBack = c
	return w, c
}

func (w *world) cutOver(t *testing.T, id string, l *load) {
	t.Helper()
	w.verified(t, true, time.Now())
	if l != nil {
		l.moves()
	}
	_, err := w.coordinator(t, nil).Run(t.Context(), w.job, w.stream, cutover.Attempt{ID: id, MaxPause: patient})
	must(t, err)
	w.verified(t, true, time.Now())
}

func TestRollback(t *testing.T) {
	t.Parallel()
	w, back := newWayWorld(t, 2)
	ctx := t.Context()
	l := w.load(t)
	waitForWrites(t, l)
	for round := range 3 {
		w.cutOver(t, fmt.Sprint("there", round), l)
		l.more(t, true)
		if !back.has() {
			t.Fatal("the cutover made no way back")
		}
		c := w.coordinator(t, nil)
		dry, err := c.Rollback(ctx, w.job, cutover.Attempt{DryRun: true})
		must(t, err)
		if dry.Outcome != cutover.OutcomeDryRun || tenant.Blocks(dry.Findings) || dry.Attempt != "" {
			t.Fatalf("dry run: %+v", dry)
		}
		var ids [2]int64
		for i, s := range w.job.Shards {
			must(t, connect(t, s.DSN).QueryRow(ctx, `SELECT nextval('orders_id_seq')`).Scan(&ids[i]))
		}
		id := fmt.Sprint("back", round)
		l.moves()
		rep, err := c.Rollback(ctx, w.job, cutover.Attempt{ID: id, ApprovedBy: "ada@example.com", MaxPause: patient})
		must(t, err)
		rec := rep.Rollback
		if rep.Outcome != cutover.OutcomeSource || rep.Certificate != nil || rec == nil || rec.ApprovedBy != "ada@example.com" || len(rec.Shards) != 2 || len(rec.Fenced) != 2 ||
			rec.Digest != "d1" || len(rec.Sequences) != 1 || rep.PauseMillis <= 0 || rec.GateEpoch == 0 {
			t.Errorf("report: %+v, record %+v", rep, rec)
		}
		t.Logf("pause %.1f ms; %s", rep.PauseMillis, steps(rep))
		if w.outcome(t, id) != cutover.OutcomeSource || back.has() {
			t.Errorf("outcome %s, the way back is there: %v", w.outcome(t, id), back.has())
		}
		var next int64
		must(t, connect(t, w.job.Source).QueryRow(ctx, `SELECT nextval('orders_id_seq')`).Scan(&next))
		if next <= max(ids[0], ids[1]) {
			t.Errorf("the source goes on with id %d, the shards had drawn %v", next, ids)
		}
		l.more(t, false)
		if res, err := c.ResolveAndFollow(ctx, w.job); err != nil || res.Decided() || len(res.Resolved) != 0 {
			t.Errorf("resolution: %+v, %v", res, err)
		}
	}
	w.check(t, l, gate.SideSource)
}

func TestRollbackRefusals(t *testing.T) {
	t.Parallel()
	w, back := newWayWorld(t, 2)
	ctx := t.Context()
	c := w.coordinator(t, nil)
	refused := func(code string) {
		t.Helper()
		_, err := c.Rollback(ctx, w.job, cutover.Attempt{ID: "refused-" + code})
		te := tenant.AsError(err)
		if te == nil || te.Kind != tenant.KindRefused || te.Code != "rollback-refused" || !hasFinding(te.Findings, code) {
			t.Errorf("want %s, got %v %+v", code, err, te)
		}
		if got := w.outcome(t, "refused-"+code); got != "no attempt" {
			t.Errorf("%s: a refused attempt is recorded as %s", code, got)
		}
	}
	refused("gate-not-at-target")
	w.verified(t, true, time.Now())
	_, err := c.Run(ctx, w.job, w.stream, cutover.Attempt{MaxPause: patient})
	must(t, err)
	refused("verification-too-old") // it was made before the cutover
	w.verified(t, false, time.Now())
	refused("verification-not-clean")
	// What the verification saw of the shards warns, and refuses nothing.
	w.verified(t, true, time.Now())
	_, err = w.pool.Exec(ctx, `UPDATE rehome_control.verifications SET result = jsonb_set(result, '{tables}', '[{"table": "public.units", "equal": true, "shards_differ": ["b"]}, {"table": "public.orders", "equal": true, "misplaced_rows": 2}]')`)
	must(t, err)
	dry, err := c.Rollback(ctx, w.job, cutover.Attempt{DryRun: true})
	must(t, err)
	if !hasFinding(dry.Findings, "reference-differs") || !hasFinding(dry.Findings, "misplaced-rows") || tenant.Blocks(dry.Findings) {
		t.Errorf("findings: %+v", dry.Findings)
	}
	w.verified(t, true, time.Now())
	_, err = w.pool.Exec(ctx, `UPDATE rehome_control.verifications SET result = result - 'direction'`)
	must(t, err)
	refused("verification-too-old") // of the other direction
	w.verified(t, true, time.Now())
	back.lag = 1 << 40
	refused("lag")
	back.lag, back.state = 0, tenant.WayBackBroken
	refused("way-back-broken")
	back.state = tenant.WayBackNone
	refused("no-way-back")
	w.job.WayBack = nil
	refused("no-way-back")
	w.job.Accept = append(w.job.Accept, "no-way-back:"+w.job.Database)
	if _, err := c.Rollback(ctx, w.job, cutover.Attempt{NoWayBack: true}); err == nil || !tenant.Blocks(tenant.AsError(err).Findings) {
		t.Errorf("a rollback without a way back is waved through: %v", err)
	}
	refused("no-way-back")
	w.job.WayBack, back.state = back, tenant.WayBackRunning
	shard := connect(t, w.job.Shards[1].DSN)
	exec(t, shard, "ALTER TABLE entries ADD COLUMN later int")
	refused("schema-differs")
	exec(t, shard, "ALTER TABLE entries DROP COLUMN later; ALTER SEQUENCE orders_id_seq RENAME TO other_seq")
	refused("sequences-unreadable")
	exec(t, shard, "ALTER SEQUENCE other_seq RENAME TO orders_id_seq")
	_, err = c.Rollback(ctx, w.job, cutover.Attempt{MaxPause: patient})
	must(t, err)
	refused("gate-not-at-target")
}

// The way back goes when a cutover is taken back, stays when it goes through, and is dropped later when that failed.
func TestTheWayBackFollowsTheOutcome(t *testing.T) {
	t.Parallel()
	w, back := newWayWorld(t, 1)
	ctx := t.Context()
	holder := connect(t, w.job.Source)
	exec(t, holder, "BEGIN; UPDATE orders SET realm_id = realm_id")
	c := w.coordinator(t, func(step string) error {
		if step == cutover.StepHold {
			back.mu.Lock()
			back.refuse = errors.New("the shard is away")
			back.mu.Unlock()
		}
		return nil
	})
	rep, err := c.Run(ctx, w.job, w.stream, cutover.Attempt{ID: "slow", MaxPause: 300 * time.Millisecond})
	if te := tenant.AsError(err); te == nil || te.Code != "cutover-timed-out" || !hasFinding(rep.Findings, "way-back-left") || !back.has() {
		t.Errorf("%v, %+v", err, rep.Findings)
	}
	if err := c.Tidy(ctx, w.job); err == nil {
		t.Error("what could not be dropped is tidy")
	}
	back.refuse = nil
	must(t, c.Tidy(ctx, w.job))
	if back.has() || back.discarded != 1 {
		t.Errorf("after tidying: there %v, dropped %d times", back.has(), back.discarded)
	}
	must(t, c.Tidy(ctx, w.job))
	if back.discarded != 1 {
		t.Error("what is tidy is tidied")
	}
	exec(t, holder, "ROLLBACK")
	// None is wanted.
	if wants, err := c.WantsWayBack(ctx, w.job.Replication); err != nil || wants {
		t.Errorf("before a cutover: %v, %v", wants, err)
	}
	_, err = w.coordinator(t, nil).Run(ctx, w.job, w.stream, cutover.Attempt{ID: "oneway", NoWayBack: true, MaxPause: patient})
	must(t, err)
	if wants, err := c.WantsWayBack(ctx, w.job.Replication); err != nil || wants || back.prepared != 1 {
		t.Errorf("without a way back: %v, %v, prepared %d times", wants, err, back.prepared)
	}
}

func TestRollbackDeadlineRestoresTheFormerState(t *testing.T) {
	t.Parallel()
	w, back := newWayWorld(t, 2)
	ctx := t.Context()
	l := w.load(t)
	waitForWrites(t, l)
	w.cutOver(t, "there", l)
	l.more(t, true)
	holder := connect(t, w.job.Shards[1].DSN)
	exec(t, holder, "SET application_name = 'nightly'; BEGIN; UPDATE orders SET realm_id = realm_id /* in the way */")
	l.moves()
	rep, err := w.coordinator(t, nil).Rollback(ctx, w.job, cutover.Attempt{ID: "slow", MaxPause: 1500 * time.Millisecond})
	te := tenant.AsError(err)
	if te == nil || te.Kind.ExitCode() != 7 || te.Code != "rollback-timed-out" || !strings.Contains(te.Hint, "in the way") || !strings.Contains(te.Message, "the target goes on") {
		t.Fatalf("error %v, hint %q", err, te.Hint)
	}
	if len(rep.Culprits) != 1 || !strings.Contains(rep.Culprits[0], "nightly") || !strings.Contains(rep.Culprits[0], "shard eu-2") || rep.Outcome != cutover.OutcomeTarget || len(te.Findings) != 1 || te.Findings[0].Object != "shard eu-2" {
		t.Errorf("report: %+v", rep)
	}
	exec(t, holder, "ROLLBACK")
	if got := w.outcome(t, "slow"); got != cutover.OutcomeTarget || !back.has() {
		t.Errorf("outcome %s, the way back is there: %v", got, back.has())
	}
	l.more(t, true)
	l.moves()
	_, err = w.coordinator(t, nil).Rollback(ctx, w.job, cutover.Attempt{ID: "next", MaxPause: patient})
	must(t, err)
	l.more(t, false)
	w.check(t, l, gate.SideSource)
}

// A coordinator dies after every step, and another one finishes what it began; the next attempt goes through.
func TestRollbackDeathAtEveryStep(t *testing.T) {
	t.Parallel()
	errSilent := errors.New("lost its network")
	for how, death := range map[string]error{"killed": cutover.ErrKilled, "silent": errSilent} {
		for i, step := range cutover.RollbackSteps {
			if how == "silent" && !long() && !slices.Contains([]string{cutover.StepFenceOne, cutover.StepTake, cutover.StepCommitted}, step) {
				continue
			}
			t.Run(how+"/"+step, func(t *testing.T) {
				t.Parallel()
				limit(t)
				w, back := newWayWorld(t, 2)
				l := w.load(t)
				waitForWrites(t, l)
				w.cutOver(t, "there", l)
				l.more(t, true)
				l.moves()
				_, err := w.coordinator(t, func(s string) error {
					if s == step {
						return death
					}
					return nil
				}).Rollback(t.Context(), w.job, cutover.Attempt{ID: "dying", MaxPause: 10 * time.Second})
				if !errors.Is(err, death) {
					t.Fatalf("the coordinator did not die: %v", err)
				}
				start := time.Now()
				c := w.coordinator(t, nil)
				_, err = c.ResolveAndFollow(t.Context(), w.job)
				must(t, err)
				must(t, c.Tidy(t.Context(), w.job))
				took := time.Since(start)
				committed := false
				for _, s := range cutover.RollbackSteps[:i+1] {
					committed = committed || s == cutover.StepCommitted
				}
				outcome, want := cutover.OutcomeTarget, gate.SideTarget
				if committed {
					outcome, want = cutover.OutcomeSource, gate.SideSource
				}
				if got := w.outcome(t, "dying"); got != outcome || back.has() == committed {
					t.Errorf("outcome %s, want %s; the way back is there: %v", got, outcome, back.has())
				}
				t.Logf("resolved to %s in %s", outcome, took.Round(time.Millisecond))
				if committed {
					var n int
					must(t, w.pool.QueryRow(t.Context(), `SELECT jsonb_array_length(report->'rollback'->'shards') FROM rehome_control.cutovers WHERE attempt = 'dying'`).Scan(&n))
					if n != 2 {
						t.Errorf("the record has %d shards", n)
					}
				}
				l.more(t, !committed)
				if !committed && how == "killed" {
					w.verified(t, true, time.Now())
					l.moves()
					_, err := c.Rollback(t.Context(), w.job, cutover.Attempt{ID: "again", MaxPause: patient})
					must(t, err)
					l.more(t, false)
					want = gate.SideSource
				}
				w.check(t, l, want)
			})
		}
	}
}

// At every step all sessions at the source, or at the shards, are terminated; the coordinator lives on.
func TestRollbackSessionsEndAtEveryStep(t *testing.T) {
	t.Parallel()
	for _, where := range []string{"source", "shards"} {
		for _, step := range cutover.RollbackSteps[1:] {
			if !long() && !slices.Contains([]string{cutover.StepLock, cutover.StepFence, cutover.StepTake, cutover.StepCommitting}, step) {
				continue
			}
			t.Run(where+"/"+step, func(t *testing.T) {
				t.Parallel()
				limit(t)
				w, _ := newWayWorld(t, 2)
				l := w.load(t)
				waitForWrites(t, l)
				w.cutOver(t, "there", l)
				l.more(t, true)
				dsns := []tenant.DSN{w.job.Source}
				if where == "shards" {
					dsns = []tenant.DSN{w.job.Shards[0].DSN, w.job.Shards[1].DSN}
				}
				l.moves()
				rep, err := w.coordinator(t, func(s string) error {
					if s != step {
						return nil
					}
					for _, d := range dsns {
						if _, err := connect(t, d).Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()`); err != nil {
							t.Error(err)
						}
					}
					return nil
				}).Rollback(t.Context(), w.job, cutover.Attempt{ID: "hit", MaxPause: 4 * time.Second})
				if err != nil && tenant.AsError(err).Kind != tenant.KindTimeout {
					t.Errorf("%v", err)
				}
				if got := w.outcome(t, "hit"); got != rep.Outcome {
					t.Errorf("outcome %s, the report says %s", got, rep.Outcome)
				}
				want := gate.SideTarget
				if rep.Outcome == cutover.OutcomeSource {
					want = gate.SideSource
				}
				l.more(t, want == gate.SideTarget)
				w.check(t, l, want)
			})
		}
	}
}

func TestRollbackRivals(t *testing.T) {
	t.Parallel()
	w, _ := newWayWorld(t, 2)
	l := w.load(t)
	waitForWrites(t, l)
	w.cutOver(t, "there", l)
	l.more(t, true)
	l.moves()
	var wg sync.WaitGroup
	reports := make([]cutover.Report, 3)
	for i := range reports {
		wg.Go(func() {
			var err error
			reports[i], err = w.coordinator(t, nil).Rollback(t.Context(), w.job, cutover.Attempt{MaxPause: 3 * time.Second})
			t.Logf("rival %d: %s, %v", i, reports[i].Outcome, err)
		})
	}
	wg.Wait()
	res, err := w.coordinator(t, nil).ResolveAndFollow(t.Context(), w.job)
	must(t, err)
	won := 0
	for _, r := range reports {
		if r.Outcome == cutover.OutcomeSource {
			won++
		}
		if r.Outcome != "" && w.outcome(t, r.Attempt) != r.Outcome {
			t.Errorf("%s is recorded as %s, reported as %s", r.Attempt, w.outcome(t, r.Attempt), r.Outcome)
		}
	}
	if won > 1 || (won == 1) == res.Decided() {
		t.Errorf("%d rivals won; the gate says %+v", won, res.State)
	}
	l.more(t, res.Decided())
	w.check(t, l, res.State.Side)
}

// A gate that lost a recorded decision opens and closes nothing.
func TestAGateThatWentBack(t *testing.T) {
	t.Parallel()
	w, _ := newWayWorld(t, 1)
	ctx := t.Context()
	w.cutOver(t, "there", nil)
	_, err := w.pool.Exec(ctx, `UPDATE rehome_control.cutovers SET step = 'decided', outcome = NULL, finished_at = NULL WHERE attempt = 'there'`)
	must(t, err)
	src := connect(t, w.job.Source) // as a standby would be that never received it
	exec(t, src, "BEGIN; UPDATE rehome.gate SET epoch = epoch - 1, side = 'source', attempt = ''; ALTER TABLE entries DISABLE TRIGGER rehome_fence; COMMIT")
	_, err = w.coordinator(t, nil).ResolveAndFollow(ctx, w.job)
	if te := tenant.AsError(err); te == nil || te.Code != "gate-went-back" {
		t.Errorf("resolved: %v", err)
	}
	if got := w.outcome(t, "there"); got != "unfinished" {
		t.Errorf("outcome %s", got)
	}
	if s, err := gate.ReadGate(ctx, connect(t, w.job.Shards[0].DSN)); err != nil || s.Side != gate.SideTarget {
		t.Errorf("the shard's gate: %+v, %v", s, err)
	}
}
