package server

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"net/mail"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

type clientsOutput struct{ Body []api.Client }

type clientOutput struct{ Body api.ClientCreated }

type createClientInput struct{ Body api.ClientRequest }

type clientInput struct {
	ID string `path:"id"`
}

const clientColumns = `id, email, scopes, databases, created_at, expires_at, revoked_at, last_used_at`

func scanClient(row pgx.CollectableRow) (api.Client, error) {
	var c api.Client
	err := row.Scan(&c.ID, &c.Email, &c.Scopes, &c.Databases, &c.CreatedAt, &c.ExpiresAt, &c.RevokedAt, &c.LastUsedAt)
	return c, err
}

func (s *Server) listClients(ctx context.Context, _ *struct{}) (*clientsOutput, error) {
	rows, err := s.pool.Query(ctx, `SELECT `+clientColumns+` FROM rehome_control.api_clients ORDER BY created_at`)
	if err != nil {
		return nil, fmt.Errorf("read API clients: %w", err)
	}
	list, err := pgx.CollectRows(rows, scanClient)
	if err != nil {
		return nil, fmt.Errorf("read API clients: %w", err)
	}
	return &clientsOutput{Body: orEmpty(list)}, nil
}

func (s *Server) createClient(ctx context.Context, in *createClientInput) (*clientOutput, error) {
	about(ctx, in.Body.Email)
	c, err := insertClient(ctx, s.pool, in.Body, s.cfg.Now())
	if err != nil {
		return nil, err
	}
	note(ctx, "client_id", c.ID)
	note(ctx, "scopes", c.Scopes)
	note(ctx, "databases", c.Databases)
	return &clientOutput{Body: c}, nil
}

func (s *Server) revokeClient(ctx context.Context, in *clientInput) (*none, error) {
	about(ctx, in.ID)
	tag, err := s.pool.Exec(ctx, `UPDATE rehome_control.api_clients SET revoked_at = coalesce(revoked_at, $2) WHERE id = $1`, in.ID, s.cfg.Now())
	if err != nil {
		return nil, fmt.Errorf("revoke the API client: %w", err)
	}
	if tag.RowsAffected() == 0 {
		return nil, tenant.Errorf(tenant.KindNotFound, "client-not-found", "see `rehome clients`", "there is no API client %q", in.ID)
	}
	return nil, nil
}

type execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// insertClient checks the request and makes a client; the secret is in the answer only, its SHA-256 in the database.
func insertClient(ctx context.Context, db execer, r api.ClientRequest, now time.Time) (api.ClientCreated, error) {
	if err := checkEmail(r.Email); err != nil {
		return api.ClientCreated{}, err
	}
	if len(r.Scopes) == 0 {
		r.Scopes = []string{scopeOperate}
	}
	for _, scope := range r.Scopes {
		if scope != scopeAdmin && scope != scopeOperate && scope != scopeRead {
			return api.ClientCreated{}, tenant.Errorf(tenant.KindInvalid, "bad-scope", "use admin, operate or read", "there is no scope %q", scope)
		}
	}
	for _, name := range r.Databases {
		if err := tenant.CheckDatabaseName(name); err != nil {
			return api.ClientCreated{}, err
		}
	}
	if r.ExpiresAt != nil && !r.ExpiresAt.After(now) {
		return api.ClientCreated{}, tenant.Errorf(tenant.KindInvalid, "bad-expiry", "name a time that is to come", "the expiry is in the past")
	}
	slices.Sort(r.Scopes)
	c := api.ClientCreated{Secret: rand.Text(), Client: api.Client{
		ID: "c" + newID(), Email: r.Email, Scopes: slices.Compact(r.Scopes),
		Databases: orEmpty(r.Databases), CreatedAt: now, ExpiresAt: r.ExpiresAt,
	}}
	sum := sha256.Sum256([]byte(c.Secret))
	if _, err := db.Exec(ctx, `INSERT INTO rehome_control.api_clients (id, secret_hash, email, scopes, databases, created_at, expires_at) VALUES ($1,$2,$3,$4,$5,$6,$7)`,
		c.ID, sum[:], c.Email, c.Scopes, c.Databases, now, c.ExpiresAt); err != nil {
		return api.ClientCreated{}, fmt.Errorf("store the API client: %w", err)
	}
	return c, nil
}

// checkOwner is checkEmail for an address that may be left out.
func checkOwner(address string) error {
	if address == "" {
		return nil
	}
	return checkEmail(address)
}

// checkEmail refuses what is no single plain address (RFC 5322 addr-spec).
func checkEmail(address string) error {
	a, err := mail.ParseAddress(address)
	if err != nil || a.Address != address {
		return tenant.Errorf(tenant.KindInvalid, "bad-email", "write it as name@example.com", "%q is not an e-mail address", address)
	}
	return nil
}
