package server

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/otp"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// journey is a server with a shard, a database on it and a source to replicate from.
func journey(t *testing.T) (*bundle, api.Database, api.PlanRequest) {
	t.Helper()
	b := setup(t)
	b.addShard("s1")
	d := b.createDatabase()
	return b, d, api.PlanRequest{From: sourceDatabase(t).Reveal(), To: d.URL}
}

// ask requests a challenge and reads its code from the mailbox.
func (b *bundle) ask(r api.ChallengeRequest) api.Approval {
	b.t.Helper()
	var c api.Challenge
	b.must("POST", "/v1/challenges", r, &c)
	m := b.lastMail(otp.KindCode)
	if m.Challenge != c.ID {
		b.t.Fatalf("the newest mail is of challenge %s, not %s", m.Challenge, c.ID)
	}
	return api.Approval{ID: c.ID, Code: m.Code}
}

func (b *bundle) askStart(p api.PlanRequest) api.Approval {
	b.t.Helper()
	return b.ask(api.ChallengeRequest{Action: "start-replication", Start: &p})
}

func (b *bundle) start(p api.PlanRequest) api.Replication {
	b.t.Helper()
	var r api.Replication
	b.must("POST", "/v1/replications", api.StartRequest{PlanRequest: p, Approval: b.askStart(p)}, &r)
	return r
}

func TestStartReplication(t *testing.T) {
	t.Parallel()
	b, d, p := journey(t)
	var c api.Challenge
	b.must("POST", "/v1/challenges", api.ChallengeRequest{Action: "start-replication", Start: &p}, &c)
	u, err := url.Parse(p.From)
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	m := b.lastMail(otp.KindCode)
	if c.SentTo != "o***@example.com" || m.To != owner || !strings.Contains(m.Text, d.URL) || !strings.Contains(m.Text, u.Host) || m.Text == "" || c.Plan == "" {
		t.Errorf("challenge %+v, mail %+v", c, m)
	}
	if strings.Contains(m.Text, password) || strings.Contains(c.Plan, password) {
		t.Error("the plan shows the source's password")
	}
	var r api.Replication
	b.must("POST", "/v1/replications", api.StartRequest{PlanRequest: p, Approval: api.Approval{ID: c.ID, Code: m.Code}}, &r)
	if r.State.Phase != tenant.Created || r.Database != d.Name || len(r.ID) != 12 || r.Slot != "rehome_"+r.ID || r.Options.RealmKey != "realm_id" || strings.Contains(r.From, password) {
		t.Errorf("got %+v", r)
	}
	var sealed []byte
	var approver string
	if err := b.pool.QueryRow(t.Context(), `SELECT source_dsn_sealed, approved_by FROM rehome_control.replications WHERE id = $1`, r.ID).Scan(&sealed, &approver); err != nil {
		t.Fatal(err)
	}
	if dsn, err := b.box.Open("source-dsn", sealed); err != nil || dsn != p.From || approver != owner {
		t.Errorf("stored: %v, approved by %s", err, approver)
	}
	var got api.Replication
	b.must("GET", "/v1/replications/"+r.ID, nil, &got)
	var pr tenant.Progress
	b.must("GET", "/v1/replications/"+r.ID+"/progress", nil, &pr)
	if got.ID != r.ID || pr.Phase != tenant.Created || pr.Replication != r.ID {
		t.Errorf("got %+v, %+v", got, pr)
	}
	// One replication at a time, and nobody is asked for a code that could not be used.
	b.refused(b.do("POST", "/v1/challenges", api.ChallengeRequest{Action: "start-replication", Start: &p}, nil), 409, tenant.KindConflict, "replication-exists")
	if b.audited("start-replication", "ok", "") != 1 || b.audited("otp.redeem", "ok", "") != 1 || b.audited("otp.request", "ok", "") != 1 {
		t.Error("the audit log is not complete")
	}
	if strings.Contains(b.logs.String(), password) || strings.Contains(b.logs.String(), m.Code) {
		t.Error("a secret is in the log")
	}
}

