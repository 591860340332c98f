package shard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/tenant"
)

// codeNoDatabase is the code of an Error of connect where the server answers but has no such database.
const codeNoDatabase = "postgres-database-missing"

// connect opens a session within timeout. Its errors name the address without the password.
func connect(ctx context.Context, dsn tenant.DSN, timeout time.Duration) (*pgx.Conn, error) {
	cfg, err := parseDSN(dsn)
	if err != nil {
		return nil, err
	}
	cctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(cctx, cfg)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		code := "postgres-unreachable"
		if isCode(err, "3D000") { // invalid_catalog_name
			code = codeNoDatabase
		}
		return nil, &tenant.Error{
			Kind: tenant.KindUnavailable, Code: code,
			Message: fmt.Sprintf("cannot connect to %s: %s", dsn, whyUnreachable(err, cfg.Password)),
			Hint:    "check host, port, role and password, that the server runs, and that pg_hba.conf and firewalls let this machine in",
		}
	}
	return conn, nil
}

// whyUnreachable keeps of a connection error what helps, and never the password.
func whyUnreachable(err error, password string) string {
	var pgErr *pgconn.PgError
	var opErr *net.OpError
	var dnsErr *net.DNSError
	why := ""
	switch {
	case errors.As(err, &pgErr):
		why = pgErr.Message + " (" + pgErr.Code + ")"
	case errors.Is(err, context.DeadlineExceeded):
		why = "no answer in time"
	case errors.As(err, &dnsErr):
		why = dnsErr.Error()
	case errors.As(err, &opErr):
		why = opErr.Error()
	default:
		why = err.Error()
		if i := strings.LastIndex(why, ": "); i >= 0 {
			why = why[i+2:]
		}
	}
	if password != "" {
		why = strings.ReplaceAll(why, password, "[redacted]")
	}
	return why
}

// closeConn ends a session politely, also when ctx is over.
func closeConn(ctx context.Context, conn *pgx.Conn) {
	cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = conn.Close(cctx) // the session ends either way
}

// serverInfo is what add-shard wants to know of a server.
type serverInfo struct {
	Version   int
	SystemID  string
	Recovery  bool
	CreateDB  bool
	Role      string
	Database  string
	StartedAt time.Time
}

// inspect reads a server's identity. The identifier is "" where the role may not read it.
func inspect(ctx context.Context, conn *pgx.Conn) (serverInfo, error) {
	var s serverInfo
	err := conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, pg_is_in_recovery(), r.rolsuper OR r.rolcreatedb,
			r.rolname::text, current_database()::text, pg_postmaster_start_time()
		FROM pg_roles r WHERE r.rolname = current_user`).
		Scan(&s.Version, &s.Recovery, &s.CreateDB, &s.Role, &s.Database, &s.StartedAt)
	if err != nil {
		return s, fmt.Errorf("ask the server for its version: %w", err)
	}
	err = conn.QueryRow(ctx, `SELECT system_identifier::text FROM pg_control_system()`).Scan(&s.SystemID)
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == "42501" { // insufficient_privilege: some hosted services revoke it
		return s, nil
	}
	if err != nil {
		return s, fmt.Errorf("ask the server for its system identifier: %w", err)
	}
	return s, nil
}

// isCode reports whether the server answered with one of the SQLSTATEs.
func isCode(err error, codes ...string) bool {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return false
	}
	return slices.Contains(codes, pgErr.Code)
}
