package workload

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// conflictTries is how often a write is repeated that Postgres rolled back because of another one (SQLSTATE class 40).
const conflictTries = 5

// beginner is a connection or a pool.
type beginner interface {
	Begin(ctx context.Context) (pgx.Tx, error)
}

// Apply does a write, and reports whether it had been done already. Errors: ErrMoved at a fence, ErrRefused when it can
// never succeed; after any other error its outcome may be unknown, and it should be sent again.
func Apply(ctx context.Context, db beginner, op Op) (already bool, err error) {
	for range conflictTries {
		already, err = applyOnce(ctx, db, op)
		if !hasCode(err, "40001", "40P01") {
			break
		}
	}
	return already, moved(err)
}

func applyOnce(ctx context.Context, db beginner, op Op) (already bool, err error) {
	tx, err := db.Begin(ctx)
	if err != nil {
		return false, fmt.Errorf("begin: %w", err)
	}
	defer tx.Rollback(ctx)
	kind := op.Kind
	tag, err := tx.Exec(ctx, `
		INSERT INTO public.events (realm_id, id, kind, payload) VALUES ($1, $2, $3::text::public.event_kind, jsonb_build_object('from', 'writer'))
		ON CONFLICT (realm_id, id) DO NOTHING`, op.Realm, op.ID, string(kind))
	if err != nil {
		return false, fmt.Errorf("append the event: %w", err)
	}
	if tag.RowsAffected() == 0 {
		return true, nil
	}
	if err := applyEffect(ctx, tx, op); err != nil {
		return false, fmt.Errorf("%s: %w", kind, err)
	}
	if err := tx.Commit(ctx); err != nil {
		return false, fmt.Errorf("commit: %w", err)
	}
	return false, nil
}

func applyEffect(ctx context.Context, tx pgx.Tx, op Op) error {
	switch {
	case op.Kind == KindTransfer && op.Transfer != nil:
		return applyTransfer(ctx, tx, op)
	case op.Kind == KindDocument && op.Document != nil:
		return applyDocument(ctx, tx, op)
	case op.Kind == KindMember:
		return applyMember(ctx, tx, op)
	case op.Kind == KindMetric:
		return applyMetric(ctx, tx, op)
	case op.Kind == KindToken:
		return applyToken(ctx, tx, op)
	case op.Kind == KindRate:
		_, err := tx.Exec(ctx, `
			UPDATE public.currencies SET rate = 1 + $1::int / 1000.0, as_of = clock_timestamp()
			WHERE code = (SELECT code FROM public.currencies ORDER BY code OFFSET $1::int % 8 LIMIT 1)`, op.Number)
		return err
	}
	return fmt.Errorf("%w: no such kind of write", ErrRefused)
}

func applyTransfer(ctx context.Context, tx pgx.Tx, op Op) error {
	t := op.Transfer
	if t.From == t.To || t.Cents <= 0 {
		return fmt.Errorf("%w: a transfer needs two accounts and a positive amount", ErrRefused)
	}
	// In the order of their ids: two opposite transfers must not wait for each other.
	var locked int
	err := tx.QueryRow(ctx, `
		SELECT count(*) FROM (SELECT FROM ledger.accounts WHERE realm_id = $1 AND id IN ($2, $3) ORDER BY id FOR UPDATE) l`,
		op.Realm, t.From, t.To).Scan(&locked)
	if err != nil {
		return err
	}
	if locked != 2 {
		return fmt.Errorf("%w: no such account", ErrRefused)
	}
	amount := cents(t.Cents).String()
	tag, err := tx.Exec(ctx, `
		UPDATE ledger.accounts SET balance = balance - $3::text::numeric WHERE realm_id = $1 AND id = $2 AND balance >= $3::text::numeric`,
		op.Realm, t.From, amount)
	if err != nil {
		return err
	}
	if tag.RowsAffected() == 0 {
		return fmt.Errorf("%w: not enough money", ErrRefused)
	}
	if _, err := tx.Exec(ctx, `
		UPDATE ledger.accounts SET balance = balance + $3::text::numeric WHERE realm_id = $1 AND id = $2`, op.Realm, t.To, amount); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `
		INSERT INTO ledger.transfers (realm_id, id, from_account, to_account, amount, note, tags)
		VALUES ($1, $2, $3, $4, $5::text::numeric, 'by a writer', '{writer}')`, op.Realm, op.ID, t.From, t.To, amount)
	return err
}

