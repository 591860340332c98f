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

// commandWait is one long poll's length: below the 30 s of the API, and below the idle timeouts of common proxies.
const commandWait = 25 * time.Second

// Preflight checks a plan; nothing is changed anywhere.
func (c *Client) Preflight(ctx context.Context, r api.PlanRequest) (api.Preflight, error) {
	return send[api.Preflight](ctx, c, http.MethodPost, "/v1/preflight", r)
}

// Replications lists them, the newest first.
func (c *Client) Replications(ctx context.Context) ([]api.Replication, error) {
	return get[[]api.Replication](ctx, c, "/v1/replications", nil)
}

// StartReplication starts one.
func (c *Client) StartReplication(ctx context.Context, r api.StartRequest) (api.Replication, error) {
	return send[api.Replication](ctx, c, http.MethodPost, "/v1/replications", r)
}

// Replication describes one.
func (c *Client) Replication(ctx context.Context, id string) (api.Replication, error) {
	return get[api.Replication](ctx, c, pathOf("/v1/replications", id), nil)
}

// Throttle says what is allowed at the source, and what holds the copy back.
func (c *Client) Throttle(ctx context.Context, id string) (api.ThrottleStatus, error) {
	return get[api.ThrottleStatus](ctx, c, pathOf("/v1/replications", id, "throttle"), nil)
}

// SetThrottle changes what is given.
func (c *Client) SetThrottle(ctx context.Context, id string, u api.ThrottleUpdate) (api.ThrottleStatus, error) {
	return send[api.ThrottleStatus](ctx, c, http.MethodPatch, pathOf("/v1/replications", id, "throttle"), u)
}

// Progress says how far it is.
func (c *Client) Progress(ctx context.Context, id string) (tenant.Progress, error) {
	return get[tenant.Progress](ctx, c, pathOf("/v1/replications", id, "progress"), nil)
}

// ReplicationEvents follows its events after a sequence number ("": all that are kept).
func (c *Client) ReplicationEvents(ctx context.Context, id, after string, fn func(Event) error) error {
	return c.Stream(ctx, pathOf("/v1/replications", id, "events"), nil, after, fn)
}

// Ask requests pause, resume, cancel, complete or verify.
func (c *Client) Ask(ctx context.Context, id, verb string, r api.CommandRequest) (api.Command, error) {
	return send[api.Command](ctx, c, http.MethodPost, pathOf("/v1/replications", id, verb), r)
}

// Cutover requests a cutover, or a dry run of one.
func (c *Client) Cutover(ctx context.Context, r api.CutoverRequest) (api.Command, error) {
	return send[api.Command](ctx, c, http.MethodPost, pathOf("/v1/replications", r.Replication, "cutover"), r)
}

// Rollback requests the way back.
func (c *Client) Rollback(ctx context.Context, r api.CutoverRequest) (api.Command, error) {
	return send[api.Command](ctx, c, http.MethodPost, pathOf("/v1/replications", r.Replication, "rollback"), r)
}

// Verification reads a result; vid may be "latest".
func (c *Client) Verification(ctx context.Context, id, vid string) (tenant.Verification, error) {
	return get[tenant.Verification](ctx, c, pathOf("/v1/replications", id, "verifications", vid), nil)
}

// Certificate reads the certificate of a replication's cutover.
func (c *Client) Certificate(ctx context.Context, id string) (tenant.Certificate, error) {
	return get[tenant.Certificate](ctx, c, pathOf("/v1/replications", id, "certificate"), nil)
}

// Wait polls a command until it is finished. The command is recorded, and goes on without whoever waits; so the wait
// outlasts that the server is away for some minutes.
func (c *Client) Wait(ctx context.Context, cmd api.Command) (api.Command, error) {
	if c.patience == nil {
		c = c.Patient(Patience{GoesOn: "the " + cmd.Kind + " itself goes on at the server"})
	}
	for cmd.FinishedAt == nil {
		began := c.now()
		next, err := get[api.Command](ctx, c, pathOf("/v1/commands", cmd.ID), url.Values{"wait": {strconv.Itoa(int(commandWait.Seconds()))}})
		if err != nil {
			return cmd, err
		}
		cmd = next
		// A server that does not hold the poll must not be asked in a loop without rest.
		if cmd.FinishedAt == nil && c.now().Sub(began) < time.Second {
			if err := c.sleep(ctx, 200*time.Millisecond); err != nil {
				return cmd, err
			}
		}
	}
	return cmd, nil
}
