package gate_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/gate"
)

// openShard is a shard that follows (2, target), with what the way back needs of it.
func openShard(t *testing.T) side {
	t.Helper()
	s := setup(t, schemaSQL)
	must(t, gate.InstallShard(t.Context(), s.conn, pass))
	_, err := gate.FenceShardTables(t.Context(), s.conn)
	must(t, err)
	must(t, gate.InstallBack(t.Context(), s.conn))
	_, err = gate.Follow(t.Context(), s.conn, gate.State{Epoch: 2, Side: gate.SideTarget, Attempt: "att1", NewURL: newURL})
	must(t, err)
	if !accepts(t, connect(t, s.client)) {
		t.Fatal("the shard does not accept writes")
	}
	return s
}

func shardFence(t *testing.T, s side, attempt string, e int64) *gate.ShardFence {
	t.Helper()
	f, err := gate.OpenShardFence(t.Context(), gate.Config{Source: s.owner, Attempt: attempt, Epoch: e})
	must(t, err)
	t.Cleanup(func() { f.Close(context.Background()) })
	return f
}

func openReturn(t *testing.T, s side, attempt string, e int64) *gate.Return {
	t.Helper()
	r, err := gate.OpenReturn(t.Context(), gate.Config{Source: s.owner, Attempt: attempt, Epoch: e})
	must(t, err)
	t.Cleanup(func() { r.Close(context.Background()) })
	return r
}

// userTriggers reads every trigger that is not ours, and whether it is enabled.
func userTriggers(t *testing.T, conn *pgx.Conn) map[string]string {
	t.Helper()
	rows, err := conn.Query(t.Context(), `SELECT tgrelid::regclass || '.' || tgname, tgenabled::text FROM pg_trigger WHERE tgname NOT LIKE 'rehome%'`)
	must(t, err)
	out := map[string]string{}
	var name, enabled string
	_, err = pgx.ForEachRow(rows, []any{&name, &enabled}, func() error { out[name] = enabled; return nil })
	must(t, err)
	return out
}

func TestTheSourceGetsTheWritesBack(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	src, shard := installed(t), openShard(t)
	exec(t, src.conn, `CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'`)
	for name, state := range map[string]string{"o": "ENABLE", "d": "DISABLE", "r": "ENABLE REPLICA", "a": "ENABLE ALWAYS"} {
		exec(t, src.conn, "CREATE TRIGGER "+name+" AFTER INSERT ON accounts FOR EACH ROW EXECUTE FUNCTION nothing(); ALTER TABLE accounts "+state+" TRIGGER "+name)
	}
	before := userTriggers(t, src.conn)
	for round := range 3 {
		e := int64(2*round + 1)
		cutOver(t, src, e)
		_, err := gate.Follow(ctx, shard.conn, gate.State{Epoch: e + 1, Side: gate.SideTarget, Attempt: "att1"})
		must(t, err)
		f := shardFence(t, shard, "back", e+1)
		r := openReturn(t, src, "back", e+1)
		must(t, f.Prelock(ctx))
		must(t, r.Prelock(ctx))
		writer := connect(t, shard.client)
		if !accepts(t, writer) {
			t.Fatal("the prelock refuses writers")
		}
		deadline := time.Now().Add(5 * time.Second)
		must(t, r.Arm(ctx, deadline))
		must(t, f.Lock(ctx, deadline))
		var g errgroup.Group
		var refused error
		g.Go(func() error {
			_, refused = writer.Exec(ctx, "UPDATE accounts SET balance = 7 WHERE id = 7")
			return nil
		})
		eventually(t, "the writer waits", func() bool {
			var n int
			must(t, f.Second().QueryRow(ctx, "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = $1", writer.PgConn().PID()).Scan(&n))
			return n == 1
		})
		must(t, f.Shut(ctx))
		must(t, g.Wait())
		if !gate.IsFenced(refused) {
			t.Errorf("the writer that waited was not refused: %v", refused)
		}
		must(t, f.Marker(ctx))
		var kind string
		must(t, shard.conn.QueryRow(ctx, `SELECT kind FROM rehome.marker WHERE attempt = 'back'`).Scan(&kind))
		if kind != gate.MarkRollback {
			t.Errorf("the marker is of kind %s", kind)
		}
		must(t, r.Take(ctx))
		if got, err := gate.ReadGate(ctx, src.conn); err != nil || got.Side != gate.SideTarget {
			t.Errorf("before the decision others see %+v, %v", got, err)
		}
		must(t, r.Commit(ctx))
		if got := agrees(t, src); got != (gate.State{Epoch: e + 2, Side: gate.SideSource, Attempt: "back"}) {
			t.Errorf("the gate says %+v", got)
		}
		if accepts(t, connect(t, shard.client)) {
			t.Error("the shard accepts writes")
		}
		if d := cmp.Diff(before, userTriggers(t, src.conn)); d != "" {
			t.Errorf("round %d, triggers of users:\n%s", round, d)
		}
		exec(t, shard.conn, "DELETE FROM rehome.marker")
		f.Close(ctx)
		r.Close(ctx)
	}
}

