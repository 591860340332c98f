package otp

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// ErrNoConfirmation says that no deletion waits for this, or not any more.
var ErrNoConfirmation = &tenant.Error{
	Kind: tenant.KindNotFound, Code: "no-confirmation", Message: "no deletion waits for this confirmation",
	Hint: "it was confirmed already, replaced by a newer mail, or never begun: rehome delete-db begins one",
}

// Confirmations asks a second time before a database is deleted: a mail with a link and a code, either of which is
// enough, once, within ConfirmationTTL. There is one for each database; a newer one replaces the older.
type Confirmations struct {
	service *Service
	baseURL string
}

// NewConfirmations makes them with the channel, keys, clock and audit of a Service. The links begin with baseURL.
func NewConfirmations(s *Service, baseURL string) *Confirmations {
	return &Confirmations{service: s, baseURL: strings.TrimRight(baseURL, "/")}
}

// ConfirmationRequest says what is to be confirmed.
type ConfirmationRequest struct {
	Database  string
	Recipient string
	By        string // who asked
	Address   string // from where
	Text      string // what will be done, in words
	Args      any    // given back at the confirmation; never a secret
}

// Confirmation is a deletion that waits, or at last one that was confirmed.
type Confirmation struct {
	Database  string
	SentTo    string          // masked; only from Begin
	By        string          // who asked
	Args      json.RawMessage // of the request
	CreatedAt time.Time
	ExpiresAt time.Time
}

// Begin makes the link and the code, keeps their hashes and sends the mail. If that fails nothing waits.
func (c *Confirmations) Begin(ctx context.Context, r ConfirmationRequest) (Confirmation, error) {
	out, err := c.begin(ctx, r)
	entry := AuditEntry{Actor: r.By, Action: "otp.delete-begin", Object: r.Database, Address: r.Address, Detail: map[string]any{"recipient": r.Recipient}}
	if err := c.service.audit(ctx, entry, err); err != nil {
		return Confirmation{}, err
	}
	return out, nil
}

func (c *Confirmations) begin(ctx context.Context, r ConfirmationRequest) (Confirmation, error) {
	s := c.service
	if _, err := address(r.Recipient); err != nil {
		return Confirmation{}, err
	}
	args, err := json.Marshal(r.Args)
	if err != nil {
		return Confirmation{}, fmt.Errorf("marshal the confirmation's arguments: %w", err)
	}
	code, err := newCode()
	if err != nil {
		return Confirmation{}, err
	}
	token, now := rand.Text(), s.now()
	out := Confirmation{Database: r.Database, SentTo: Mask(r.Recipient), By: r.By, Args: args, CreatedAt: now, ExpiresAt: now.Add(ConfirmationTTL)}
	_, err = s.cfg.Pool.Exec(ctx, `
		INSERT INTO rehome_control.delete_confirmations (database, token_hash, code_hash, requested_by, created_at, expires_at, args)
		VALUES ($1, $2, $3, $4, $5, $6, $7::jsonb)
		ON CONFLICT (database) DO UPDATE SET token_hash = excluded.token_hash, code_hash = excluded.code_hash, attempts = 0,
		       requested_by = excluded.requested_by, created_at = excluded.created_at, expires_at = excluded.expires_at, args = excluded.args`,
		r.Database, s.hash("delete-token", r.Database, token), s.hash("delete-code", r.Database, code), r.By, now, out.ExpiresAt, string(args))
	if err != nil {
		return Confirmation{}, fmt.Errorf("store the confirmation: %w", err)
	}
	link := c.baseURL + "/v1/delete/" + url.PathEscape(r.Database) + "/" + token
	m, err := deletionMessage(s.cfg.Issuer, r, link, shown(code), out.ExpiresAt)
	if err == nil {
		err = s.send(ctx, m)
	}
	if err != nil {
		return Confirmation{}, errors.Join(err, c.cancelToken(ctx, r.Database, token))
	}
	return out, nil
}

// Waiting shows what waits for a database, for those who may know it without the link. ErrNoConfirmation if nothing does.
func (c *Confirmations) Waiting(ctx context.Context, database string) (Confirmation, error) {
	var out Confirmation
	err := pgx.BeginFunc(ctx, c.service.cfg.Pool, func(tx pgx.Tx) error {
		row, err := lockConfirmation(ctx, tx, database)
		out = row.Confirmation
		return err
	})
	if err != nil {
		return Confirmation{}, err
	}
	return out, nil
}

// Peek shows what a link would confirm, without doing it: mail scanners open links.
func (c *Confirmations) Peek(ctx context.Context, database, token string) (Confirmation, error) {
	var out Confirmation
	err := pgx.BeginFunc(ctx, c.service.cfg.Pool, func(tx pgx.Tx) error {
		row, err := lockConfirmation(ctx, tx, database)
		if err != nil {
			return err
		}
		out = row.Confirmation
		return c.openToken(row, token)
	})
	if err != nil {
		return Confirmation{}, err
	}
	return out, nil
}

