package supervisor

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

const tablesDDL = itemsDDL + `CREATE TABLE second (realm_id text NOT NULL, id bigint PRIMARY KEY); INSERT INTO second VALUES ('r1', 1);
	CREATE TABLE third (realm_id text NOT NULL, id bigint PRIMARY KEY); INSERT INTO third VALUES ('r1', 1);`

// shard is a session at the shard that passes its fences.
func (w *world) shard() *pgx.Conn {
	w.t.Helper()
	c := open(w.t, w.target)
	exec(w.t, c, `SELECT set_config('rehome.pass', $1, false)`, w.supervisor("x").pass(w.name).Reveal())
	return c
}

func (w *world) count(sql string, args ...any) (n int) {
	w.t.Helper()
	must(w.t, w.pool.QueryRow(w.t.Context(), sql, args...).Scan(&n))
	return n
}

// TestVerificationOutlivesItsServer kills a server within a verification: the next one goes on with what was not compared.
func TestVerificationOutlivesItsServer(t *testing.T) {
	t.Parallel()
	w := newWorld(t, tablesDDL)
	stopA := w.serve("a")
	w.waitPhase(tenant.InSync)
	id := w.ask(api.CommandVerify, api.CommandArgs{Verify: api.VerifyRequest{Jobs: 1, RestMS: 5000}})
	eventually(t, "a part is compared", func() bool { return w.count(`SELECT count(*) FROM rehome_control.verification_parts`) > 0 })
	stopA()
	if n := w.count(`SELECT count(*) FROM rehome_control.replication_commands WHERE id = $1 AND finished_at IS NULL`, id); n != 1 {
		t.Fatal("the command ended with its server")
	}
	exec(t, w.source, `UPDATE items SET n = n + 1`)
	w.serve("b")
	res, problem := w.answer(id)
	if problem != nil || res["clean"] != true || res["first_lsn"] == nil {
		t.Fatalf("%+v %+v", res, problem)
	}
	if n := w.count(`SELECT count(*) FROM rehome_control.verifications`); n != 1 {
		t.Errorf("%d verifications, want the one that went on", n)
	}
	if n := w.count(`SELECT count(*) FROM rehome_control.verification_parts`); n != 0 {
		t.Errorf("%d parts are left of what is finished", n)
	}
}

// TestVerificationIsBounded lets the time run out, and goes on later; and a repair through the command.
func TestVerificationIsBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, tablesDDL)
	w.serve("a")
	w.waitPhase(tenant.InSync)
	res, problem := w.answer(w.ask(api.CommandVerify, api.CommandArgs{Verify: api.VerifyRequest{Jobs: 1, RestMS: 60_000, MaxDurationMS: 2000}}))
	if problem == nil || problem.Code != "verification-timeout" || res["clean"] != false || res["unfinished_tables"] != 2.0 {
		t.Fatalf("%+v %+v", res, problem)
	}
	id, _ := res["id"].(string)
	if n := w.count(`SELECT count(*) FROM rehome_control.verifications WHERE id = $1 AND finished_at IS NULL AND NOT clean AND unfinished`, id); n != 1 {
		t.Error("what is unfinished is recorded as finished")
	}
	c := w.shard()
	exec(t, c, `DELETE FROM third`)
	exec(t, c, `DELETE FROM second`)
	exec(t, c, `UPDATE items SET n = 7 WHERE id = 1`)
	res, problem = w.answer(w.ask(api.CommandVerify, api.CommandArgs{Verify: api.VerifyRequest{Resume: true}}))
	if problem != nil || res["id"] != id || res["clean"] != false || res["unfinished_tables"] != nil {
		t.Fatalf("%+v %+v", res, problem)
	}
	res, problem = w.answer(w.ask(api.CommandVerify, api.CommandArgs{Verify: api.VerifyRequest{Repair: true}}))
	if problem != nil || res["clean"] != true || res["repair"] == nil || res["id"] == id {
		t.Fatalf("%+v %+v", res, problem)
	}
	if n := scalar[int](t, c, `SELECT (SELECT count(*) FROM second)::int + (SELECT count(*) FROM third)::int + (SELECT n FROM items WHERE id = 1)`); n != 2 {
		t.Errorf("not as the source has it: %d", n)
	}
}

