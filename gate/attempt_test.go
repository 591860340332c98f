package gate_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/gate"
)

// agrees checks that the tables accept exactly what the gate says, and returns it.
func agrees(t *testing.T, s side) gate.State {
	t.Helper()
	state, err := gate.ReadGate(t.Context(), s.conn)
	must(t, err)
	if open := accepts(t, connect(t, s.client)); open != (state.Side == gate.SideSource) {
		t.Fatalf("the gate says %+v, and the table accepts writes: %v", state, open)
	}
	return state
}

func installed(t *testing.T) side {
	t.Helper()
	s := setup(t, schemaSQL)
	must(t, gate.InstallSource(t.Context(), s.conn, pass))
	return s
}

func TestWritersWaitAndReadersDoNot(t *testing.T) {
	t.Parallel()
	s := installed(t)
	ctx := t.Context()
	a := open(t, s, 1)
	must(t, a.Prelock(ctx))
	writer, reader := connect(t, s.client), connect(t, s.client)
	if !accepts(t, writer) {
		t.Fatal("the prelock refuses writers")
	}
	must(t, a.Fence(ctx, time.Now().Add(5*time.Second)))
	must(t, a.CreateTriggers(ctx))
	exec(t, reader, "SET statement_timeout = '200ms'; SELECT count(*) FROM accounts; SELECT count(*) FROM app.events")
	var g errgroup.Group
	var waited error
	g.Go(func() error {
		_, waited = writer.Exec(ctx, "UPDATE accounts SET balance = 7 WHERE id = 7")
		return nil
	})
	eventually(t, "the writer waits", func() bool {
		var n int
		must(t, a.Second().QueryRow(ctx, "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = $1", writer.PgConn().PID()).Scan(&n))
		return n == 1
	})
	a.Rollback(ctx)
	must(t, g.Wait())
	if waited != nil {
		t.Errorf("the writer that waited: %v", waited)
	}
	if got := agrees(t, s); got.Epoch != 1 {
		t.Errorf("after a rollback: %+v", got)
	}
}

func TestVanishedCoordinatorLeavesTheSourceOpen(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"killed", "network lost", "backend terminated"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			s := installed(t)
			ctx := t.Context()
			a := open(t, s, 1)
			must(t, a.Prelock(ctx))
			const pause = 1500 * time.Millisecond
			start := time.Now()
			must(t, a.Fence(ctx, start.Add(pause)))
			must(t, a.CreateTriggers(ctx))
			switch how {
			case "killed":
				a.Abandon(true)
			case "backend terminated":
				exec(t, connect(t, s.admin), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'rehome gate fence'")
			}
			if !accepts(t, connect(t, s.client)) { // waits for the fence to fall
				t.Error("the source is closed")
			}
			if d := time.Since(start); d > pause+stall {
				t.Errorf("the fence fell after %s, the pause was %s", d, pause)
			}
			state, err := gate.Resolve(ctx, s.owner, 1)
			must(t, err)
			if state.Epoch != 3 || state.Side != gate.SideSource {
				t.Errorf("resolved to %+v", state)
			}
			agrees(t, s)
			if err := a.Commit(ctx); err == nil {
				t.Error("the vanished coordinator came back and committed")
			}
		})
	}
}

func TestResolveEndsWhoeverHoldsTheGate(t *testing.T) {
	t.Parallel()
	s := installed(t)
	ctx := t.Context()
	a := open(t, s, 1)
	must(t, a.Prelock(ctx))
	must(t, a.Fence(ctx, time.Now().Add(time.Minute)))
	start := time.Now()
	state, err := gate.Resolve(ctx, s.owner, 1)
	must(t, err)
	if state != (gate.State{Epoch: 3, Side: gate.SideSource}) || time.Since(start) > stall {
		t.Errorf("resolved to %+v in %s", state, time.Since(start))
	}
	if err := a.Commit(ctx); err == nil {
		t.Error("a terminated attempt committed")
	}
	// The same doubt once more, and an attempt of the old epoch that wakes up late.
	again, err := gate.Resolve(ctx, s.owner, 1)
	must(t, err)
	if again != state {
		t.Errorf("resolved anew to %+v", again)
	}
	late := open(t, s, 1)
	must(t, late.Prelock(ctx))
	if err := late.Fence(ctx, time.Now().Add(time.Second)); !errors.Is(err, gate.ErrGateMoved) {
		t.Errorf("an attempt of an old epoch: %v", err)
	}
	late.Rollback(ctx)
	agrees(t, s)
}

