package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/progress"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/server/notify"
	"github.com/rehomedb/rehome/tenant"
)

// brisk lets a day and a half pass in a second.
func brisk() Deps {
	p := notify.Policy{First: 20 * time.Millisecond, Factor: 2, Max: 200 * time.Millisecond, Tries: 6}
	return Deps{Notify: notify.Options{Webhooks: p, Mails: p, Timeout: 500 * time.Millisecond, Poll: 100 * time.Millisecond}}
}

// patient tries again when the test is over.
func patient() Deps {
	p := notify.Policy{First: time.Hour, Factor: 1, Max: time.Hour, Tries: 6}
	return Deps{Notify: notify.Options{Webhooks: p, Mails: p, Timeout: 500 * time.Millisecond, Poll: 100 * time.Millisecond}}
}

func (b *bundle) webhook(r *receiver, q api.WebhookRequest) api.WebhookSecret {
	b.t.Helper()
	var w api.WebhookSecret
	q.URL = r.url
	b.must(http.MethodPost, "/v1/webhooks", q, &w)
	r.knows(w.Secret)
	return w
}

// happens appends an event of a replication, as its worker does.
func (b *bundle) happens(database, event string, data any) progress.Event {
	b.t.Helper()
	var e progress.Event
	err := pgx.BeginFunc(b.t.Context(), b.pool, func(tx pgx.Tx) (err error) {
		e, err = b.events.Append(b.t.Context(), tx, progress.Entry{Stream: "rep-" + database, Database: database, Kind: "replication", ID: "rep-" + database, Event: event, Data: data})
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return e
}

func phase(from, to tenant.Phase) map[string]any { return map[string]any{"from": from, "to": to} }

func (b *bundle) cutOver(database string) progress.Event {
	b.t.Helper()
	return b.happens(database, "phase", phase(tenant.CuttingOver, tenant.CutOver))
}

func (b *bundle) deliveries(webhook string) []api.WebhookDelivery {
	b.t.Helper()
	var list []api.WebhookDelivery
	b.must(http.MethodGet, "/v1/webhook-deliveries?limit=1000&webhook="+webhook, nil, &list)
	return list
}

// delivered waits until all of a webhook's deliveries are in a state, and returns them.
func (b *bundle) ended(webhook, state string, n int) []api.WebhookDelivery {
	b.t.Helper()
	var list []api.WebhookDelivery
	b.eventually(fmt.Sprintf("%d deliveries of %s are %s", n, webhook, state), func() bool {
		list = b.deliveries(webhook)
		return len(list) == n && !slices.ContainsFunc(list, func(d api.WebhookDelivery) bool { return d.State != state })
	})
	return list
}

func TestWebhookGetsTheEventAsItIs(t *testing.T) {
	t.Parallel()
	b := setup(t, brisk())
	r := newReceiver(t, b.clock.now, nil)
	w := b.webhook(r, api.WebhookRequest{Events: []string{"cutover-done", "in-sync"}, Databases: nil, Description: "on call"})
	if !strings.HasPrefix(w.Secret, "whsec_") || strings.Contains(w.URL, "secret-part") {
		t.Errorf("got %+v", w)
	}
	b.happens("acme", "phase", phase(tenant.Copying, tenant.CatchingUp)) // no news
	b.happens("acme", "verified", map[string]any{"clean": false})        // not asked for
	first := b.happens("acme", "phase", phase(tenant.CatchingUp, tenant.InSync))
	b.happens("acme", "phase", phase(tenant.InSync, tenant.CatchingUp))
	b.happens("acme", "phase", phase(tenant.CatchingUp, tenant.InSync)) // told already
	second := b.cutOver("acme")
	b.ended(w.ID, "delivered", 2)
	want, err := b.events.After(t.Context(), first.Stream, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]received{}
	for _, x := range r.all() {
		got[x.id] = x
	}
	for _, e := range []progress.Event{first, second} {
		asSSE, err := json.Marshal(want[e.Sequence-1])
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(asSSE), got[e.ID].body); d != "" {
			t.Errorf("the event differs from the one that watchers get (-want +got):\n%s", d)
		}
	}
	var list []api.Webhook
	a := b.must(http.MethodGet, "/v1/webhooks", nil, &list)
	if len(list) != 1 || list[0].LastStatus == nil || *list[0].LastStatus != 200 || strings.Contains(string(a.body), w.Secret) {
		t.Errorf("got %s", a.body)
	}
	var stored string
	if err := b.pool.QueryRow(t.Context(), `SELECT w::text FROM rehome_control.webhooks w`).Scan(&stored); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(stored, "secret-part") || strings.Contains(stored, w.Secret[8:]) || strings.Contains(b.logs.String(), "secret-part") || strings.Contains(b.logs.String(), w.Secret) {
		t.Error("a secret is readable in the database or the log")
	}
	if b.audited("add-webhook", "ok", "") != 1 {
		t.Error("nothing in the audit log")
	}
}

// Whatever a receiver does wrong, the event comes again with the same id, and at no other place.
func TestWebhookIsTriedAgain(t *testing.T) {
	t.Parallel()
	b := setup(t, brisk())
	elsewhere := newReceiver(t, b.clock.now, nil)
	r := newReceiver(t, b.clock.now, func(n int, w http.ResponseWriter, q *http.Request) {
		switch n {
		case 1:
			http.Error(w, "on fire", http.StatusInternalServerError)
		case 2:
			<-q.Context().Done() // no answer
		case 3:
			http.Redirect(w, q, elsewhere.url, http.StatusTemporaryRedirect)
		case 4:
			panic(http.ErrAbortHandler) // the connection breaks
		}
	})
	w := b.webhook(r, api.WebhookRequest{})
	e := b.cutOver("acme")
	d := b.ended(w.ID, "delivered", 1)[0]
	if d.Attempts != 5 || d.EventID != e.ID || d.Event != "cutover-done" || d.Database != "acme" || d.Error != "" {
		t.Errorf("got %+v", d)
	}
	if n := r.counts()[e.ID]; n != 5 {
		t.Errorf("it came %d times", n)
	}
	if len(elsewhere.all()) != 0 {
		t.Error("a redirect was followed")
	}
}

func TestWebhookIsGivenUpAndAskedForAgain(t *testing.T) {
	t.Parallel()
	b := setup(t, brisk())
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	var w api.WebhookSecret
	b.must(http.MethodPost, "/v1/webhooks", api.WebhookRequest{URL: "http://" + address}, &w)
	e := b.cutOver("acme")
	d := b.ended(w.ID, "dead", 1)[0]
	if d.Attempts != 6 || d.Error != "connection refused" || d.FinishedAt == nil || d.NextAt != nil {
		t.Errorf("got %+v", d)
	}
	// The row is written behind the transaction that ends the delivery.
	b.eventually("a row of the audit log", func() bool { return b.audited("webhook-delivery-dead", "failed", "") == 1 })
	events, err := b.events.After(t.Context(), progress.StreamInstallation, 0, 0)
	if err != nil || !slices.ContainsFunc(events, func(x progress.Event) bool {
		return x.Type == "dev.rehome.webhook.delivery-dead" && strings.Contains(string(x.Data), e.ID)
	}) {
		t.Errorf("no event tells it: %v %v", events, err)
	}
	r := newReceiver(t, b.clock.now, nil)
	r.knows(w.Secret)
	again, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: r, ReadHeaderTimeout: patience}
	t.Cleanup(func() { _ = srv.Close() })
	go func() { _ = srv.Serve(again) }() // ends with the test
	b.must(http.MethodPost, "/v1/webhook-deliveries/"+strconv.FormatInt(d.ID, 10)+"/redeliver", nil, nil)
	if d = b.ended(w.ID, "delivered", 1)[0]; d.Attempts != 1 {
		t.Errorf("got %+v", d)
	}
	if r.counts()[e.ID] != 1 {
		t.Errorf("got %v", r.counts())
	}
}

