package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// Databases lists the databases.
func (c *Client) Databases(ctx context.Context) ([]api.Database, error) {
	return get[[]api.Database](ctx, c, "/v1/databases", nil)
}

// Database describes one.
func (c *Client) Database(ctx context.Context, name string) (api.Database, error) {
	return get[api.Database](ctx, c, pathOf("/v1/databases", name), nil)
}

// CreateDatabase makes a sharded database.
func (c *Client) CreateDatabase(ctx context.Context, r api.DatabaseRequest) (api.Database, error) {
	return send[api.Database](ctx, c, http.MethodPost, "/v1/databases", r)
}

// AdoptDatabase puts an existing Postgres database under management.
func (c *Client) AdoptDatabase(ctx context.Context, r api.AdoptRequest) (api.Database, error) {
	return send[api.Database](ctx, c, http.MethodPost, "/v1/databases/adopt", r)
}

// UpdateDatabase changes what is given.
func (c *Client) UpdateDatabase(ctx context.Context, name string, r api.DatabaseUpdate) (api.Database, error) {
	return send[api.Database](ctx, c, http.MethodPatch, pathOf("/v1/databases", name), r)
}

// Placement says which shard each of a database's realms is on.
func (c *Client) Placement(ctx context.Context, name string) (tenant.Placement, error) {
	return get[tenant.Placement](ctx, c, pathOf("/v1/databases", name, "placement"), nil)
}

// Realms lists a database's realms with their sizes.
func (c *Client) Realms(ctx context.Context, name, shard, sort string) ([]api.Realm, error) {
	q := url.Values{}
	if shard != "" {
		q.Set("shard", shard)
	}
	if sort != "" {
		q.Set("sort", sort)
	}
	return get[[]api.Realm](ctx, c, pathOf("/v1/databases", name, "realms"), q)
}

// StatsHistory reads how a database's use went for a time up to now.
func (c *Client) StatsHistory(ctx context.Context, name string, last time.Duration) (api.StatsHistory, error) {
	return get[api.StatsHistory](ctx, c, pathOf("/v1/databases", name, "stats", "history"), url.Values{"last": {strconv.FormatInt(int64(last/time.Second), 10)}})
}

// Stats counts a database's connections.
func (c *Client) Stats(ctx context.Context, name string) (api.Stats, error) {
	return get[api.Stats](ctx, c, pathOf("/v1/databases", name, "stats"), nil)
}

// DeleteDatabase begins a deletion; its owner gets a confirmation e-mail.
func (c *Client) DeleteDatabase(ctx context.Context, r api.DeleteRequest) (api.DeleteStatus, error) {
	return send[api.DeleteStatus](ctx, c, http.MethodPost, pathOf("/v1/databases", r.Database, "delete"), r)
}

// ConfirmDelete finishes it with the code of that e-mail.
func (c *Client) ConfirmDelete(ctx context.Context, name, code string) (api.DeleteStatus, error) {
	return send[api.DeleteStatus](ctx, c, http.MethodPost, pathOf("/v1/databases", name, "delete", "confirm"), api.DeleteConfirm{Code: code})
}

// Undelete takes a deletion back while its data is there.
func (c *Client) Undelete(ctx context.Context, name string) (api.Database, error) {
	return send[api.Database](ctx, c, http.MethodPost, pathOf("/v1/databases", name, "undelete"), nil)
}

// AddDomain makes a database known under a domain of its own.
func (c *Client) AddDomain(ctx context.Context, name, domain string) (api.Database, error) {
	return send[api.Database](ctx, c, http.MethodPut, pathOf("/v1/databases", name, "domains", domain), nil)
}

// RemoveDomain takes it away.
func (c *Client) RemoveDomain(ctx context.Context, name, domain string) (api.Database, error) {
	return send[api.Database](ctx, c, http.MethodDelete, pathOf("/v1/databases", name, "domains", domain), nil)
}

// RedirectOf reads the redirect in force.
func (c *Client) RedirectOf(ctx context.Context, name string) (api.Redirect, error) {
	return get[api.Redirect](ctx, c, pathOf("/v1/databases", name, "redirect"), nil)
}

// SetRedirect sends a database's clients elsewhere.
func (c *Client) SetRedirect(ctx context.Context, r api.RedirectRequest) (api.Redirect, error) {
	return send[api.Redirect](ctx, c, http.MethodPut, pathOf("/v1/databases", r.Database, "redirect"), r)
}

// ClearRedirect takes it back.
func (c *Client) ClearRedirect(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, pathOf("/v1/databases", name, "redirect"), nil, nil, nil)
}
