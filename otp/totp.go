package otp

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pquerna/otp/hotp"
	"github.com/pquerna/otp/totp"

	"github.com/rehomedb/rehome/tenant"
)

const (
	actionEnrol = "totp-enrol"
	totpPeriod  = 30 // seconds; what every authenticator app takes (RFC 6238 §5.2 recommends it)
	totpSkew    = 1  // steps before and after that are accepted: clocks differ (RFC 6238 §6)
)

// Enrol makes a seed for an address and mails a code to it. The seed counts after ConfirmTOTP has seen that code and a
// first one of the app, within CodeTTL. Enrolling again before that replaces both. ErrTOTPEnrolled if there is a
// confirmed one; ErrRateLimited; KindUnavailable if the mail could not be sent.
//
// Enrolling is a right to approve, so it takes what any other approval takes: the person who reads the address' mail. A
// key alone, that address' own or the operator's, cannot make itself an approver.
func (s *Service) Enrol(ctx context.Context, email, by, from string) (Enrolment, error) {
	e, err := s.enrol(ctx, email, by, from)
	if err := s.audit(ctx, totpEntry("otp.totp-enrol", email, by, from), err); err != nil {
		return Enrolment{}, err
	}
	return e, nil
}

func totpEntry(action, email, by, from string) AuditEntry {
	return AuditEntry{Actor: by, Action: action, Object: email, Address: from, Detail: map[string]any{}}
}

func (s *Service) enrol(ctx context.Context, email, by, from string) (Enrolment, error) {
	key, err := address(email)
	if err != nil {
		return Enrolment{}, err
	}
	seed, err := totp.Generate(totp.GenerateOpts{Issuer: s.cfg.Issuer, AccountName: key, Period: totpPeriod})
	if err != nil {
		return Enrolment{}, fmt.Errorf("make a seed: %w", err)
	}
	code, err := newCode()
	if err != nil {
		return Enrolment{}, err
	}
	now, id := s.now(), newID("ch")
	expires := now.Add(CodeTTL)
	err = pgx.BeginFunc(ctx, s.cfg.Pool, func(tx pgx.Tx) error {
		if err := s.limit(ctx, tx, key, "", now); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, `
			INSERT INTO rehome_control.totp_seeds AS t (email, seed_sealed, created_at) VALUES ($1, $2, $3)
			ON CONFLICT (email) DO UPDATE SET seed_sealed = excluded.seed_sealed, created_at = excluded.created_at, last_step = 0
			 WHERE t.confirmed_at IS NULL`, key, s.cfg.Seal.Seal(seedPurpose(key), seed.Secret()), now)
		if err != nil {
			return fmt.Errorf("store the seed: %w", err)
		}
		if tag.RowsAffected() == 0 {
			return ErrTOTPEnrolled
		}
		// The challenge keeps the mailed code and counts the tries of the confirmation, as it does for any other code.
		_, err = tx.Exec(ctx, `
			INSERT INTO rehome_control.challenges
			       (id, action, database, plan, plan_text, plan_digest, code_hash, recipient, channel, requested_by, created_at, expires_at)
			VALUES ($1, $2, '', '{}', '', '', $3, $4, $5, $6, $7, $8)`, id, actionEnrol, s.hash("code", id, code), key, ChannelTOTP, by, now, expires)
		if err != nil {
			return fmt.Errorf("insert the challenge: %w", err)
		}
		return nil
	})
	if err != nil {
		return Enrolment{}, err
	}
	m, err := enrolMessage(s.cfg.Issuer, email, shown(code), by, from, expires)
	if err == nil {
		err = s.send(ctx, m)
	}
	if err != nil {
		s.discard(ctx, id)
		return Enrolment{}, err
	}
	return Enrolment{Email: email, SentTo: Mask(email), URI: seed.URL(), ExpiresAt: expires}, nil
}

func seedPurpose(email string) string { return "totp-seed:" + email }

// ConfirmTOTP takes the mailed code, by which the address agrees, and a first one of the app, which proves that it works.
// Errors as for Redeem, and ErrWrongMailCode.
func (s *Service) ConfirmTOTP(ctx context.Context, email, mailCode, code, by, from string) error {
	ctx, cancel := settled(ctx)
	defer cancel()
	err := s.confirmTOTP(ctx, email, mailCode, code)
	if err := s.audit(ctx, totpEntry("otp.totp-confirm", email, by, from), err); err != nil {
		return err
	}
	m, err := enrolledMessage(s.cfg.Issuer, email, by, from)
	if err == nil {
		err = s.send(ctx, m)
	}
	if err != nil { // the app is enrolled; the mail only tells of it
		s.cfg.Logger.WarnContext(ctx, "mail about an enrolment could not be sent", "error", err)
	}
	return nil
}

