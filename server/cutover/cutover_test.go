package cutover_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/server/cutover"
	"github.com/rehomedb/rehome/tenant"
)

func TestCutover(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	ctx := t.Context()
	l := w.load(t)
	waitForWrites(t, l)
	tailed := false
	rep, err := w.coordinator(t, nil).Run(ctx, w.job, w.stream, cutover.Attempt{
		ID: "first", ApprovedBy: "ada@example.com", MaxPause: patient,
		Tail: func(_ context.Context, _ pgx.Tx) error { tailed = true; return nil },
	})
	must(t, err)
	if rep.Outcome != cutover.OutcomeTarget || rep.Certificate == nil || !tailed {
		t.Fatalf("report: %+v", rep)
	}
	c := *rep.Certificate
	must(t, cutover.Verify(c, w.public))
	var raw []byte
	must(t, w.pool.QueryRow(ctx, `SELECT certificate FROM rehome_control.cutovers WHERE attempt = 'first'`).Scan(&raw))
	must(t, cutover.VerifyJSON(raw, w.public))
	if c.ApprovedBy != "ada@example.com" || c.MarkerLSN == 0 || len(c.Shards) != 2 || c.Digest != "d1" || c.PauseMillis <= 0 || c.SystemID == "" || len(c.Sequences) != 2 {
		t.Errorf("certificate: %s", raw)
	}
	t.Logf("pause %.1f ms; %s", rep.PauseMillis, steps(rep))
	waitForTarget(t, l)
	w.check(t, l, gate.SideTarget)
	if got := w.outcome(t, "first"); got != cutover.OutcomeTarget {
		t.Errorf("outcome %s", got)
	}
	// Sequences: ahead at the shards and apart, frozen at the source.
	var a, b int64
	must(t, connect(t, w.job.Shards[0].DSN).QueryRow(ctx, `SELECT nextval('orders_id_seq')`).Scan(&a))
	must(t, connect(t, w.job.Shards[1].DSN).QueryRow(ctx, `SELECT nextval('orders_id_seq')`).Scan(&b))
	if a <= 20 || b <= 20 || a == b {
		t.Errorf("the shards' next ids are %d and %d", a, b)
	}
	if err := connect(t, w.job.Source).QueryRow(ctx, `SELECT nextval('orders_id_seq')`).Scan(&a); err == nil {
		t.Errorf("the source still draws ids: %d", a)
	}
	must(t, w.coordinator(t, nil).ThawSource(ctx, w.job.Replication, connect(t, w.job.Source)))
	must(t, connect(t, w.job.Source).QueryRow(ctx, `SELECT nextval('orders_id_seq')`).Scan(&a))
	// Once more: refused, and following again changes nothing.
	_, err = w.coordinator(t, nil).Run(ctx, w.job, w.stream, cutover.Attempt{MaxPause: patient})
	if te := tenant.AsError(err); te == nil || te.Code != "cutover-refused" || !hasFinding(te.Findings, "gate-not-at-source") {
		t.Errorf("a second cutover: %v", err)
	}
	res, err := w.coordinator(t, nil).ResolveAndFollow(ctx, w.job)
	must(t, err)
	if !res.Decided() || len(res.Resolved) != 0 {
		t.Errorf("resolution: %+v", res)
	}
}

func TestDryRunAndRefusals(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	ctx := t.Context()
	c := w.coordinator(t, nil)
	rep, err := c.Run(ctx, w.job, w.stream, cutover.Attempt{DryRun: true})
	must(t, err)
	if rep.Outcome != cutover.OutcomeDryRun || tenant.Blocks(rep.Findings) || rep.Attempt != "" {
		t.Errorf("dry run: %+v", rep)
	}
	refused := func(code string) {
		t.Helper()
		_, err := c.Run(ctx, w.job, w.stream, cutover.Attempt{ID: "refused-" + code})
		te := tenant.AsError(err)
		if te == nil || te.Kind != tenant.KindRefused || !hasFinding(te.Findings, code) {
			t.Errorf("want %s, got %v %+v", code, err, te)
		}
		if got := w.outcome(t, "refused-"+code); got != "no attempt" {
			t.Errorf("%s: a refused attempt is recorded as %s", code, got)
		}
	}
	// A gateway that died in silence is waited for here, and not while clients wait.
	_, err = w.pool.Exec(ctx, "INSERT INTO rehome_control.gateways VALUES ('dead', clock_timestamp() - interval '3 s', clock_timestamp() + interval '3 s')")
	must(t, err)
	rep, err = c.Run(ctx, w.job, w.stream, cutover.Attempt{DryRun: true})
	must(t, err)
	var leased bool
	must(t, w.pool.QueryRow(ctx, "SELECT EXISTS (SELECT FROM rehome_control.gateways WHERE server = 'dead' AND lease_expires_at > clock_timestamp())").Scan(&leased))
	if !hasFinding(rep.Findings, "gateway-silent") || tenant.Blocks(rep.Findings) || leased {
		t.Errorf("dry run beside a dead gateway, which has a lease still: %t; %+v", leased, rep)
	}
	w.verified(t, false, time.Now())
	refused("verification-not-clean")
	w.verified(t, true, time.Now().Add(time.Second))
	w.stream.lag = 1 << 40
	refused("lag")
	w.stream.lag = 0
	shard := connect(t, w.job.Shards[0].DSN)
	exec(t, shard, "CREATE TABLE unfenced (id int)")
	refused("shard-not-fenced")
	exec(t, shard, "DROP TABLE unfenced")
	accept := w.job.Accept
	w.job.Accept = nil
	refused("fsync-off")
	w.job.Accept = accept
	exec(t, shard, "UPDATE rehome.gate SET epoch = 7")
	exec(t, connect(t, w.job.Source), "CREATE TABLE left_behind (id int)")
	rep, err = c.Run(ctx, w.job, w.stream, cutover.Attempt{MaxPause: patient})
	must(t, err)
	if rep.Certificate.GateEpoch != 9 || !hasFinding(rep.Findings, "not-replicated") {
		t.Errorf("over a shard's gate of epoch 7: %+v", rep)
	}
	old := time.Now().Add(-time.Hour)
	_, err = w.pool.Exec(ctx, `UPDATE rehome_control.verifications SET finished_at = $1`, old)
	must(t, err)
	refused("verification-too-old")
}

