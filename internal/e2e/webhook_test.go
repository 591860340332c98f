package e2e

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/otp"
	"github.com/rehomedb/rehome/progress"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// TestWhatHappensIsTold walks through a move with the real program, and everything that webhooks and e-mails tell of happens.
func TestWhatHappensIsTold(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var got []progress.Event
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		raw, err := io.ReadAll(r.Body)
		var e progress.Event
		if err == nil {
			err = json.Unmarshal(raw, &e)
		}
		if err != nil || e.ID != r.Header.Get("webhook-id") || !strings.HasPrefix(r.Header.Get("webhook-signature"), "v1,") {
			t.Errorf("not a webhook: %v, %v, %s", err, r.Header, raw)
		}
		mu.Lock()
		defer mu.Unlock()
		got = append(got, e)
	}))
	t.Cleanup(receiver.Close)

	i := newInstallation(t, pgcluster.NewDatabase(t, shared))
	shardCluster := pgcluster.StartT(t, pgcluster.Options{Fsync: true, Settings: clusterSettings})
	i.addShards(shardCluster)
	i.must("create", "acme", "--owner", "owner@example.com")
	i.must("webhooks", "add", receiver.URL+"/hook")
	src := pgcluster.NewDatabase(t, pgcluster.StartT(t, pgcluster.Options{Fsync: true})) // the decision of a cutover must be durable
	execSQL(t, open(t, src), goodTable)

	// told waits until a webhook and a mail have said it.
	told := func(event, subject string) {
		t.Helper()
		eventually(t, event+" is delivered", func() bool {
			list := mustJSON[[]api.WebhookDelivery](i, "webhooks", "deliveries")
			return slices.ContainsFunc(list, func(d api.WebhookDelivery) bool { return d.Event == event && d.State == "delivered" })
		})
		eventually(t, "the owner is told: "+subject, func() bool {
			mails, err := otp.ReadMailbox(i.mail)
			if err != nil {
				t.Fatal(err)
			}
			return slices.ContainsFunc(mails, func(m otp.Mail) bool {
				return m.Kind == otp.KindNotice && m.To == "owner@example.com" && m.Subject == subject
			})
		})
	}
	i.mustApproved(moveArgs("start-replication", src.Reveal(), i.url+"/acme")...)
	i.waitPhase(tenant.InSync)
	told("in-sync", "Rehome: acme is in sync")

	i.must("throttle", "--max-slot-wal", "1")
	told("slot-in-danger", "Rehome: the replication of acme holds back more of its source's disk than was allowed")
	i.must("throttle", "--off")

	// Somebody changes a row at the shard, past the fence.
	execSQL(t, open(t, shardCluster.DSN("acme")), `BEGIN; ALTER TABLE notes DISABLE TRIGGER rehome_fence; UPDATE notes SET body = 'other' WHERE id = 1; ALTER TABLE notes ENABLE ALWAYS TRIGGER rehome_fence; COMMIT`)
	if out, errs, code := i.run("verify"); code != 3 {
		t.Fatalf("verify ended with %d\n%s%s", code, out, errs)
	}
	told("verification-failed", "Rehome: verification of acme found differences")
	i.must("verify", "--repair")
	i.must("verify")

	i.mustApproved("cutover", "--rehearse")
	i.mustApproved("cutover")
	told("cutover-done", "Rehome: acme was cut over: the new side takes the writes")

	i.must("adopt", "olddb", pgcluster.NewDatabase(t, shared).Reveal(), "--owner", "owner@example.com")
	i.mustApproved("delete-db", i.url+"/olddb", "--force", "certificate,redirect,connections")
	mails, err := otp.ReadMailbox(i.mail)
	if err != nil {
		t.Fatal(err)
	}
	n := slices.IndexFunc(mails, func(m otp.Mail) bool { return m.Kind == otp.KindDeletion })
	i.must("delete-db", i.url+"/olddb", "--confirm", mails[n].Code)
	told("delete-confirmed", "Rehome: olddb was deleted")

	i.must("verify")
	i.mustApproved("rollback")
	told("rolled-back", "Rehome: acme was rolled back: the old side takes the writes again")

	for _, d := range mustJSON[[]api.WebhookDelivery](i, "webhooks", "deliveries") {
		if d.Event == "cutover-taken-back" {
			t.Error("the rehearsal was told of as an attempt that was taken back")
		}
	}
	mu.Lock()
	defer mu.Unlock()
	seen := map[string]bool{}
	for _, e := range got {
		if seen[e.ID] {
			t.Errorf("event %s came twice", e.ID)
		}
		seen[e.ID] = true
	}
}
