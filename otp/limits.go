package otp

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// CodeTTL is how long a code is valid: time to fetch a mail, too short to be found later.
	CodeTTL = 10 * time.Minute
	// MaxTries closes a challenge: typing errors yes, guessing no.
	MaxTries = 5
	// GrantTTL is how long what a code has bought may wait for its action: longer than any request to the API takes.
	GrantTTL = 15 * time.Minute
	// ConfirmationTTL is how long a deletion waits to be confirmed: a working day, wherever the owner is.
	ConfirmationTTL = 24 * time.Hour

	// PerRecipient challenges may be asked for one address within RecipientWindow. A whole journey needs five; more
	// than ten are a nuisance in somebody's mailbox, or a guesser, who gets 10 × MaxTries of 10^8 codes a window.
	PerRecipient    = 10
	RecipientWindow = 15 * time.Minute
	// PerDatabase challenges may be asked for one database within DatabaseWindow, whoever receives them: a database is
	// moved once, and what asks all the time is a broken script or an attack on several approvers at once.
	PerDatabase    = 30
	DatabaseWindow = time.Hour

	// TOTPFailures wrong codes of an address within TOTPWindow lock its authenticator: of 10^6 codes 3 are good at any
	// time, so that a guesser succeeds with 3 in 100,000 an hour. The e-mail channel stays open meanwhile.
	TOTPFailures = 10
	TOTPWindow   = time.Hour
)

// Classes of advisory locks. They are taken in this order, so that two requests cannot wait for each other.
const (
	lockRecipient = 0x72680001
	lockDatabase  = 0x72680002
)

// limit refuses what exceeds the rates. The rows of the challenges table are the count, so that it holds over several
// servers and restarts; the locks (until the transaction ends) make counting and inserting one step.
func (s *Service) limit(ctx context.Context, tx pgx.Tx, recipient, database string, now time.Time) error {
	if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1, hashtext($2))`, lockRecipient, recipient); err != nil {
		return fmt.Errorf("lock the recipient's rate: %w", err)
	}
	if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1, hashtext($2))`, lockDatabase, database); err != nil {
		return fmt.Errorf("lock the database's rate: %w", err)
	}
	var forRecipient, forDatabase int
	err := tx.QueryRow(ctx, `
		SELECT (SELECT count(*) FROM rehome_control.challenges WHERE recipient = $1 AND created_at > $2),
		       (SELECT count(*) FROM rehome_control.challenges WHERE database = $3 AND database <> '' AND created_at > $4)`,
		recipient, now.Add(-RecipientWindow), database, now.Add(-DatabaseWindow)).Scan(&forRecipient, &forDatabase)
	if err != nil {
		return fmt.Errorf("count challenges: %w", err)
	}
	if forRecipient >= PerRecipient {
		return with(ErrRateLimited, " for %s: %d within %s", Mask(recipient), forRecipient, RecipientWindow)
	}
	if forDatabase >= PerDatabase {
		return with(ErrRateLimited, " for database %s: %d within %s", database, forDatabase, DatabaseWindow)
	}
	return nil
}

// totpLocked refuses an address with too many wrong codes of its authenticator.
func (s *Service) totpLocked(ctx context.Context, tx pgx.Tx, recipient string, now time.Time) error {
	var failures int
	err := tx.QueryRow(ctx, `
		SELECT coalesce(sum(attempts), 0) FROM rehome_control.challenges WHERE recipient = $1 AND channel = $2 AND created_at > $3`,
		recipient, ChannelTOTP, now.Add(-TOTPWindow)).Scan(&failures)
	if err != nil {
		return fmt.Errorf("count wrong codes: %w", err)
	}
	if failures >= TOTPFailures {
		return ErrTOTPLocked
	}
	return nil
}

// Prune deletes challenges and grants that were made longer ago than a duration, which must exceed all windows of the
// rate limits; the audit log keeps what happened. It returns how many challenges.
func (s *Service) Prune(ctx context.Context, olderThan time.Duration) (int64, error) {
	before := s.cfg.Now().Add(-max(olderThan, 24*time.Hour))
	var n int64
	err := pgx.BeginFunc(ctx, s.cfg.Pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `
			DELETE FROM rehome_control.grants g USING rehome_control.challenges c WHERE c.id = g.challenge AND c.created_at < $1`, before); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, `DELETE FROM rehome_control.challenges WHERE created_at < $1`, before)
		n = tag.RowsAffected()
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("prune challenges: %w", err)
	}
	return n, nil
}
