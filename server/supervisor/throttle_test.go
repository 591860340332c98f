package supervisor

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/rehomedb/rehome/tenant"
)

func (w *world) progress() (p tenant.Progress) {
	w.t.Helper()
	var raw []byte
	must(w.t, w.pool.QueryRow(w.t.Context(), `SELECT coalesce(progress, '{}') FROM rehome_control.replications WHERE id = $1`, w.id).Scan(&raw))
	must(w.t, json.Unmarshal(raw, &p))
	return p
}

// TestThrottleIsFollowed: limits reach a copy that is under way, and hold with the next server that takes it over.
func TestThrottleIsFollowed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, itemsDDL)
	set := func(throttle string) {
		t.Helper()
		_, err := w.pool.Exec(t.Context(), `UPDATE rehome_control.replications SET throttle = $2 WHERE id = $1`, w.id, throttle)
		must(t, err)
	}
	set(`{"query": "SELECT true"}`)
	stop := w.serve("one")
	held := func(who string) {
		t.Helper()
		eventually(t, "held by "+who, func() bool { return w.holder() == who && strings.Contains(w.progress().Throttled, "operator's query") })
		if p := w.progress(); p.Phase != tenant.Copying || p.Care == nil || p.Care.SlotStatus == "" {
			t.Errorf("while held: %+v", p)
		}
	}
	held("one")
	stop()
	_, err := w.pool.Exec(t.Context(), `UPDATE rehome_control.replications SET progress = NULL WHERE id = $1`, w.id)
	must(t, err)
	w.serve("two")
	held("two")
	set(`{"query": "SELECT false"}`)
	w.waitPhase(tenant.InSync)
}
