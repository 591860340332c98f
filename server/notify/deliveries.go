package notify

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// States of deliveries and mails.
const (
	statePending   = "pending"
	stateDelivered = "delivered"
	stateSent      = "sent"
	stateDead      = "dead"
)

// kept is how long what was delivered or given up can be looked at, and asked for again.
const kept = 30 * 24 * time.Hour

const deliveryColumns = `d.id, d.webhook, d.event_id, d.topic, d.database, d.state, d.attempts, d.status, d.error, d.created_at, d.last_at, d.next_at, d.finished_at`

func scanDelivery(row pgx.CollectableRow) (api.WebhookDelivery, error) {
	var d api.WebhookDelivery
	err := row.Scan(&d.ID, &d.Webhook, &d.EventID, &d.Event, &d.Database, &d.State, &d.Attempts, &d.Status, &d.Error, &d.CreatedAt, &d.LastAt, &d.NextAt, &d.FinishedAt)
	return d, err
}

// Deliveries lists the newest ones, of one webhook or of all.
func (n *Notifier) Deliveries(ctx context.Context, scope Scope, webhook string, limit int) ([]api.WebhookDelivery, error) {
	if webhook != "" {
		if _, err := n.Webhook(ctx, scope, webhook); err != nil {
			return nil, err
		}
	}
	rows, err := n.cfg.Pool.Query(ctx, `SELECT `+deliveryColumns+` FROM rehome_control.webhook_deliveries d JOIN rehome_control.webhooks w ON w.id = d.webhook
		WHERE ($1 = '' OR d.webhook = $1) AND (cardinality($2::text[]) = 0 OR (w.databases <@ $2::text[] AND cardinality(w.databases) > 0)) ORDER BY d.id DESC LIMIT $3`,
		webhook, orEmpty(scope), limit)
	if err != nil {
		return nil, fmt.Errorf("read the deliveries: %w", err)
	}
	list, err := pgx.CollectRows(rows, scanDelivery)
	if err != nil {
		return nil, fmt.Errorf("read the deliveries: %w", err)
	}
	return list, nil
}

func (n *Notifier) delivery(ctx context.Context, scope Scope, id int64) (api.WebhookDelivery, error) {
	missing := tenant.Errorf(tenant.KindNotFound, "delivery-not-found", "see `rehome webhooks deliveries`", "there is no delivery %d", id)
	rows, err := n.cfg.Pool.Query(ctx, `SELECT `+deliveryColumns+` FROM rehome_control.webhook_deliveries d WHERE d.id = $1`, id)
	if err != nil {
		return api.WebhookDelivery{}, fmt.Errorf("read the delivery: %w", err)
	}
	d, err := pgx.CollectExactlyOneRow(rows, scanDelivery)
	if errors.Is(err, pgx.ErrNoRows) {
		return d, missing
	}
	if err != nil {
		return d, fmt.Errorf("read the delivery: %w", err)
	}
	if _, err := n.Webhook(ctx, scope, d.Webhook); err != nil {
		if tenant.AsError(err).Kind == tenant.KindNotFound {
			return api.WebhookDelivery{}, missing
		}
		return d, err
	}
	return d, nil
}

// Redeliver sends an event again, now, with the webhook-id that it had; its tries are counted anew. One that waits for its
// next try is sent at once.
func (n *Notifier) Redeliver(ctx context.Context, scope Scope, id int64) (api.WebhookDelivery, error) {
	d, err := n.delivery(ctx, scope, id)
	if err != nil {
		return d, err
	}
	w, err := n.Webhook(ctx, scope, d.Webhook)
	if err != nil {
		return d, err
	}
	if !w.Enabled {
		return d, tenant.Errorf(tenant.KindConflict, "webhook-disabled", "enable it first: rehome webhooks enable "+w.ID, "webhook %s is disabled: %s", w.ID, w.DisabledReason)
	}
	err = pgx.BeginFunc(ctx, n.cfg.Pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `UPDATE rehome_control.webhook_deliveries SET state = 'pending', attempts = 0, next_at = $2, created_at = $2, finished_at = NULL WHERE id = $1`, id, n.cfg.Now())
		if err != nil || tag.RowsAffected() == 0 {
			return err
		}
		return n.enqueue(ctx, tx, d.Webhook, id)
	})
	if err != nil {
		return d, fmt.Errorf("deliver %d again: %w", id, err)
	}
	return n.delivery(ctx, scope, id)
}

// enqueue makes the one job that may send a delivery.
func (n *Notifier) enqueue(ctx context.Context, tx pgx.Tx, webhook string, id int64) error {
	res, err := n.jobs.InsertTx(ctx, tx, deliveryArgs{Delivery: id}, deliveryOpts(webhook))
	if err != nil {
		return fmt.Errorf("insert the job: %w", err)
	}
	_, err = tx.Exec(ctx, `UPDATE rehome_control.webhook_deliveries SET job = $2 WHERE id = $1`, id, res.Job.ID)
	return err
}

// Prune removes deliveries and mails that ended long ago, and returns how many.
func (n *Notifier) Prune(ctx context.Context) (int64, error) {
	var all int64
	for _, stmt := range []string{
		`DELETE FROM rehome_control.webhook_deliveries WHERE finished_at < $1`,
		`DELETE FROM rehome_control.notices WHERE finished_at < $1`,
		`DELETE FROM rehome_control.told t WHERE at < $1 AND NOT EXISTS (SELECT FROM rehome_control.replications r WHERE r.id = t.thing AND r.ended_at IS NULL)`,
	} {
		tag, err := n.cfg.Pool.Exec(ctx, stmt, n.cfg.Now().Add(-kept))
		if err != nil {
			return all, fmt.Errorf("prune deliveries: %w", err)
		}
		all += tag.RowsAffected()
	}
	return all, nil
}
