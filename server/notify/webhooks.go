package notify

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"

	"github.com/rehomedb/rehome/progress"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

const (
	purposeURL    = "webhook-url"
	purposeSecret = "webhook-secret"
	// maxWebhooks bounds them: each has a queue on every server.
	maxWebhooks = 50
	// Overlap is how long a former secret signs too, unless asked otherwise: a day to bring the new one everywhere.
	Overlap = 24 * time.Hour
)

// Scope is whose webhooks are meant: those of some databases only, or all when empty.
type Scope []string

// permits reports whether a webhook that is for these databases is within the scope.
func (s Scope) permits(databases []string) bool {
	if len(s) == 0 {
		return true
	}
	return len(databases) > 0 && !slices.ContainsFunc(databases, func(d string) bool { return !slices.Contains(s, d) })
}

func notFound(id string) error {
	return tenant.Errorf(tenant.KindNotFound, "webhook-not-found", "see `rehome webhooks list`", "there is no webhook %q", id)
}

// Add makes a webhook. Its secret is in the answer only.
func (n *Notifier) Add(ctx context.Context, scope Scope, r api.WebhookRequest, by string) (api.WebhookSecret, error) {
	var out api.WebhookSecret
	u, err := checkURL(r.URL, n.cfg.Networks, r.Insecure)
	if err != nil {
		return out, err
	}
	if err := CheckTopics(r.Events); err != nil {
		return out, err
	}
	if !scope.permits(r.Databases) {
		return out, tenant.Errorf(tenant.KindUnauthorised, "bound-to-databases", "name them: --db", "the key is for %s only", strings.Join(scope, ", "))
	}
	slices.Sort(r.Events)
	slices.Sort(r.Databases)
	after, err := n.cfg.Log.LastID(ctx)
	if err != nil {
		return out, err
	}
	id, secret := strings.ToLower(rand.Text())[:10], newSecret()
	err = pgx.BeginFunc(ctx, n.cfg.Pool, func(tx pgx.Tx) error {
		var missing *string
		if err := tx.QueryRow(ctx, `SELECT min(asked.name) FROM unnest($1::text[]) AS asked(name) WHERE NOT EXISTS (SELECT FROM rehome_control.databases d WHERE d.name = asked.name)`, r.Databases).Scan(&missing); err != nil {
			return err
		}
		if missing != nil {
			return tenant.Errorf(tenant.KindNotFound, "database-not-found", "see `rehome databases`", "there is no database %q", *missing)
		}
		tag, err := tx.Exec(ctx, `INSERT INTO rehome_control.webhooks (id, url_sealed, url_label, description, topics, databases, secret_sealed, created_by, created_at, after_id)
			SELECT $1,$2,$3,$4,$5,$6,$7,$8,$9,$10 WHERE (SELECT count(*) FROM rehome_control.webhooks) < $11`,
			id, n.cfg.Seal.Seal(purposeURL, u.String()), label(u), r.Description, orEmpty(slices.Compact(r.Events)), orEmpty(slices.Compact(r.Databases)),
			n.cfg.Seal.Seal(purposeSecret, secret), by, n.cfg.Now(), after, maxWebhooks)
		if err == nil && tag.RowsAffected() == 0 {
			err = tenant.Errorf(tenant.KindRefused, "too-many-webhooks", "remove one that is not needed, or let one receiver hand events on", "there are %d webhooks already", maxWebhooks)
		}
		return err
	})
	if err != nil {
		return out, fmt.Errorf("store the webhook: %w", err)
	}
	n.changed()
	out.Secret = secret
	out.Webhook, err = n.Webhook(ctx, scope, id)
	return out, err
}

