package server

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/rehomedb/rehome/otp"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

func (b *bundle) setPhase(id string, p tenant.Phase) {
	b.t.Helper()
	b.exec(`UPDATE rehome_control.replications SET phase = $2, state = jsonb_build_object('phase', $2::text) WHERE id = $1`, id, string(p))
}

func (b *bundle) verified(id, vid string, clean bool, at time.Time) {
	b.t.Helper()
	b.exec(`INSERT INTO rehome_control.verifications (id, replication, started_at, finished_at, clean, digest, result) VALUES ($1,$2,$3,$3,$4,'abc',jsonb_build_object('id',$1::text,'clean',$4::boolean))`, vid, id, at, clean)
}

func TestThrottle(t *testing.T) {
	t.Parallel()
	b, _, p := journey(t)
	r := b.start(p)
	path := "/v1/replications/" + r.ID + "/throttle"
	set := func(body string) (th api.ThrottleStatus) {
		t.Helper()
		var u map[string]any
		if err := json.Unmarshal([]byte(body), &u); err != nil {
			t.Fatal(err)
		}
		b.must("PATCH", path, u, &th)
		return th
	}
	set(`{"max_rate": 5000000, "copy_jobs": 4}`)
	th := set(`{"query": " SELECT true ", "copy_jobs": 0}`)
	if want := (tenant.Throttle{MaxRate: 5000000, Query: "SELECT true"}); th.Set != want {
		t.Errorf("set %+v, want %+v", th.Set, want)
	}
	if th = set(`{"off": true}`); th.Set != (tenant.Throttle{Off: true}) {
		t.Errorf("off: %+v", th.Set)
	}
	if th = set(`{"max_lag_bytes": 1}`); th.Set != (tenant.Throttle{MaxLagBytes: 1}) {
		t.Errorf("a limit ends off: %+v", th.Set)
	}
	var got api.ThrottleStatus
	b.must("GET", path, nil, &got)
	if got.Set != th.Set || got.Replication != r.ID {
		t.Errorf("got %+v", got)
	}
	b.refused(b.do("PATCH", path, map[string]any{"max_rate": -1}, nil), 422, tenant.KindInvalid, "invalid-request")
	b.refused(b.do("PATCH", "/v1/replications/nowhere/throttle", map[string]any{"max_rate": 1}, nil), 404, tenant.KindNotFound, "replication-not-found")
	b.setPhase(r.ID, tenant.Cancelled)
	b.refused(b.do("PATCH", path, map[string]any{"max_rate": 1}, nil), 409, tenant.KindConflict, "replication-ended")
}

