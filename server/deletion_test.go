package server

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/otp"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/server/cutover"
	"github.com/rehomedb/rehome/tenant"
)

// oldSide is a server with an adopted database: what a move leaves behind.
func oldSide(t *testing.T) (b *bundle, name string, conn *pgx.Conn) {
	t.Helper()
	return oldSideOf(t, setup(t))
}

func oldSideOf(t *testing.T, b *bundle) (_ *bundle, name string, conn *pgx.Conn) {
	t.Helper()
	dsn := sourceDatabase(t)
	name = "hosted_" + strings.ToLower(rand.Text())[:8]
	b.must("POST", "/v1/databases/adopt", api.AdoptRequest{Name: name, DSN: dsn.Reveal(), Owner: owner}, nil)
	cfg, err := pgx.ParseConfig(dsn.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	cfg.RuntimeParams["application_name"] = "rehome tests" // not counted as a client
	if conn, err = pgx.ConnectConfig(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return b, name, conn
}

// cutOver makes the gate say that the other side writes, and signs the certificate of it.
func cutOver(t *testing.T, conn *pgx.Conn, name string) tenant.Certificate {
	t.Helper()
	if err := gate.InstallSource(t.Context(), conn, "a pass"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), `UPDATE rehome.gate SET epoch = epoch + 1, side = 'target', attempt = 'at1'`); err != nil {
		t.Fatal(err)
	}
	state, err := gate.ReadGate(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := tenant.Certificate{Version: 1, Database: name, Target: "https://new.example/" + name, GateEpoch: state.Epoch, Attempt: "at1", DecidedAt: time.Now(), PauseMillis: 123.4}
	if err := cutover.Sign(&c, key); err != nil {
		t.Fatal(err)
	}
	return c
}

func (b *bundle) redirect(name string, force bool) answer {
	b.t.Helper()
	p := api.RedirectPlan{Database: name, To: "https://new.example/" + name, Force: force}
	a := b.do("POST", "/v1/challenges", api.ChallengeRequest{Action: "redirect", Redirect: &p}, nil)
	if a.status >= 300 {
		return a
	}
	m := b.lastMail(otp.KindCode)
	return b.do("PUT", "/v1/databases/"+name+"/redirect", api.RedirectRequest{RedirectPlan: p, Approval: api.Approval{ID: m.Challenge, Code: m.Code}}, nil)
}

// visit is what a client of the database gets.
func (b *bundle) visit(name string) (int, string) {
	b.t.Helper()
	req, err := http.NewRequestWithContext(b.t.Context(), http.MethodGet, b.url+"/"+name+"/page", nil)
	if err != nil {
		b.t.Fatal(err)
	}
	req.Close = true // not a connection that stays open and would be counted
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		b.t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode, resp.Header.Get("Location")
}

func TestRedirectOnlyAfterTheCutover(t *testing.T) {
	t.Parallel()
	b, name, conn := oldSide(t)
	b.refused(b.redirect(name, false), 409, tenant.KindRefused, "source-still-writes")
	if err := gate.InstallSource(t.Context(), conn, "a pass"); err != nil {
		t.Fatal(err)
	}
	b.refused(b.redirect(name, false), 409, tenant.KindRefused, "source-still-writes")
	if a := b.redirect(name, true); a.status != 200 {
		t.Fatalf("forced: %d %s", a.status, a.body)
	}
	b.must("DELETE", "/v1/databases/"+name+"/redirect", nil, nil)
	b.refused(b.do("GET", "/v1/databases/"+name+"/redirect", nil, nil), 404, tenant.KindNotFound, "no-redirect")
	cutOver(t, conn, name)
	if a := b.redirect(name, false); a.status != 200 {
		t.Fatalf("after the cutover: %d %s", a.status, a.body)
	}
	if status, to := b.visit(name); status != http.StatusTemporaryRedirect || to != "https://new.example/"+name+"/page" {
		t.Errorf("a client gets %d %s", status, to)
	}
	for _, bad := range []string{"https://new.example/", "https://u:hidden@new.example/" + name, testURL + "/" + name} {
		a := b.do("POST", "/v1/challenges", api.ChallengeRequest{Action: "redirect", Redirect: &api.RedirectPlan{Database: name, To: bad, Force: true}}, nil)
		if a.status != 422 || strings.Contains(a.problem.Hint, "hidden") {
			t.Errorf("%s: got %d %s", bad, a.status, a.body)
		}
	}
}

// beginDelete goes through code and approval and returns the confirmation mail.
func (b *bundle) beginDelete(p api.DeletePlan) otp.Mail {
	b.t.Helper()
	approval := b.ask(api.ChallengeRequest{Action: "delete-db", Delete: &p})
	var st api.DeleteStatus
	b.must("POST", "/v1/databases/"+p.Database+"/delete", api.DeleteRequest{DeletePlan: p, Approval: approval}, &st)
	if st.State != "deleting" || st.SentTo != "o***@example.com" || st.ConfirmBefore == nil {
		b.t.Fatalf("got %+v", st)
	}
	return b.lastMail(otp.KindDeletion)
}

func TestDeletionIsGuarded(t *testing.T) {
	t.Parallel()
	b, name, conn := oldSide(t)
	ask := func(p api.DeletePlan) answer {
		p.Database = name
		return b.do("POST", "/v1/challenges", api.ChallengeRequest{Action: "delete-db", Delete: &p}, nil)
	}
	codes := func(a answer) (out []string) {
		b.refused(a, 409, tenant.KindRefused, "delete-refused")
		for _, f := range a.problem.Findings {
			if !f.Accepted {
				out = append(out, f.Code)
			}
		}
		return out
	}
	if got := codes(ask(api.DeletePlan{})); len(got) != 2 || got[0] != "certificate" || got[1] != "redirect" {
		t.Errorf("nothing done: %v", got)
	}
	cert := cutOver(t, conn, name)
	if a := b.redirect(name, false); a.status != 200 {
		t.Fatalf("redirect: %s", a.body)
	}
	client, err := pgx.Connect(t.Context(), strings.Replace(conn.Config().ConnString(), "application_name", "x", 1))
	if err != nil {
		t.Fatal(err)
	}
	if got := codes(ask(api.DeletePlan{Certificate: &cert})); len(got) != 1 || got[0] != "connections" {
		t.Errorf("a client is connected: %v", got)
	}
	if err := client.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.eventually("the client is gone", func() bool {
		var st api.Stats
		b.must("GET", "/v1/databases/"+name+"/stats", nil, &st)
		return st.OpenNow == 0
	})
	for what, change := range map[string]func(*tenant.Certificate){
		"changed":          func(c *tenant.Certificate) { c.PauseMillis = 1 },
		"another database": func(c *tenant.Certificate) { c.Database = "other" },
		"no signature":     func(c *tenant.Certificate) { c.Signature = "" },
		"moved here": func(c *tenant.Certificate) { // the certificate of the move, and the URL of the wrong side
			c.Target = b.databaseURL(name)
			if err := cutover.Sign(c, b.Installation().PrivateKey); err != nil {
				t.Fatal(err)
			}
		},
	} {
		bad := cert
		change(&bad)
		if got := codes(ask(api.DeletePlan{Certificate: &bad})); len(got) != 1 || got[0] != "certificate" {
			t.Errorf("%s: %v", what, got)
		}
	}
	key, err := signerOf(cert)
	if err != nil {
		t.Fatal(err)
	}
	for trusted, want := range map[string]int{cert.PublicKey: 0, cutover.Fingerprint(key): 0, cutover.Fingerprint(b.Installation().PublicKey): 1} {
		a := ask(api.DeletePlan{Certificate: &cert, CertificateKey: trusted})
		if want == 0 && a.status != 201 {
			t.Errorf("trusted %s: %d %s", trusted, a.status, a.body)
		} else if want == 1 {
			if got := codes(a); len(got) != 1 || got[0] != "certificate" {
				t.Errorf("trusted %s: %v", trusted, got)
			}
		}
	}
	if m := b.lastMail(otp.KindCode); !strings.Contains(m.Text, cutover.Fingerprint(key)) {
		t.Errorf("the mail does not say whose certificate it is: %s", m.Text)
	}
	// The move is not completed: its publication is there, and then the way back too.
	for _, at := range []struct{ before, after string }{
		{`CREATE PUBLICATION rehome_abc`, `DROP PUBLICATION rehome_abc`},
		{`CREATE TABLE rehome.applier (replication text)`, `DROP TABLE rehome.applier`},
		{`UPDATE rehome.gate SET new_url = 'https://elsewhere.example/x'`, `UPDATE rehome.gate SET new_url = ''`},
	} {
		if _, err := conn.Exec(t.Context(), at.before); err != nil {
			t.Fatal(err)
		}
		want := "way-back"
		if strings.HasPrefix(at.before, "UPDATE") {
			want = "certificate"
		}
		if got := codes(ask(api.DeletePlan{Certificate: &cert})); len(got) != 1 || got[0] != want {
			t.Errorf("%s: %v", at.before, got)
		}
		if a := ask(api.DeletePlan{Certificate: &cert, Force: []string{want}}); a.status != 201 {
			t.Errorf("%s, forced: %d %s", at.before, a.status, a.body)
		}
		if _, err := conn.Exec(t.Context(), at.after); err != nil {
			t.Fatal(err)
		}
	}
	// A rollback was taken back: the gate has moved on, and is the same cutover's still.
	for _, at := range []struct {
		update string
		good   bool
	}{
		{`UPDATE rehome.gate SET epoch = epoch + 2`, true},
		{`UPDATE rehome.gate SET attempt = 'at2'`, false},
		{`UPDATE rehome.gate SET attempt = ''`, false},
		{`UPDATE rehome.gate SET attempt = 'at1', epoch = epoch - 3`, false},
		{`UPDATE rehome.gate SET epoch = epoch + 1`, true},
	} {
		if _, err := conn.Exec(t.Context(), at.update); err != nil {
			t.Fatal(err)
		}
		a := ask(api.DeletePlan{Certificate: &cert})
		if at.good && a.status != 201 {
			t.Errorf("%s: %d %s", at.update, a.status, a.body)
		} else if !at.good {
			if got := codes(a); len(got) != 1 || got[0] != "certificate" {
				t.Errorf("%s: %v", at.update, got)
			}
		}
	}
	if _, err := conn.Exec(t.Context(), `UPDATE rehome.gate SET epoch = epoch + 2, side = 'source'`); err != nil {
		t.Fatal(err)
	}
	if got := codes(ask(api.DeletePlan{Certificate: &cert})); len(got) != 1 || got[0] != "certificate" {
		t.Errorf("rolled back since: %v", got)
	}
	b.refused(ask(api.DeletePlan{Force: []string{"everything"}}), 422, tenant.KindInvalid, "bad-force")
	if a := ask(api.DeletePlan{Force: []string{"certificate"}}); a.status != 201 {
		t.Errorf("forced: %d %s", a.status, a.body)
	}
}

func TestDeletionByCode(t *testing.T) {
	t.Parallel()
	b, name, conn := oldSide(t)
	cert := cutOver(t, conn, name)
	if a := b.redirect(name, false); a.status != 200 {
		t.Fatalf("redirect: %s", a.body)
	}
	m := b.beginDelete(api.DeletePlan{Database: name, Certificate: &cert})
	path := "/v1/databases/" + name
	wrong := "00000000"
	b.refused(b.do("POST", path+"/delete/confirm", api.DeleteConfirm{Code: wrong}, nil), 403, tenant.KindUnauthorised, "wrong-code")
	// A client came back since the deletion was approved.
	back, err := pgx.Connect(t.Context(), strings.Replace(conn.Config().ConnString(), "application_name", "x", 1))
	if err != nil {
		t.Fatal(err)
	}
	b.refused(b.do("POST", path+"/delete/confirm", api.DeleteConfirm{Code: m.Code}, nil), 409, tenant.KindRefused, "delete-refused")
	if err := back.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.eventually("the client is gone", func() bool {
		var open api.Stats
		b.must("GET", path+"/stats", nil, &open)
		return open.OpenNow == 0
	})
	var st api.DeleteStatus
	b.must("POST", path+"/delete/confirm", api.DeleteConfirm{Code: m.Code}, &st)
	if st.State != "deleted" || st.PurgeAfter == nil || st.TombstoneUntil == nil {
		t.Fatalf("got %+v", st)
	}
	b.refused(b.do("POST", path+"/delete/confirm", api.DeleteConfirm{Code: m.Code}, nil), 404, tenant.KindNotFound, "no-confirmation")
	if status, _ := b.visit(name); status != http.StatusTemporaryRedirect {
		t.Errorf("a deleted database's client gets %d", status)
	}
	b.refused(b.do("DELETE", path+"/redirect", nil, nil), 409, tenant.KindConflict, "database-deleted")

	var d api.Database
	b.must("POST", path+"/undelete", nil, &d)
	if d.State != "active" || d.PurgeAfter != nil {
		t.Errorf("undeleted: %+v", d)
	}
	var r api.Redirect
	b.must("GET", path+"/redirect", nil, &r)
	if r.TombstoneUntil != nil {
		t.Error("the tombstone stays")
	}

	// Nobody confirms: the day after it is as if nothing had been asked.
	m = b.beginDelete(api.DeletePlan{Database: name, Certificate: &cert})
	if err := b.abandonExpired(t.Context()); err != nil {
		t.Fatal(err)
	}
	if b.must("GET", path, nil, &d); d.State != "deleting" {
		t.Errorf("while it can be confirmed: %s", d.State)
	}
	b.clock.advance(otp.ConfirmationTTL + time.Minute)
	b.refused(b.do("POST", path+"/delete/confirm", api.DeleteConfirm{Code: m.Code}, nil), 403, tenant.KindUnauthorised, "code-expired")
	if err := b.abandonExpired(t.Context()); err != nil {
		t.Fatal(err)
	}
	if b.must("GET", path, nil, &d); d.State != "active" {
		t.Errorf("after nobody confirmed: %s", d.State)
	}

	// What was stopped is stopped again, also after it was asked twice; what a dying server left of a confirmation goes.
	b.must("PATCH", path, api.DatabaseUpdate{State: new("stopped")}, nil)
	b.beginDelete(api.DeletePlan{Database: name, Certificate: &cert})
	b.beginDelete(api.DeletePlan{Database: name, Certificate: &cert})
	b.exec(`UPDATE rehome_control.redirects SET tombstone_until = now() WHERE database = $1`, name)
	b.clock.advance(otp.ConfirmationTTL + time.Minute)
	if err := b.abandonExpired(t.Context()); err != nil {
		t.Fatal(err)
	}
	if b.must("GET", path, nil, &d); d.State != "stopped" {
		t.Errorf("a stopped database whose deletion nobody confirmed: %s", d.State)
	}
	if b.must("GET", path+"/redirect", nil, &r); r.TombstoneUntil != nil {
		t.Error("the tombstone stays")
	}
	b.must("PATCH", path, api.DatabaseUpdate{State: new("active")}, nil)

	// A mail whose deletion was taken back deletes nothing, even if the confirmation outlived that.
	m = b.beginDelete(api.DeletePlan{Database: name, Certificate: &cert})
	b.exec(`UPDATE rehome_control.databases SET state = 'active' WHERE name = $1`, name)
	b.refused(b.do("POST", path+"/delete/confirm", api.DeleteConfirm{Code: m.Code}, nil), 404, tenant.KindNotFound, "no-confirmation")

	m = b.beginDelete(api.DeletePlan{Database: name, Certificate: &cert})
	b.must("POST", path+"/delete/confirm", api.DeleteConfirm{Code: m.Code}, &st)
	b.clock.advance(b.cfg.DeleteGrace - time.Hour)
	if err := b.purgeDue(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.must("GET", path, nil, &d)
	if d.State != "deleted" {
		t.Errorf("before the grace is over: %s", d.State)
	}
	_ = conn.Close(t.Context())
	b.clock.advance(2 * time.Hour)
	if err := b.purgeDue(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.must("GET", path, nil, &d)
	if d.State != "purged" {
		t.Errorf("after the grace: %s", d.State)
	}
	b.refused(b.do("POST", path+"/undelete", nil, nil), 409, tenant.KindConflict, "database-wrong-state")
	if status, _ := b.visit(name); status != http.StatusPermanentRedirect {
		t.Errorf("a tombstone answers %d", status)
	}
	b.clock.advance(b.cfg.Tombstone)
	own := withKey(b.client(api.ClientRequest{Email: owner, Databases: []string{name, name}}))
	both := withKey(b.client(api.ClientRequest{Email: owner, Databases: []string{name, "other"}}))
	b.refused(b.do("DELETE", path+"/redirect", nil, nil, own), 403, tenant.KindUnauthorised, "scope-missing")
	b.eventually("the tombstone ends", func() bool { status, _ := b.visit(name); return status == http.StatusGone })
	for _, action := range []string{"delete-database", "confirm-delete", "undelete-database", "purge-database", "otp.delete-begin"} {
		if b.audited(action, "ok", "") == 0 {
			t.Errorf("%s is not in the audit log", action)
		}
	}

	// The name is free again, and the keys of who had it are not for who has it next.
	b.must("DELETE", path+"/redirect", nil, nil)
	dsn := sourceDatabase(t)
	b.must("POST", "/v1/databases/adopt", api.AdoptRequest{Name: name, DSN: dsn.Reveal(), Owner: "next@example.com"}, nil)
	b.refused(b.do("GET", path, nil, nil, own), 401, tenant.KindUnauthorised, "bad-credentials")
	b.refused(b.do("GET", path, nil, nil, both), 404, tenant.KindNotFound, "database-not-found")
	b.must("GET", path, nil, nil, withKey(b.client(api.ClientRequest{Databases: []string{name}})))
}

func TestDeletionByLink(t *testing.T) {
	t.Parallel()
	b, name, conn := oldSide(t)
	cutOver(t, conn, name)
	m := b.beginDelete(api.DeletePlan{Database: name, Force: []string{"certificate", "redirect", "connections"}})
	link, err := url.Parse(m.Link)
	if err != nil || !strings.HasPrefix(m.Link, testURL+"/v1/delete/"+name+"/") {
		t.Fatalf("the link is %s", m.Link)
	}
	state := func() string {
		var d api.Database
		b.must("GET", "/v1/databases/"+name, nil, &d)
		return d.State
	}
	visit := func(method, path string) (int, http.Header, string) {
		req, err := http.NewRequestWithContext(t.Context(), method, b.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, resp.Header, string(body)
	}
	status, header, body := visit(http.MethodGet, link.Path)
	if status != 200 || !strings.Contains(body, `<form method="post">`) || strings.Contains(body, "src=") || strings.Contains(body, "<script") {
		t.Errorf("got %d %s", status, body)
	}
	if csp := header.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") || header.Get("Referrer-Policy") != "no-referrer" {
		t.Errorf("the page's policy is %q", csp)
	}
	if state() != "deleting" {
		t.Fatal("opening the link deleted the database")
	}
	if status, _, _ := visit(http.MethodPost, "/v1/delete/"+name+"/WRONG"); status != 404 || state() != "deleting" {
		t.Fatalf("a wrong link: %d", status)
	}
	if status, _, body := visit(http.MethodPost, link.Path); status != 200 || state() != "deleted" {
		t.Fatalf("the button: %d %s", status, body)
	}
	if status, _, _ := visit(http.MethodPost, link.Path); status != 404 {
		t.Errorf("the button again: %d", status)
	}
	token := link.Path[strings.LastIndex(link.Path, "/")+1:]
	if strings.Contains(b.logs.String(), token) {
		t.Error("the token is in the log")
	}
	if b.audited("confirm-delete", "ok", "") != 1 || b.audited("confirm-delete", "refused", "no-confirmation") != 2 {
		t.Error("the audit log is not complete")
	}
}