// A COMMIT is under way while others resolve the same attempt: one outcome, and everybody learns the same.
func TestLateCommitRacesResolve(t *testing.T) {
	t.Parallel()
	const rounds = 40
	s := installed(t)
	ctx := t.Context()
	outcomes := map[gate.Side]int{}
	for round := range rounds {
		before, err := gate.ReadGate(ctx, s.conn)
		must(t, err)
		e := before.Epoch
		a := open(t, s, e)
		must(t, a.Prelock(ctx))
		must(t, a.Fence(ctx, time.Now().Add(20*time.Second)))
		must(t, a.CreateTriggers(ctx))
		var committed error
		var resolved [2]gate.State
		var g errgroup.Group
		delay := func() { // up to about a COMMIT's length, either side first
			for range rand.N(40_000) {
				_ = time.Now()
			}
		}
		g.Go(func() error {
			delay()
			switch round % 3 {
			case 0: // the answer never arrives
				short, cancel := context.WithTimeout(ctx, time.Duration(rand.N(int64(4*time.Millisecond))))
				defer cancel()
				committed = a.Commit(short)
			case 1: // the process dies somewhere around the COMMIT
				var d errgroup.Group
				d.Go(func() error { delay(); a.Abandon(true); return nil })
				committed = a.Commit(ctx)
				return d.Wait()
			default:
				committed = a.Commit(ctx)
			}
			return nil
		})
		for i := range resolved {
			g.Go(func() (err error) {
				delay()
				resolved[i], err = gate.Resolve(ctx, s.owner, e)
				return err
			})
		}
		must(t, g.Wait())
		final := agrees(t, s)
		for _, r := range resolved {
			if r != final {
				t.Fatalf("round %d: resolved %+v, the gate says %+v", round, r, final)
			}
		}
		want := gate.State{Epoch: e + 2, Side: gate.SideSource}
		if final.Side == gate.SideTarget {
			want = gate.State{Epoch: e + 1, Side: gate.SideTarget, Attempt: "att1", NewURL: newURL}
		}
		if final != want {
			t.Fatalf("round %d: %+v, want %+v", round, final, want)
		}
		if committed == nil && final.Side != gate.SideTarget {
			t.Fatalf("round %d: an answered COMMIT was undone: %+v", round, final)
		}
		outcomes[final.Side]++
		a.Close(ctx)
		if final.Side == gate.SideTarget { // back to the start, as a way back will do it
			exec(t, s.conn, "BEGIN; ALTER TABLE accounts DISABLE TRIGGER rehome_fence; UPDATE rehome.gate SET epoch = epoch + 1, side = 'source', attempt = '', new_url = ''; COMMIT")
		} else {
			exec(t, s.conn, "UPDATE rehome.gate SET attempt = '', new_url = ''")
		}
	}
	t.Logf("%d rounds: %v", rounds, outcomes)
	if len(outcomes) != 2 {
		t.Errorf("the race always ended the same way: %v", outcomes)
	}
}

func TestLongTransactionFailsTheFenceAndStarvesNobody(t *testing.T) {
	t.Parallel()
	s := installed(t)
	ctx := t.Context()
	holder := connect(t, s.owner)
	exec(t, holder, "SET application_name = 'nightly report'; BEGIN; UPDATE app.events_2025 SET at = at /* the culprit */")

	// Other writers, on the same table and another, measured all along.
	stop, cancel := context.WithCancel(ctx)
	defer cancel()
	var g errgroup.Group
	var took [2]waits
	var count [2]int
	for i, sql := range []string{"UPDATE accounts SET balance = balance + 1 WHERE id = 1", "INSERT INTO app.events (at) VALUES ('2026-03-03')"} {
		conn := connect(t, s.client)
		g.Go(func() error {
			for stop.Err() == nil {
				start := time.Now()
				if _, err := conn.Exec(ctx, sql); err != nil {
					return err
				}
				took[i].add(time.Since(start))
				count[i]++
				select {
				case <-stop.Done():
				case <-time.After(2 * time.Millisecond): // the machine is shared
				}
			}
			return nil
		})
	}
	a := open(t, s, 1)
	must(t, a.Prelock(ctx))
	start := time.Now()
	const pause = 2 * stall
	err := a.Fence(ctx, start.Add(pause))
	tried := time.Since(start)
	a.Rollback(ctx)
	cancel()
	must(t, g.Wait())
	if !errors.Is(err, gate.ErrNotFenced) || tried > pause+stall {
		t.Errorf("fence: %v after %s", err, tried)
	}
	named := false
	for _, c := range a.Culprits() {
		t.Log(c)
		if uint32(c.PID) == holder.PgConn().PID() && c.State == "idle in transaction" && strings.Contains(c.Query, "the culprit") {
			named = true
		}
	}
	if !named {
		t.Error("the long transaction is not named")
	}
	t.Logf("%d tries, statements %v", a.Tries(), count)
	for i := range took {
		took[i].check(t)
	}
	if a.Tries() < 3 {
		t.Errorf("only %d tries", a.Tries())
	}
	agrees(t, s)
}