func TestCommands(t *testing.T) {
	t.Parallel()
	b, _, p := journey(t)
	r := b.start(p)
	path := "/v1/replications/" + r.ID
	b.refused(b.do("POST", path+"/verify", api.CommandRequest{}, nil), 409, tenant.KindConflict, "wrong-phase")
	b.refused(b.do("POST", path+"/complete", api.CommandRequest{}, nil), 409, tenant.KindConflict, "wrong-phase")
	b.setPhase(r.ID, tenant.InSync)
	var c, again api.Command
	if a := b.must("POST", path+"/verify", nil, &c); a.status != 202 {
		t.Errorf("got %d", a.status)
	}
	b.must("POST", path+"/verify", api.CommandRequest{}, &again)
	if again.ID != c.ID {
		t.Error("the same question twice is two commands")
	}
	// The long poll ends when the worker is done.
	began := time.Now()
	done := make(chan string, 1)
	go func() {
		_, body := b.try("GET", "/v1/commands/"+c.ID+"?wait=20")
		done <- body
	}()
	b.exec(`UPDATE rehome_control.replication_commands SET started_at = now(), finished_at = now(), result = '{"clean":true}' WHERE id = $1`, c.ID)
	var got api.Command
	if err := json.Unmarshal([]byte(<-done), &got); err != nil {
		t.Fatal(err)
	}
	if got.FinishedAt == nil || string(got.Result) != `{"clean": true}` && string(got.Result) != `{"clean":true}` || time.Since(began) > 15*time.Second {
		t.Errorf("got %+v after %s", got, time.Since(began))
	}
	// An error is a problem.
	b.must("POST", path+"/pause", api.CommandRequest{Reason: "a rest"}, &c)
	var args api.CommandArgs
	var raw []byte
	if err := b.pool.QueryRow(t.Context(), `SELECT args FROM rehome_control.replication_commands WHERE id = $1`, c.ID).Scan(&raw); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &args); err != nil || args.Reason != "a rest" {
		t.Errorf("args %s, %v", raw, err)
	}
	b.exec(`UPDATE rehome_control.replication_commands SET finished_at = now(), error = '{"kind":"timeout","code":"slow","message":"too slow"}' WHERE id = $1`, c.ID)
	b.must("GET", "/v1/commands/"+c.ID, nil, &got)
	if got.Error == nil || got.Error.Status != 504 || got.Error.Detail != "too slow" || got.Error.Code != "slow" {
		t.Errorf("got %+v", got.Error)
	}
	// A short wait ends without the command.
	b.must("POST", path+"/cancel", nil, &c)
	got = api.Command{}
	b.must("GET", "/v1/commands/"+c.ID+"?wait=1", nil, &got)
	if got.FinishedAt != nil {
		t.Errorf("got %+v", got)
	}
}

func TestCutoverNeedsProofAndAPerson(t *testing.T) {
	t.Parallel()
	b, d, p := journey(t)
	r := b.start(p)
	path := "/v1/replications/" + r.ID
	plan := api.CutoverPlan{Replication: r.ID, MaxPauseMS: 2000}
	ask := func() answer {
		return b.do("POST", "/v1/challenges", api.ChallengeRequest{Action: "cutover", Cutover: &plan}, nil)
	}
	b.refused(ask(), 409, tenant.KindConflict, "wrong-phase")
	b.setPhase(r.ID, tenant.InSync)
	b.refused(ask(), 409, tenant.KindRefused, "not-verified")
	b.refused(b.do("GET", path+"/verifications/latest", nil, nil), 404, tenant.KindNotFound, "verification-not-found")
	b.verified(r.ID, "v1", false, b.clock.now().Add(-2*time.Hour))
	b.refused(ask(), 409, tenant.KindRefused, "verification-not-clean")
	b.verified(r.ID, "v2", true, b.clock.now().Add(-verificationFresh-time.Minute))
	b.refused(ask(), 409, tenant.KindRefused, "verification-too-old")
	b.verified(r.ID, "v3", true, b.clock.now())
	var v tenant.Verification
	b.must("GET", path+"/verifications/latest", nil, &v)
	if v.ID != "v3" {
		t.Errorf("the latest is %s", v.ID)
	}
	approval := b.ask(api.ChallengeRequest{Action: "cutover", Cutover: &plan})
	send := func(p api.CutoverPlan) answer {
		return b.do("POST", path+"/cutover", api.CutoverRequest{CutoverPlan: p, Approval: approval}, nil)
	}
	slower := plan
	slower.MaxPauseMS = 9000
	b.refused(send(slower), 403, tenant.KindUnauthorised, "code-for-another-plan")
	// The world changes under the code: another verification, another plan.
	b.verified(r.ID, "v4", true, b.clock.now().Add(time.Second))
	b.refused(send(plan), 403, tenant.KindUnauthorised, "code-for-another-plan")

	approval = b.ask(api.ChallengeRequest{Action: "cutover", Cutover: &plan})
	var c api.Command
	b.must("POST", path+"/cutover", api.CutoverRequest{CutoverPlan: plan, Approval: approval}, &c)
	var raw []byte
	if err := b.pool.QueryRow(t.Context(), `SELECT args FROM rehome_control.replication_commands WHERE id = $1`, c.ID).Scan(&raw); err != nil {
		t.Fatal(err)
	}
	var args api.CommandArgs
	if err := json.Unmarshal(raw, &args); err != nil {
		t.Fatal(err)
	}
	if args.MaxPauseMS != 2000 || args.ApprovedBy != owner || args.Grant == "" || args.Verification != "v4" || args.VerificationDigest != "abc" || args.PlacementEpoch != d.PlacementEpoch {
		t.Errorf("got %+v", args)
	}
	b.refused(ask(), 409, tenant.KindConflict, "command-under-way")
	// A dry run asks nobody.
	var dry api.Command
	b.must("POST", path+"/cutover", api.CutoverRequest{CutoverPlan: plan, DryRun: true}, &dry)
	if dry.ID == c.ID {
		t.Error("the dry run is the cutover")
	}
	if b.audited("cutover", "refused", "code-for-another-plan") != 2 || b.audited("cutover", "ok", "") != 2 {
		t.Error("the audit log is not complete")
	}
	b.refused(b.do("GET", path+"/certificate", nil, nil), 404, tenant.KindNotFound, "certificate-not-found")
}