func applyDocument(ctx context.Context, tx pgx.Tx, op Op) error {
	d := op.Document
	switch d.Action {
	case PutDocument:
		_, err := tx.Exec(ctx, `
			INSERT INTO public.documents (realm_id, id, title, body, attributes, labels, attachment)
			VALUES ($1, $2, $3, $4, jsonb_build_object('length', $5::int), '{written}', $6)
			ON CONFLICT (realm_id, id) DO UPDATE
			SET title = excluded.title, body = excluded.body, attributes = excluded.attributes, attachment = excluded.attachment`,
			op.Realm, d.Document, d.Title, d.Body, len(d.Body), d.Attachment)
		return err
	case RenameDocument:
		_, err := tx.Exec(ctx, `UPDATE public.documents SET title = $3 WHERE realm_id = $1 AND id = $2`, op.Realm, d.Document, d.Title)
		return err
	case DeleteDocument:
		_, err := tx.Exec(ctx, `DELETE FROM public.documents WHERE realm_id = $1 AND id = $2`, op.Realm, d.Document)
		return err
	}
	return fmt.Errorf("%w: no such action", ErrRefused)
}

func applyMember(ctx context.Context, tx pgx.Tx, op Op) error {
	_, err := tx.Exec(ctx, `
		UPDATE public.members SET profile = profile || jsonb_build_object('edited', $3::int), roles = roles[1:2] || ARRAY['r' || $3::int],
			seen_at = clock_timestamp()
		WHERE realm_id = $1 AND email = $2`, op.Realm, fmt.Sprintf("Person.%d@%s.example", 1+op.Number%2, op.Realm), op.Number)
	return err
}

// applyMetric writes a row that a savepoint takes back, then one that stays.
func applyMetric(ctx context.Context, tx pgx.Tx, op Op) error {
	const insert = `INSERT INTO public.metrics (realm_id, name, at, value, samples) VALUES ($1, $2, clock_timestamp(), $3, '{1,NULL}')`
	inner, err := tx.Begin(ctx)
	if err != nil {
		return err
	}
	if _, err := inner.Exec(ctx, insert, op.Realm, "taken back", float64(op.Number)); err != nil {
		return err
	}
	if err := inner.Rollback(ctx); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, insert, op.Realm, op.ID, float64(op.Number))
	return err
}

func applyToken(ctx context.Context, tx pgx.Tx, op Op) error {
	if _, err := tx.Exec(ctx, `
		INSERT INTO public.api_tokens (id, realm_id, digest, scopes) VALUES ($2, $1, sha256($3), '{read}')`,
		op.Realm, op.ID, []byte(op.ID)); err != nil {
		return err
	}
	const first = `(SELECT id FROM public.api_tokens WHERE realm_id = $1 ORDER BY id LIMIT 1)`
	change := `UPDATE public.api_tokens SET uses = uses + 1 WHERE realm_id = $1 AND id = ` + first
	if op.Number%3 == 0 {
		change = `DELETE FROM public.api_tokens WHERE realm_id = $1 AND id = ` + first
	}
	_, err := tx.Exec(ctx, change, op.Realm)
	return err
}

// querier is a connection or a pool.
type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Done reports whether a write's event is there.
func Done(ctx context.Context, db querier, realm, id string) (bool, error) {
	var one int
	err := db.QueryRow(ctx, `SELECT 1 FROM public.events WHERE realm_id = $1 AND id = $2`, realm, id).Scan(&one)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for an event: %w", err)
	}
	return true, nil
}

// Missing counts the writes of which a database has no event.
func Missing(ctx context.Context, db querier, ids []string) (int64, error) {
	var n int64
	err := db.QueryRow(ctx, `SELECT count(*) FROM unnest($1::uuid[]) AS asked(id) WHERE NOT EXISTS (SELECT FROM public.events e WHERE e.id = asked.id)`, ids).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("look for events: %w", err)
	}
	return n, nil
}
