// Package schema carries a source's schema to the shards.
package schema

import (
	"context"
	"log/slog"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// Config says what to dump.
type Config struct {
	DSN       tenant.DSN
	Snapshot  string // exported snapshot; empty: pg_dump takes its own
	Catalogue *catalog.Catalogue
	Options   tenant.ReplicationOptions
	TempDir   string // where the private directory is made; empty: the system's
	Tools     Tools  // zero: the newest found
	Logger    *slog.Logger
}

// Tools is a pg_dump.
type Tools struct {
	PgDump string // path
	Major  int    // its major version
}

// Archive is a dumped schema.
type Archive struct{}

// FindTools finds the newest pg_dump that can read a server of that server_version_num.
func FindTools(ctx context.Context, serverVersion int) (Tools, error) { return Tools{}, nil }

// Dump reads the schema of the source.
func Dump(ctx context.Context, cfg Config) (*Archive, error) { return nil, nil }

// RestorePre creates everything but indexes, constraints and triggers, in one transaction; inTx run at its end.
func (a *Archive) RestorePre(ctx context.Context, dsn tenant.DSN, replication string, inTx ...func(context.Context, pgx.Tx) error) error {
	return nil
}

// RestorePost creates indexes, constraints, triggers and the rest.
func (a *Archive) RestorePost(ctx context.Context, dsn tenant.DSN, replication string, jobs int, progress func(done, total int, item string)) error {
	return nil
}

// Close removes the archive.
func (a *Archive) Close() error { return nil }