func TestDeadlineRestoresTheFormerState(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	ctx := t.Context()
	l := w.load(t)
	waitForWrites(t, l)
	holder := connect(t, w.job.Source)
	exec(t, holder, "SET application_name = 'nightly'; BEGIN; UPDATE orders SET realm_id = realm_id /* in the way */")
	start := time.Now()
	rep, err := w.coordinator(t, nil).Run(ctx, w.job, w.stream, cutover.Attempt{ID: "slow", MaxPause: 1500 * time.Millisecond})
	te := tenant.AsError(err)
	if te == nil || te.Kind.ExitCode() != 7 || te.Code != "cutover-timed-out" || !strings.Contains(te.Hint, "in the way") {
		t.Fatalf("error %v, hint %q", err, te.Hint)
	}
	if len(rep.Culprits) != 1 || !strings.Contains(rep.Culprits[0], "nightly") || rep.Outcome != cutover.OutcomeSource {
		t.Errorf("report: %+v", rep)
	}
	t.Logf("taken back after %s: %v; %s", time.Since(start).Round(time.Millisecond), rep.Culprits, steps(rep))
	exec(t, holder, "ROLLBACK")
	if got := w.outcome(t, "slow"); got != cutover.OutcomeSource {
		t.Errorf("outcome %s", got)
	}
	// The way is free: the same replication is cut over by the next attempt.
	_, err = w.coordinator(t, nil).Run(ctx, w.job, w.stream, cutover.Attempt{ID: "next", MaxPause: patient})
	must(t, err)
	waitForTarget(t, l)
	w.check(t, l, gate.SideTarget)
}

// An attempt that names no maximum pause has the default's.
func TestDefaultMaxPause(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	holder := connect(t, w.job.Source)
	exec(t, holder, "BEGIN; UPDATE orders SET realm_id = realm_id /* in the way */")
	_, err := w.coordinator(t, nil).Run(t.Context(), w.job, w.stream, cutover.Attempt{ID: "default"})
	if te := tenant.AsError(err); te == nil || te.Code != "cutover-timed-out" || !strings.Contains(te.Message, "maximum pause of 5s ") {
		t.Errorf("error %v", err)
	}
	if got := w.outcome(t, "default"); got != cutover.OutcomeSource {
		t.Errorf("outcome %s", got)
	}
}

// A coordinator dies after every step, and another one finishes what it began.
func TestDeathAtEveryStep(t *testing.T) {
	t.Parallel()
	errSilent := errors.New("lost its network")
	for how, death := range map[string]error{"killed": cutover.ErrKilled, "silent": errSilent} {
		for _, step := range cutover.Steps {
			t.Run(how+"/"+step, func(t *testing.T) {
				t.Parallel()
				limit(t)
				w := newWorld(t, 2)
				l := w.load(t)
				waitForWrites(t, l)
				_, err := w.coordinator(t, func(s string) error {
					if s == step {
						return death
					}
					return nil
				}).Run(t.Context(), w.job, w.stream, cutover.Attempt{ID: "dying", MaxPause: 10 * time.Second})
				if !errors.Is(err, death) {
					t.Fatalf("the coordinator did not die: %v", err)
				}
				start := time.Now()
				_, err = w.coordinator(t, nil).ResolveAndFollow(t.Context(), w.job)
				must(t, err)
				took := time.Since(start)
				want, outcome := gate.SideTarget, cutover.OutcomeTarget
				if before(step, cutover.StepCommitted) {
					want, outcome = gate.SideSource, cutover.OutcomeSource
				}
				if got := w.outcome(t, "dying"); got != outcome {
					t.Errorf("outcome %s, want %s", got, outcome)
				}
				t.Logf("resolved to %s in %s", outcome, took.Round(time.Millisecond))
				if want == gate.SideTarget {
					var raw []byte
					must(t, w.pool.QueryRow(t.Context(), `SELECT certificate FROM rehome_control.cutovers WHERE attempt = 'dying'`).Scan(&raw))
					must(t, cutover.VerifyJSON(raw, w.public))
					var c tenant.Certificate
					must(t, json.Unmarshal(raw, &c))
					if c.MarkerLSN == 0 || len(c.Shards) != 2 || len(c.Sequences) != 2 {
						t.Errorf("certificate by the successor: %s", raw)
					}
				} else if how == "killed" {
					_, err := w.coordinator(t, nil).Run(t.Context(), w.job, w.stream, cutover.Attempt{ID: "again", MaxPause: patient})
					must(t, err)
					want = gate.SideTarget
				}
				if want == gate.SideTarget {
					waitForTarget(t, l)
				}
				w.check(t, l, want)
			})
		}
	}
}

