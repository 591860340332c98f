package otp

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// Redeem buys a grant with a code, for the plan that the code was asked for. Everything happens in a transaction of its
// own and is final when Redeem returns: a wrong try is counted and a right code is used up, whatever becomes of the
// caller's work. Two who redeem one code at the same time wait for each other, and one gets ErrCodeUsed.
//
// Errors: ErrUnknown, ErrCodeUsed, ErrTooManyTries (from the MaxTries-th wrong try on), ErrCodeExpired, ErrOtherPlan
// (counts as a try), ErrWrongCode, ErrTOTPLocked.
func (s *Service) Redeem(ctx context.Context, r Redemption) (Grant, error) {
	ctx, cancel := settled(ctx)
	defer cancel()
	g, err := s.redeem(ctx, r)
	entry := AuditEntry{
		Actor: r.By, Action: "otp.redeem", Object: r.Database, Address: r.Address,
		Detail: map[string]any{"for": r.Action, "challenge": r.ID},
	}
	if g.ID != "" {
		entry.Detail["grant"], entry.Detail["approved_by"], entry.Detail["channel"] = g.ID, g.ApprovedBy, g.Channel
	}
	if err := s.audit(ctx, entry, err); err != nil {
		return Grant{}, err
	}
	return g, nil
}

func (s *Service) redeem(ctx context.Context, r Redemption) (Grant, error) {
	digest, err := Digest(r.Plan)
	if err != nil {
		return Grant{}, err
	}
	var g Grant
	var refused error
	err = pgx.BeginFunc(ctx, s.cfg.Pool, func(tx pgx.Tx) error {
		c, err := lockChallenge(ctx, tx, `id = $1 AND action <> $2`, r.ID, actionEnrol)
		if err != nil {
			return err
		}
		now := s.now()
		refused, err = s.try(ctx, tx, c, now, func() (error, error) {
			if c.action != r.Action || c.database != r.Database || string(c.digest) != string(digest) {
				return ErrOtherPlan, nil
			}
			if c.channel == ChannelTOTP {
				return s.checkTOTP(ctx, tx, c.recipient, r.Code, now)
			}
			if !s.matches(c.codeHash, "code", c.id, normalise(r.Code)) {
				return ErrWrongCode, nil
			}
			return nil, nil
		})
		if err != nil || refused != nil {
			return err
		}
		g, err = insertGrant(ctx, tx, c, now)
		return err
	})
	if err != nil {
		return Grant{}, err
	}
	return g, refused
}

// challengeRow is a challenge under its row lock.
type challengeRow struct {
	id, action, database, recipient, channel string

	digest, codeHash []byte
	expiresAt        time.Time
	attempts         int
	usedAt, closedAt *time.Time
}

func lockChallenge(ctx context.Context, tx pgx.Tx, where string, args ...any) (challengeRow, error) {
	var c challengeRow
	err := tx.QueryRow(ctx, `
		SELECT id, action, database, recipient, channel, plan_digest, code_hash, expires_at, attempts, used_at, closed_at
		  FROM rehome_control.challenges WHERE `+where+` ORDER BY created_at DESC, id LIMIT 1 FOR UPDATE`, args...).
		Scan(&c.id, &c.action, &c.database, &c.recipient, &c.channel, &c.digest, &c.codeHash, &c.expiresAt, &c.attempts, &c.usedAt, &c.closedAt)
	if errors.Is(err, pgx.ErrNoRows) {
		return c, ErrUnknown
	}
	if err != nil {
		return c, fmt.Errorf("lock the challenge: %w", err)
	}
	return c, nil
}

// try lets check judge a code, once the challenge is known to be open. Check returns why it refuses; that counts as a
// try, and the last one closes the challenge. What try refuses must still be committed.
func (s *Service) try(ctx context.Context, tx pgx.Tx, c challengeRow, now time.Time, check func() (refused, err error)) (refused, err error) {
	switch {
	case c.usedAt != nil:
		return ErrCodeUsed, nil
	case c.closedAt != nil:
		return ErrTooManyTries, nil
	case !now.Before(c.expiresAt):
		return ErrCodeExpired, nil
	}
	refused, err = check()
	if err != nil {
		return nil, err
	}
	if refused == nil {
		if _, err := tx.Exec(ctx, `UPDATE rehome_control.challenges SET used_at = $2 WHERE id = $1`, c.id, now); err != nil {
			return nil, fmt.Errorf("use the challenge: %w", err)
		}
		return nil, nil
	}
	if errors.Is(refused, ErrTOTPLocked) { // not judged, so nothing to count
		return refused, nil
	}
	left := MaxTries - c.attempts - 1
	_, err = tx.Exec(ctx, `
		UPDATE rehome_control.challenges SET attempts = attempts + 1, closed_at = CASE WHEN $2 THEN $3::timestamptz END WHERE id = $1`,
		c.id, left <= 0, now)
	if err != nil {
		return nil, fmt.Errorf("count the try: %w", err)
	}
	why := tenant.AsError(refused)
	if left <= 0 {
		return with(ErrTooManyTries, " (the last: %s)", why.Code), nil
	}
	return with(why, "; tries left: %d", left), nil
}

func insertGrant(ctx context.Context, tx pgx.Tx, c challengeRow, now time.Time) (Grant, error) {
	g := Grant{
		ID: newID("gr"), Challenge: c.id, Action: c.action, Database: c.database, PlanDigest: c.digest,
		ApprovedBy: c.recipient, Channel: c.channel, CreatedAt: now, ExpiresAt: now.Add(GrantTTL),
	}
	_, err := tx.Exec(ctx, `
		INSERT INTO rehome_control.grants (id, challenge, action, database, plan_digest, approved_by, created_at, expires_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`, g.ID, g.Challenge, g.Action, g.Database, g.PlanDigest, g.ApprovedBy, g.CreatedAt, g.ExpiresAt)
	if err != nil {
		return Grant{}, fmt.Errorf("insert the grant: %w", err)
	}
	return g, nil
}

// Use marks a grant as used, through db: in the transaction that starts the action, so that one grant starts it once.
// ErrGrantUnusable if it was used before or has expired.
func (s *Service) Use(ctx context.Context, db execer, g Grant) error {
	tag, err := db.Exec(ctx, `
		UPDATE rehome_control.grants SET used_at = $2
		 WHERE id = $1 AND used_at IS NULL AND expires_at > $2 AND action = $3 AND database = $4 AND plan_digest = $5`,
		g.ID, s.now(), g.Action, g.Database, g.PlanDigest)
	if err != nil {
		return fmt.Errorf("use the grant: %w", err)
	}
	if tag.RowsAffected() == 0 {
		return ErrGrantUnusable
	}
	return nil
}
