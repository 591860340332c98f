package server

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rehomedb/rehome/otp"
	"github.com/rehomedb/rehome/progress"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

const approver = "approver@example.com"

// moving records a replication of a database, as a start leaves it.
func (b *bundle) moving(database string) {
	b.t.Helper()
	b.exec(`INSERT INTO rehome_control.databases (name, kind, owner_email) VALUES ($1, 'sharded', $2)`, database, owner)
	b.exec(`INSERT INTO rehome_control.replications (id, database, source_dsn_sealed, source_label, target_url, options, state, phase, slot_name, publication, placement_epoch, approved_by)
		VALUES ($1, $2, '', 'postgres://me@hosted.example/acme', $3, '{}', '{}', 'in_sync', '', '', 1, $4)`, "rep-"+database, database, testURL+"/"+database, approver)
}

// notices are the mails that tell what happened, as their recipients and subjects.
func (b *bundle) notices() []otp.Mail {
	b.t.Helper()
	mails, err := otp.ReadMailbox(b.mailbox)
	if err != nil {
		b.t.Fatal(err)
	}
	return slices.DeleteFunc(mails, func(m otp.Mail) bool { return m.Kind != otp.KindNotice })
}

// told waits until so many notices are in the mailbox and none is on its way, and returns the subjects of those to one address.
func (b *bundle) told(to string, n int) []string {
	b.t.Helper()
	b.eventually("the notices are sent", func() bool {
		var pending int
		var looked bool
		if err := b.pool.QueryRow(b.t.Context(), `SELECT (SELECT count(*) FROM rehome_control.notices WHERE state = 'pending'),
			(SELECT after_id >= (SELECT coalesce(max(id), 0) FROM rehome_control.events WHERE event->>'type' <> 'dev.rehome.webhook.delivery-dead') FROM rehome_control.news_cursor)`).Scan(&pending, &looked); err != nil {
			b.t.Fatal(err)
		}
		return pending == 0 && looked && len(b.notices()) >= n
	})
	var subjects []string
	for _, m := range b.notices() {
		if m.To == to {
			subjects = append(subjects, m.Subject)
		}
	}
	if got := len(b.notices()); got != n {
		b.t.Errorf("%d notices, expected %d", got, n)
	}
	return subjects
}

func TestNoticesOfTheSix(t *testing.T) {
	t.Parallel()
	b := setup(t, brisk())
	b.moving("acme")
	b.happens("acme", "phase", phase(tenant.CatchingUp, tenant.InSync))
	b.happens("acme", "verified", map[string]any{"clean": false, "differs": true, "verification": "v1"})
	b.happens("acme", "phase", phase(tenant.CuttingOver, tenant.CutOver))
	b.happens("acme", "phase", phase(tenant.RollingBack, tenant.RolledBack))
	b.happens("acme", "alarm", map[string]any{"code": "slot-in-danger", "seconds": 1790.0, "detail": "slot rehome_x loses its WAL in about 29 minutes"})
	if _, err := b.events.Append(t.Context(), b.pool, deletedEvent("acme")); err != nil {
		t.Fatal(err)
	}
	subjects := []string{
		"Rehome: acme is in sync", "Rehome: verification of acme found differences", "Rehome: acme was cut over: the new side takes the writes",
		"Rehome: acme was rolled back: the old side takes the writes again", "Rehome: URGENT: the replication of acme may lose its place at the source", "Rehome: acme was deleted",
	}
	slices.Sort(subjects)
	got := b.told(owner, 11) // the approver has no part in the deletion of a database
	slices.Sort(got)
	if d := cmp.Diff(subjects, got); d != "" {
		t.Errorf("to the owner (-want +got):\n%s", d)
	}
	for _, m := range b.notices() {
		for _, want := range []string{"Database: acme", "When: 2", "What to do:", "rehome ", "Link: " + testURL + "/acme", "--mute "} {
			if !strings.Contains(m.Text, want) {
				t.Errorf("%q is not in the mail %q:\n%s", want, m.Subject, m.Text)
			}
		}
		if strings.Contains(m.Subject, "URGENT") && (!strings.Contains(m.Text, "In about 29 minutes") || !strings.Contains(m.Text, "max_slot_wal_keep_size")) {
			t.Errorf("the mail does not say what threatens and what helps:\n%s", m.Text)
		}
	}
}