// At every step all sessions at the source, or at the shards, are terminated; the coordinator lives on.
func TestSessionsEndAtEveryStep(t *testing.T) {
	t.Parallel()
	for _, where := range []string{"source", "shards"} {
		for _, step := range cutover.Steps[1:] {
			t.Run(where+"/"+step, func(t *testing.T) {
				t.Parallel()
				limit(t)
				w := newWorld(t, 2)
				dsns := []tenant.DSN{w.job.Source}
				if where == "shards" {
					dsns = []tenant.DSN{w.job.Shards[0].DSN, w.job.Shards[1].DSN}
				}
				var conns []*pgx.Conn
				for _, d := range dsns {
					conns = append(conns, connect(t, d))
				}
				l := w.load(t)
				waitForWrites(t, l)
				rep, err := w.coordinator(t, func(s string) error {
					if s != step {
						return nil
					}
					for _, c := range conns {
						if _, err := c.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()`); err != nil {
							t.Error(err)
						}
					}
					return nil
				}).Run(t.Context(), w.job, w.stream, cutover.Attempt{ID: "hit", MaxPause: 4 * time.Second})
				if err != nil && tenant.AsError(err).Kind != tenant.KindTimeout {
					t.Errorf("%v", err)
				}
				if got := w.outcome(t, "hit"); got != rep.Outcome {
					t.Errorf("outcome %s, the report says %s", got, rep.Outcome)
				}
				want := gate.SideSource
				if rep.Outcome == cutover.OutcomeTarget {
					want = gate.SideTarget
					waitForTarget(t, l)
				}
				w.check(t, l, want)
			})
		}
	}
}

func TestRivals(t *testing.T) {
	t.Parallel()
	for range 3 {
		w := newWorld(t, 2)
		l := w.load(t)
		waitForWrites(t, l)
		var wg sync.WaitGroup
		reports := make([]cutover.Report, 3)
		for i := range reports {
			wg.Go(func() {
				var err error
				reports[i], err = w.coordinator(t, nil).Run(t.Context(), w.job, w.stream, cutover.Attempt{MaxPause: 3 * time.Second})
				t.Logf("rival %d: %s, %v", i, reports[i].Outcome, err)
			})
		}
		wg.Wait()
		res, err := w.coordinator(t, nil).ResolveAndFollow(t.Context(), w.job)
		must(t, err)
		won := 0
		for _, r := range reports {
			if r.Outcome == cutover.OutcomeTarget {
				won++
			}
			if r.Outcome != "" && w.outcome(t, r.Attempt) != r.Outcome {
				t.Errorf("%s is recorded as %s, reported as %s", r.Attempt, w.outcome(t, r.Attempt), r.Outcome)
			}
		}
		if won > 1 || (won == 1) != res.Decided() {
			t.Errorf("%d rivals won; the gate says %+v", won, res.State)
		}
		if res.Decided() {
			waitForTarget(t, l)
		}
		w.check(t, l, res.State.Side)
	}
}

func before(step, other string) bool {
	for _, s := range cutover.Steps {
		if s == other {
			return false
		}
		if s == step {
			return true
		}
	}
	return false
}

func hasFinding(list []tenant.Finding, code string) bool {
	for _, f := range list {
		if f.Code == code {
			return true
		}
	}
	return false
}

func steps(r cutover.Report) string {
	raw, _ := json.Marshal(r.Steps)
	return string(raw)
}

// places bounds how many worlds exist at once: each has a dozen sessions.
var places = make(chan struct{}, 4)

func limit(t *testing.T) {
	t.Helper()
	places <- struct{}{}
	t.Cleanup(func() { <-places })
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	limit := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-limit:
			t.Fatalf("never happened: %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (l *load) count(target bool) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, a := range l.accepted {
		if (a.side >= 0) == target {
			n++
		}
	}
	return n
}

func waitForWrites(t *testing.T, l *load) {
	t.Helper()
	eventually(t, "writes at the source", func() bool { return l.count(false) > 20 })
}

func waitForTarget(t *testing.T, l *load) {
	t.Helper()
	eventually(t, "writes at the shards", func() bool { return l.count(true) > 20 })
}
