package otp

import (
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/pquerna/otp/totp"
)

// enrolled enrols alice's app and returns its seed; the code of the present step is used up.
func enrolled(t *testing.T, b *bundle) string {
	t.Helper()
	e, err := b.Enrol(t.Context(), alice, "operator", "192.0.2.7")
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(e.URI)
	if err != nil || u.Scheme != "otpauth" || u.Query().Get("issuer") != "Rehome" {
		t.Fatalf("%v", err)
	}
	seed := u.Query().Get("secret")
	if err := b.ConfirmTOTP(t.Context(), alice, b.mailedCode(t), appCode(t, b, seed), "operator", "192.0.2.7"); err != nil {
		t.Fatal(err)
	}
	return seed
}

func appCode(t *testing.T, b *bundle, seed string) string {
	t.Helper()
	code, err := totp.GenerateCode(seed, b.now)
	if err != nil {
		t.Fatal(err)
	}
	return code
}

func totpRequest() Request {
	r := aRequest()
	r.ChannelName = ChannelTOTP
	return r
}

func TestTOTP(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.Request(t.Context(), totpRequest())
	b.wants(t, err, ErrTOTPNotEnrolled)
	seed := enrolled(t, b)
	if m := b.lastMail(t); m.Kind != KindTOTPEnrolled || m.To != alice {
		t.Errorf("mail %+v", m)
	}
	if has, err := b.HasTOTP(t.Context(), alice); err != nil || !has {
		t.Errorf("has it: %v, %v", has, err)
	}
	_, err = b.Enrol(t.Context(), strings.ToLower(alice), "operator", "")
	b.wants(t, err, ErrTOTPEnrolled)

	mails := len(b.sent)
	c, _ := b.ask(t, totpRequest())
	if len(b.sent) != mails {
		t.Error("a mail was sent")
	}
	_, err = b.Redeem(t.Context(), redemption(c, appCode(t, b, seed))) // the code that confirmed the app
	b.wants(t, err, ErrCodeUsed)
	b.advance(30 * time.Second)
	code := appCode(t, b, seed)
	other := redemption(c, code)
	other.Plan = "other"
	_, err = b.Redeem(t.Context(), other) // bound to the plan all the same
	b.wants(t, err, ErrOtherPlan)
	g, err := b.Redeem(t.Context(), redemption(c, code[:3]+" "+code[3:]))
	if err != nil || g.Channel != ChannelTOTP {
		t.Fatalf("%+v, %v", g, err)
	}
	_, err = b.Redeem(t.Context(), redemption(c, code))
	b.wants(t, err, ErrCodeUsed)

	c2, _ := b.ask(t, totpRequest()) // replayed for another challenge, within the time the app shows it
	_, err = b.Redeem(t.Context(), redemption(c2, code))
	b.wants(t, err, ErrCodeUsed)
	b.advance(30 * time.Second)
	slow := appCode(t, b, seed)
	b.advance(30 * time.Second) // a step late is early enough
	if _, err := b.Redeem(t.Context(), redemption(c2, slow)); err != nil {
		t.Error(err)
	}
	c3, _ := b.ask(t, totpRequest())
	late := appCode(t, b, seed)
	b.advance(time.Minute)
	_, err = b.Redeem(t.Context(), redemption(c3, late))
	b.wants(t, err, ErrWrongCode)

	b.keepsSecret(t, seed)
	if err := b.RemoveTOTP(t.Context(), alice, "operator", ""); err != nil {
		t.Fatal(err)
	}
	_, err = b.Redeem(t.Context(), redemption(c3, appCode(t, b, seed)))
	b.wants(t, err, ErrTOTPNotEnrolled)
	if err := b.RemoveTOTP(t.Context(), alice, "operator", ""); !errors.Is(err, ErrTOTPNotEnrolled) {
		t.Error(err)
	}
}

func TestTOTPLock(t *testing.T) {
	t.Parallel()
	b := setup(t)
	seed := enrolled(t, b)
	b.advance(time.Minute)
	for range TOTPFailures / MaxTries {
		c, _ := b.ask(t, totpRequest())
		for range MaxTries {
			if _, err := b.Redeem(t.Context(), redemption(c, wrong(appCode(t, b, seed)))); err == nil {
				t.Fatal("a wrong code was taken") // one in a million times three: another step's code
			}
		}
	}
	_, err := b.Request(t.Context(), totpRequest())
	b.wants(t, err, ErrTOTPLocked)
	c, code := b.ask(t, aRequest()) // the mail still works
	if _, err := b.Redeem(t.Context(), redemption(c, code)); err != nil {
		t.Error(err)
	}
	b.advance(TOTPWindow)
	c, _ = b.ask(t, totpRequest())
	if _, err := b.Redeem(t.Context(), redemption(c, appCode(t, b, seed))); err != nil {
		t.Error(err)
	}
}

func TestTOTPConfirmationHasTries(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if err := b.ConfirmTOTP(t.Context(), alice, "12345678", "123456", "x", ""); !errors.Is(err, ErrTOTPNotEnrolled) {
		t.Fatal(err)
	}
	e, err := b.Enrol(t.Context(), alice, "x", "")
	if err != nil {
		t.Fatal(err)
	}
	u, _ := url.Parse(e.URI)
	right := appCode(t, b, u.Query().Get("secret"))
	for range MaxTries {
		if err := b.ConfirmTOTP(t.Context(), alice, b.mailedCode(t), wrong(right), "x", ""); err == nil {
			t.Fatal("a wrong code was taken")
		}
	}
	b.wants(t, b.ConfirmTOTP(t.Context(), alice, b.mailedCode(t), right, "x", ""), ErrTooManyTries)
	if has, err := b.HasTOTP(t.Context(), alice); err != nil || has {
		t.Errorf("has it: %v, %v", has, err)
	}
	_, err = b.Request(t.Context(), totpRequest()) // not confirmed: no channel
	b.wants(t, err, ErrTOTPNotEnrolled)
}

// Who holds a key, of the address or of the operator, must not become an approver by it: the address' mail decides.
func TestTOTPNeedsTheMailedCode(t *testing.T) {
	t.Parallel()
	b := setup(t)
	e, err := b.Enrol(t.Context(), alice, alice, "192.0.2.7")
	if err != nil {
		t.Fatal(err)
	}
	if m := b.lastMail(t); m.Kind != KindTOTPEnrol || m.To != alice || e.SentTo != Mask(alice) {
		t.Fatalf("mail %+v, sent to %s", m, e.SentTo)
	}
	u, err := url.Parse(e.URI)
	if err != nil {
		t.Fatal(err)
	}
	right, mailed := appCode(t, b, u.Query().Get("secret")), b.mailedCode(t)
	for _, no := range []string{"", wrong(mailed)} {
		b.wants(t, b.ConfirmTOTP(t.Context(), alice, no, right, alice, ""), ErrWrongMailCode)
	}
	if has, err := b.HasTOTP(t.Context(), alice); err != nil || has {
		t.Fatalf("enrolled without the mail: %v, %v", has, err)
	}
	b.advance(time.Second)
	if _, err := b.Enrol(t.Context(), alice, alice, ""); err != nil { // anew: the first mail's code is of another seed
		t.Fatal(err)
	}
	b.wants(t, b.ConfirmTOTP(t.Context(), alice, mailed, right, alice, ""), ErrWrongMailCode)
	b.keepsSecret(t, mailed)

	b.fail = errors.New("the mail server is down")
	if _, err := b.Enrol(t.Context(), alice, alice, ""); err == nil {
		t.Error("an enrolment whose mail did not leave")
	}
}
