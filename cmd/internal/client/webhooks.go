package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/rehomedb/rehome/server/api"
)

// Webhooks lists them.
func (c *Client) Webhooks(ctx context.Context) ([]api.Webhook, error) {
	return get[[]api.Webhook](ctx, c, "/v1/webhooks", nil)
}

// AddWebhook adds one; its secret is in the answer only.
func (c *Client) AddWebhook(ctx context.Context, r api.WebhookRequest) (api.WebhookSecret, error) {
	return send[api.WebhookSecret](ctx, c, http.MethodPost, "/v1/webhooks", r)
}

// UpdateWebhook enables or disables one.
func (c *Client) UpdateWebhook(ctx context.Context, id string, r api.WebhookUpdate) (api.Webhook, error) {
	return send[api.Webhook](ctx, c, http.MethodPatch, pathOf("/v1/webhooks", id), r)
}

// RemoveWebhook removes one with its deliveries.
func (c *Client) RemoveWebhook(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, pathOf("/v1/webhooks", id), nil, nil, nil)
}

// TestWebhook sends a test event.
func (c *Client) TestWebhook(ctx context.Context, id string) (api.WebhookTest, error) {
	return send[api.WebhookTest](ctx, c, http.MethodPost, pathOf("/v1/webhooks", id, "test"), nil)
}

// RotateWebhook makes a new secret; it is in the answer only.
func (c *Client) RotateWebhook(ctx context.Context, id string, r api.WebhookRotate) (api.WebhookSecret, error) {
	return send[api.WebhookSecret](ctx, c, http.MethodPost, pathOf("/v1/webhooks", id, "rotate-secret"), r)
}

// WebhookDeliveries lists the newest ones, of one webhook or ("") of all.
func (c *Client) WebhookDeliveries(ctx context.Context, webhook string, limit int) ([]api.WebhookDelivery, error) {
	q := url.Values{}
	if webhook != "" {
		q.Set("webhook", webhook)
	}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	return get[[]api.WebhookDelivery](ctx, c, "/v1/webhook-deliveries", q)
}

// Redeliver sends an event again.
func (c *Client) Redeliver(ctx context.Context, delivery int64) (api.WebhookDelivery, error) {
	return send[api.WebhookDelivery](ctx, c, http.MethodPost, pathOf("/v1/webhook-deliveries", strconv.FormatInt(delivery, 10), "redeliver"), nil)
}

// Notifications lists what addresses are not told of by e-mail.
func (c *Client) Notifications(ctx context.Context) ([]api.NotificationSettings, error) {
	return get[[]api.NotificationSettings](ctx, c, "/v1/notifications", nil)
}

// SetNotifications sets what an address is not told of.
func (c *Client) SetNotifications(ctx context.Context, email string, muted []string) (api.NotificationSettings, error) {
	return send[api.NotificationSettings](ctx, c, http.MethodPut, pathOf("/v1/notifications", email), api.NotificationUpdate{Muted: muted})
}