func orEmpty(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

const webhookSQL = `SELECT w.id, w.url_label, w.description, w.topics, w.databases, w.disabled_at IS NULL, w.disabled_reason, w.former_until, w.created_at, w.created_by,
		coalesce(c.pending, 0), coalesce(c.dead, 0), l.last_at, l.status, coalesce(l.error, '')
	FROM rehome_control.webhooks w
	LEFT JOIN LATERAL (SELECT count(*) FILTER (WHERE state = 'pending') AS pending, count(*) FILTER (WHERE state = 'dead') AS dead
		FROM rehome_control.webhook_deliveries d WHERE d.webhook = w.id) c ON true
	LEFT JOIN LATERAL (SELECT last_at, status, error FROM rehome_control.webhook_deliveries d
		WHERE d.webhook = w.id AND last_at IS NOT NULL ORDER BY last_at DESC LIMIT 1) l ON true`

// Webhooks lists them, oldest first.
func (n *Notifier) Webhooks(ctx context.Context, scope Scope) ([]api.Webhook, error) {
	rows, err := n.cfg.Pool.Query(ctx, webhookSQL+` WHERE cardinality($1::text[]) = 0 OR (w.databases <@ $1::text[] AND cardinality(w.databases) > 0) ORDER BY w.created_at`, orEmpty(scope))
	if err != nil {
		return nil, fmt.Errorf("read the webhooks: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (api.Webhook, error) { return n.scan(row) })
	if err != nil {
		return nil, fmt.Errorf("read the webhooks: %w", err)
	}
	return list, nil
}

func (n *Notifier) scan(row pgx.CollectableRow) (api.Webhook, error) {
	var w api.Webhook
	err := row.Scan(&w.ID, &w.URL, &w.Description, &w.Events, &w.Databases, &w.Enabled, &w.DisabledReason, &w.FormerUntil, &w.CreatedAt, &w.CreatedBy,
		&w.Pending, &w.Dead, &w.LastAt, &w.LastStatus, &w.LastError)
	if w.FormerUntil != nil && !w.FormerUntil.After(n.cfg.Now()) {
		w.FormerUntil = nil
	}
	return w, err
}

// Webhook reads one. What is not within the scope is not found.
func (n *Notifier) Webhook(ctx context.Context, scope Scope, id string) (api.Webhook, error) {
	rows, err := n.cfg.Pool.Query(ctx, webhookSQL+` WHERE w.id = $1`, id)
	if err != nil {
		return api.Webhook{}, fmt.Errorf("read the webhook: %w", err)
	}
	w, err := pgx.CollectExactlyOneRow(rows, func(row pgx.CollectableRow) (api.Webhook, error) { return n.scan(row) })
	if errors.Is(err, pgx.ErrNoRows) || (err == nil && !scope.permits(w.Databases)) {
		return api.Webhook{}, notFound(id)
	}
	if err != nil {
		return w, fmt.Errorf("read the webhook: %w", err)
	}
	return w, nil
}

// Remove forgets a webhook with its deliveries; what is on its way may still arrive.
func (n *Notifier) Remove(ctx context.Context, scope Scope, id string) error {
	if _, err := n.Webhook(ctx, scope, id); err != nil {
		return err
	}
	err := pgx.BeginFunc(ctx, n.cfg.Pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `DELETE FROM rehome_control.webhooks WHERE id = $1`, id); err != nil {
			return err
		}
		// Nobody would work on its queue any more. Running jobs find no delivery and end.
		for {
			const batch = 1000
			res, err := n.jobs.JobDeleteManyTx(ctx, tx, river.NewJobDeleteManyParams().Queues(queueOf(id)).First(batch).
				States(rivertype.JobStateAvailable, rivertype.JobStateScheduled, rivertype.JobStateRetryable, rivertype.JobStatePending))
			if err != nil || len(res.Jobs) < batch {
				return err
			}
		}
	})
	if err != nil {
		return fmt.Errorf("remove the webhook: %w", err)
	}
	n.changed()
	return nil
}

// Update enables or disables a webhook. Events that come while it is disabled are not kept for it.
func (n *Notifier) Update(ctx context.Context, scope Scope, id string, r api.WebhookUpdate, by string) (api.Webhook, error) {
	if _, err := n.Webhook(ctx, scope, id); err != nil {
		return api.Webhook{}, err
	}
	if r.Enabled != nil {
		_, err := n.cfg.Pool.Exec(ctx, `UPDATE rehome_control.webhooks SET disabled_at = CASE WHEN $2 THEN NULL ELSE coalesce(disabled_at, $3) END,
			disabled_reason = CASE WHEN $2 THEN '' WHEN disabled_at IS NULL THEN $4 ELSE disabled_reason END WHERE id = $1`, id, *r.Enabled, n.cfg.Now(), "by "+by)
		if err != nil {
			return api.Webhook{}, fmt.Errorf("change the webhook: %w", err)
		}
	}
	return n.Webhook(ctx, scope, id)
}

// Rotate gives a webhook a new secret. Until the overlap is over the former one signs as well; one that was rotated before
// within its overlap counts no more.
func (n *Notifier) Rotate(ctx context.Context, scope Scope, id string, overlap time.Duration) (api.WebhookSecret, error) {
	var out api.WebhookSecret
	if _, err := n.Webhook(ctx, scope, id); err != nil {
		return out, err
	}
	secret := newSecret()
	_, err := n.cfg.Pool.Exec(ctx, `UPDATE rehome_control.webhooks SET former_secret_sealed = CASE WHEN $3 > $4::timestamptz THEN secret_sealed END,
		former_until = CASE WHEN $3 > $4::timestamptz THEN $3::timestamptz END, secret_sealed = $2 WHERE id = $1`,
		id, n.cfg.Seal.Seal(purposeSecret, secret), n.cfg.Now().Add(overlap), n.cfg.Now())
	if err != nil {
		return out, fmt.Errorf("rotate the webhook's secret: %w", err)
	}
	out.Secret = secret
	out.Webhook, err = n.Webhook(ctx, scope, id)
	return out, err
}

// endpoint is what sending needs of a webhook.
type endpoint struct {
	id, url  string
	secrets  []string // the one in force first
	disabled bool
}

func (n *Notifier) endpoint(ctx context.Context, db progress.DB, id string) (endpoint, error) {
	e := endpoint{id: id}
	var target, secret, former []byte
	var until *time.Time
	err := db.QueryRow(ctx, `SELECT url_sealed, secret_sealed, former_secret_sealed, former_until, disabled_at IS NOT NULL FROM rehome_control.webhooks WHERE id = $1`, id).
		Scan(&target, &secret, &former, &until, &e.disabled)
	if errors.Is(err, pgx.ErrNoRows) {
		return e, notFound(id)
	}
	if err != nil {
		return e, fmt.Errorf("read the webhook: %w", err)
	}
	if e.url, err = n.cfg.Seal.Open(purposeURL, target); err != nil {
		return e, fmt.Errorf("open the webhook's URL: %w", err)
	}
	sealed := [][]byte{secret}
	if former != nil && until != nil && until.After(n.cfg.Now()) {
		sealed = append(sealed, former)
	}
	for _, s := range sealed {
		plain, err := n.cfg.Seal.Open(purposeSecret, s)
		if err != nil {
			return e, fmt.Errorf("open the webhook's secret: %w", err)
		}
		e.secrets = append(e.secrets, plain)
	}
	return e, nil
}

// SendTest sends a signed test event now and tells what became of it. It is no delivery: it is not repeated. A webhook that
// is disabled can be tried before it is enabled.
func (n *Notifier) SendTest(ctx context.Context, scope Scope, id string) (api.WebhookTest, error) {
	out := api.WebhookTest{Webhook: id}
	if _, err := n.Webhook(ctx, scope, id); err != nil {
		return out, err
	}
	e, err := n.endpoint(ctx, n.cfg.Pool, id)
	if err != nil {
		return out, err
	}
	event := progress.Event{
		SpecVersion: progress.SpecVersion, ID: rand.Text(), Source: n.cfg.BaseURL, Type: "dev.rehome.webhook.test",
		Subject: progress.Subject(n.cfg.Installation, "", "webhook", id, string(Test)), Time: n.cfg.Now().UTC(),
		DataContentType: "application/json", Stream: "webhook-" + id, Sequence: 1, Data: json.RawMessage(`{"note":"this is a test: nothing has happened"}`),
	}
	body, err := json.Marshal(event)
	if err != nil {
		return out, fmt.Errorf("encode the test event: %w", err)
	}
	a := n.sender.send(ctx, e.url, event.ID, body, e.secrets)
	if a.cut {
		return out, ctx.Err()
	}
	out.EventID, out.OK, out.Status, out.Millis, out.Answer, out.Error = event.ID, a.ok(), a.status, float64(a.took.Microseconds())/1000, a.answer, a.err
	return out, nil
}
