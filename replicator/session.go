package replicator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/internal/halfopen"
	"github.com/rehomedb/rehome/tenant"
)

// connectTimeout bounds one attempt to connect; a server that is up answers in milliseconds, one behind a slow network
// in a second or two.
const connectTimeout = 10 * time.Second

// textSettings make the text form of every value the same on both sides: what the source's output functions write is
// what the shards' input functions read (Postgres manual, 20.11.2).
var textSettings = map[string]string{
	"client_encoding":    "UTF8",
	"datestyle":          "ISO, MDY",
	"intervalstyle":      "postgres",
	"timezone":           "UTC",
	"extra_float_digits": "3",
	"lc_monetary":        "C",
	"bytea_output":       "hex",
	"search_path":        "pg_catalog",
	"xmloption":          "content",
	"array_nulls":        "on",
	// How names and literals are read and written, which statements of ours depend on.
	"standard_conforming_strings": "on",
	"quote_all_identifiers":       "off",
}

// limitless are the limits that a server, a database or a role may set for everybody: a copy, a comparison or an exported
// snapshot outlasts them by design. lock_timeout is set where one is wanted.
var limitless = map[string]string{
	"statement_timeout":                   "0",
	"lock_timeout":                        "0",
	"idle_in_transaction_session_timeout": "0",
	"default_transaction_isolation":       "read committed",
	"default_transaction_read_only":       "off",
	"default_transaction_deferrable":      "off",
}

// limitlessLater are those that only later versions know (14 and 17), so that they cannot be named when connecting. The
// view pg_settings would make a row of each of hundreds of settings, in every session that is opened.
const limitlessLater = `SELECT set_config(name, '0', false) FROM unnest('{idle_session_timeout,transaction_timeout}'::text[]) name WHERE current_setting(name, true) <> '0'`

// parseDSN reads a connection string without letting its text into an error.
func parseDSN(dsn tenant.DSN) (*pgx.ConnConfig, error) {
	cfg, err := pgx.ParseConfig(dsn.Reveal())
	if err != nil {
		return nil, stop("bad-dsn", "write it as postgres://user:password@host:port/database", "the connection string %s cannot be read", dsn)
	}
	cfg.ConnectTimeout = connectTimeout
	halfopen.Guard(&cfg.Config, halfopen.DefaultPatience)
	return cfg, nil
}

// connect opens a session for statements, with the text settings and a name that operators recognise.
func connect(ctx context.Context, dsn tenant.DSN, name string, extra map[string]string) (*pgx.Conn, error) {
	return connectBy(ctx, dsn, name, extra, nil)
}

// connectBy is connect by a frontend of its own; nil: the driver's.
func connectBy(ctx context.Context, dsn tenant.DSN, name string, extra map[string]string, frontend pgconn.BuildFrontendFunc) (*pgx.Conn, error) {
	cfg, err := parseDSN(dsn)
	if err != nil {
		return nil, err
	}
	maps.Copy(cfg.RuntimeParams, textSettings)
	maps.Copy(cfg.RuntimeParams, limitless)
	maps.Copy(cfg.RuntimeParams, extra)
	cfg.RuntimeParams["application_name"] = name
	if frontend != nil {
		cfg.BuildFrontend = frontend
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, connectError(dsn, err)
	}
	if _, err := conn.PgConn().Exec(ctx, limitlessLater).ReadAll(); err != nil {
		closeSoon(conn)
		return nil, connectError(dsn, err)
	}
	return conn, nil
}

// decodesLittle has a source that can stream transactions before they end (from 14 on, see protocol) begin to when our session
// holds 16 MB of them, if its own setting is higher, 64 MB by default: until then the shards have nothing to do, nor has our
// process. A lower one stays. The bound is of the sum of all transactions in progress: beyond it the largest is streamed,
// though it may be small, or goes to the source's disk where it cannot be (a row of which only TOASTed values have been read
// yet), as it always would with an earlier source. What it gathers is some two and a half times what it sends.
const decodesLittle = `SELECT set_config('logical_decoding_work_mem', '16MB', false)
	WHERE current_setting('server_version_num')::int >= 140000 AND pg_size_bytes(current_setting('logical_decoding_work_mem', true)) > 16 << 20`

// connectReplication opens a walsender session (manual, 55.4: streaming replication protocol), and the connection below it. early says
// that transactions which it streams may be applied at once, so that the source should begin early (decodesLittle).
func connectReplication(ctx context.Context, dsn tenant.DSN, name string, early bool) (*pgconn.PgConn, *gulp, error) {
	cfg, err := parseDSN(dsn)
	if err != nil {
		return nil, nil, err
	}
	return openReplication(ctx, dsn, &cfg.Config, name, early)
}

// openReplication is connectReplication with a configuration that was made of the connection string.
func openReplication(ctx context.Context, dsn tenant.DSN, cfg *pgconn.Config, name string, early bool) (*pgconn.PgConn, *gulp, error) {
	made := gulps(cfg)
	maps.Copy(cfg.RuntimeParams, textSettings)
	maps.Copy(cfg.RuntimeParams, limitless)
	cfg.RuntimeParams["replication"] = "database"
	cfg.RuntimeParams["application_name"] = name
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, nil, connectError(dsn, err)
	}
	g := made.Load() // other addresses were tried before it, if any
	settings := []string{limitlessLater}
	if early {
		settings = append(settings, decodesLittle)
	}
	for _, sql := range settings {
		if _, err := conn.Exec(ctx, sql).ReadAll(); err != nil {
			closePgSoon(conn)
			return nil, nil, connectError(dsn, err)
		}
	}
	return conn, g, nil
}

// connectError keeps a server's own answer (wrong password, no such database) as it is, since trying again would not
// help, and says whose address it was. pgconn's text names user, host and database, never the password.
func connectError(dsn tenant.DSN, err error) error {
	if pe, ok := errors.AsType[*pgconn.PgError](err); ok {
		return fmt.Errorf("connect to %s: %w", dsn, pe)
	}
	return fmt.Errorf("connect to %s: %w", dsn, err)
}

// SlotName is a replication slot's name. It is validated, since the replication commands take it unquoted.
type SlotName string

var slotRE = regexp.MustCompile(`^[a-z0-9_]{1,63}$`)

// ParseSlotName refuses what Postgres would not take as a slot's name (manual, 27.2.6.1).
func ParseSlotName(s string) (SlotName, error) {
	if !slotRE.MatchString(s) {
		return "", stop("bad-slot-name", "use lower-case letters, digits and _", "%q cannot be a replication slot's name", s)
	}
	return SlotName(s), nil
}

// closeSoon closes a session without waiting for a peer that does not answer.
func closeSoon(c *pgx.Conn) {
	if c == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = c.Close(ctx)
}

func closePgSoon(c *pgconn.PgConn) {
	if c == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = c.Close(ctx)
}

// wait sleeps unless the context ends first.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
