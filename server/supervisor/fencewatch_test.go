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
