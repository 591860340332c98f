package preflight

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/tenant"
)

// problem is why a server could not be reached, in words, without secrets.
type problem struct{ message, remedy string }

func connect(ctx context.Context, dsn tenant.DSN) (*pgx.Conn, *problem) {
	cfg, err := pgx.ParseConfig(dsn.Reveal())
	if err != nil {
		// pgx may repeat the string in its error.
		return nil, &problem{errDSN.Error(), "write it as postgres://USER:PASSWORD@HOST:PORT/DATABASE, with special characters of the password percent-encoded"}
	}
	cfg.ConnectTimeout = connectTimeout
	cfg.RuntimeParams["application_name"] = "rehome preflight"
	// A database may set them otherwise for all of its sessions.
	cfg.RuntimeParams["client_encoding"] = "UTF8"
	cfg.RuntimeParams["standard_conforming_strings"] = "on"
	cfg.RuntimeParams["quote_all_identifiers"] = "off"
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, explain(err, cfg)
	}
	return conn, nil
}

// explain turns an error of connecting into words. Its own text goes in only where it cannot carry a secret.
func explain(err error, cfg *pgx.ConnConfig) *problem {
	where := fmt.Sprintf("%s port %d", cfg.Host, cfg.Port)
	var pg *pgconn.PgError
	var dns *net.DNSError
	var op *net.OpError
	switch {
	case errors.As(err, &pg):
		p := &problem{fmt.Sprintf("the server refuses: %s (SQLSTATE %s)", pg.Message, pg.Code), "see the server's log"}
		switch pg.Code {
		case "28P01":
			p.remedy = fmt.Sprintf("check user %s and its password", cfg.User)
		case "28000":
			p.remedy = fmt.Sprintf("let user %s in: pg_hba.conf at the server, and sslmode in the connection string", cfg.User)
		case "3D000":
			p.remedy = fmt.Sprintf("check the database's name: %s", cfg.Database)
		case "53300":
			p.remedy = "raise max_connections, or close some connections"
		case "57P03":
			p.remedy = "wait until the server has started"
		case "08P01":
			p.remedy = "connect to Postgres itself, not through a pooler"
		}
		return p
	case errors.As(err, &dns):
		return &problem{fmt.Sprintf("host %s is not known", cfg.Host), "check the host's name"}
	case errors.As(err, &op):
		return &problem{fmt.Sprintf("%s does not answer: %v", where, op.Err), "check host, port and firewall, and that the server runs"}
	case errors.Is(err, context.DeadlineExceeded):
		return &problem{fmt.Sprintf("%s does not answer within %s", where, connectTimeout), "check host, port and firewall, and that the server runs"}
	case strings.Contains(err.Error(), "tls") || strings.Contains(err.Error(), "SSL") || strings.Contains(err.Error(), "x509"):
		return &problem{where + " cannot be reached over TLS as asked", "check sslmode and sslrootcert in the connection string"}
	}
	return &problem{where + " cannot be connected to", "check the connection string, and that the server runs"}
}

// shellQuote quotes an argument for a shell, where it needs it.
func shellQuote(s string) string {
	if strings.IndexFunc(s, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.:/@%+=,", r)
	}) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
