package otp

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/tenant"
)

func TestRightCodeOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, code := b.ask(t, aRequest())
	if c.SentTo != "A***@example.com" || !c.ExpiresAt.Equal(b.now.Add(CodeTTL)) {
		t.Errorf("challenge %+v", c)
	}
	m := b.lastMail(t)
	for _, want := range []string{"start-replication", "acme", "Copy postgres://hosted/acme", "into https://own.example/acme", "operator", "192.0.2.7", "03:14:05"} {
		if !strings.Contains(m.Text, want) || !strings.Contains(m.HTML, want) {
			t.Errorf("the mail does not say %q:\n%s", want, m.Text)
		}
	}
	if a := b.lastAudit(t); a.Outcome != OutcomeOK || a.Action != "otp.request" || a.Detail["challenge"] != c.ID {
		t.Errorf("audited as %+v", a)
	}
	typed := " " + strings.ReplaceAll(code, "-", " – ") + "\u200b\n" // as pasted
	g, err := b.Redeem(t.Context(), redemption(c, typed))
	if err != nil {
		t.Fatal(err)
	}
	if g.ApprovedBy != strings.ToLower(alice) || g.Challenge != c.ID || g.Action != c.Action {
		t.Errorf("grant %+v", g)
	}
	if a := b.lastAudit(t); a.Outcome != OutcomeOK || a.Detail["grant"] != g.ID {
		t.Errorf("audited as %+v", a)
	}
	_, err = b.Redeem(t.Context(), redemption(c, code))
	b.wants(t, err, ErrCodeUsed)

	if err := b.Use(t.Context(), b.pool, g); err != nil {
		t.Fatal(err)
	}
	if err := b.Use(t.Context(), b.pool, g); !errors.Is(err, ErrGrantUnusable) {
		t.Errorf("a grant was used twice: %v", err)
	}
	b.keepsSecret(t, code)
}

// keepsSecret looks for a code where none may be: audit, log, tables.
func (b *bundle) keepsSecret(t *testing.T, code string) {
	t.Helper()
	var rows string
	err := b.pool.QueryRow(t.Context(), `
		SELECT coalesce((SELECT json_agg(c)::text FROM rehome_control.challenges c), '') || coalesce((SELECT json_agg(c)::text FROM rehome_control.delete_confirmations c), '')
		    || coalesce((SELECT json_agg(c)::text FROM rehome_control.grants c), '') || coalesce((SELECT json_agg(c)::text FROM rehome_control.totp_seeds c), '')`).Scan(&rows)
	if err != nil {
		t.Fatal(err)
	}
	audited, err := json.Marshal(b.audited)
	if err != nil {
		t.Fatal(err)
	}
	for place, text := range map[string]string{"the tables": rows, "the audit": string(audited), "the log": b.log.String()} {
		if strings.Contains(text, code) || strings.Contains(text, normalise(code)) {
			t.Errorf("%s shows the code", place)
		}
	}
}

func TestFiveWrongCodes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, code := b.ask(t, aRequest())
	for i := range MaxTries {
		_, err := b.Redeem(t.Context(), redemption(c, wrong(code)))
		if i < MaxTries-1 {
			b.wants(t, err, ErrWrongCode)
			if want := fmt.Sprintf("tries left: %d", MaxTries-1-i); !strings.Contains(err.Error(), want) {
				t.Errorf("%v does not say %q", err, want)
			}
		} else {
			b.wants(t, err, ErrTooManyTries)
		}
		if strings.Contains(err.Error(), wrong(code)) {
			t.Error("the error shows what was typed")
		}
	}
	_, err := b.Redeem(t.Context(), redemption(c, code))
	b.wants(t, err, ErrTooManyTries)
	if len(b.audited) != 1+MaxTries+1 {
		t.Errorf("%d audit entries", len(b.audited))
	}
}

func TestExpired(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, code := b.ask(t, aRequest())
	b.advance(CodeTTL)
	_, err := b.Redeem(t.Context(), redemption(c, code))
	b.wants(t, err, ErrCodeExpired)
	b.advance(-time.Microsecond)
	g, err := b.Redeem(t.Context(), redemption(c, code))
	if err != nil {
		t.Fatal(err)
	}
	b.advance(GrantTTL)
	if err := b.Use(t.Context(), b.pool, g); !errors.Is(err, ErrGrantUnusable) {
		t.Errorf("an expired grant was used: %v", err)
	}
}

func TestAnotherPlan(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, code := b.ask(t, aRequest())
	for name, change := range map[string]func(*Redemption){
		"plan":     func(r *Redemption) { r.Plan = plan{From: thePlan.From, To: thePlan.To, Rows: thePlan.Rows - 1} }, // equal as float64
		"action":   func(r *Redemption) { r.Action = "cutover" },
		"database": func(r *Redemption) { r.Database = "other" },
	} {
		r := redemption(c, code)
		change(&r)
		_, err := b.Redeem(t.Context(), r)
		if !errors.Is(err, ErrOtherPlan) {
			t.Errorf("%s: %v", name, err)
		}
	}
	r := redemption(c, code) // the same plan, come by way of JSON with another order of keys
	r.Plan = json.RawMessage(`{"to":"https://own.example/acme","rows":9007199254740993,  "from":"postgres://hosted/acme"}`)
	if _, err := b.Redeem(t.Context(), r); err != nil {
		t.Error(err)
	}
	// Another plan counts as a try.
	c, code = b.ask(t, aRequest())
	for range MaxTries {
		r := redemption(c, code)
		r.Plan = "other"
		_, _ = b.Redeem(t.Context(), r) // refused, as seen above
	}
	_, err := b.Redeem(t.Context(), redemption(c, code))
	b.wants(t, err, ErrTooManyTries)
	_, err = b.Redeem(t.Context(), redemption(Challenge{ID: "ch_none", Action: "x", Database: "y"}, code))
	b.wants(t, err, ErrUnknown)
}

