package server

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// Scopes of API clients. Each contains the next.
const (
	scopeAdmin   = "admin"   // shards, clients, channel, creating databases
	scopeOperate = "operate" // replications, cutovers, redirects, deletion
	scopeRead    = "read"
)

// lastUsedEvery bounds how often a client's last_used_at is written.
const lastUsedEvery = time.Minute

// principal is who asks.
type principal struct {
	actor     string // e-mail of the client, or "operator"
	client    string // id; "operator" for REHOME_SECRET
	scopes    []string
	databases []string // empty: all
	operator  bool
}

const operatorName = "operator"

// may reports whether a scope is granted, directly or by a wider one.
func (p *principal) may(scope string) bool {
	if p.operator || slices.Contains(p.scopes, scopeAdmin) {
		return true
	}
	switch scope {
	case scopeOperate:
		return slices.Contains(p.scopes, scopeOperate)
	case scopeRead:
		return slices.Contains(p.scopes, scopeOperate) || slices.Contains(p.scopes, scopeRead)
	}
	return false
}

// sees reports whether a database is among the client's.
func (p *principal) sees(database string) bool {
	return len(p.databases) == 0 || slices.Contains(p.databases, database)
}

// unbound reports whether the client is for the whole installation.
func (p *principal) unbound() bool { return len(p.databases) == 0 }

var (
	errNoCredentials = &tenant.Error{
		Kind: tenant.KindUnauthorised, Code: codeNoCredentials, Message: "the request carries no key",
		Hint: "send Authorization: Bearer CLIENT_ID:SECRET; rehome authorize EMAIL --save stores a key, REHOME_SECRET is an operator's",
	}
	errBadCredentials = &tenant.Error{
		Kind: tenant.KindUnauthorised, Code: codeBadKey, Message: "the key is unknown, expired or revoked",
		Hint: "ask the installation's administrator for a new one (rehome authorize EMAIL)",
	}
	errTooManyFailures = &tenant.Error{Kind: tenant.KindUnauthorised, Code: codeRateLimited, Message: "too many wrong keys from this address", Hint: "wait a minute"}
)

// authenticate finds out who asks, from the Authorization header.
func (s *Server) authenticate(ctx context.Context, header, address string) (*principal, error) {
	scheme, token, ok := strings.Cut(header, " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") || token == "" {
		return nil, errNoCredentials
	}
	// Before the limit, and without a look-up: a stranger behind the same load balancer must not lock the operator out.
	given, want := sha256.Sum256([]byte(token)), sha256.Sum256([]byte(s.cfg.Secret.Reveal()))
	if subtle.ConstantTimeCompare(given[:], want[:]) == 1 {
		return &principal{actor: operatorName, client: operatorName, scopes: []string{scopeAdmin}, operator: true}, nil
	}
	if s.failures.exhausted(address) {
		return nil, errTooManyFailures
	}
	p, err := s.lookup(ctx, token)
	if errors.Is(err, errBadCredentials) {
		s.failures.count(address)
	}
	return p, err
}

func (s *Server) lookup(ctx context.Context, token string) (*principal, error) {
	id, secret, ok := strings.Cut(token, ":")
	if !ok || len(id) > 64 {
		return nil, errBadCredentials
	}
	p := &principal{client: id}
	var hash []byte
	var used *time.Time
	err := s.pool.QueryRow(ctx, `SELECT secret_hash, email, scopes, databases, last_used_at FROM rehome_control.api_clients
		WHERE id = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $2)`, id, s.cfg.Now()).Scan(&hash, &p.actor, &p.scopes, &p.databases, &used)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, errBadCredentials
	}
	if err != nil {
		return nil, fmt.Errorf("look up the API client: %w", err)
	}
	sum := sha256.Sum256([]byte(secret))
	if subtle.ConstantTimeCompare(sum[:], hash) != 1 {
		return nil, errBadCredentials
	}
	if now := s.cfg.Now(); used == nil || now.Sub(*used) > lastUsedEvery {
		if _, err := s.pool.Exec(ctx, `UPDATE rehome_control.api_clients SET last_used_at = $2 WHERE id = $1`, id, now); err != nil {
			return nil, fmt.Errorf("note the API client's use: %w", err)
		}
	}
	return p, nil
}

// permit checks scope and reach of the one who asks.
func permit(p *principal, scope string, wholeInstallation bool) error {
	if p == nil {
		return errNoCredentials
	}
	if !p.may(scope) {
		return tenant.Errorf(tenant.KindUnauthorised, "scope-missing", "use a key with that scope (rehome authorize EMAIL --scopes "+scope+")", "this needs the scope %q", scope)
	}
	if wholeInstallation && !p.unbound() {
		return tenant.Errorf(tenant.KindUnauthorised, "bound-to-databases", "use a key that is not bound to databases", "this concerns the whole installation, and the key is for %s only", strings.Join(p.databases, ", "))
	}
	return nil
}

// permitDatabase hides databases of others: what a client may not see is not found.
func permitDatabase(ctx context.Context, database string) error {
	about(ctx, database)
	if p := requestOf(ctx).principal; p == nil || !p.sees(database) {
		return notFoundDatabase(database)
	}
	return nil
}

func notFoundDatabase(name string) error {
	return tenant.Errorf(tenant.KindNotFound, "database-not-found", "see `rehome databases`", "there is no database %q", name)
}

// challengeHeader tells how to authenticate (RFC 6750 §3), and when to ask again.
func challengeHeader(w http.ResponseWriter, p *problem) {
	if p.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="rehome"`)
	}
	if n := p.retryAfter(); n > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(n))
	}
}