func TestPreparedTransactionIsNamed(t *testing.T) {
	t.Parallel()
	s := installed(t)
	ctx := t.Context()
	holder := connect(t, s.client)
	exec(t, holder, "BEGIN; DELETE FROM accounts WHERE id = 3; PREPARE TRANSACTION 'stuck "+s.ownerName+"'")
	defer exec(t, holder, "ROLLBACK PREPARED 'stuck "+s.ownerName+"'")
	a := open(t, s, 1)
	must(t, a.Prelock(ctx))
	if err := a.Fence(ctx, time.Now().Add(time.Second)); !errors.Is(err, gate.ErrNotFenced) {
		t.Errorf("fence: %v", err)
	}
	a.Rollback(ctx)
	if c := a.Culprits(); len(c) != 1 || !strings.Contains(c[0].String(), "stuck") {
		t.Errorf("culprits: %v", c)
	}
}

func TestPrelockWaitsForMaintenance(t *testing.T) {
	t.Parallel()
	s := installed(t)
	ctx := t.Context()
	vacuum := connect(t, s.owner)
	exec(t, vacuum, "BEGIN; LOCK TABLE accounts IN SHARE UPDATE EXCLUSIVE MODE")
	var g errgroup.Group
	writer := connect(t, s.client)
	a := open(t, s, 1)
	g.Go(func() error { return a.Prelock(ctx) })
	eventually(t, "the prelock waits", func() bool {
		var n int
		must(t, s.conn.QueryRow(ctx, "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'ShareUpdateExclusiveLock' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())").Scan(&n))
		return n == 1
	})
	if !accepts(t, writer) {
		t.Error("a waiting prelock refuses writers")
	}
	exec(t, vacuum, "COMMIT")
	must(t, g.Wait())
	start := time.Now()
	must(t, a.Fence(ctx, time.Now().Add(5*time.Second)))
	if a.Tries() != 1 {
		t.Errorf("%d tries, %s", a.Tries(), time.Since(start))
	}
	a.Rollback(ctx)
}

func TestTablesThatAppear(t *testing.T) {
	t.Parallel()
	s := installed(t)
	ctx := t.Context()
	a := open(t, s, 1)
	must(t, a.Prelock(ctx))
	exec(t, s.conn, "CREATE TABLE between_prelock_and_fence (id int)")
	must(t, a.Fence(ctx, time.Now().Add(5*time.Second)))
	if n := len(a.Tables()); n != 6 {
		t.Errorf("%d tables are fenced, want 6", n)
	}
	must(t, a.CreateTriggers(ctx))
	exec(t, s.conn, "CREATE TABLE behind_the_fence (id int); INSERT INTO behind_the_fence VALUES (1)")
	if err := a.Commit(ctx); !errors.Is(err, gate.ErrTablesChanged) {
		t.Errorf("commit over a new table: %v", err)
	}
	a.Rollback(ctx)
	agrees(t, s)
}

func TestThousandTables(t *testing.T) {
	t.Parallel()
	s := installed(t)
	ctx := t.Context()
	exec(t, s.conn, "DO $$ BEGIN FOR i IN 1..1000 LOOP EXECUTE format('CREATE TABLE t%s (id int)', i); END LOOP; END $$")
	a := open(t, s, 1)
	var report []string
	step := func(name string, fn func() error) {
		t.Helper()
		start := time.Now()
		must(t, fn())
		report = append(report, fmt.Sprintf("%s %s", name, time.Since(start).Round(100*time.Microsecond)))
	}
	step("prelock", func() error { return a.Prelock(ctx) })
	step("fence", func() error { return a.Fence(ctx, time.Now().Add(10*time.Second)) })
	step("triggers", func() error { return a.CreateTriggers(ctx) })
	step("commit", func() error { return a.Commit(ctx) })
	t.Log(strings.Join(report, ", "))
	agrees(t, s)
}

// TestATryLeavesNoTimeLimit: what follows a try that was in vain, its own undoing first, has the time of the pause.
func TestATryLeavesNoTimeLimit(t *testing.T) {
	t.Parallel()
	s := installed(t)
	ctx := t.Context()
	a := open(t, s, 1)
	must(t, a.Prelock(ctx))
	holder := connect(t, s.owner)
	exec(t, holder, "BEGIN; UPDATE accounts SET balance = balance")
	for range 2 {
		if retry, err := a.TryLock(ctx, 50*time.Millisecond); err == nil || !retry {
			t.Fatalf("a lock beside a writer: retry %v, %v", retry, err)
		}
		var limit string
		var enough bool
		must(t, a.FenceSession().QueryRow(ctx, "SELECT current_setting('statement_timeout'), current_setting('statement_timeout')::interval >= '400ms'").Scan(&limit, &enough))
		if !enough {
			t.Errorf("the limit is %s afterwards", limit)
		}
	}
}
