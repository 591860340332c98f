package redirect

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/rehomedb/rehome/tenant"
)

func TestForward(t *testing.T) {
	b := setup(t, nil)
	up := app(t, nil)
	b.database(t, "acme", up.URL+"/base")
	host := strings.TrimPrefix(b.srv.URL, "http://")
	for path, want := range map[string]string{
		"/acme":                  "/base",
		"/acme/":                 "/base/",
		"/acme/x/y?q=1&q=%202":   "/base/x/y?q=1&q=%202",
		"/acme/a%2Fb//c%20d/..e": "/base/a%2Fb//c%20d/..e",
	} {
		a := b.do(t, "GET", path, "Authorization", "Bearer x", "X-Forwarded-For", "6.6.6.6", "X-Forwarded-Prefix", "/evil")
		if a.status != 200 || !strings.HasPrefix(a.body, "GET "+want+" host="+host) {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
		for _, s := range []string{"X-Forwarded-For=127.0.0.1 ", "X-Forwarded-Host=" + host, "X-Forwarded-Proto=http ", "X-Forwarded-Prefix=/acme ", "Authorization=Bearer x", "Via=1.1 rehome-one"} {
			if !strings.Contains(a.body, s) {
				t.Errorf("%s: no %s in %s", path, s, a.body)
			}
		}
	}
	a, err := b.try(t.Context(), "POST", "/acme/p", strings.NewReader("the body"))
	must(t, err)
	if !strings.Contains(a.body, "body=the body") {
		t.Error(a.body)
	}
	if a := b.do(t, "GET", "/acme/x", "Via", "1.1 other, 1.1 rehome-one"); a.status != http.StatusLoopDetected || a.prob.Code != "proxy-loop" {
		t.Errorf("%+v", a)
	}
}

// One database's clients must not get at what lies beside it upstream, or at another database of the new side.
func TestPathsDoNotClimb(t *testing.T) {
	b := setup(t, nil)
	up := app(t, nil)
	b.database(t, "acme", up.URL+"/base")
	b.database(t, "moved", up.URL)
	b.exec(t, `INSERT INTO rehome_control.redirects (database, target_url, mode) VALUES ('moved', 'https://new.example/moved', 'redirect')`)
	must(t, b.Reload(t.Context()))
	for _, path := range []string{"/..", "/../other", "/x/../../other", "/%2e%2e/other", "/.%2E/other", "/x%2f..%2f..%2fother", `/..%5cother`} {
		for _, name := range []string{"acme", "moved"} {
			if a := b.do(t, "GET", "/"+name+path); a.status != http.StatusBadRequest || a.prob.Code != "bad-path" {
				t.Errorf("%s%s: %d %s %s", name, path, a.status, a.header.Get("Location"), a.body)
			}
		}
	}
	for _, path := range []string{"/...", "/a..b/..c", "/x?to=../y"} {
		if a := b.do(t, "GET", "/acme"+path); a.status != 200 {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
}

func TestWhatCannotBeServed(t *testing.T) {
	b := setup(t, nil)
	up := app(t, nil)
	for name, upstream := range map[string]string{"bare": "", "stopped": up.URL, "deleted": up.URL, "purged": up.URL, "deleting": up.URL, "dead": "http://127.0.0.1:1"} {
		b.database(t, name, upstream)
		if name != "bare" && name != "dead" {
			b.state(t, name, name)
		}
	}
	b.exec(t, `INSERT INTO rehome_control.databases (name, kind, upstream_url) VALUES ('creating', 'sharded', $1)`, up.URL)
	must(t, b.Reload(t.Context()))
	for name, want := range map[string]struct {
		status int
		code   string
	}{
		"nothing": {404, "database-unknown"}, "bare": {502, "no-upstream"}, "stopped": {503, "database-stopped"}, "deleted": {410, "database-gone"},
		"purged": {410, "database-gone"}, "deleting": {200, ""}, "dead": {502, "upstream-unreachable"}, "creating": {503, "database-not-ready"}, "": {404, "database-unknown"},
	} {
		a := b.do(t, "GET", "/"+name+"/x")
		if a.status != want.status || a.prob.Code != want.code || (want.code != "" && (a.prob.Status != want.status || a.prob.Detail == "")) {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
}

func TestRedirectModes(t *testing.T) {
	b := setup(t, nil)
	ctx := t.Context()
	up, next := app(t, nil), app(t, nil)
	b.database(t, "acme", up.URL)
	_, err := b.RedirectOf(ctx, "acme")
	wants(t, err, tenant.KindNotFound, "no-redirect")
	wants(t, b.ClearRedirect(ctx, "acme"), tenant.KindNotFound, "no-redirect")
	wants(t, b.SetTombstone(ctx, "acme", b.clock.now()), tenant.KindNotFound, "no-redirect")
	for _, r := range []Redirect{{Database: "acme", To: "ftp://x/acme"}, {Database: "acme", To: "https://u:p@x/acme"}, {Database: "acme", To: "https://x/acme", Mode: "teleport"}} {
		if _, err := b.SetRedirect(ctx, r); tenant.AsError(err).Kind != tenant.KindInvalid {
			t.Errorf("%+v: %v", r, err)
		}
	}
	_, err = b.SetRedirect(ctx, Redirect{Database: "nobody", To: "https://x/nobody"})
	wants(t, err, tenant.KindNotFound, "database-unknown")

	// redirect: 307, later 308; path and query go along; the connection does not stay.
	set := func(r Redirect) {
		t.Helper()
		r.Database = "acme"
		_, err := b.SetRedirect(ctx, r)
		must(t, err)
	}
	set(Redirect{To: "https://own.example/acme/", CreatedBy: "o@example.com"})
	for path, want := range map[string]string{
		"/acme": "https://own.example/acme", "/acme/": "https://own.example/acme/", "/acme/a%2Fb/c?x=%20y&z": "https://own.example/acme/a%2Fb/c?x=%20y&z",
		"/acme//evil.example/": "https://own.example/acme//evil.example/",
	} {
		a := b.do(t, "POST", path)
		if a.status != 307 || a.header.Get("Location") != want {
			t.Errorf("%s: %d %s", path, a.status, a.header.Get("Location"))
		}
	}
	eventually(t, "redirected connections close", func() bool { return len(b.Open("acme")) == 0 })
	set(Redirect{To: "https://own.example/acme", Permanent: true})
	if a := b.do(t, "GET", "/acme/x"); a.status != 308 {
		t.Errorf("%+v", a)
	}

	// refuse: a problem document names the new URL.
	set(Redirect{To: "https://own.example/acme", Mode: ModeRefuse})
	if a := b.do(t, "GET", "/acme/x"); a.status != 421 || a.prob.Code != "database-moved" || a.prob.MovedTo != "https://own.example/acme" {
		t.Errorf("%+v", a)
	}

	// proxy: credentials stay behind where the host is another.
	set(Redirect{To: next.URL + "/acme", Mode: ModeProxy})
	a := b.do(t, "GET", "/acme/x?y", "Authorization", "Bearer secret", "Cookie", "a=secret", "Proxy-Authorization", "secret")
	if a.status != 200 || !strings.HasPrefix(a.body, "GET /acme/x?y host="+strings.TrimPrefix(next.URL, "http://")) || strings.Contains(a.body, "secret") {
		t.Errorf("%+v", a)
	}
	r, err := b.RedirectOf(ctx, "acme")
	must(t, err)
	if r.Mode != ModeProxy || r.Permanent {
		t.Errorf("%+v", r)
	}

	// proxy to ourselves is noticed.
	set(Redirect{To: b.srv.URL + "/acme", Mode: ModeProxy})
	if a := b.do(t, "GET", "/acme/x"); a.status != http.StatusLoopDetected {
		t.Errorf("%+v", a)
	}

	must(t, b.ClearRedirect(ctx, "acme"))
	if a := b.do(t, "GET", "/acme/x"); a.status != 200 {
		t.Errorf("%+v", a)
	}
}

// A tombstone redirects after the deletion and the purge, until its time is over.
func TestTombstone(t *testing.T) {
	b := setup(t, nil)
	ctx := t.Context()
	b.database(t, "acme", app(t, nil).URL)
	_, err := b.SetRedirect(ctx, Redirect{Database: "acme", To: "https://own.example/acme", Permanent: true})
	must(t, err)
	until := b.clock.now().Add(180 * 24 * time.Hour)
	must(t, b.SetTombstone(ctx, "acme", until))
	for _, state := range []string{"deleted", "purged"} {
		b.state(t, "acme", state)
		if a := b.do(t, "GET", "/acme/x"); a.status != 308 {
			t.Errorf("%s: %+v", state, a)
		}
	}
	b.clock.add(180*24*time.Hour - time.Second)
	if a := b.do(t, "GET", "/acme/x"); a.status != 308 {
		t.Errorf("%+v", a)
	}
	b.clock.add(time.Second)
	if a := b.do(t, "GET", "/acme/x"); a.status != 410 {
		t.Errorf("%+v", a)
	}
	// Setting the redirect again keeps the end.
	r, err := b.SetRedirect(ctx, Redirect{Database: "acme", To: "https://own2.example/acme"})
	must(t, err)
	if r.TombstoneUntil == nil || !r.TombstoneUntil.Equal(until) {
		t.Errorf("%+v", r)
	}
}

// Another server's change is followed by NOTIFY, and a lost one by the poll.
func TestRoutesFollow(t *testing.T) {
	b := setup(t, func(c *Config) { c.RefreshEvery = time.Hour })
	b.run(t)
	other := New(Config{Pool: b.pool, Server: "two"})
	b.exec(t, `INSERT INTO rehome_control.databases (name, kind, upstream_url, placement_epoch) VALUES ('acme', 'sharded', $1, 1)`, app(t, nil).URL)
	eventually(t, "the listener is up", func() bool {
		_, err := other.SetRedirect(t.Context(), Redirect{Database: "acme", To: "https://own.example/acme"})
		must(t, err)
		return b.do(t, "GET", "/acme/x").status == 307
	})
	must(t, other.ClearRedirect(t.Context(), "acme"))
	eventually(t, "the redirect is off", func() bool { return b.do(t, "GET", "/acme/x").status == 200 })

	polling := New(Config{Pool: b.pool, Server: "three", RefreshEvery: 20 * time.Millisecond})
	p := &bundle{Gateway: polling, pool: b.pool, clock: b.clock, http: b.http}
	p.srv = b.serve(t, polling)
	p.run(t)
	eventually(t, "the routes are read", func() bool { return p.do(t, "GET", "/acme/x").status == 200 })
	b.exec(t, `UPDATE rehome_control.databases SET state = 'stopped'`)
	eventually(t, "the poll sees it", func() bool { return p.do(t, "GET", "/acme/x").status == 503 })
	// The listening session breaks: it is made anew.
	b.exec(t, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND pid <> pg_backend_pid()`)
	b.exec(t, `UPDATE rehome_control.databases SET state = 'active'`)
	eventually(t, "the poll sees it again", func() bool { return p.do(t, "GET", "/acme/x").status == 200 })
}

// A client that takes nothing is cut off.
func TestSlowReaderIsCutOff(t *testing.T) {
	b := setup(t, func(c *Config) { c.WriteTimeout = 300 * time.Millisecond })
	over := make(chan struct{})
	up := app(t, func(w http.ResponseWriter, _ *http.Request) {
		block := make([]byte, 1<<20)
		for {
			if _, err := w.Write(block); err != nil {
				close(over)
				return
			}
		}
	})
	b.database(t, "acme", up.URL)
	resp, err := b.http.Get(b.srv.URL + "/acme/flood")
	must(t, err)
	defer func() { _ = resp.Body.Close() }()
	select {
	case <-over:
	case <-time.After(15 * time.Second):
		t.Fatal("the reader still blocks the upstream")
	}
}

func ExampleNew() {
	g := New(Config{Server: "one"})
	srv := &http.Server{Handler: g, ConnContext: g.ConnContext, ConnState: g.ConnState, ReadHeaderTimeout: 10 * time.Second}
	fmt.Println(srv.ReadHeaderTimeout)
	// Output: 10s
}