// Two servers look at the same events; each is turned into one delivery, and arrives once.
func TestWebhookOnceWithTwoServers(t *testing.T) {
	t.Parallel()
	one := setup(t, brisk())
	two := &bundle{t: t, mailbox: one.mailbox, clock: one.clock, control: one.control, logs: one.logs}
	two.serve(testConfig(one.control, one.mailbox, one.clock), brisk())
	r := newReceiver(t, one.clock.now, nil)
	w := one.webhook(r, api.WebhookRequest{})
	const each = 40
	var wg sync.WaitGroup
	for n, b := range []*bundle{one, two, one, two} {
		wg.Go(func() {
			for range each {
				b.cutOver("db" + strconv.Itoa(n)) // t.Fatal of another goroutine only ends that: the count below fails
			}
		})
	}
	wg.Wait()
	one.ended(w.ID, "delivered", 4*each)
	counts := r.counts()
	if len(counts) != 4*each {
		t.Errorf("%d events arrived, expected %d", len(counts), 4*each)
	}
	for id, n := range counts {
		if n != 1 {
			t.Errorf("event %s came %d times", id, n)
		}
	}
}

// What happens while no server runs, or is cut off with its server, arrives later.
func TestWebhookAfterAServerDied(t *testing.T) {
	t.Parallel()
	b := setup(t, patient())
	r := newReceiver(t, b.clock.now, func(n int, w http.ResponseWriter, _ *http.Request) {
		if n == 1 {
			http.Error(w, "not now", http.StatusServiceUnavailable)
		}
	})
	w := b.webhook(r, api.WebhookRequest{})
	tried := b.cutOver("acme")
	b.eventually("the first try", func() bool { l := b.deliveries(w.ID); return len(l) == 1 && l[0].Attempts == 1 })
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), b.control.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	// As a server leaves it that is killed in the middle of a try.
	tag, err := conn.Exec(t.Context(), `UPDATE rehome_control.river_job SET state = 'running', attempt = 1, attempted_at = now() - interval '10 minutes', attempted_by = '{gone}' WHERE kind = 'webhook-delivery'`)
	if err != nil || tag.RowsAffected() != 1 {
		t.Fatal(tag, err)
	}
	// As a server leaves it that is killed just after the event's commit.
	log := progress.NewLog(b.pool, b.installation.ID, testURL)
	missed, err := log.Append(t.Context(), conn, progress.Entry{Stream: "rep-acme", Database: "acme", Kind: "replication", ID: "rep-acme", Event: "phase", Data: phase(tenant.RollingBack, tenant.RolledBack)})
	if err != nil {
		t.Fatal(err)
	}
	b.serve(testConfig(b.control, b.mailbox, b.clock), patient())
	b.ended(w.ID, "delivered", 2)
	if d := cmp.Diff(map[string]int{tried.ID: 2, missed.ID: 1}, r.counts()); d != "" {
		t.Error(d)
	}
}