func (s *Service) confirmTOTP(ctx context.Context, email, mailCode, code string) error {
	key, err := address(email)
	if err != nil {
		return err
	}
	var refused error
	err = pgx.BeginFunc(ctx, s.cfg.Pool, func(tx pgx.Tx) error {
		c, err := lockChallenge(ctx, tx, `recipient = $1 AND action = $2`, key, actionEnrol)
		if errors.Is(err, ErrUnknown) {
			return ErrTOTPNotEnrolled
		}
		if err != nil {
			return err
		}
		now := s.now()
		refused, err = s.try(ctx, tx, c, now, func() (error, error) {
			if err := s.totpLocked(ctx, tx, key, now); err != nil {
				return asRefusal(err)
			}
			if !s.matches(c.codeHash, "code", c.id, normalise(mailCode)) { // first, so that it uses up no code of the app
				return ErrWrongMailCode, nil
			}
			return s.checkSeed(ctx, tx, key, code, now, false)
		})
		if err != nil || refused != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE rehome_control.totp_seeds SET confirmed_at = $2 WHERE email = $1`, key, now); err != nil {
			return fmt.Errorf("confirm the seed: %w", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return refused
}

// RemoveTOTP takes an address's authenticator away. ErrTOTPNotEnrolled (as KindNotFound) if there is none.
func (s *Service) RemoveTOTP(ctx context.Context, email, by, from string) error {
	err := s.removeTOTP(ctx, email)
	return s.audit(ctx, totpEntry("otp.totp-remove", email, by, from), err)
}

func (s *Service) removeTOTP(ctx context.Context, email string) error {
	key, err := address(email)
	if err != nil {
		return err
	}
	tag, err := s.cfg.Pool.Exec(ctx, `DELETE FROM rehome_control.totp_seeds WHERE email = $1`, key)
	if err != nil {
		return fmt.Errorf("remove the seed: %w", err)
	}
	if tag.RowsAffected() == 0 {
		none := *ErrTOTPNotEnrolled
		none.Kind, none.Hint = tenant.KindNotFound, ""
		return &none
	}
	return nil
}

// HasTOTP reports whether an address has a confirmed authenticator.
func (s *Service) HasTOTP(ctx context.Context, email string) (bool, error) {
	key, err := address(email)
	if err != nil {
		return false, err
	}
	var has bool
	err = s.cfg.Pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM rehome_control.totp_seeds WHERE email = $1 AND confirmed_at IS NOT NULL)`, key).Scan(&has)
	if err != nil {
		return false, fmt.Errorf("look for a seed: %w", err)
	}
	return has, nil
}

// totpReady refuses a challenge that no app could answer.
func (s *Service) totpReady(ctx context.Context, tx pgx.Tx, recipient string, now time.Time) error {
	var confirmed bool
	err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM rehome_control.totp_seeds WHERE email = $1 AND confirmed_at IS NOT NULL)`, recipient).Scan(&confirmed)
	if err != nil {
		return fmt.Errorf("look for a seed: %w", err)
	}
	if !confirmed {
		return ErrTOTPNotEnrolled
	}
	return s.totpLocked(ctx, tx, recipient, now)
}

func (s *Service) checkTOTP(ctx context.Context, tx pgx.Tx, recipient, code string, now time.Time) (refused, err error) {
	if err := s.totpLocked(ctx, tx, recipient, now); err != nil {
		return asRefusal(err)
	}
	return s.checkSeed(ctx, tx, recipient, code, now, true)
}

// checkSeed compares a code with those of the steps around now. The step of an accepted code is remembered, and neither
// it nor an earlier one is accepted again (RFC 6238 §5.2); the row lock makes that hold for concurrent challenges.
func (s *Service) checkSeed(ctx context.Context, tx pgx.Tx, email, code string, now time.Time, confirmed bool) (refused, err error) {
	var sealed []byte
	var last int64
	err = tx.QueryRow(ctx, `
		SELECT seed_sealed, last_step FROM rehome_control.totp_seeds WHERE email = $1 AND (confirmed_at IS NOT NULL) = $2 FOR UPDATE`,
		email, confirmed).Scan(&sealed, &last)
	if errors.Is(err, pgx.ErrNoRows) {
		return ErrTOTPNotEnrolled, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the seed: %w", err)
	}
	seed, err := s.cfg.Seal.Open(seedPurpose(email), sealed)
	if err != nil {
		return nil, fmt.Errorf("open the seed: %w", err)
	}
	typed := normalise(code)
	current := now.Unix() / totpPeriod
	match := int64(-1)
	for step := max(current-totpSkew, 0); step <= current+totpSkew; step++ {
		want, err := hotp.GenerateCode(seed, uint64(step))
		if err != nil {
			return nil, errors.New("compute the authenticator's code") // the cause could quote the seed
		}
		if subtle.ConstantTimeCompare([]byte(want), []byte(typed)) == 1 {
			match = step
		}
	}
	switch {
	case match < 0:
		return ErrWrongCode, nil
	case match <= last:
		return with(ErrCodeUsed, "; wait for the app to show the next one"), nil
	}
	if _, err := tx.Exec(ctx, `UPDATE rehome_control.totp_seeds SET last_step = $2 WHERE email = $1`, email, match); err != nil {
		return nil, fmt.Errorf("remember the code's step: %w", err)
	}
	return nil, nil
}

// asRefusal tells an error that refuses from one that failed.
func asRefusal(err error) (refused, failed error) {
	if te, ok := errors.AsType[*tenant.Error](err); ok {
		return te, nil
	}
	return nil, err
}