// A code of one challenge does not open another with the same plan.
func TestCodeOfAnotherChallenge(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, code := b.ask(t, aRequest())
	c, _ := b.ask(t, aRequest())
	_, err := b.Redeem(t.Context(), redemption(c, code))
	b.wants(t, err, ErrWrongCode)
}

func TestConcurrentRedeems(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for range 5 {
		c, code := b.ask(t, aRequest())
		var won, used atomic.Int64
		var group errgroup.Group
		for range 2 {
			group.Go(func() error {
				_, err := b.Redeem(t.Context(), redemption(c, code))
				switch {
				case err == nil:
					won.Add(1)
				case errors.Is(err, ErrCodeUsed):
					used.Add(1)
				default:
					return err
				}
				return nil
			})
		}
		if err := group.Wait(); err != nil || won.Load() != 1 || used.Load() != 1 {
			t.Fatalf("%d won, %d refused, %v", won.Load(), used.Load(), err)
		}
	}
}

// Many guess at once: never more than MaxTries are judged.
func TestConcurrentGuesses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, code := b.ask(t, aRequest())
	var judged atomic.Int64
	var group errgroup.Group
	for range 20 {
		group.Go(func() error {
			_, err := b.Redeem(t.Context(), redemption(c, wrong(code)))
			if errors.Is(err, ErrWrongCode) || strings.Contains(err.Error(), "the last") {
				judged.Add(1)
			}
			return nil
		})
	}
	_ = group.Wait() // its functions return nil
	if judged.Load() != MaxTries {
		t.Errorf("%d guesses were judged", judged.Load())
	}
}

func TestRateLimits(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var group errgroup.Group
	var made, refused atomic.Int64
	for i := range PerRecipient + 5 {
		group.Go(func() error {
			r := aRequest()
			if i%2 == 0 {
				r.Recipient = strings.ToLower(r.Recipient) // the same person
			}
			switch _, err := b.Request(t.Context(), r); {
			case err == nil:
				made.Add(1)
			case errors.Is(err, ErrRateLimited):
				refused.Add(1)
			default:
				return err
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil || made.Load() != PerRecipient || refused.Load() != 5 {
		t.Fatalf("%d made, %d refused, %v", made.Load(), refused.Load(), err)
	}
	_, err := b.Request(t.Context(), aRequest())
	b.wants(t, err, ErrRateLimited)
	if strings.Contains(err.Error(), alice) {
		t.Error("the error shows the whole address")
	}
	for i := range PerDatabase - PerRecipient { // others, for the same database
		r := aRequest()
		r.Recipient = fmt.Sprintf("u%d@example.com", i)
		b.ask(t, r)
	}
	r := aRequest()
	r.Recipient = "late@example.com"
	_, err = b.Request(t.Context(), r)
	b.wants(t, err, ErrRateLimited)
	r.Database = "other"
	b.ask(t, r)
	b.advance(DatabaseWindow)
	b.ask(t, aRequest())
}

func TestMailThatCannotBeSent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.fail = undelivered(b, errors.New("no route"))
	_, err := b.Request(t.Context(), aRequest())
	if te := tenant.AsError(err); te.Code != "mail-not-sent" || te.Kind != tenant.KindUnavailable {
		t.Fatal(err)
	}
	if a := b.lastAudit(t); a.Outcome != OutcomeFailed || a.Detail["reason"] != "mail-not-sent" {
		t.Errorf("audited as %+v", a)
	}
	var open int
	if err := b.pool.QueryRow(t.Context(), `SELECT count(*) FROM rehome_control.challenges WHERE closed_at IS NULL`).Scan(&open); err != nil || open != 0 {
		t.Errorf("%d challenges are open, %v", open, err)
	}
}

func TestNothingIsApprovedUnaudited(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, code := b.ask(t, aRequest())
	b.noAudit = errors.New("the disk is full")
	if g, err := b.Redeem(t.Context(), redemption(c, code)); err == nil || g.ID != "" {
		t.Errorf("approved: %+v, %v", g, err)
	}
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for name, change := range map[string]func(*Request){
		"address":     func(r *Request) { r.Recipient = "Alice <a@example.com>\r\nBcc: x@example.com" },
		"no address":  func(r *Request) { r.Recipient = "" },
		"channel":     func(r *Request) { r.ChannelName = "pigeon" },
		"no plan":     func(r *Request) { r.Plan = nil },
		"bad plan":    func(r *Request) { r.Plan = func() {} },
		"no such app": func(r *Request) { r.ChannelName = ChannelTOTP },
	} {
		r := aRequest()
		change(&r)
		if _, err := b.Request(t.Context(), r); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	if len(b.sent) != 0 {
		t.Error("a mail was sent")
	}
}

func TestPrune(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, code := b.ask(t, aRequest())
	if _, err := b.Redeem(t.Context(), redemption(c, code)); err != nil {
		t.Fatal(err)
	}
	if n, err := b.Prune(t.Context(), 0); err != nil || n != 0 {
		t.Errorf("pruned %d, %v: the rate limits need them", n, err)
	}
	b.advance(25 * time.Hour)
	if n, err := b.Prune(t.Context(), 0); err != nil || n != 1 {
		t.Errorf("pruned %d, %v", n, err)
	}
}
