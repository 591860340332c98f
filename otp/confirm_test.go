package otp

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

func (b *bundle) begin(t *testing.T) (c *Confirmations, token, code string) {
	t.Helper()
	c = NewConfirmations(b.Service, "https://own.example/")
	out, err := c.Begin(t.Context(), ConfirmationRequest{
		Database: "acme", Recipient: alice, By: "operator", Address: "192.0.2.7", Text: "Delete acme with 3 GB", Args: map[string]any{"force": []string{"connections"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if out.SentTo != "A***@example.com" || !out.ExpiresAt.Equal(b.now.Add(ConfirmationTTL)) {
		t.Errorf("%+v", out)
	}
	m := b.lastMail(t)
	link := linkLine.FindStringSubmatch(m.Text)[1]
	token, ok := strings.CutPrefix(link, "https://own.example/v1/delete/acme/")
	if !ok || !strings.Contains(m.HTML, link) || !strings.Contains(m.Text, "Delete acme with 3 GB") {
		t.Errorf("mail %s", m.Text)
	}
	return c, token, codeLine.FindStringSubmatch(m.Text)[1]
}

func TestConfirmByToken(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, token, code := b.begin(t)
	for range 2 * MaxTries { // a stranger's guesses close nothing
		_, err := c.ConfirmByToken(t.Context(), "acme", "WRONG", "")
		if !errors.Is(err, ErrNoConfirmation) {
			t.Fatal(err)
		}
	}
	for range 2 { // a mail scanner's look confirms nothing
		if out, err := c.Peek(t.Context(), "acme", token); err != nil || out.By != "operator" {
			t.Fatalf("%+v, %v", out, err)
		}
	}
	b.keepsSecret(t, code)
	b.keepsSecret(t, token)
	var won atomic.Int64
	var group errgroup.Group
	for range 2 {
		group.Go(func() error {
			out, err := c.ConfirmByToken(t.Context(), "acme", token, "192.0.2.8")
			if err == nil {
				won.Add(1)
				if string(out.Args) != `{"force": ["connections"]}` {
					t.Errorf("args %s", out.Args)
				}
				return nil
			}
			if !errors.Is(err, ErrNoConfirmation) {
				return err
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil || won.Load() != 1 {
		t.Errorf("%d won, %v", won.Load(), err)
	}
	if _, err := c.ConfirmByCode(t.Context(), "acme", code, "operator", ""); !errors.Is(err, ErrNoConfirmation) {
		t.Errorf("the code still works: %v", err)
	}
}

func TestConfirmByCode(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, token, code := b.begin(t)
	for i := range MaxTries {
		_, err := c.ConfirmByCode(t.Context(), "acme", wrong(code), "operator", "")
		if i < MaxTries-1 {
			b.wants(t, err, ErrWrongCode)
		} else {
			b.wants(t, err, ErrTooManyTries)
		}
	}
	_, err := c.ConfirmByCode(t.Context(), "acme", code, "operator", "")
	b.wants(t, err, ErrTooManyTries)
	if _, err := c.Peek(t.Context(), "acme", token); err != nil {
		t.Errorf("the link: %v", err)
	}
	c, oldToken, _ := b.begin(t) // a newer one replaces it
	_, token, code = b.begin(t)
	if _, err := c.Peek(t.Context(), "acme", oldToken); !errors.Is(err, ErrNoConfirmation) {
		t.Error(err)
	}
	b.advance(ConfirmationTTL)
	_, err = c.ConfirmByCode(t.Context(), "acme", code, "operator", "")
	b.wants(t, err, ErrCodeExpired)
	_, err = c.ConfirmByToken(t.Context(), "acme", token, "")
	b.wants(t, err, ErrCodeExpired)
	b.advance(-time.Second)
	if _, err := c.ConfirmByCode(t.Context(), "acme", code, "operator", ""); err != nil {
		t.Error(err)
	}
}

func TestConfirmationWhoseMailFailed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.fail = undelivered(b, errors.New("no route"))
	c := NewConfirmations(b.Service, "https://own.example")
	if _, err := c.Begin(t.Context(), ConfirmationRequest{Database: "acme", Recipient: alice, By: "x"}); err == nil {
		t.Fatal("no error")
	}
	var n int
	if err := b.pool.QueryRow(t.Context(), `SELECT count(*) FROM rehome_control.delete_confirmations`).Scan(&n); err != nil || n != 0 {
		t.Errorf("%d wait, %v", n, err)
	}
}
