package server

import (
	"errors"
	"net/http"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

func TestBoundKeysReach(t *testing.T) {
	// What the server's own environment holds must not go to a host that somebody else names.
	t.Setenv("PGPASSWORD", "the server's own")
	t.Setenv("PGHOST", "127.0.0.1")
	bound := withRequest(t.Context(), &request{principal: &principal{actor: owner, databases: []string{"acme"}}})
	whole := withRequest(t.Context(), &request{principal: &principal{actor: admin}})
	for _, dsn := range []string{
		"postgres://u:p@127.0.0.1/db", "postgres://u:p@localhost/db", "postgres://u:p@[::1]:5432/db", "postgres://u:p@[::ffff:127.0.0.1]/db",
		"postgres://u:p@169.254.169.254:80/db", "postgres://u:p@[fe80::1]/db", "postgres://u:p@0.0.0.0/db", "postgres://u:p@192.0.2.1,127.0.0.1/db",
		"postgres:///db?host=/var/run/postgresql", "postgres://u:p@/db?host=/tmp", "postgres://u:p@192.0.2.1/db?host=127.0.0.1",
		"postgres://u@192.0.2.1/db", "postgres://192.0.2.1/db", "postgres://u:p@192.0.2.1/db?passfile=/root/.pgpass",
		"postgres://u:p@192.0.2.1/db?sslkey=/etc/key&sslcert=/etc/cert", "postgres://u:p@192.0.2.1/db?sslrootcert=/etc/shadow",
		"postgres://u:p@192.0.2.1/db?service=x", "host=192.0.2.1 user=u password=p dbname=db",
	} {
		var te *tenant.Error
		if err := permitSource(bound, tenant.DSN(dsn)); !errors.As(err, &te) || te.Kind != tenant.KindUnauthorised {
			t.Errorf("%s: %v", tenant.DSN(dsn), err)
		}
		if err := permitSource(whole, tenant.DSN(dsn)); err != nil {
			t.Errorf("%s with a key for everything: %v", tenant.DSN(dsn), err)
		}
	}
	for _, dsn := range []string{"postgres://u:p@192.0.2.1/db", "postgresql://u:p@10.0.0.7:6543/db?sslmode=require&connect_timeout=5", "postgres://u:p@[2001:db8::1]/db?sslmode=verify-full&sslrootcert=system"} {
		if err := permitSource(bound, tenant.DSN(dsn)); err != nil {
			t.Errorf("%s: %v", tenant.DSN(dsn), err)
		}
	}
}

// What sends clients elsewhere, or the server, is not for a key that an owner holds.
func TestBoundKeysDoNotRedirectUnasked(t *testing.T) {
	t.Parallel()
	b, name, _ := oldSide(t)
	bound, operate := withKey(b.client(api.ClientRequest{Scopes: []string{"admin"}, Databases: []string{name}})), withKey(b.client(api.ClientRequest{}))
	to := "http://169.254.169.254/latest"
	b.refused(b.do(http.MethodPatch, "/v1/databases/"+name, api.DatabaseUpdate{Upstream: &to}, nil, bound), 403, tenant.KindUnauthorised, "bound-to-databases")
	b.refused(b.do(http.MethodPatch, "/v1/databases/"+name, api.DatabaseUpdate{Upstream: &to}, nil, operate), 403, tenant.KindUnauthorised, "scope-missing")
	plan := api.RedirectPlan{Database: name, To: "http://169.254.169.254/" + name, Mode: "proxy", Force: true}
	ask := api.ChallengeRequest{Action: "redirect", Redirect: &plan}
	b.refused(b.do(http.MethodPost, "/v1/challenges", ask, nil, bound), 403, tenant.KindUnauthorised, "address-not-permitted")
	plan.Mode = "redirect" // then it is the client that goes there
	b.must(http.MethodPost, "/v1/challenges", ask, nil, bound)
}

func TestPlansKeepNoPassword(t *testing.T) {
	t.Parallel()
	b, _, p := journey(t)
	b.must(http.MethodPost, "/v1/challenges", api.ChallengeRequest{Action: "start-replication", Start: &p}, nil)
	var mac, plain string
	if err := b.pool.QueryRow(t.Context(), `SELECT plan->>'source_mac', encode(sha256(convert_to($1, 'UTF8')), 'hex') FROM rehome_control.challenges`, p.From).Scan(&mac, &plain); err != nil {
		t.Fatal(err)
	}
	if len(mac) != 64 || mac == plain {
		t.Error("the stored plan lets passwords be tried")
	}
}

func TestOperatorIsNotLockedOut(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for range failureBurst + 1 {
		b.do(http.MethodGet, "/v1/installation", nil, nil, withKey("nobody:nothing"))
	}
	b.refused(b.do(http.MethodGet, "/v1/installation", nil, nil, withKey("nobody:nothing")), 429, tenant.KindUnauthorised, "rate-limited")
	b.must(http.MethodGet, "/v1/installation", nil, nil)
}

// A source has one gate. Once it was cut over it can go nowhere else: nobody is asked for a code that starts that.
func TestSourceThatWasCutOver(t *testing.T) {
	t.Parallel()
	b, _, p := journey(t)
	conn, err := pgx.Connect(t.Context(), p.From)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	cutOver(t, conn, "another")
	var pre api.Preflight
	b.must(http.MethodPost, "/v1/preflight", p, &pre)
	if pre.OK || !slices.ContainsFunc(pre.Findings, func(f tenant.Finding) bool { return f.Code == "source-cut-over" && f.Remedy != "" }) {
		t.Errorf("got %+v", pre)
	}
	b.refused(b.do(http.MethodPost, "/v1/challenges", api.ChallengeRequest{Action: "start-replication", Start: &p}, nil), 409, tenant.KindRefused, "preflight-refused")
}

// Nobody is asked for a code of a rollback without a proof that both sides are the same.
func TestNoCodeForARollbackWithoutAVerification(t *testing.T) {
	t.Parallel()
	b, _, p := journey(t)
	r := b.start(p)
	b.exec(`UPDATE rehome_control.replications SET phase = 'cut_over', state = '{"phase": "cut_over"}' WHERE id = $1`, r.ID)
	b.refused(b.do(http.MethodPost, "/v1/challenges", api.ChallengeRequest{Action: "rollback", Cutover: &api.CutoverPlan{Replication: r.ID}}, nil), 409, tenant.KindRefused, "not-verified")
	if b.audited("otp.request", "ok", "") != 1 {
		t.Error("a code was sent")
	}
}
