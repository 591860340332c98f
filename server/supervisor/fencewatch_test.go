package supervisor

import (
	"testing"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// A rehearsal leaves the replication in sync; after the cutover whoever takes the fence away is noticed, and it is put back.
func TestFenceIsPutBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, tablesDDL)
	_, err := w.pool.Exec(t.Context(), `UPDATE rehome_control.replications SET options = '{"accept":["fsync-off:source"]}'`)
	must(t, err)
	w.serve("a")
	w.waitPhase(tenant.InSync)
	w.do(api.CommandVerify, api.CommandArgs{})
	if res := w.do(api.CommandCutover, api.CommandArgs{MaxPauseMS: 20_000, NoWayBack: true, Rehearse: true}); res["outcome"] != "rehearsed" {
		t.Fatalf("rehearsal: %v", res)
	}
	w.waitPhase(tenant.InSync)
	exec(t, w.source, `UPDATE items SET n = n + 1 WHERE id = 1`)
	if res := w.do(api.CommandCutover, api.CommandArgs{MaxPauseMS: 20_000, NoWayBack: true}); res["outcome"] != "target" {
		t.Fatalf("cutover: %v", res)
	}
	w.waitPhase(tenant.CutOver)
	exec(t, w.source, `DROP EVENT TRIGGER IF EXISTS rehome_fence_ddl_end`)
	exec(t, w.source, `ALTER TABLE items DISABLE TRIGGER rehome_fence`)
	eventually(t, "an alarm", func() bool {
		return w.count(`SELECT count(*) FROM rehome_control.events WHERE stream = $1 AND event::text LIKE '%fence-taken-away%items%'`, w.id) > 0
	})
	eventually(t, "the fence is back", func() bool {
		_, err := w.source.Exec(t.Context(), `UPDATE items SET n = n + 1 WHERE id = 1`)
		return gate.IsFenced(err)
	})
}

// A pause of the replication after the cutover changes nothing of who may write: the fence is watched on.
func TestFenceIsPutBackWhilePaused(t *testing.T) {
	t.Parallel()
	w := cutOverWorld(t)
	w.do(api.CommandPause, api.CommandArgs{})
	exec(t, w.source, `DROP EVENT TRIGGER IF EXISTS rehome_fence_ddl_end`)
	exec(t, w.source, `ALTER TABLE items DISABLE TRIGGER rehome_fence`)
	eventually(t, "the fence is back", func() bool {
		_, err := w.source.Exec(t.Context(), `UPDATE items SET n = n + 1 WHERE id = 1`)
		return gate.IsFenced(err)
	})
	if st := w.state(); st.Phase != tenant.Paused {
		t.Errorf("state: %+v", st)
	}
}

// A report at the source keeps complete --drop-fence waiting for longer than the watch's period, when some of the fence is
// dropped already: the watch takes that for no breach.
func TestDropFenceIsNoBreach(t *testing.T) {
	t.Parallel()
	w := cutOverWorld(t)
	report := open(t, tenant.DSN(w.source.Config().ConnString()))
	exec(t, report, `BEGIN`)
	exec(t, report, `LOCK TABLE items IN ACCESS SHARE MODE`)
	read := make(chan error, 1)
	go func() { // the time has to pass: it is the report's
		_, err := report.Exec(t.Context(), `SELECT pg_sleep($1)`, (3 * fenceEvery / 2).Seconds())
		_ = report.Close(t.Context())
		read <- err
	}()
	id := w.ask(api.CommandComplete, api.CommandArgs{DropFence: true})
	if _, problem := w.answer(id); problem != nil {
		t.Errorf("complete --drop-fence: %+v", problem)
	}
	must(t, <-read)
	if n := w.count(`SELECT count(*) FROM rehome_control.events WHERE stream = $1 AND event::text LIKE '%fence-taken-away%'`, w.id); n != 0 {
		t.Errorf("%d alarms of a fence that was dropped as asked for", n)
	}
	exec(t, w.source, `UPDATE items SET n = n + 1 WHERE id = 1`)
	if n := scalar[int](t, w.source, `SELECT count(*)::int FROM pg_trigger WHERE tgname LIKE 'rehome%'`); n != 0 {
		t.Errorf("%d triggers are left at the source", n)
	}
}

// cutOverWorld is a world after a cutover without a way back.
func cutOverWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, itemsDDL)
	_, err := w.pool.Exec(t.Context(), `UPDATE rehome_control.replications SET options = '{"accept":["fsync-off:source"]}' WHERE id = $1`, w.id)
	must(t, err)
	w.serve("a")
	w.waitPhase(tenant.InSync)
	w.do(api.CommandVerify, api.CommandArgs{})
	if res := w.do(api.CommandCutover, api.CommandArgs{MaxPauseMS: 20_000, NoWayBack: true}); res["outcome"] != "target" {
		t.Fatalf("cutover: %v", res)
	}
	w.waitPhase(tenant.CutOver)
	return w
}
