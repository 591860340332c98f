package supervisor

import (
	"testing"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// There and back again, twice, with the real engines of both directions, and then to the end.
func TestCutoversAndRollbacks(t *testing.T) {
	t.Parallel()
	w := newWorld(t, itemsDDL+`; CREATE SEQUENCE ids OWNED BY items.id`)
	_, err := w.pool.Exec(t.Context(), `UPDATE rehome_control.replications SET options = '{"accept": ["fsync-off:source"]}' WHERE id = $1`, w.id)
	must(t, err)
	w.serve("a")
	w.waitPhase(tenant.InSync)
	do := func(kind string, args api.CommandArgs) map[string]any {
		t.Helper()
		result, problem := w.answer(w.ask(kind, args))
		if problem != nil {
			t.Fatalf("%s: %+v, %+v", kind, problem, problem.Findings)
		}
		return result
	}
	if _, problem := w.answer(w.ask(api.CommandRollback, api.CommandArgs{})); problem == nil || problem.Code != tenant.ErrTransition.Code {
		t.Errorf("a rollback before the cutover: %+v", problem)
	}
	target := open(t, w.target)
	for round := range 2 {
		do(api.CommandVerify, api.CommandArgs{})
		if r := do(api.CommandCutover, api.CommandArgs{}); r["outcome"] != "target" || r["certificate"] == nil {
			t.Fatalf("cutover: %+v", r)
		}
		w.waitPhase(tenant.CutOver)
		first := 10_000*round + 10_000
		for i := range 50 {
			exec(t, target, `INSERT INTO items VALUES ('r' || $1 % 7, $1, 2)`, first+i)
		}
		exec(t, target, `UPDATE items SET n = 77 WHERE id = 5; DELETE FROM items WHERE id = 6 AND n = 0`)
		id := scalar[int](t, target, `SELECT nextval('ids')::int`)
		if _, problem := w.answer(w.ask(api.CommandRollback, api.CommandArgs{})); problem == nil || problem.Code != "rollback-refused" {
			t.Errorf("a rollback without a verification: %+v", problem)
		}
		if st := w.state(); st.Phase != tenant.CutOver {
			t.Fatalf("after a refused rollback: %+v", st)
		}
		do(api.CommandVerify, api.CommandArgs{})
		if r := do(api.CommandRollback, api.CommandArgs{DryRun: true}); r["outcome"] != "dry_run" {
			t.Errorf("dry run: %+v", r)
		}
		r := do(api.CommandRollback, api.CommandArgs{ApprovedBy: "ada@example.com"})
		if r["outcome"] != "source" || r["rollback"] == nil || r["certificate"] != nil {
			t.Fatalf("rollback: %+v", r)
		}
		t.Logf("pause %v ms; %v", r["pause_ms"], r["steps"])
		w.waitPhase(tenant.RolledBack)
		if n := scalar[int](t, w.source, `SELECT count(*)::int FROM items WHERE id >= $1 AND n = 2`, first); n != 50 {
			t.Errorf("%d of 50 rows that were written at the shard are at the source", n)
		}
		if n := scalar[int](t, w.source, `SELECT n FROM items WHERE id = 5`); n != 77 {
			t.Errorf("an update at the shard is not at the source: %d", n)
		}
		if n := scalar[int](t, w.source, `SELECT nextval('ids')::int`); n <= id {
			t.Errorf("the source goes on with id %d, the shard had drawn %d", n, id)
		}
		if _, err := target.Exec(t.Context(), `INSERT INTO items VALUES ('r1', 1, 1)`); !gate.IsFenced(err) {
			t.Errorf("a write at the shard: %v", err)
		}
		if n := scalar[int](t, w.source, `SELECT count(*)::int FROM pg_replication_slots WHERE slot_name LIKE 'rehome\_' || $1 || '\_back%'`, w.id); n != 0 {
			t.Error("the slot of the way back is left")
		}
		w.arrives(first + 5000) // the source's writes go on to the shard
	}
	do(api.CommandVerify, api.CommandArgs{})
	if r := do(api.CommandCutover, api.CommandArgs{}); r["outcome"] != "target" {
		t.Fatalf("the last cutover: %+v", r)
	}
	do(api.CommandComplete, api.CommandArgs{})
	exec(t, target, `INSERT INTO items VALUES ('r1', 99999, 1)`)
	for _, name := range []string{"cutover-finished", "rollback-finished"} {
		if n := w.events(name); n < 2 {
			t.Errorf("%d events %s", n, name)
		}
	}
}

// The source is gone for good after the cutover: a worker that starts then serves complete, for whoever says so.
func TestCompleteWithoutTheSource(t *testing.T) {
	t.Parallel()
	for _, doubt := range []bool{false, true} {
		t.Run(map[bool]string{false: "after the decision", true: "in doubt"}[doubt], func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, itemsDDL)
			_, err := w.pool.Exec(t.Context(), `UPDATE rehome_control.replications SET options = '{"accept": ["fsync-off:source"]}' WHERE id = $1`, w.id)
			must(t, err)
			stop := w.serve("a")
			w.waitPhase(tenant.InSync)
			for _, kind := range []string{api.CommandVerify, api.CommandCutover} {
				if _, problem := w.answer(w.ask(kind, api.CommandArgs{})); problem != nil {
					t.Fatalf("%s: %+v", kind, problem)
				}
			}
			if _, problem := w.answer(w.ask(api.CommandComplete, api.CommandArgs{SourceDestroyed: true})); problem == nil || problem.Code != "source-reachable" {
				t.Errorf("while the source answers: %+v", problem)
			}
			stop()
			_, err = w.pool.Exec(t.Context(), `UPDATE rehome_control.replications SET source_dsn_sealed = $2 WHERE id = $1`, w.id, w.box.Seal("source-dsn", "postgres://nobody@127.0.0.1:1/none"))
			must(t, err)
			target := open(t, w.target)
			if doubt { // a rollback that died when the shard was closed
				exec(t, target, `SELECT set_config('rehome.pass', $1, false)`, w.supervisor("a").pass(w.name).Reveal())
				exec(t, target, `UPDATE rehome.gate SET epoch = epoch + 1, side = 'closed'`)
				exec(t, target, `ALTER TABLE items ENABLE ALWAYS TRIGGER rehome_fence`)
				_, err = w.pool.Exec(t.Context(), `INSERT INTO rehome_control.cutovers (attempt, replication, direction, gate_epoch, step, max_pause_ms)
					SELECT 'doubt', replication, 'rollback', gate_epoch + 1, 'fence', 1 FROM rehome_control.cutovers WHERE replication = $1`, w.id)
				must(t, err)
				_, err = w.pool.Exec(t.Context(), `UPDATE rehome_control.replications SET state = '{"phase": "rolling_back"}', phase = 'rolling_back' WHERE id = $1`, w.id)
				must(t, err)
			}
			w.serve("b")
			if _, problem := w.answer(w.ask(api.CommandComplete, api.CommandArgs{SourceDestroyed: true})); problem != nil {
				t.Fatalf("complete: %+v", problem)
			}
			if st := w.state(); st.Phase != tenant.Completed {
				t.Errorf("state: %+v", st)
			}
			exec(t, target, `INSERT INTO items VALUES ('r1', 99999, 1)`)
			for what, query := range map[string]string{
				"tables": `SELECT count(*)::int FROM pg_class WHERE relnamespace = to_regnamespace('rehome') AND relkind = 'r' AND relname NOT IN ('owned', 'pinned')`, // the placement's
				"slot":   `SELECT count(*)::int FROM pg_replication_slots WHERE database = current_database()`,
			} {
				if n := scalar[int](t, target, query); n != 0 {
					t.Errorf("%d %s left at the shard", n, what)
				}
			}
		})
	}
}