func TestARollbackThatIsTakenBackOpensTheShardAgain(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	src, shard := installed(t), openShard(t)
	cutOver(t, src, 1)
	f := shardFence(t, shard, "back", 2)
	must(t, f.Prelock(ctx))
	must(t, f.Lock(ctx, time.Now().Add(5*time.Second)))
	must(t, f.Shut(ctx))
	f.Abandon(true)
	state, err := gate.Resolve(ctx, src.owner, 2)
	must(t, err)
	if state.Epoch != 4 || state.Side != gate.SideTarget || state.Attempt != "att1" {
		t.Errorf("resolved to %+v", state)
	}
	_, err = gate.Follow(ctx, shard.conn, state)
	must(t, err)
	if !accepts(t, connect(t, shard.client)) {
		t.Error("the shard is closed")
	}
	// The coordinator that was thought dead goes on, and another of the old epoch comes.
	r := openReturn(t, src, "back", 2)
	must(t, r.Prelock(ctx))
	must(t, r.Arm(ctx, time.Now().Add(5*time.Second)))
	if err := r.Take(ctx); !errors.Is(err, gate.ErrGateMoved) {
		t.Errorf("a late decision: %v", err)
	}
	r.Rollback(ctx)
	late := shardFence(t, shard, "late", 2)
	must(t, late.Prelock(ctx))
	must(t, late.Lock(ctx, time.Now().Add(5*time.Second)))
	if err := late.Shut(ctx); !errors.Is(err, gate.ErrGateMoved) {
		t.Errorf("a late fence: %v", err)
	}
	late.Rollback(ctx)
	if !accepts(t, connect(t, shard.client)) {
		t.Error("the late fence closed the shard")
	}
	agrees(t, src)
}

// The fence's COMMIT is under way while others have resolved the attempt and follow: the shard ends open, whoever is first.
func TestLateFenceRacesFollow(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	shard := openShard(t)
	firsts := map[bool]int{}
	followers, writer := []*pgx.Conn{connect(t, shard.owner), connect(t, shard.owner)}, connect(t, shard.client)
	for round := range 30 {
		e := int64(2 + 2*round)
		f := shardFence(t, shard, "back", e)
		must(t, f.Prelock(ctx))
		must(t, f.Lock(ctx, time.Now().Add(20*time.Second)))
		var g errgroup.Group
		var fenced error
		g.Go(func() error {
			spin()
			if round%3 == 0 { // the answer never arrives
				short, cancel := context.WithTimeout(ctx, time.Duration(rand.N(int64(6*time.Millisecond))))
				defer cancel()
				fenced = f.Shut(short)
				f.Abandon(true)
				return nil
			}
			fenced = f.Shut(ctx)
			f.Rollback(ctx)
			return nil
		})
		for i := range followers {
			g.Go(func() error {
				spin()
				_, err := gate.Follow(ctx, followers[i], gate.State{Epoch: e + 2, Side: gate.SideTarget, Attempt: "att1"})
				return err
			})
		}
		must(t, g.Wait())
		s, err := gate.ReadGate(ctx, shard.conn)
		must(t, err)
		if s.Epoch != e+2 || s.Side != gate.SideTarget || !accepts(t, writer) {
			t.Fatalf("round %d: the shard's gate says %+v (fence: %v)", round, s, fenced)
		}
		firsts[fenced == nil]++
		f.Close(ctx)
	}
	t.Logf("the fence's COMMIT was answered: %v", firsts)
}

func spin() { // up to about a COMMIT's length, either side first
	for range rand.N(40_000) {
		_ = time.Now()
	}
}