func TestWebhookGone(t *testing.T) {
	t.Parallel()
	b := setup(t, brisk())
	r := newReceiver(t, b.clock.now, func(n int, w http.ResponseWriter, _ *http.Request) {
		if n == 1 {
			w.WriteHeader(http.StatusGone)
		}
	})
	w := b.webhook(r, api.WebhookRequest{})
	b.cutOver("acme")
	if d := b.ended(w.ID, "dead", 1)[0]; d.Attempts != 1 || *d.Status != http.StatusGone {
		t.Errorf("got %+v", d)
	}
	var now api.Webhook
	b.must(http.MethodGet, "/v1/webhooks/"+w.ID, nil, &now)
	if now.Enabled || !strings.Contains(now.DisabledReason, "410") {
		t.Errorf("got %+v", now)
	}
	// The row is written behind the transaction that ends the delivery.
	b.eventually("a row of the audit log", func() bool { return b.audited("webhook-disabled", "failed", "") == 1 })
	seen := b.cutOver("acme")
	b.eventually("the event was looked at", func() bool {
		var at, id int64
		if err := b.pool.QueryRow(t.Context(), `SELECT after_id, (SELECT id FROM rehome_control.events WHERE event->>'id' = $1) FROM rehome_control.news_cursor`, seen.ID).Scan(&at, &id); err != nil {
			t.Fatal(err)
		}
		return at >= id
	})
	if n := len(b.deliveries(w.ID)); n != 1 {
		t.Errorf("%d deliveries for a disabled webhook", n)
	}
	yes := true
	b.must(http.MethodPatch, "/v1/webhooks/"+w.ID, api.WebhookUpdate{Enabled: &yes}, nil)
	e := b.cutOver("acme")
	b.eventually("it comes again", func() bool { return r.counts()[e.ID] == 1 })
}

