package supervisor

import (
	"testing"

	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// cutOverAndLoseTheSource brings a world to where the shards write, and takes the source away: it does not answer any more.
func (w *world) cutOverAndLoseTheSource() {
	w.t.Helper()
	_, err := w.pool.Exec(w.t.Context(), `UPDATE rehome_control.replications SET options = '{"accept": ["fsync-off:source"]}' WHERE id = $1`, w.id)
	must(w.t, err)
	stop := w.serve("a")
	w.waitPhase(tenant.InSync)
	for _, kind := range []string{api.CommandVerify, api.CommandCutover} {
		if _, problem := w.answer(w.ask(kind, api.CommandArgs{})); problem != nil {
			w.t.Fatalf("%s: %+v", kind, problem)
		}
	}
	stop()
	w.loseSource()
}

func (w *world) loseSource() {
	w.t.Helper()
	_, err := w.pool.Exec(w.t.Context(), `UPDATE rehome_control.replications SET source_dsn_sealed = $2 WHERE id = $1`, w.id, w.box.Seal("source-dsn", "postgres://nobody@127.0.0.1:1/none"))
	must(w.t, err)
}

// phases counts the recorded moves to a phase.
func (w *world) phases(to tenant.Phase) (n int) {
	w.t.Helper()
	must(w.t, w.pool.QueryRow(w.t.Context(), `SELECT count(*) FROM rehome_control.events WHERE stream = $1 AND event->>'type' = 'dev.rehome.replication.phase' AND event->'data'->>'to' = $2`, w.id, string(to)).Scan(&n))
	return n
}

// A rollback whose source is gone is refused before anything moves, and complete ends the replication.
func TestRollbackWithoutTheSourceMovesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, itemsDDL)
	w.cutOverAndLoseTheSource()
	w.serve("b")
	if _, problem := w.answer(w.ask(api.CommandRollback, api.CommandArgs{})); problem == nil {
		t.Error("the rollback was not refused")
	}
	if st, n := w.state(), w.phases(tenant.RollingBack); st.Phase != tenant.CutOver || n != 0 {
		t.Errorf("after a refused rollback: %+v, was rolling back %d times", st, n)
	}
	if _, problem := w.answer(w.ask(api.CommandComplete, api.CommandArgs{SourceDestroyed: true})); problem != nil {
		t.Errorf("complete: %+v", problem)
	}
	if st := w.state(); st.Phase != tenant.Completed {
		t.Errorf("state: %+v", st)
	}
}

// A replication that is found in the midst of a move of which nothing is on record goes back to the side that has the
// authority, without the source.
func TestNothingInDoubtNeedsNoSource(t *testing.T) {
	t.Parallel()
	w := newWorld(t, itemsDDL)
	w.cutOverAndLoseTheSource()
	_, err := w.pool.Exec(t.Context(), `UPDATE rehome_control.replications SET state = '{"phase": "rolling_back"}', phase = 'rolling_back' WHERE id = $1`, w.id)
	must(t, err)
	done := w.ask(api.CommandComplete, api.CommandArgs{SourceDestroyed: true})
	w.serve("b")
	if _, problem := w.answer(done); problem != nil {
		t.Errorf("complete: %+v", problem)
	}
	if st, n := w.state(), w.phases(tenant.CutOver); st.Phase != tenant.Completed || n != 2 {
		t.Errorf("state: %+v, cut over %d times", st, n)
	}
}

// What is refused before it begins is no attempt, and nobody is told that one was taken back.
func TestRefusedMovesAreNoAttempts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, itemsDDL)
	w.serve("a")
	w.waitPhase(tenant.InSync)
	if _, problem := w.answer(w.ask(api.CommandCutover, api.CommandArgs{})); problem == nil || problem.Code != "cutover-refused" {
		t.Errorf("a cutover that was not verified: %+v", problem)
	}
	if n := w.phases(tenant.CuttingOver); n != 0 {
		t.Errorf("was cutting over %d times", n)
	}
}

// A source that died before a cutover does not keep its replication from being cancelled: the target is emptied.
func TestCancelWithoutTheSource(t *testing.T) {
	t.Parallel()
	w := newWorld(t, itemsDDL)
	stop := w.serve("a")
	w.waitPhase(tenant.InSync)
	if _, problem := w.answer(w.ask(api.CommandCancel, api.CommandArgs{SourceDestroyed: true})); problem == nil || problem.Code != "source-reachable" {
		t.Errorf("while the source answers: %+v", problem)
	}
	stop()
	w.loseSource()
	w.serve("b")
	if _, problem := w.answer(w.ask(api.CommandCancel, api.CommandArgs{SourceDestroyed: true})); problem != nil {
		t.Errorf("cancel: %+v", problem)
	}
	if st := w.state(); st.Phase != tenant.Cancelled {
		t.Errorf("state: %+v", st)
	}
	if n := scalar[int](t, open(t, w.target), `SELECT count(*)::int FROM pg_class WHERE relname = 'items'`); n != 0 {
		t.Error("what was copied is left")
	}
	if n := scalar[int](t, w.source, `SELECT count(*)::int FROM pg_replication_slots WHERE slot_name = $1`, "rehome_"+w.id); n != 1 {
		t.Errorf("%d slots at the source, which was to be left alone", n)
	}
}
