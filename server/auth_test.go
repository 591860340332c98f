package server

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

func TestAuthMatrix(t *testing.T) {
	t.Parallel()
	b := setup(t)
	adminKey, operate, read := b.client(api.ClientRequest{Scopes: []string{"admin"}}), b.client(api.ClientRequest{}), b.client(api.ClientRequest{Scopes: []string{"read"}})
	bound := b.client(api.ClientRequest{Scopes: []string{"admin"}, Databases: []string{"mine"}})
	soon := b.clock.now().Add(time.Hour)
	expiring := b.client(api.ClientRequest{ExpiresAt: &soon})
	b.exec(`INSERT INTO rehome_control.databases (name, kind) VALUES ('mine','adopted'), ('others','adopted')`)

	for _, c := range []struct {
		name, key, method, path string
		body                    any
		status                  int
		code                    string
	}{
		{"operator", testSecret, "GET", "/v1/clients", nil, 200, ""},
		{"no key", "", "GET", "/v1/installation", nil, 401, "no-credentials"},
		{"wrong secret", strings.Repeat("x", 40), "GET", "/v1/installation", nil, 401, "bad-credentials"},
		{"unknown client", "cunknown:secret", "GET", "/v1/installation", nil, 401, "bad-credentials"},
		{"wrong client secret", strings.Split(adminKey, ":")[0] + ":nonsense", "GET", "/v1/installation", nil, 401, "bad-credentials"},
		{"admin", adminKey, "GET", "/v1/clients", nil, 200, ""},
		{"operate may not authorise", operate, "POST", "/v1/clients", api.ClientRequest{Email: "a@b.c"}, 403, "scope-missing"},
		{"operate may read", operate, "GET", "/v1/databases", nil, 200, ""},
		{"read may read", read, "GET", "/v1/shards", nil, 200, ""},
		{"read may not ask for codes", read, "POST", "/v1/challenges", api.ChallengeRequest{Action: "delete-db"}, 403, "scope-missing"},
		{"bound may not list shards", bound, "GET", "/v1/shards", nil, 403, "bound-to-databases"},
		{"bound may not follow all events", bound, "GET", "/v1/events", nil, 403, "bound-to-databases"},
		{"bound may not change the owner", bound, "PATCH", "/v1/databases/mine", api.DatabaseUpdate{Owner: new(string)}, 403, "bound-to-databases"},
		{"others' databases do not exist", bound, "GET", "/v1/databases/others", nil, 404, "database-not-found"},
		{"others' databases cannot be deleted", bound, "POST", "/v1/databases/others/undelete", nil, 404, "database-not-found"},
		{"expiring", expiring, "GET", "/v1/installation", nil, 200, ""},
		{"another's authenticator", operate, "POST", "/v1/totp", api.TOTPEnrolRequest{Email: owner}, 403, "not-your-address"},
	} {
		a := b.do(c.method, c.path, c.body, nil, withKey(c.key))
		if a.status != c.status || a.problem.Code != c.code {
			t.Errorf("%s: want %d %q, got %d %s", c.name, c.status, c.code, a.status, a.body)
		}
		if c.status == 401 && a.header.Get("WWW-Authenticate") == "" {
			t.Errorf("%s: no WWW-Authenticate", c.name)
		}
	}
	var mine []api.Database
	b.must("GET", "/v1/databases", nil, &mine, withKey(bound))
	if len(mine) != 1 || mine[0].Name != "mine" {
		t.Errorf("a bound client sees %+v", mine)
	}
	b.clock.advance(2 * time.Hour)
	b.refused(b.do("GET", "/v1/installation", nil, nil, withKey(expiring)), 401, tenant.KindUnauthorised, "bad-credentials")
	id, _, _ := strings.Cut(operate, ":")
	b.must("DELETE", "/v1/clients/"+id, nil, nil)
	b.refused(b.do("GET", "/v1/installation", nil, nil, withKey(operate)), 401, tenant.KindUnauthorised, "bad-credentials")
	b.refused(b.do("DELETE", "/v1/clients/nobody", nil, nil), 404, tenant.KindNotFound, "client-not-found")

	var clients []api.Client
	b.must("GET", "/v1/clients", nil, &clients)
	for _, c := range clients {
		if c.ID == strings.Split(read, ":")[0] && c.LastUsedAt == nil {
			t.Error("last_used_at was not noted")
		}
	}
	if n := b.audited("authenticate", "refused", "bad-credentials"); n < 4 {
		t.Errorf("%d wrong keys are in the audit log", n)
	}
	if n := b.audited("authorize-client", "ok", ""); n != 5 {
		t.Errorf("%d authorisations are in the audit log", n)
	}
	if strings.Contains(b.logs.String(), strings.Split(adminKey, ":")[1]) || strings.Contains(b.logs.String(), testSecret) {
		t.Error("a secret is in the log")
	}
}

func TestWrongKeysAreLimited(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var a answer
	for range failureBurst + 1 {
		a = b.do("GET", "/v1/installation", nil, nil, withKey("nobody:nothing"))
	}
	b.refused(a, http.StatusTooManyRequests, tenant.KindUnauthorised, "rate-limited")
	if a.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	b.clock.advance(time.Minute)
	b.must("GET", "/v1/installation", nil, nil)
}

func TestFailuresByNetwork(t *testing.T) {
	t.Parallel()
	now := time.Now()
	f := newFailures(func() time.Time { return now })
	for i := range failureBurst {
		f.count("2001:db8::" + string(rune('a'+i%6)))
	}
	if !f.exhausted("2001:db8::1234") || f.exhausted("2001:db8:1::1") || f.exhausted("192.0.2.1") {
		t.Error("an IPv6 client is its /64")
	}
	now = now.Add(failureEvery)
	if f.exhausted("2001:db8::1") {
		t.Error("time does not heal")
	}
}

// Nobody leaves the audit log by what he sends.
func TestWhatPostgresTakesForNoText(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, path := range []string{"/v1/databases/%00", "/v1/databases/%ff", "/v1/%00"} {
		b.refused(b.do("GET", path, nil, nil), 422, tenant.KindInvalid, "bad-path")
	}
	b.refused(b.do("POST", "/v1/clients", `{"email":"a\u0000b@example.com"}`, nil), 422, tenant.KindInvalid, "bad-email")
	b.refused(b.do("POST", "/v1/clients", api.ClientRequest{Email: strings.Repeat("x", 100_000)}, nil), 422, tenant.KindInvalid, "bad-email")
	if n := b.audited("authorize-client", "refused", "bad-email"); n != 2 {
		t.Errorf("%d of 2 refusals are in the audit log", n)
	}
}
