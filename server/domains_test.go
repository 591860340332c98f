package server

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/server/config"
	"github.com/rehomedb/rehome/tenant"
)

// Hosts that stand for a database have all paths, those of the API and the probes included.
func TestDomains(t *testing.T) {
	t.Parallel()
	b := setupWith(t, func(c *config.Config) { c.URL, c.TrustedProxies = "https://rehome.example", "127.0.0.0/8" })
	b.addShard("s1")
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "the app's "+r.URL.Path+" "+r.Header.Get("X-Forwarded-For"))
	}))
	t.Cleanup(app.Close)
	d := b.createDatabase()
	b.must(http.MethodPatch, "/v1/databases/"+d.Name, api.DatabaseUpdate{Upstream: &app.URL}, nil)
	b.must(http.MethodPut, "/v1/databases/"+d.Name+"/domains/DB.Acme.example", nil, &d)
	if len(d.Domains) != 1 || d.Domains[0] != "db.acme.example" {
		t.Errorf("%+v", d)
	}
	visit := func(host, path string) string {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, b.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		req.Header.Set("X-Forwarded-For", "192.0.2.7")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		raw, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	for _, host := range []string{"db.acme.example", "DB.acme.example.:8443", d.Name + ".rehome.example"} {
		for _, path := range []string{"/", "/v1/databases", "/livez", "/metrics"} {
			if got := visit(host, path); got != "the app's "+path+" 192.0.2.7, 127.0.0.1" {
				t.Errorf("%s%s: %s", host, path, got)
			}
		}
	}
	if got := visit("rehome.example", "/v1/databases"); !strings.Contains(got, "unauthorised") {
		t.Errorf("the API: %s", got)
	}
	other := withKey(b.client(api.ClientRequest{Scopes: []string{"admin"}, Databases: []string{d.Name}}))
	b.refused(b.do(http.MethodPut, "/v1/databases/"+d.Name+"/domains/x.example", nil, nil, other), 403, tenant.KindUnauthorised, "bound-to-databases")
	b.refused(b.do(http.MethodPut, "/v1/databases/"+d.Name+"/domains/rehome.example", nil, nil), 422, tenant.KindInvalid, "bad-domain")
	var left api.Database
	b.must(http.MethodDelete, "/v1/databases/"+d.Name+"/domains/db.acme.example", nil, &left)
	if got := visit("db.acme.example", "/livez"); strings.Contains(got, "the app") || left.Name == "" || len(left.Domains) != 0 {
		t.Errorf("%s %+v", got, left)
	}
}
