package server

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/internal/seal"
	"github.com/rehomedb/rehome/migrations"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/server/config"
	"github.com/rehomedb/rehome/tenant"
)

// InitRequest sets an installation up.
type InitRequest struct {
	AdminEmail string // gets the codes of databases without an owner; required the first time
}

// InitResult tells what Init did and found.
type InitResult struct {
	Installation Installation
	Created      bool               // the installation is new
	Migration    migrations.Status  // of the control schema
	Client       *api.ClientCreated // the first API client, with its secret; nil if there were clients already
	Clients      []api.Client       // those that exist
}

// Init works on the control database itself: schema, installation keys and the first API client (scope admin). Again it
// changes nothing but a given admin address, and says what exists; a lost client secret is replaced with authorize.
func Init(ctx context.Context, cfg config.Config, req InitRequest) (InitResult, error) {
	cfg = cfg.WithDefaults()
	if err := cfg.Validate(); err != nil {
		return InitResult{}, err
	}
	var out InitResult
	box, err := seal.New(cfg.Secret)
	if err != nil {
		return out, err
	}
	if req.AdminEmail != "" {
		if err := checkEmail(req.AdminEmail); err != nil {
			return out, err
		}
	}
	pool, err := connect(ctx, cfg)
	if err != nil {
		return out, err
	}
	defer pool.Close()
	if out.Migration, err = migrate(ctx, pool, slog.New(slog.DiscardHandler)); err != nil {
		return out, err
	}
	if out.Installation, out.Created, err = ensureInstallation(ctx, pool, box, cfg.URL); err != nil {
		return out, err
	}
	if req.AdminEmail == "" && out.Installation.AdminEmail == "" {
		return out, tenant.Errorf(tenant.KindInvalid, "missing-admin-email", "name who gets the codes: --email name@example.com", "the installation has no administrator yet")
	}
	now := cfg.Now()
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		// Two inits at once: the second waits here and then finds the first one's client.
		if _, err := tx.Exec(ctx, `SELECT 1 FROM rehome_control.installations FOR UPDATE`); err != nil {
			return err
		}
		if req.AdminEmail != "" && req.AdminEmail != out.Installation.AdminEmail {
			if _, err := tx.Exec(ctx, `UPDATE rehome_control.installations SET admin_email = $1`, req.AdminEmail); err != nil {
				return err
			}
			out.Installation.AdminEmail = req.AdminEmail
		}
		rows, err := tx.Query(ctx, `SELECT `+clientColumns+` FROM rehome_control.api_clients WHERE revoked_at IS NULL ORDER BY created_at`)
		if err != nil {
			return err
		}
		if out.Clients, err = pgx.CollectRows(rows, scanClient); err != nil {
			return err
		}
		if len(out.Clients) > 0 {
			return nil
		}
		c, err := insertClient(ctx, tx, api.ClientRequest{Email: out.Installation.AdminEmail, Scopes: []string{scopeAdmin}}, now)
		if err != nil {
			return err
		}
		out.Client, out.Clients = &c, []api.Client{c.Client}
		_, err = tx.Exec(ctx, `INSERT INTO rehome_control.audit (at, actor, action, object, outcome, detail) VALUES ($1,'operator','init',$2,'ok',jsonb_build_object('client_id', $3::text))`,
			now, out.Installation.AdminEmail, c.ID)
		return err
	})
	if err != nil {
		return out, fmt.Errorf("set up the installation: %w", err)
	}
	return out, nil
}