func TestCodesAreRefused(t *testing.T) {
	t.Parallel()
	b, _, p := journey(t)
	post := func(a api.Approval, p api.PlanRequest) answer {
		return b.do("POST", "/v1/replications", api.StartRequest{PlanRequest: p, Approval: a}, nil)
	}
	b.refused(post(api.Approval{}, p), 403, tenant.KindUnauthorised, "approval-missing")

	a := b.askStart(p)
	wrong := api.Approval{ID: a.ID, Code: "00000000"}
	if wrong.Code == strings.ReplaceAll(a.Code, " ", "") {
		wrong.Code = "11111111"
	}
	for range otp.MaxTries - 1 {
		b.refused(post(wrong, p), 403, tenant.KindUnauthorised, "wrong-code")
	}
	b.refused(post(wrong, p), 403, tenant.KindUnauthorised, "too-many-tries")
	b.refused(post(a, p), 403, tenant.KindUnauthorised, "too-many-tries")

	a = b.askStart(p)
	b.clock.advance(otp.CodeTTL + time.Minute)
	b.refused(post(a, p), 403, tenant.KindUnauthorised, "code-expired")

	a = b.askStart(p)
	other := p
	other.Options.CopyJobs = 7
	b.refused(post(a, other), 403, tenant.KindUnauthorised, "code-for-another-plan")
	// Another password is another plan, though the mail would show the same.
	other = p
	other.From += "&application_name=x"
	if !strings.Contains(p.From, "?") {
		other.From = p.From + "?application_name=x"
	}
	b.refused(post(a, other), 403, tenant.KindUnauthorised, "code-for-another-plan")

	var r api.Replication
	b.must("POST", "/v1/replications", api.StartRequest{PlanRequest: p, Approval: a}, &r)
	b.exec(`UPDATE rehome_control.replications SET phase = 'cancelled', state = '{"phase":"cancelled"}' WHERE id = $1`, r.ID)
	b.refused(post(a, p), 403, tenant.KindUnauthorised, "code-used")

	for _, code := range []string{"wrong-code", "too-many-tries", "code-expired", "code-for-another-plan", "code-used"} {
		if b.audited("start-replication", "refused", code) == 0 || b.audited("otp.redeem", "refused", code) == 0 {
			t.Errorf("%s is not in the audit log", code)
		}
	}
}

func TestPreflightRefusesBeforeACodeIsAsked(t *testing.T) {
	t.Parallel()
	b, _, p := journey(t)
	conn, err := pgx.Connect(t.Context(), p.From)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	if _, err := conn.Exec(t.Context(), `CREATE TABLE loose (realm_id text, n int)`); err != nil {
		t.Fatal(err)
	}
	a := b.do("POST", "/v1/challenges", api.ChallengeRequest{Action: "start-replication", Start: &p}, nil)
	b.refused(a, 409, tenant.KindRefused, "preflight-refused")
	if len(a.problem.Findings) == 0 || !strings.Contains(a.problem.Detail, "loose") {
		t.Errorf("got %s", a.body)
	}
	var pf api.Preflight
	b.must("POST", "/v1/preflight", p, &pf)
	if pf.OK || pf.Tables == 0 {
		t.Errorf("got %+v", pf)
	}
	if mails, err := otp.ReadMailbox(b.mailbox); err != nil || len(mails) != 0 {
		t.Errorf("%d mails, %v", len(mails), err)
	}
	for want, bad := range map[string]api.PlanRequest{
		"bad-source":           {From: "postgres://u:hidden@[/", To: p.To},
		"source-not-supported": {From: "https://hosted.example/acme", To: p.To},
		"missing-source":       {To: p.To},
		"another-installation": {From: p.From, To: "https://elsewhere.example/acme"},
		"bad-database-url":     {From: p.From, To: "ftp://x/acme"},
	} {
		a := b.do("POST", "/v1/preflight", bad, nil)
		b.refused(a, 422, tenant.KindInvalid, want)
		if strings.Contains(string(a.body), "hidden") {
			t.Errorf("%s shows a password: %s", want, a.body)
		}
	}
	b.refused(b.do("POST", "/v1/preflight", api.PlanRequest{From: p.From, To: testURL + "/nothing"}, nil), 404, tenant.KindNotFound, "database-unknown")
}

func TestNobodyToAsk(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.addShard("s1")
	d := b.createDatabase()
	none := ""
	b.must("PATCH", "/v1/databases/"+d.Name, api.DatabaseUpdate{Owner: &none}, nil)
	ask := api.ChallengeRequest{Action: "redirect", Redirect: &api.RedirectPlan{Database: d.Name, To: "https://new.example/" + d.Name, Force: true}}
	b.must("POST", "/v1/challenges", ask, nil) // the administrator
	if m := b.lastMail(otp.KindCode); m.To != admin {
		t.Errorf("sent to %s", m.To)
	}
	b.exec(`UPDATE rehome_control.installations SET admin_email = ''`)
	b.refused(b.do("POST", "/v1/challenges", ask, nil), 409, tenant.KindRefused, "nobody-to-ask")
}