// TestRepairOfWhatIsPaused: what stopped the stream may be what a repair mends, also after a rollback; not while the shards
// take the writes.
func TestRepairOfWhatIsPaused(t *testing.T) {
	t.Parallel()
	b, _, p := journey(t)
	r := b.start(p)
	path := "/v1/replications/" + r.ID + "/verify"
	for resume, accepted := range map[tenant.Phase]bool{
		tenant.CatchingUp: true, tenant.InSync: true, tenant.RolledBack: true, tenant.Copying: false, tenant.CutOver: false,
	} {
		b.exec(`UPDATE rehome_control.replications SET phase = 'paused', state = jsonb_build_object('phase', 'paused', 'resume', $2::text) WHERE id = $1`, r.ID, string(resume))
		a := b.do("POST", path, map[string]any{"repair": true}, nil)
		if !accepted {
			b.refused(a, 409, tenant.KindConflict, "wrong-phase")
		} else if a.status != 202 {
			t.Errorf("paused in %s: %d %s", resume, a.status, a.body)
		}
		b.exec(`UPDATE rehome_control.replication_commands SET finished_at = now() WHERE replication = $1`, r.ID)
	}
}

// Going on without the source takes a code that is bound to it: one for dropping the fence is another.
func TestSourceDestroyedTakesACode(t *testing.T) {
	t.Parallel()
	b, _, p := journey(t)
	r := b.start(p)
	path := "/v1/replications/" + r.ID + "/complete"
	for _, phase := range []tenant.Phase{tenant.CutOver, tenant.RollingBack} {
		b.setPhase(r.ID, phase)
		b.refused(b.do("POST", path, api.CommandRequest{SourceDestroyed: true}, nil), 403, tenant.KindUnauthorised, "approval-missing")
	}
	b.setPhase(r.ID, tenant.CutOver)
	fence := b.ask(api.ChallengeRequest{Action: "complete", Complete: &api.CompletePlan{Replication: r.ID, DropFence: true}})
	b.refused(b.do("POST", path, api.CommandRequest{SourceDestroyed: true, Approval: fence}, nil), 403, tenant.KindUnauthorised, "code-for-another-plan")
	b.setPhase(r.ID, tenant.RollingBack)
	approval := b.ask(api.ChallengeRequest{Action: "complete", Complete: &api.CompletePlan{Replication: r.ID, SourceDestroyed: true}})
	if m := b.lastMail(otp.KindCode); !strings.Contains(m.Text, "declared DESTROYED") || !strings.Contains(m.Text, "both can accept writes") {
		t.Errorf("the mail does not say what it means:\n%s", m.Text)
	}
	b.must("POST", path, api.CommandRequest{SourceDestroyed: true, Approval: approval}, nil)
}