func TestWebhookSecretIsRotated(t *testing.T) {
	t.Parallel()
	b := setup(t, brisk())
	r := newReceiver(t, b.clock.now, nil)
	w := b.webhook(r, api.WebhookRequest{})
	var rotated api.WebhookSecret
	b.must(http.MethodPost, "/v1/webhooks/"+w.ID+"/rotate-secret", nil, &rotated)
	if rotated.Secret == w.Secret || rotated.FormerUntil == nil {
		t.Fatalf("got %+v", rotated)
	}
	r.knows(rotated.Secret)
	signedBy := func() []int {
		e := b.cutOver("acme")
		b.eventually("it arrives", func() bool { return r.counts()[e.ID] == 1 })
		all := r.all()
		return all[len(all)-1].by
	}
	if d := cmp.Diff([]int{0, 1}, signedBy()); d != "" {
		t.Errorf("within the overlap: %s", d)
	}
	b.clock.advance(25 * time.Hour)
	if d := cmp.Diff([]int{1}, signedBy()); d != "" {
		t.Errorf("after the overlap: %s", d)
	}
	zero := int64(0)
	b.must(http.MethodPost, "/v1/webhooks/"+w.ID+"/rotate-secret", api.WebhookRotate{OverlapSeconds: &zero}, &rotated)
	r.knows(rotated.Secret)
	if d := cmp.Diff([]int{2}, signedBy()); d != "" {
		t.Errorf("without overlap: %s", d)
	}
}

// A receiver that hangs keeps its own queue only.
func TestDeadWebhookDoesNotHoldUpOthers(t *testing.T) {
	t.Parallel()
	deps := patient()
	deps.Notify.Timeout = 2 * time.Second
	b := setup(t, deps)
	dead := newReceiver(t, b.clock.now, func(_ int, _ http.ResponseWriter, q *http.Request) { <-q.Context().Done() })
	hangs := b.webhook(dead, api.WebhookRequest{})
	const events = 60
	for range events {
		b.cutOver("acme")
	}
	b.eventually("the dead one is tried", func() bool { return len(dead.all()) > 0 })
	live := newReceiver(t, b.clock.now, nil)
	w := b.webhook(live, api.WebhookRequest{})
	b.cutOver("acme")
	b.happens("acme", "alarm", map[string]any{"code": "slot-in-danger", "seconds": 900.0})
	b.ended(w.ID, "delivered", 2)
	b.eventually("a job of another kind ends", func() bool {
		var n int
		if err := b.pool.QueryRow(t.Context(), `SELECT count(*) FROM rehome_control.river_job WHERE kind = 'prune' AND state = 'completed'`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n > 0
	})
	untried := 0
	for _, d := range b.deliveries(hangs.ID) {
		if d.Attempts == 0 {
			untried++
		}
	}
	if untried < events/2 {
		t.Errorf("only %d deliveries of the dead webhook still wait: this proves nothing", untried)
	}
	b.must(http.MethodDelete, "/v1/webhooks/"+hangs.ID, nil, nil)
	var left int
	if err := b.pool.QueryRow(t.Context(), `SELECT count(*) FROM rehome_control.river_job WHERE queue = $1 AND state IN ('available','scheduled','retryable')`, "webhook_"+hangs.ID).Scan(&left); err != nil || left != 0 {
		t.Errorf("%d jobs are left of a webhook that was removed: %v", left, err)
	}
}

func TestWebhookTest(t *testing.T) {
	t.Parallel()
	b := setup(t, brisk())
	r := newReceiver(t, b.clock.now, func(_ int, w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusTeapot)
		_, _ = w.Write([]byte("short and \x1b[31mstout" + strings.Repeat("!", 100<<10)))
	})
	w := b.webhook(r, api.WebhookRequest{})
	var got api.WebhookTest
	b.must(http.MethodPost, "/v1/webhooks/"+w.ID+"/test", nil, &got)
	if got.OK || got.Status != http.StatusTeapot || !strings.HasPrefix(got.Answer, "short and [31mstout") || len(got.Answer) > 400 || got.Error == "" {
		t.Errorf("got %+v", got)
	}
	if x := r.all()[0]; x.event.Type != "dev.rehome.webhook.test" || x.id != got.EventID {
		t.Errorf("got %+v", x)
	}
	if n := len(b.deliveries(w.ID)); n != 0 {
		t.Errorf("a test made %d deliveries", n)
	}
}

