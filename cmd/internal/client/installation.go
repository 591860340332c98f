package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/rehomedb/rehome/server/api"
)

func get[T any](ctx context.Context, c *Client, path string, query url.Values) (T, error) {
	var out T
	err := c.call(ctx, http.MethodGet, path, query, nil, &out)
	return out, err
}

func send[T any](ctx context.Context, c *Client, method, path string, in any) (T, error) {
	var out T
	err := c.call(ctx, method, path, nil, in, &out)
	return out, err
}

// Installation describes the server.
func (c *Client) Installation(ctx context.Context) (api.Installation, error) {
	return get[api.Installation](ctx, c, "/v1/installation", nil)
}

// Examine compares the installation's records with what is there.
func (c *Client) Examine(ctx context.Context) (api.Doctor, error) {
	return get[api.Doctor](ctx, c, "/v1/doctor", nil)
}

// Repair performs the safe repairs.
func (c *Client) Repair(ctx context.Context) (api.Doctor, error) {
	return send[api.Doctor](ctx, c, http.MethodPost, "/v1/doctor/fix", nil)
}

// SetEmailChannel sets how codes reach people, and sends a test message if asked.
func (c *Client) SetEmailChannel(ctx context.Context, r api.EmailChannelRequest) (api.EmailChannel, error) {
	return send[api.EmailChannel](ctx, c, http.MethodPost, "/v1/email-channel", r)
}

// Shards lists the shards.
func (c *Client) Shards(ctx context.Context) ([]api.Shard, error) {
	return get[[]api.Shard](ctx, c, "/v1/shards", nil)
}

// AddShard adds one.
func (c *Client) AddShard(ctx context.Context, r api.ShardRequest) (api.Shard, error) {
	return send[api.Shard](ctx, c, http.MethodPost, "/v1/shards", r)
}

// UpdateShard changes what is given.
func (c *Client) UpdateShard(ctx context.Context, name string, r api.ShardUpdate) (api.Shard, error) {
	return send[api.Shard](ctx, c, http.MethodPatch, pathOf("/v1/shards", name), r)
}

// RemoveShard removes an empty one.
func (c *Client) RemoveShard(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, pathOf("/v1/shards", name), nil, nil, nil)
}

// Challenge asks for a code.
func (c *Client) Challenge(ctx context.Context, r api.ChallengeRequest) (api.Challenge, error) {
	return send[api.Challenge](ctx, c, http.MethodPost, "/v1/challenges", r)
}

// EnrolTOTP begins the enrolment of an authenticator app.
func (c *Client) EnrolTOTP(ctx context.Context, email string) (api.TOTPEnrolment, error) {
	return send[api.TOTPEnrolment](ctx, c, http.MethodPost, "/v1/totp", api.TOTPEnrolRequest{Email: email})
}

// ConfirmTOTP finishes it with a first code.
func (c *Client) ConfirmTOTP(ctx context.Context, r api.TOTPConfirm) error {
	return c.call(ctx, http.MethodPost, "/v1/totp/confirm", nil, r, nil)
}

// RemoveTOTP forgets the app of an address.
func (c *Client) RemoveTOTP(ctx context.Context, email string) error {
	return c.call(ctx, http.MethodDelete, pathOf("/v1/totp", email), nil, nil, nil)
}

// Clients lists the API clients.
func (c *Client) Clients(ctx context.Context) ([]api.Client, error) {
	return get[[]api.Client](ctx, c, "/v1/clients", nil)
}

// Authorize makes an API client; its secret is in the answer only.
func (c *Client) Authorize(ctx context.Context, r api.ClientRequest) (api.ClientCreated, error) {
	return send[api.ClientCreated](ctx, c, http.MethodPost, "/v1/clients", r)
}

// Revoke ends an API client.
func (c *Client) Revoke(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, pathOf("/v1/clients", id), nil, nil, nil)
}

// Audit reads the audit log backwards from before (0: its end).
func (c *Client) Audit(ctx context.Context, limit int, before int64) ([]api.AuditEntry, error) {
	q := url.Values{}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	if before > 0 {
		q.Set("before", strconv.FormatInt(before, 10))
	}
	return get[[]api.AuditEntry](ctx, c, "/v1/audit", q)
}

// Events follows the installation's events after an id ("0": from the oldest that is kept; "": from now on).
func (c *Client) Events(ctx context.Context, subject, after string, fn func(Event) error) error {
	q := url.Values{}
	if subject != "" {
		q.Set("subject", subject)
	}
	if after != "" {
		q.Set("after", after)
	}
	return c.Stream(ctx, "/v1/events", q, after, fn)
}
