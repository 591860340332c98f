package server

import (
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// The news of an attempt that was taken back is that of its own, whatever began since: a rehearsal's end is none, nor is a
// rollback's that was none.
func TestTakenBackIsOfItsOwnAttempt(t *testing.T) {
	t.Parallel()
	b := setup(t, brisk())
	b.moving("acme")
	b.exec(`INSERT INTO rehome_control.cutovers (attempt, replication, direction, gate_epoch, step, max_pause_ms, outcome, started_at, finished_at) VALUES
		('real', 'rep-acme', 'cutover', 1, 'finished', 1, 'source', now() - interval '3 min', now()),
		('rehearsed', 'rep-acme', 'rehearsal', 3, 'finished', 1, 'source', now() - interval '2 min', now()),
		('there', 'rep-acme', 'cutover', 5, 'finished', 1, 'target', now() - interval '1 min', now()),
		('back', 'rep-acme', 'rollback', 6, 'finished', 1, 'target', now(), now())`)
	w := b.webhook(newReceiver(t, b.clock.now, nil), api.WebhookRequest{Events: []string{"cutover-taken-back", "rollback-taken-back", "cutover-done"}})
	ended := func(from, to tenant.Phase, attempt string) string {
		return b.happens("acme", "phase", map[string]any{"from": from, "to": to, "attempt": attempt}).ID
	}
	want := map[string]bool{}
	ended(tenant.CuttingOver, tenant.InSync, "rehearsed")
	want[ended(tenant.CuttingOver, tenant.InSync, "real")] = true
	ended(tenant.RollingBack, tenant.CutOver, "there")
	want[ended(tenant.RollingBack, tenant.CutOver, "back")] = true
	want[b.cutOver("acme").ID] = true // the last: what was before it has been looked at
	b.eventually("the last is told", func() bool { return len(b.deliveries(w.ID)) >= len(want) })
	got := map[string]bool{}
	for _, d := range b.deliveries(w.ID) {
		got[d.EventID] = true
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("told (-want +got):\n%s", d)
	}
}

// A cancel may say that the source is gone. It takes no code: the source keeps everything.
func TestCancelOfADestroyedSource(t *testing.T) {
	t.Parallel()
	b, _, p := journey(t)
	r := b.start(p)
	b.setPhase(r.ID, tenant.InSync)
	var c api.Command
	b.must(http.MethodPost, "/v1/replications/"+r.ID+"/cancel", api.CommandRequest{SourceDestroyed: true}, &c)
	var declared bool
	if err := b.pool.QueryRow(t.Context(), `SELECT coalesce((args->>'source_destroyed')::boolean, false) FROM rehome_control.replication_commands WHERE id = $1`, c.ID).Scan(&declared); err != nil {
		t.Fatal(err)
	}
	if !declared {
		t.Error("the worker is not told")
	}
}