// TestContinuous keeps the result fresh over a change of servers, raises an alarm, and can be ended.
func TestContinuous(t *testing.T) {
	t.Parallel()
	w := newWorld(t, tablesDDL)
	stopA := w.serve("a")
	w.waitPhase(tenant.InSync)
	res, problem := w.answer(w.ask(api.CommandVerify, api.CommandArgs{Verify: api.VerifyRequest{Continuous: true, EveryMS: 200}}))
	if problem != nil || res["continuous"] != true {
		t.Fatalf("%+v %+v", res, problem)
	}
	clean := func() int {
		return w.count(`SELECT count(*) FROM rehome_control.verifications WHERE clean AND command = ''`)
	}
	eventually(t, "two results", func() bool { return clean() >= 2 })
	stopA()
	before := clean()
	stopB := w.serve("b")
	eventually(t, "another server goes on", func() bool { return clean() > before })
	eventually(t, "the progress says so", func() bool {
		var p tenant.Progress
		var raw []byte
		must(t, w.pool.QueryRow(t.Context(), `SELECT progress FROM rehome_control.replications WHERE id = $1`, w.id).Scan(&raw))
		must(t, json.Unmarshal(raw, &p))
		return p.Verification != nil && p.Verification.Continuous && p.Verification.Clean && p.Verification.EverySeconds == 0.2 && time.Since(p.Verification.ComparedAt) < time.Minute
	})
	c := w.shard()
	exec(t, c, `DELETE FROM third`)
	eventually(t, "an alarm", func() bool { return w.events("alarm") > 0 })
	if _, problem := w.answer(w.ask(api.CommandVerify, api.CommandArgs{Verify: api.VerifyRequest{Repair: true}})); problem != nil {
		t.Fatalf("repair: %+v", problem)
	}
	before = clean()
	eventually(t, "clean again", func() bool { return clean() > before })
	if _, problem := w.answer(w.ask(api.CommandVerify, api.CommandArgs{Verify: api.VerifyRequest{Stop: true}})); problem != nil {
		t.Fatalf("stop: %+v", problem)
	}
	policies := func() int {
		return w.count(`SELECT count(*) FROM rehome_control.replications WHERE verify_policy IS NOT NULL`)
	}
	if policies() != 0 {
		t.Error("it goes on")
	}
	if _, problem := w.answer(w.ask(api.CommandVerify, api.CommandArgs{Verify: api.VerifyRequest{Continuous: true, EveryMS: 3_600_000}})); problem != nil || policies() != 1 {
		t.Fatalf("begin again: %+v", problem)
	}
	stopB()
	_, err := w.pool.Exec(t.Context(), `UPDATE rehome_control.replications SET state = '{"phase":"paused","resume":"cut_over"}', phase = 'paused' WHERE id = $1`, w.id)
	must(t, err)
	w.serve("c")
	if _, problem := w.answer(w.ask(api.CommandVerify, api.CommandArgs{Verify: api.VerifyRequest{Stop: true}})); problem != nil || policies() != 0 {
		t.Errorf("stop while paused: %+v", problem)
	}
}

// TestRepairOfWhatPaused deletes a row at the shard that the source then changes: the replication stops, and a repair mends
// the row, lets it go on, and ends in a clean comparison. Without a repair it stops again.
func TestRepairOfWhatPaused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, tablesDDL)
	w.serve("a")
	w.waitPhase(tenant.InSync)
	c := w.shard()
	exec(t, c, `DELETE FROM items WHERE id IN (7, 8)`)
	exec(t, w.source, `UPDATE items SET n = 5 WHERE id = 7`)
	w.waitPhase(tenant.Paused)
	if st := w.state(); !strings.Contains(st.Remedy, "verify --repair") {
		t.Errorf("%+v", st)
	}
	if _, problem := w.answer(w.ask(api.CommandVerify, api.CommandArgs{})); problem == nil {
		t.Error("a comparison of what is paused says that it succeeded")
	}
	if _, problem := w.answer(w.ask(api.CommandResume, api.CommandArgs{})); problem != nil {
		t.Fatalf("%+v", problem)
	}
	w.waitPhase(tenant.Paused) // again: nothing is overwritten unasked
	exec(t, w.source, `UPDATE items SET n = 6 WHERE id = 8`)
	res, problem := w.answer(w.ask(api.CommandVerify, api.CommandArgs{Verify: api.VerifyRequest{Repair: true}}))
	if problem != nil || res["clean"] != true {
		t.Fatalf("%+v %+v", res, problem)
	}
	if n := scalar[int](t, c, `SELECT sum(n)::int FROM items WHERE id IN (7, 8)`); n != 11 {
		t.Errorf("%d, want 11", n)
	}
	if st := w.state(); st.Phase != tenant.InSync && st.Phase != tenant.CatchingUp {
		t.Errorf("%+v", st)
	}
	w.arrives(3000)
}
