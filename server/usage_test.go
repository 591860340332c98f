package server

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/server/config"
	"github.com/rehomedb/rehome/tenant"
)

// directClient connects to the source past the gateway.
func directClient(t *testing.T, conn *pgx.Conn, application string) *pgx.Conn {
	t.Helper()
	cfg := conn.Config().Copy()
	cfg.RuntimeParams["application_name"] = application
	c, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestHistoryOverTheAPI: the job samples by itself, both what comes through the gateway and what comes past it.
func TestHistoryOverTheAPI(t *testing.T) {
	t.Parallel()
	b, name, conn := oldSide(t)
	past := directClient(t, conn, "billing/1.4")
	if err := b.sampleConnections(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.visit(name)
	var h api.StatsHistory
	b.eventually("the history has both", func() bool {
		b.must("GET", "/v1/databases/"+name+"/stats", nil, nil) // writes what was counted
		b.must("GET", "/v1/databases/"+name+"/stats/history?last=3600", nil, &h)
		return len(h.Clients) == 2
	})
	if h.Step != "minute" || !h.Collecting || len(h.Points) == 0 || h.Points[0].Direct == nil || *h.Points[0].Direct < 0.5 || h.Points[0].DirectMax != 1 || h.Points[0].Gateway == nil {
		t.Errorf("%+v", h)
	}
	if c := h.Clients[0]; c.Client != "billing" && c.Version != "1.4" && h.Clients[1].Client != "billing" {
		t.Errorf("%+v", h.Clients)
	}
	if err := past.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.refused(b.do("GET", "/v1/databases/"+name+"/stats/history?last=99999999999", nil, nil), 422, tenant.KindInvalid, "invalid-request")
	b.must("GET", "/v1/databases/"+name+"/stats/history", nil, &h, withKey(b.client(api.ClientRequest{Scopes: []string{"read"}, Databases: []string{name}})))
	if a := b.do("GET", "/v1/databases/"+name+"/stats/history", nil, nil, withKey(b.client(api.ClientRequest{Databases: []string{"other"}}))); a.status != http.StatusNotFound {
		t.Errorf("a key of another database: %d", a.status)
	}
	// There is a job for it.
	b.eventually("the job ran", func() bool {
		var n int
		if err := b.pool.QueryRow(t.Context(), `SELECT count(*) FROM rehome_control.river_job WHERE kind = 'sample-connections' AND state = 'completed'`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n > 0
	})
	b.clock.advance(5 * 24 * time.Hour)
	if err := b.prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.must("GET", "/v1/databases/"+name+"/stats/history?last=864000", nil, &h)
	if h.Step != "hour" || len(h.Points) != 1 || len(h.Clients) != 2 {
		t.Errorf("rolled up: %+v", h)
	}
}

// TestStatisticsDisabled: nothing is collected, and nothing else breaks: stats tells what is open, redirects work, and a
// deletion is not let through because nobody was counted.
func TestStatisticsDisabled(t *testing.T) {
	t.Parallel()
	b, name, conn := oldSideOf(t, setupWith(t, func(c *config.Config) { c.UsageStats = "disabled" }))
	cert := cutOver(t, conn, name)
	if a := b.redirect(name, false); a.status != 200 {
		t.Fatalf("redirect: %s", a.body)
	}
	if status, to := b.visit(name); status != http.StatusTemporaryRedirect || to != "https://new.example/"+name+"/page" {
		t.Errorf("a client gets %d %s", status, to)
	}
	if err := b.sampleConnections(t.Context()); err != nil {
		t.Fatal(err)
	}
	past := directClient(t, conn, "billing/1.4")
	var st api.Stats
	b.must("GET", "/v1/databases/"+name+"/stats", nil, &st)
	if st.Collecting || st.OpenNow != 1 || st.ByVia["direct"] != 1 || st.LastDay != 1 || len(st.Unseen) != 0 || st.Note == "" || st.Clients[0].Client != "billing" || st.Clients[0].User == "" {
		t.Errorf("%+v", st)
	}
	var h api.StatsHistory
	b.must("GET", "/v1/databases/"+name+"/stats/history", nil, &h)
	if h.Collecting || len(h.Points) != 0 {
		t.Errorf("%+v", h)
	}
	ask := func() answer {
		return b.do("POST", "/v1/challenges", api.ChallengeRequest{Action: "delete-db", Delete: &api.DeletePlan{Database: name, Certificate: &cert}}, nil)
	}
	a := ask()
	b.refused(a, 409, tenant.KindRefused, "delete-refused")
	if !strings.Contains(a.problem.Findings[0].Message, "1 clients are connected") {
		t.Errorf("%+v", a.problem)
	}
	if err := past.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Beside another server, whose clients nobody writes down, this one cannot say that there are none.
	b.exec(`INSERT INTO rehome_control.gateways (server, seen_at, lease_expires_at) VALUES ('two', now(), now() + interval '1 hour')`)
	b.eventually("only what is unseen is in the way", func() bool {
		a = ask()
		b.refused(a, 409, tenant.KindRefused, "delete-refused")
		return strings.Contains(a.problem.Findings[0].Message, "0 clients are seen") && strings.Contains(a.problem.Findings[0].Message, "other servers")
	})
	b.exec(`DELETE FROM rehome_control.gateways WHERE server = 'two'`)
	if a := ask(); a.status != 201 {
		t.Errorf("nobody is there: %d %s", a.status, a.body)
	}
	for _, table := range []string{"connection_stats", "connection_gauges", "connection_samples"} {
		var n int
		if err := b.pool.QueryRow(t.Context(), `SELECT count(*) FROM rehome_control.`+table).Scan(&n); err != nil || n != 0 {
			t.Errorf("%s: %d rows, %v", table, n, err)
		}
	}
}

// TestDeletionOfWhatCannotBeSeen: a database that does not answer is not one without clients.
func TestDeletionOfWhatCannotBeSeen(t *testing.T) {
	t.Parallel()
	b, name, conn := oldSide(t)
	cert := cutOver(t, conn, name)
	if a := b.redirect(name, false); a.status != 200 {
		t.Fatalf("redirect: %s", a.body)
	}
	admin, err := pgx.Connect(t.Context(), cluster.DSN("postgres").Reveal())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = admin.Close(t.Context()) }()
	database := pgx.Identifier{conn.Config().Database}.Sanitize()
	if _, err := admin.Exec(t.Context(), `ALTER DATABASE `+database+` ALLOW_CONNECTIONS false`); err != nil {
		t.Fatal(err)
	}
	s := b.Server
	d, err := s.catalogue.Database(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	f, err := s.checkConnections(t.Context(), d, api.DeletePlan{Certificate: &cert})
	if err != nil || f == nil || !strings.Contains(f.Message, "cannot be asked") {
		t.Errorf("%+v %v", f, err)
	}
	if _, err := admin.Exec(t.Context(), `ALTER DATABASE `+database+` ALLOW_CONNECTIONS true`); err != nil {
		t.Fatal(err)
	}
}
