package supervisor

import (
	"encoding/json"
	"testing"

	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

func (w *world) do(kind string, args api.CommandArgs) map[string]any {
	w.t.Helper()
	res, problem := w.answer(w.ask(kind, args))
	if problem != nil {
		w.t.Fatalf("%s: %+v", kind, problem)
	}
	return res
}

func (w *world) verificationState() (s tenant.VerificationState) {
	w.t.Helper()
	var p tenant.Progress
	var raw []byte
	must(w.t, w.pool.QueryRow(w.t.Context(), `SELECT progress FROM rehome_control.replications WHERE id = $1`, w.id).Scan(&raw))
	must(w.t, json.Unmarshal(raw, &p))
	if p.Verification != nil {
		s = *p.Verification
	}
	return s
}

// TestVerificationFollowsTheWrites compares the shards before a cutover and the source after it, and the continuous mode
// goes on in the new direction.
func TestVerificationFollowsTheWrites(t *testing.T) {
	t.Parallel()
	w := newWorld(t, tablesDDL)
	_, err := w.pool.Exec(t.Context(), `UPDATE rehome_control.replications SET options = '{"accept":["fsync-off:source"]}'`)
	must(t, err)
	w.serve("a")
	w.waitPhase(tenant.InSync)
	res := w.do(api.CommandVerify, api.CommandArgs{})
	if res["clean"] != true || res["direction"] != nil {
		t.Fatalf("before the cutover: %v", res)
	}
	// One that is interrupted by the cutover is not gone on with after it.
	unfinished, problem := w.answer(w.ask(api.CommandVerify, api.CommandArgs{Verify: api.VerifyRequest{Jobs: 1, RestMS: 60_000, MaxDurationMS: 1500}}))
	if problem == nil || unfinished["unfinished_tables"] == nil {
		t.Fatalf("%v %+v", unfinished, problem)
	}
	if res := w.do(api.CommandCutover, api.CommandArgs{MaxPauseMS: 20_000}); res["outcome"] != "target" {
		t.Fatalf("cutover: %v", res)
	}
	w.waitPhase(tenant.CutOver)
	eventually(t, "the progress says that the verification is from before", func() bool { return w.verificationState().Outdated })
	shard := open(t, w.target)
	exec(t, shard, `UPDATE items SET n = n + 1 WHERE id < 50`)
	exec(t, shard, `DELETE FROM third`)
	res = w.do(api.CommandVerify, api.CommandArgs{Verify: api.VerifyRequest{Resume: true, Jobs: 2}})
	if res["clean"] != true || res["direction"] != "back" || res["id"] == unfinished["id"] || res["shards"] == nil {
		t.Fatalf("after the cutover: %v", res)
	}
	eventually(t, "the progress says so", func() bool {
		s := w.verificationState()
		return s.Clean && !s.Outdated && s.Direction == tenant.DirectionBack
	})
	if _, problem := w.answer(w.ask(api.CommandVerify, api.CommandArgs{Verify: api.VerifyRequest{Repair: true}})); problem == nil || problem.Code != "no-repair" {
		t.Errorf("repair after the cutover: %+v", problem)
	}

	exec(t, w.source, `SELECT set_config('rehome.pass', $1, false)`, w.supervisor("x").pass(w.name).Reveal())
	exec(t, w.source, `UPDATE items SET n = 77 WHERE id = 60`)
	w.do(api.CommandVerify, api.CommandArgs{Verify: api.VerifyRequest{Continuous: true, EveryMS: 200}})
	eventually(t, "the continuous mode finds it", func() bool {
		return w.count(`SELECT count(*) FROM rehome_control.verifications WHERE NOT clean AND command = '' AND result->>'direction' = 'back'`) > 0
	})
	eventually(t, "an alarm", func() bool {
		return w.count(`SELECT count(*) FROM rehome_control.events WHERE stream = $1 AND event::text LIKE '%verification-not-clean%'`, w.id) > 0
	})
	exec(t, w.source, `UPDATE items SET n = 0 WHERE id = 60`)
	before := w.count(`SELECT count(*) FROM rehome_control.verifications WHERE clean`)
	eventually(t, "clean again", func() bool { return w.count(`SELECT count(*) FROM rehome_control.verifications WHERE clean`) > before })
	w.do(api.CommandComplete, api.CommandArgs{})
	w.waitPhase(tenant.Completed)
}

// TestNothingToVerifyWithoutAWayBack cuts over without a way back: the source stays as it was.
func TestNothingToVerifyWithoutAWayBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, tablesDDL)
	_, err := w.pool.Exec(t.Context(), `UPDATE rehome_control.replications SET options = '{"accept":["fsync-off:source"]}'`)
	must(t, err)
	w.serve("a")
	w.waitPhase(tenant.InSync)
	w.do(api.CommandVerify, api.CommandArgs{Verify: api.VerifyRequest{Continuous: true, EveryMS: 500}})
	eventually(t, "a result", func() bool { return w.count(`SELECT count(*) FROM rehome_control.verifications WHERE clean`) > 0 })
	w.do(api.CommandCutover, api.CommandArgs{MaxPauseMS: 20_000, NoWayBack: true})
	w.waitPhase(tenant.CutOver)
	eventually(t, "the continuous mode ends", func() bool {
		return w.count(`SELECT count(*) FROM rehome_control.replications WHERE verify_policy IS NOT NULL`) == 0
	})
	if _, problem := w.answer(w.ask(api.CommandVerify, api.CommandArgs{})); problem == nil || problem.Code != "no-way-back" {
		t.Errorf("%+v", problem)
	}
	w.do(api.CommandComplete, api.CommandArgs{})
}
