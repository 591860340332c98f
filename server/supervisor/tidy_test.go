package supervisor

import (
	"testing"

	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// What the end of an attempt left of the way back is dropped while the replication is paused too: its slot would hold back
// WAL at the shard for as long as nobody resumes.
func TestTidyWhilePaused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, itemsDDL)
	stop := w.serve("a")
	w.waitPhase(tenant.InSync)
	if _, problem := w.answer(w.ask(api.CommandPause, api.CommandArgs{})); problem != nil {
		t.Fatalf("pause: %+v", problem)
	}
	stop()
	_, err := w.pool.Exec(t.Context(), `INSERT INTO rehome_control.cutovers (attempt, replication, direction, gate_epoch, step, max_pause_ms, outcome, finished_at, report)
		VALUES ('left', $1, 'cutover', 1, 'decide', 1, 'source', now(), '{"way_back_left": true}')`, w.id)
	must(t, err)
	target := open(t, w.target)
	slot := "rehome_" + w.id + "_back_0"
	exec(t, target, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, slot)
	t.Cleanup(func() {
		exec(t, target, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1`, slot)
	})
	w.serve("b")
	eventually(t, "the way back is dropped", func() bool {
		return w.count(`SELECT count(*) FROM rehome_control.cutovers WHERE attempt = 'left' AND NOT report ? 'way_back_left'`) == 1
	})
	if n := scalar[int](t, target, `SELECT count(*)::int FROM pg_replication_slots WHERE slot_name = $1`, slot); n != 0 {
		t.Error("its slot is left")
	}
	if st := w.state(); st.Phase != tenant.Paused {
		t.Errorf("state: %+v", st)
	}
}
