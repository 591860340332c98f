package otp

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"net/mail"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// Request makes a challenge and, for the e-mail channel, sends its code. Errors: KindInvalid for a bad request,
// ErrRateLimited, ErrTOTPNotEnrolled, ErrTOTPLocked, KindUnavailable if the mail could not be sent.
func (s *Service) Request(ctx context.Context, r Request) (Challenge, error) {
	r.ChannelName = cmp.Or(r.ChannelName, ChannelEmail)
	c, err := s.request(ctx, r)
	entry := AuditEntry{
		Actor: r.RequestedBy, Action: "otp.request", Object: r.Database, Address: r.Address,
		Detail: map[string]any{"for": r.Action, "channel": r.ChannelName, "recipient": r.Recipient, "challenge": c.ID},
	}
	if err := s.audit(ctx, entry, err); err != nil {
		return Challenge{}, err
	}
	return c, nil
}

func (s *Service) request(ctx context.Context, r Request) (Challenge, error) {
	recipient, err := address(r.Recipient)
	if err != nil {
		return Challenge{}, err
	}
	if r.Action == "" || r.Plan == nil {
		return Challenge{}, invalid("bad-challenge", "a challenge needs an action and a plan")
	}
	if r.ChannelName != ChannelEmail && r.ChannelName != ChannelTOTP {
		return Challenge{}, invalid("bad-channel", "there is no channel %q: it is email or totp", r.ChannelName)
	}
	c, code, err := s.insertChallenge(ctx, r, recipient)
	if err != nil || r.ChannelName == ChannelTOTP {
		return c, err
	}
	if err := s.sendCode(ctx, r, c, code); err != nil {
		s.discard(ctx, c.ID)
		return c, err
	}
	return c, nil
}

// insertChallenge counts and inserts in one transaction.
func (s *Service) insertChallenge(ctx context.Context, r Request, recipient string) (Challenge, string, error) {
	plan, err := canonicalJSON(r.Plan)
	if err != nil {
		return Challenge{}, "", err
	}
	digest, err := Digest(r.Plan)
	if err != nil {
		return Challenge{}, "", err
	}
	now := s.now()
	c := Challenge{
		ID: newID("ch"), Action: r.Action, Database: r.Database, SentTo: Mask(r.Recipient), Channel: r.ChannelName,
		PlanText: r.PlanText, ExpiresAt: now.Add(CodeTTL),
	}
	code, hash := "", []byte{} // TOTP: the app knows the code
	if r.ChannelName == ChannelEmail {
		if code, err = newCode(); err != nil {
			return Challenge{}, "", err
		}
		hash = s.hash("code", c.ID, code)
	}
	err = pgx.BeginFunc(ctx, s.cfg.Pool, func(tx pgx.Tx) error {
		if err := s.limit(ctx, tx, recipient, r.Database, now); err != nil {
			return err
		}
		if r.ChannelName == ChannelTOTP {
			if err := s.totpReady(ctx, tx, recipient, now); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, `
			INSERT INTO rehome_control.challenges
			       (id, action, database, plan, plan_text, plan_digest, code_hash, recipient, channel, requested_by, created_at, expires_at)
			VALUES ($1, $2, $3, $4::jsonb, $5, $6, $7, $8, $9, $10, $11, $12)`,
			c.ID, r.Action, r.Database, string(plan), r.PlanText, digest, hash, recipient, r.ChannelName, r.RequestedBy, now, c.ExpiresAt)
		if err != nil {
			return fmt.Errorf("insert the challenge: %w", err)
		}
		return nil
	})
	if err != nil {
		return Challenge{}, "", err
	}
	return c, code, nil
}

func (s *Service) sendCode(ctx context.Context, r Request, c Challenge, code string) error {
	m, err := codeMessage(s.cfg.Issuer, r, c.ID, shown(code), c.ExpiresAt)
	if err != nil {
		return err
	}
	return s.send(ctx, m)
}

func (s *Service) send(ctx context.Context, m Message) error {
	if s.cfg.Channel == nil {
		return &tenant.Error{
			Kind: tenant.KindUnavailable, Code: "no-email-channel", Message: "no e-mail channel is set up",
			Hint: "set one: rehome init-email-channel URL",
		}
	}
	channel, err := s.cfg.Channel(ctx)
	if err != nil {
		return fmt.Errorf("open the e-mail channel: %w", err)
	}
	return channel.Send(ctx, m)
}

// discard closes a challenge whose code did not leave. If even that fails nobody knows the code, and it expires.
func (s *Service) discard(ctx context.Context, id string) {
	ctx, cancel := settled(ctx)
	defer cancel()
	if _, err := s.cfg.Pool.Exec(ctx, `UPDATE rehome_control.challenges SET closed_at = $2 WHERE id = $1`, id, s.now()); err != nil {
		s.cfg.Logger.WarnContext(ctx, "challenge could not be closed", "challenge", id, "error", err)
	}
}

// settleTimeout bounds what is finished although its caller has gone.
const settleTimeout = 10 * time.Second

// settled gives a context that outlives its caller: who cancels a request must not get a try that is not counted.
func settled(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
}

// now is rounded to what Postgres keeps, so that what is returned equals what is stored.
func (s *Service) now() time.Time { return s.cfg.Now().UTC().Truncate(time.Microsecond) }

// address checks an e-mail address and gives the form by which it is counted: case makes no new recipient.
func address(email string) (string, error) {
	a, err := mail.ParseAddress(email)
	if err != nil || a.Address != email {
		return "", invalid("bad-address", "%q is not an e-mail address", email)
	}
	return strings.ToLower(email), nil
}

func newID(prefix string) string { return prefix + "_" + strings.ToLower(rand.Text()) }