// The decision's COMMIT is under way while others resolve the same attempt: one outcome, and everybody learns the same.
func TestLateReturnRacesResolve(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	src := installed(t)
	outcomes := map[gate.Side]int{}
	e := int64(1)
	cutOver(t, src, e)
	e++
	for round := range 30 {
		r := openReturn(t, src, "back", e)
		must(t, r.Prelock(ctx))
		must(t, r.Arm(ctx, time.Now().Add(20*time.Second)))
		must(t, r.Take(ctx))
		var committed error
		var resolved [2]gate.State
		var g errgroup.Group
		g.Go(func() error {
			spin()
			switch round % 3 {
			case 0: // the answer never arrives
				short, cancel := context.WithTimeout(ctx, time.Duration(rand.N(int64(200*time.Microsecond))))
				defer cancel()
				committed = r.Commit(short)
			case 1: // the process dies somewhere around the COMMIT
				if round%2 == 0 {
					r.Abandon(true)
				}
				var d errgroup.Group
				d.Go(func() error { spin(); r.Abandon(true); return nil })
				committed = r.Commit(ctx)
				return d.Wait()
			default:
				committed = r.Commit(ctx)
			}
			return nil
		})
		for i := range resolved {
			g.Go(func() (err error) {
				spin()
				resolved[i], err = gate.Resolve(ctx, src.owner, e)
				return err
			})
		}
		must(t, g.Wait())
		final := agrees(t, src)
		if resolved[0] != final || resolved[1] != final {
			t.Fatalf("round %d: resolved %+v, the gate says %+v", round, resolved, final)
		}
		outcomes[final.Side]++
		r.Close(ctx)
		if final.Side == gate.SideSource {
			if final.Epoch != e+1 || final.Attempt != "back" {
				t.Fatalf("round %d: %+v", round, final)
			}
			exec(t, src.conn, "BEGIN; ALTER TABLE accounts ENABLE ALWAYS TRIGGER rehome_fence; UPDATE rehome.gate SET epoch = epoch + 1, side = 'target'; COMMIT")
			e += 2
			continue
		}
		if committed == nil || final.Epoch != e+2 {
			t.Fatalf("round %d: an answered COMMIT was undone, or the epoch is wrong: %+v", round, final)
		}
		e += 2
	}
	t.Logf("%v", outcomes)
	if len(outcomes) != 2 {
		t.Errorf("the race always ended the same way: %v", outcomes)
	}
}

func TestRivalsAtAShard(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	shard := openShard(t)
	a, b := shardFence(t, shard, "a", 2), shardFence(t, shard, "b", 2)
	must(t, a.Prelock(ctx))
	done := make(chan error, 1)
	go func() { done <- b.Prelock(ctx) }()
	must(t, a.Lock(ctx, time.Now().Add(5*time.Second)))
	must(t, a.Shut(ctx))
	must(t, <-done)
	must(t, b.Lock(ctx, time.Now().Add(5*time.Second)))
	if err := b.Shut(ctx); !errors.Is(err, gate.ErrGateMoved) {
		t.Errorf("the rival: %v", err)
	}
}

func TestLongTransactionAtAShard(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	shard := openShard(t)
	holder := connect(t, shard.owner)
	exec(t, holder, "SET application_name = 'nightly report'; BEGIN; UPDATE app.events_2025 SET at = at /* the culprit */")
	stop, cancel := context.WithCancel(ctx)
	defer cancel()
	var g errgroup.Group
	var waited waits
	writer := connect(t, shard.client)
	g.Go(func() error {
		for stop.Err() == nil {
			start := time.Now()
			if _, err := writer.Exec(ctx, "UPDATE accounts SET balance = balance + 1 WHERE id = 1"); err != nil {
				return err
			}
			waited.add(time.Since(start))
			select {
			case <-stop.Done():
			case <-time.After(2 * time.Millisecond): // the machine is shared
			}
		}
		return nil
	})
	f := shardFence(t, shard, "back", 2)
	must(t, f.Prelock(ctx))
	start := time.Now()
	err := f.Lock(ctx, start.Add(2*stall))
	took := time.Since(start)
	f.Rollback(ctx)
	cancel()
	must(t, g.Wait())
	if !errors.Is(err, gate.ErrNotFenced) || took > 3*stall {
		t.Errorf("lock: %v after %s", err, took)
	}
	if c := f.Culprits(); len(c) == 0 || !strings.Contains(c[0].String(), "the culprit") {
		t.Errorf("culprits: %v", c)
	}
	waited.check(t)
	if f.Tries() < 3 {
		t.Errorf("only %d tries", f.Tries())
	}
	if !accepts(t, connect(t, shard.client)) {
		t.Error("the shard is closed")
	}
	exec(t, holder, "ROLLBACK")
	// A table that appears behind the fence.
	must(t, f.Prelock(ctx))
	must(t, f.Lock(ctx, time.Now().Add(5*time.Second)))
	exec(t, shard.conn, "CREATE TABLE behind_the_fence (id int)")
	if err := f.Shut(ctx); !errors.Is(err, gate.ErrTablesChanged) {
		t.Errorf("a table that appeared: %v", err)
	}
	f.Rollback(ctx)
	// Past the deadline nothing is committed.
	must(t, f.Prelock(ctx))
	must(t, f.Lock(ctx, time.Now().Add(5*time.Second)))
	exec(t, shard.conn, "DROP TABLE behind_the_fence")
	f.Rollback(ctx)
	if !accepts(t, connect(t, shard.client)) {
		t.Error("the shard is closed")
	}
}