// ConfirmByToken confirms by the mail's link. A wrong token is not counted as a try: it has 128 bits, and anyone who
// knows a database's name could close the confirmation otherwise. Errors: ErrNoConfirmation, ErrCodeExpired.
func (c *Confirmations) ConfirmByToken(ctx context.Context, database, token, from string) (Confirmation, error) {
	return c.confirm(ctx, database, "", from, "link", func(_ pgx.Tx, row confirmationRow) (error, error) {
		return asRefusalOrNil(c.openToken(row, token))
	})
}

// ConfirmByCode confirms by the mail's code. Errors: ErrNoConfirmation, ErrWrongCode, ErrTooManyTries, ErrCodeExpired.
func (c *Confirmations) ConfirmByCode(ctx context.Context, database, code, by, from string) (Confirmation, error) {
	s := c.service
	return c.confirm(ctx, database, by, from, "code", func(tx pgx.Tx, row confirmationRow) (error, error) {
		switch {
		case !s.now().Before(row.ExpiresAt):
			return ErrCodeExpired, nil
		case row.attempts >= MaxTries:
			return ErrTooManyTries, nil
		case s.matches(row.codeHash, "delete-code", database, normalise(code)):
			return nil, nil
		}
		if _, err := tx.Exec(ctx, `UPDATE rehome_control.delete_confirmations SET attempts = attempts + 1 WHERE database = $1`, database); err != nil {
			return nil, fmt.Errorf("count the try: %w", err)
		}
		if left := MaxTries - row.attempts - 1; left > 0 {
			return with(ErrWrongCode, "; tries left: %d", left), nil
		}
		return with(ErrTooManyTries, " (the mail's link still works)"), nil
	})
}

// confirm lets check judge, in a transaction of its own; what it accepts is deleted and so can be used once.
func (c *Confirmations) confirm(ctx context.Context, database, by, from, via string, check func(pgx.Tx, confirmationRow) (refused, err error)) (Confirmation, error) {
	ctx, cancel := settled(ctx)
	defer cancel()
	var out Confirmation
	var refused error
	err := pgx.BeginFunc(ctx, c.service.cfg.Pool, func(tx pgx.Tx) error {
		row, err := lockConfirmation(ctx, tx, database)
		if err != nil {
			return err
		}
		if refused, err = check(tx, row); err != nil || refused != nil {
			return err
		}
		out = row.Confirmation
		if _, err := tx.Exec(ctx, `DELETE FROM rehome_control.delete_confirmations WHERE database = $1`, database); err != nil {
			return fmt.Errorf("use the confirmation: %w", err)
		}
		return nil
	})
	if err == nil {
		err = refused
	}
	if by == "" {
		by = "link"
		if out.By != "" {
			by = out.By
		}
	}
	entry := AuditEntry{Actor: by, Action: "otp.delete-confirm", Object: database, Address: from, Detail: map[string]any{"via": via}}
	if err := c.service.audit(ctx, entry, err); err != nil {
		return Confirmation{}, err
	}
	return out, nil
}

// Cancel takes a waiting confirmation back. It is no error if there is none.
func (c *Confirmations) Cancel(ctx context.Context, database string) error {
	if _, err := c.service.cfg.Pool.Exec(ctx, `DELETE FROM rehome_control.delete_confirmations WHERE database = $1`, database); err != nil {
		return fmt.Errorf("cancel the confirmation: %w", err)
	}
	return nil
}

// cancelToken takes back exactly the confirmation of a mail that did not leave, and none that replaced it.
func (c *Confirmations) cancelToken(ctx context.Context, database, token string) error {
	ctx, cancel := settled(ctx)
	defer cancel()
	_, err := c.service.cfg.Pool.Exec(ctx, `DELETE FROM rehome_control.delete_confirmations WHERE database = $1 AND token_hash = $2`,
		database, c.service.hash("delete-token", database, token))
	if err != nil {
		return fmt.Errorf("cancel the confirmation: %w", err)
	}
	return nil
}

func (c *Confirmations) openToken(row confirmationRow, token string) error {
	if !c.service.matches(row.tokenHash, "delete-token", row.Database, token) {
		return ErrNoConfirmation // as if there were none: who guesses learns nothing
	}
	if !c.service.now().Before(row.ExpiresAt) {
		return ErrCodeExpired
	}
	return nil
}

type confirmationRow struct {
	Confirmation
	tokenHash, codeHash []byte
	attempts            int
}

func lockConfirmation(ctx context.Context, tx pgx.Tx, database string) (confirmationRow, error) {
	row := confirmationRow{Confirmation: Confirmation{Database: database}}
	err := tx.QueryRow(ctx, `
		SELECT token_hash, code_hash, attempts, requested_by, args, created_at, expires_at
		  FROM rehome_control.delete_confirmations WHERE database = $1 FOR UPDATE`, database).
		Scan(&row.tokenHash, &row.codeHash, &row.attempts, &row.By, &row.Args, &row.CreatedAt, &row.ExpiresAt)
	if errors.Is(err, pgx.ErrNoRows) {
		return row, ErrNoConfirmation
	}
	if err != nil {
		return row, fmt.Errorf("lock the confirmation: %w", err)
	}
	return row, nil
}

func asRefusalOrNil(err error) (refused, failed error) {
	if err == nil {
		return nil, nil
	}
	return asRefusal(err)
}
