package cutover_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/server/cutover"
	"github.com/rehomedb/rehome/tenant"
)

// sequences is everything that a rehearsal must leave as it was of a database's sequences.
func sequences(t *testing.T, dsn tenant.DSN) []string {
	t.Helper()
	rows, err := connect(t, dsn).Query(t.Context(), `SELECT format('%s %s', s, (SELECT row(last_value, is_called) FROM orders_id_seq)) FROM pg_sequence s`)
	must(t, err)
	out, err := pgx.CollectRows(rows, pgx.RowTo[string])
	must(t, err)
	return out
}

// triggers lists every trigger and event trigger of a database.
func triggers(t *testing.T, dsn tenant.DSN) []string {
	t.Helper()
	rows, err := connect(t, dsn).Query(t.Context(), `SELECT tgrelid::regclass || ' ' || tgname || ' ' || tgenabled::text FROM pg_trigger WHERE NOT tgisinternal
		UNION ALL SELECT evtname FROM pg_event_trigger ORDER BY 1`)
	must(t, err)
	out, err := pgx.CollectRows(rows, pgx.RowTo[string])
	must(t, err)
	return out
}

func TestRehearsal(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	ctx := t.Context()
	type state struct{ Sequences, Triggers [][]string }
	look := func() (s state) {
		for _, dsn := range []tenant.DSN{w.job.Source, w.job.Shards[0].DSN, w.job.Shards[1].DSN} {
			s.Sequences = append(s.Sequences, sequences(t, dsn))
			s.Triggers = append(s.Triggers, triggers(t, dsn))
		}
		return s
	}
	exec(t, connect(t, w.job.Shards[1].DSN), "SELECT setval('orders_id_seq', 7, true)")
	before := look()
	l := w.load(t)
	waitForWrites(t, l)
	for i, id := range []string{"once", "again"} {
		rep, err := w.coordinator(t, nil).Run(ctx, w.job, w.stream, cutover.Attempt{ID: id, Rehearse: true, MaxPause: patient})
		must(t, err)
		if rep.Outcome != cutover.OutcomeRehearsed || rep.Certificate != nil || rep.PauseMillis <= 0 || len(rep.Culprits) > 0 {
			t.Errorf("report: %+v", rep)
		}
		t.Logf("pause %.1f ms; %s", rep.PauseMillis, steps(rep))
		paused, inPause := 0.0, []string{}
		for _, s := range rep.Steps {
			if s.Pause {
				inPause = append(inPause, s.Step)
				paused = max(paused, s.AtMillis+s.Millis)
			}
		}
		slices.Sort(inPause) // some run side by side
		if want := "drain fence follow freeze hold last-look marker sequences tail triggers"; strings.Join(inPause, " ") != want {
			t.Errorf("in the pause: %s", inPause)
		}
		var direction, outcome string
		must(t, w.pool.QueryRow(ctx, `SELECT direction, outcome FROM rehome_control.cutovers WHERE attempt = $1`, id).Scan(&direction, &outcome))
		if direction != "rehearsal" || outcome != cutover.OutcomeSource {
			t.Errorf("recorded as %s with outcome %s", direction, outcome)
		}
		s, err := gate.ReadGate(ctx, connect(t, w.job.Source))
		must(t, err)
		if want := int64(1 + 2*(i+1)); s.Side != gate.SideSource || s.Epoch != want {
			t.Errorf("gate %+v, want epoch %d", s, want)
		}
	}
	if d := cmp.Diff(before, look()); d != "" {
		t.Errorf("a rehearsal left something:\n%s", d)
	}
	n := l.count(false)
	eventually(t, "writes at the source after the rehearsals", func() bool { return l.count(false) > n+20 })
	if l.count(true) > 0 {
		t.Error("a shard accepted writes during a rehearsal")
	}
	// What was rehearsed then happens.
	_, err := w.coordinator(t, nil).Run(ctx, w.job, w.stream, cutover.Attempt{ID: "real", MaxPause: patient})
	must(t, err)
	waitForTarget(t, l)
	w.check(t, l, gate.SideTarget)
}

func TestRehearsalThatDoesNotFit(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	ctx := t.Context()
	before := sequences(t, w.job.Shards[0].DSN)
	holder := connect(t, w.job.Source)
	exec(t, holder, "SET application_name = 'nightly'; BEGIN; UPDATE orders SET realm_id = realm_id /* in the way */")
	_, err := w.coordinator(t, nil).Run(ctx, w.job, w.stream, cutover.Attempt{ID: "slow", MaxPause: time.Second, Rehearse: true})
	te := tenant.AsError(err)
	if te == nil || te.Kind.ExitCode() != 7 || !strings.Contains(te.Message, "the rehearsal did not fit") || !strings.Contains(te.Hint, "nightly") {
		t.Errorf("error %v, hint %q", err, te.Hint)
	}
	if d := cmp.Diff(before, sequences(t, w.job.Shards[0].DSN)); d != "" {
		t.Errorf("it left something:\n%s", d)
	}
}

// A rehearsal whose coordinator dies anywhere is ended at the source by whoever comes next.
func TestDeathDuringARehearsal(t *testing.T) {
	t.Parallel()
	for _, step := range []string{cutover.StepFence, cutover.StepSequences, cutover.StepCommitting} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			limit(t)
			w := newWorld(t, 2)
			l := w.load(t)
			waitForWrites(t, l)
			_, err := w.coordinator(t, func(s string) error {
				if s == step {
					return cutover.ErrKilled
				}
				return nil
			}).Run(t.Context(), w.job, w.stream, cutover.Attempt{ID: "dying", Rehearse: true, MaxPause: 10 * time.Second})
			if err == nil {
				t.Fatal("the coordinator did not die")
			}
			res, err := w.coordinator(t, nil).ResolveAndFollow(t.Context(), w.job)
			must(t, err)
			if res.Decided() || len(res.Resolved) != 1 || w.outcome(t, "dying") != cutover.OutcomeSource {
				t.Errorf("%+v, recorded as %s", res, w.outcome(t, "dying"))
			}
			w.check(t, l, gate.SideSource)
		})
	}
}