func TestNoticesAreNotRepeated(t *testing.T) {
	t.Parallel()
	b := setup(t, brisk())
	b.moving("acme")
	danger := func(seconds float64) {
		b.happens("acme", "alarm", map[string]any{"code": "slot-in-danger", "seconds": seconds})
	}
	danger(1800)
	danger(1500) // about the same
	danger(500)  // worse
	danger(490)
	b.clock.advance(61 * time.Minute)
	danger(480) // an hour later
	b.happens("acme", "verified", map[string]any{"clean": false, "differs": true})
	b.happens("acme", "alarm", map[string]any{"code": "verification-not-clean"}) // the same, told by the continuous mode
	b.happens("acme", "verified", map[string]any{"clean": false, "differs": true})
	b.happens("acme", "verified", map[string]any{"clean": false, "differs": false, "error": "it took too long"}) // proves nothing
	paused := func(reason string, asked bool) {
		b.happens("acme", "phase", map[string]any{"from": "in_sync", "to": "paused", "reason": reason, "asked": asked})
	}
	paused("the disk is full", false)
	paused("the disk is full", false)
	paused("by me", true)
	got := b.told(owner, 2*(3+1+1))
	want := map[string]int{"URGENT": 3, "found differences": 1, "needs you": 1}
	for part, n := range want {
		if c := len(slices.DeleteFunc(slices.Clone(got), func(s string) bool { return !strings.Contains(s, part) })); c != n {
			t.Errorf("%d mails %q, expected %d", c, part, n)
		}
	}
}

func TestNoticesThatNobodyWants(t *testing.T) {
	t.Parallel()
	b := setup(t, brisk())
	b.moving("acme")
	b.must(http.MethodPut, "/v1/notifications/"+strings.ToUpper(owner), api.NotificationUpdate{Muted: []string{"cutover-done"}}, nil)
	b.must(http.MethodPut, "/v1/notifications/"+approver, api.NotificationUpdate{Muted: []string{"all"}}, nil)
	b.cutOver("acme")
	b.happens("acme", "phase", phase(tenant.RollingBack, tenant.RolledBack))
	if got := b.told(owner, 1); len(got) != 1 || !strings.Contains(got[0], "rolled back") {
		t.Errorf("got %q", got)
	}
	mine := withKey(b.client(api.ClientRequest{Email: approver, Scopes: []string{"read"}}))
	b.refused(b.do(http.MethodPut, "/v1/notifications/"+owner, api.NotificationUpdate{Muted: []string{"all"}}, nil, mine), 403, tenant.KindUnauthorised, "not-your-address")
	b.must(http.MethodPut, "/v1/notifications/"+approver, api.NotificationUpdate{}, nil, mine)
	b.refused(b.do(http.MethodPut, "/v1/notifications/"+owner, api.NotificationUpdate{Muted: []string{"nosuch"}}, nil), 422, tenant.KindInvalid, "unknown-event")
}

// A mail server that is down is tried again, and given up with a trace.
func TestNoticeIsTriedAgain(t *testing.T) {
	t.Parallel()
	deps := brisk()
	deps.Notify.Mails.Tries = 3
	b := setup(t, deps)
	b.moving("acme")
	b.exec(`INSERT INTO rehome_control.notification_settings (email, muted) VALUES ($1, '{all}')`, approver)
	b.exec(`INSERT INTO rehome_control.settings (name, value_sealed) VALUES ($1, $2)`, settingEmailChannel, b.box.Seal(purposeEmailChannel, "smtp://user:hunter2@127.0.0.1:1"))
	b.cutOver("acme")
	state := func() (state, text string, tries int) {
		if err := b.pool.QueryRow(t.Context(), `SELECT coalesce(min(state), ''), coalesce(min(error), ''), coalesce(min(attempts), 0) FROM rehome_control.notices`).Scan(&state, &text, &tries); err != nil {
			t.Fatal(err)
		}
		return state, text, tries
	}
	b.eventually("it is given up", func() bool { s, _, _ := state(); return s == "dead" })
	if _, text, tries := state(); tries != 3 || text == "" || strings.Contains(text, "hunter2") {
		t.Errorf("%d tries: %q", tries, text)
	}
	b.eventually("it is in the audit log", func() bool { return b.audited("mail-dead", "failed", "") == 1 })
	b.exec(`DELETE FROM rehome_control.settings WHERE name = $1`, settingEmailChannel)
	b.happens("acme", "phase", phase(tenant.RollingBack, tenant.RolledBack))
	b.eventually("the next one arrives", func() bool { return len(b.notices()) == 1 })
}

// deletedEvent is what a confirmed deletion appends.
func deletedEvent(database string) progress.Entry {
	return progress.Entry{
		Stream: progress.StreamInstallation, Database: database, Kind: "database", ID: database, Event: "deleted",
		Data: map[string]any{"purge_after": time.Now().Add(720 * time.Hour).UTC()},
	}
}