func TestWebhookRefusals(t *testing.T) {
	t.Parallel()
	b := setup(t, brisk())
	for _, c := range []struct {
		req  api.WebhookRequest
		code string
	}{
		{api.WebhookRequest{URL: "http://receiver.example/x"}, "bad-webhook-url"},
		{api.WebhookRequest{URL: "https://user:pass@receiver.example/x"}, "bad-webhook-url"},
		{api.WebhookRequest{URL: "ftp://receiver.example"}, "bad-webhook-url"},
		{api.WebhookRequest{URL: "https://169.254.169.254/latest"}, "bad-webhook-url"},
		{api.WebhookRequest{URL: "https://receiver.example", Events: []string{"nosuch"}}, "unknown-event"},
	} {
		b.refused(b.do(http.MethodPost, "/v1/webhooks", c.req, nil), 422, tenant.KindInvalid, c.code)
	}
	b.refused(b.do(http.MethodPost, "/v1/webhooks", api.WebhookRequest{URL: "https://receiver.example", Databases: []string{"nosuch"}}, nil), 404, tenant.KindNotFound, "database-not-found")
	b.must(http.MethodPost, "/v1/webhooks", api.WebhookRequest{URL: "http://receiver.example/x", Insecure: true}, nil)
	b.exec(`INSERT INTO rehome_control.databases (name, kind) VALUES ('mine', 'sharded'), ('theirs', 'sharded')`)
	operate := withKey(b.client(api.ClientRequest{Scopes: []string{"operate"}}))
	bound := withKey(b.client(api.ClientRequest{Scopes: []string{"admin"}, Databases: []string{"mine"}}))
	good := api.WebhookRequest{URL: "https://receiver.example", Databases: []string{"mine"}}
	b.refused(b.do(http.MethodPost, "/v1/webhooks", good, nil, operate), 403, tenant.KindUnauthorised, "scope-missing")
	for _, dbs := range [][]string{nil, {"theirs"}, {"mine", "theirs"}} {
		b.refused(b.do(http.MethodPost, "/v1/webhooks", api.WebhookRequest{URL: "https://receiver.example", Databases: dbs}, nil, bound), 403, tenant.KindUnauthorised, "bound-to-databases")
	}
	var theirs, mine api.WebhookSecret
	b.must(http.MethodPost, "/v1/webhooks", good, &mine, bound)
	b.must(http.MethodPost, "/v1/webhooks", api.WebhookRequest{URL: "https://receiver.example"}, &theirs)
	b.refused(b.do(http.MethodDelete, "/v1/webhooks/"+theirs.ID, nil, nil, bound), 404, tenant.KindNotFound, "webhook-not-found")
	var list []api.Webhook
	b.must(http.MethodGet, "/v1/webhooks", nil, &list, bound)
	if len(list) != 1 || list[0].ID != mine.ID {
		t.Errorf("got %+v", list)
	}
}

// With webhook_networks = public nothing goes to this machine, whatever its name.
func TestWebhookNetworks(t *testing.T) {
	t.Parallel()
	b := setup(t, brisk())
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(b.control, b.mailbox, b.clock)
	cfg.WebhookNetworks = notify.NetworksPublic
	b.serve(cfg, brisk())
	r := newReceiver(t, b.clock.now, nil)
	b.refused(b.do(http.MethodPost, "/v1/webhooks", api.WebhookRequest{URL: r.url}, nil), 422, tenant.KindInvalid, "bad-webhook-url")
	r.url = strings.Replace(r.url, "127.0.0.1", "localhost", 1)
	w := b.webhook(r, api.WebhookRequest{})
	var got api.WebhookTest
	b.must(http.MethodPost, "/v1/webhooks/"+w.ID+"/test", nil, &got)
	if got.OK || !strings.Contains(got.Error, "may not reach") || len(r.all()) != 0 {
		t.Errorf("got %+v", got)
	}
}

func TestOldDeliveriesArePruned(t *testing.T) {
	t.Parallel()
	b := setup(t, patient())
	r := newReceiver(t, b.clock.now, func(n int, w http.ResponseWriter, _ *http.Request) {
		if n == 2 {
			w.WriteHeader(http.StatusBadGateway)
		}
	})
	w := b.webhook(r, api.WebhookRequest{})
	b.cutOver("acme")
	b.ended(w.ID, "delivered", 1)
	waits := b.cutOver("acme")
	b.eventually("the second was tried", func() bool { return r.counts()[waits.ID] == 1 && b.deliveries(w.ID)[0].Attempts == 1 })
	b.clock.advance(31 * 24 * time.Hour)
	if err := b.prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	if l := b.deliveries(w.ID); len(l) != 1 || l[0].EventID != waits.ID {
		t.Errorf("got %+v", l)
	}
}
