package server

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/pquerna/otp/totp"

	"github.com/rehomedb/rehome/otp"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

func TestEmailChannel(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.refused(b.do("POST", "/v1/email-channel", api.EmailChannelRequest{URL: "pigeon://x"}, nil), 422, tenant.KindInvalid, "bad-email-channel")
	dir := t.TempDir()
	var ch api.EmailChannel
	b.must("POST", "/v1/email-channel", api.EmailChannelRequest{URL: "file://" + dir, TestTo: admin}, &ch)
	mails, err := otp.ReadMailbox(dir)
	if err != nil || len(mails) != 1 || mails[0].Kind != otp.KindTest || ch.TestedTo != admin {
		t.Fatalf("got %+v, %+v, %v", ch, mails, err)
	}
	a := b.do("POST", "/v1/email-channel", api.EmailChannelRequest{URL: "smtp://u:hidden@127.0.0.1:1?tls=none&from=a@b.c", TestTo: admin}, nil)
	if a.problem.Kind != tenant.KindUnavailable.String() || strings.Contains(string(a.body), "hidden") {
		t.Errorf("an unreachable server: %s", a.body)
	}
	var i api.Installation
	b.must("GET", "/v1/installation", nil, &i)
	if !strings.HasPrefix(i.EmailChannel, "file:") || i.AdminEmail != admin || i.PublicKey == "" || i.NATS == "" {
		t.Errorf("got %+v", i)
	}
	b.must("POST", "/v1/email-channel", api.EmailChannelRequest{URL: "https://hooks.example/rehome?token=hidden"}, &ch)
	if !strings.HasPrefix(ch.WebhookSecret, "whsec_") || strings.Contains(ch.Channel, "hidden") {
		t.Errorf("got %+v", ch)
	}
	var stored []byte
	if err := b.pool.QueryRow(t.Context(), `SELECT value_sealed FROM rehome_control.settings WHERE name = $1`, settingEmailChannel).Scan(&stored); err != nil || strings.Contains(string(stored), "hidden") {
		t.Errorf("stored in the open? %v", err)
	}
}

func TestApprovalByAuthenticator(t *testing.T) {
	t.Parallel()
	b, _, p := journey(t)
	ask := api.ChallengeRequest{Action: "start-replication", Channel: "totp", Start: &p}
	b.refused(b.do("POST", "/v1/challenges", ask, nil), 403, tenant.KindUnauthorised, "totp-not-enrolled")
	own := withKey(b.client(api.ClientRequest{Email: owner}))
	var e api.TOTPEnrolment
	b.must("POST", "/v1/totp", api.TOTPEnrolRequest{Email: owner}, &e, own)
	u, err := url.Parse(e.URI)
	if err != nil {
		t.Fatal(err)
	}
	code := func() string {
		c, err := totp.GenerateCode(u.Query().Get("secret"), b.clock.now())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	// The address' own key is no approval: its mail is.
	b.refused(b.do("POST", "/v1/totp/confirm", api.TOTPConfirm{Email: owner, Code: code()}, nil, own), 403, tenant.KindUnauthorised, "wrong-mail-code")
	b.must("POST", "/v1/totp/confirm", api.TOTPConfirm{Email: owner, MailCode: b.lastMail(otp.KindTOTPEnrol).Code, Code: code()}, nil, own)
	var c api.Challenge
	b.must("POST", "/v1/challenges", ask, &c)
	if c.Channel != "totp" {
		t.Errorf("got %+v", c)
	}
	b.clock.advance(time.Minute) // the code of the confirmation is used
	b.must("POST", "/v1/replications", api.StartRequest{PlanRequest: p, Approval: api.Approval{ID: c.ID, Code: code()}}, nil)
	b.must("DELETE", "/v1/totp/"+url.PathEscape(owner), nil, nil, own)
	b.refused(b.do("DELETE", "/v1/totp/"+url.PathEscape(owner), nil, nil, own), 404, tenant.KindNotFound, "totp-not-enrolled")
}

func TestDatabasesAndShards(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.do("POST", "/v1/shards", api.ShardRequest{Name: "s1", DSN: "postgres://u:hidden@127.0.0.1:1/postgres"}, nil)
	if a.problem.Kind != tenant.KindUnavailable.String() || strings.Contains(string(a.body), "hidden") {
		t.Errorf("an unreachable shard: %s", a.body)
	}
	t.Logf("unreachable shard: %s", a.body)
	b.refused(b.do("POST", "/v1/databases", api.DatabaseRequest{Name: "x", Owner: "nobody"}, nil), 422, tenant.KindInvalid, "bad-email")
	b.addShard("s1")
	d := b.createDatabase()
	if d.URL != testURL+"/"+d.Name || d.PlacementEpoch != 1 || len(d.Shards) != 1 || d.Owner != owner {
		t.Errorf("got %+v", d)
	}
	var pl tenant.Placement
	b.must("GET", "/v1/databases/"+d.Name+"/placement", nil, &pl)
	if err := pl.Validate(); err != nil || pl.Home != "s1" {
		t.Errorf("got %+v, %v", pl, err)
	}
	var realms []api.Realm
	b.must("GET", "/v1/databases/"+d.Name+"/realms?sort=size", nil, &realms)
	if len(realms) != 0 {
		t.Errorf("got %+v", realms)
	}
	var shards []api.Shard
	b.must("GET", "/v1/shards", nil, &shards)
	if len(shards) != 1 || !shards[0].Reachable || shards[0].Databases[0] != d.Name {
		t.Errorf("got %+v", shards)
	}
	a = b.do("DELETE", "/v1/shards/s1", nil, nil)
	if a.problem.Kind != tenant.KindRefused.String() {
		t.Errorf("removing a shard that holds realms: %d %s", a.status, a.body)
	}
	for _, state := range []string{"stopped", "active"} {
		b.must("PATCH", "/v1/databases/"+d.Name, api.DatabaseUpdate{State: &state}, &d)
		if d.State != state {
			t.Errorf("got %s", d.State)
		}
	}
	s := b.watch("/v1/events?after=0", "")
	for _, want := range []string{"shard.added", "database.created", "database.updated"} {
		if _, e, ok := s.next(); !ok || !strings.HasSuffix(e.Type, want) {
			t.Errorf("want %s, got %s", want, e.Type)
		}
	}
	var entries []api.AuditEntry
	b.must("GET", "/v1/audit?limit=2", nil, &entries)
	if len(entries) != 2 || entries[0].Action != "update-database" || entries[0].Object != d.Name || entries[0].Actor != "operator" || entries[0].Outcome != "ok" || entries[0].Address != "127.0.0.1" {
		t.Errorf("got %+v", entries)
	}
}
