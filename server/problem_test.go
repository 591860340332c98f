package server

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

func TestProblemOf(t *testing.T) {
	t.Parallel()
	secret := errors.New("dial postgres://user:hidden@host/db")
	for _, c := range []struct {
		err    error
		status int
		kind   tenant.Kind
		code   string
		shown  bool // the message may be shown
	}{
		{secret, 500, tenant.KindInternal, "internal", false},
		{fmt.Errorf("read: %w", tenant.AsError(secret)), 500, tenant.KindInternal, "internal", false},
		{&tenant.Error{Kind: tenant.KindUnavailable, Code: "x", Message: "away", Err: secret}, 503, tenant.KindUnavailable, "x", false},
		{fmt.Errorf("more: %w", tenant.Errorf(tenant.KindRefused, "no", "hint", "no")), 409, tenant.KindRefused, "no", true},
		{tenant.Errorf(tenant.KindUnauthorised, "rate-limited", "", "no"), 429, tenant.KindUnauthorised, "rate-limited", true},
		{tenant.Errorf(tenant.KindUnauthorised, "wrong-code", "", "no"), 403, tenant.KindUnauthorised, "wrong-code", true},
		{tenant.Errorf(tenant.KindTimeout, "slow", "", "no"), 504, tenant.KindTimeout, "slow", true},
		{fmt.Errorf("x: %w", &pgconn.PgError{Code: "57P01", Message: "hidden"}), 503, tenant.KindUnavailable, "database-unreachable", false},
		{fmt.Errorf("x: %w", &pgconn.PgError{Code: "42P01", Message: "hidden"}), 500, tenant.KindInternal, "internal", false},
	} {
		p := problemOf(c.err, "id")
		if p.Status != c.status || p.Kind != c.kind.String() || p.Code != c.code || p.Request != "id" || p.Title == "" || p.Detail == "" {
			t.Errorf("%v: got %+v", c.err, p.Problem)
		}
		if strings.Contains(p.Detail+p.Hint, "hidden") || strings.Contains(p.Detail, "dial") {
			t.Errorf("%v: shows %s", c.err, p.Detail)
		}
		if c.shown != (p.hidden == nil) {
			t.Errorf("%v: logged %v", c.err, p.hidden)
		}
	}
}

func TestProblemDocuments(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.refused(b.do("GET", "/v1/nowhere", nil, nil), 404, tenant.KindNotFound, "no-such-endpoint")
	a := b.do("DELETE", "/v1/databases", nil, nil)
	b.refused(a, 405, tenant.KindInvalid, "method-not-allowed")
	if !strings.Contains(a.header.Get("Allow"), "POST") {
		t.Errorf("Allow is %q", a.header.Get("Allow"))
	}
	b.refused(b.do("POST", "/v1/clients", "{", nil), 400, tenant.KindInvalid, "invalid-request")
	a = b.do("POST", "/v1/shards", `{"name":"a","dsn":["postgres://u:hidden@h/d"]}`, nil)
	b.refused(a, 422, tenant.KindInvalid, "invalid-request")
	if strings.Contains(string(a.body), "hidden") {
		t.Errorf("the problem quotes what was sent: %s", a.body)
	}
	a = b.do("POST", "/v1/clients", `{"email":"a@b.c","nonsense":1}`, nil)
	b.refused(a, 422, tenant.KindInvalid, "invalid-request")
	if !strings.Contains(a.problem.Detail, "nonsense") {
		t.Errorf("the problem does not name the member: %s", a.problem.Detail)
	}
	b.refused(b.do("POST", "/v1/clients", `{"email":"`+strings.Repeat("x", maxBody)+`"}`, nil), http.StatusRequestEntityTooLarge, tenant.KindInvalid, "too-large")
	b.refused(b.do("POST", "/v1/clients", api.ClientRequest{Email: "no address"}, nil), 422, tenant.KindInvalid, "bad-email")
	b.refused(b.do("GET", "/v1/replications/unknown", nil, nil), 404, tenant.KindNotFound, "replication-not-found")
	b.refused(b.do("GET", "/v1/commands/unknown", nil, nil), 404, tenant.KindNotFound, "command-not-found")
	b.refused(b.do("POST", "/v1/challenges", api.ChallengeRequest{Action: "delete-db"}, nil), 422, tenant.KindInvalid, "missing-plan")

	// What nobody foresaw: the client reads an id, the log the rest.
	b.exec(`ALTER TABLE rehome_control.api_clients RENAME TO elsewhere`)
	a = b.do("GET", "/v1/clients", nil, nil)
	b.refused(a, 500, tenant.KindInternal, "internal")
	if strings.Contains(string(a.body), "api_clients") || a.problem.Request == "" || a.header.Get("X-Request-Id") != a.problem.Request {
		t.Errorf("got %s", a.body)
	}
	if !strings.Contains(b.logs.String(), a.problem.Request) || !strings.Contains(b.logs.String(), "api_clients") {
		t.Error("the log does not tell more")
	}
}

func TestOpenAPI(t *testing.T) {
	t.Parallel()
	b := setup(t)
	status, body := b.get("/v1/openapi.json")
	if status != 200 {
		t.Fatalf("got %d %s", status, body)
	}
	for _, want := range []string{`"/v1/replications/{id}/cutover"`, `"application/problem+json"`, `"Problem"`, `"openapi":"3.1.0"`, `"/v1/events"`, `"/v1/databases/{name}/delete/confirm"`} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s", want)
		}
	}
	if strings.Contains(body, "ErrorModel\"") && strings.Contains(body, "#/components/schemas/ErrorModel") {
		t.Error("errors are documented in two shapes")
	}
}
