package workload

import (
	"context"
	_ "embed"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

//go:embed schema.sql
var schemaSQL string

// RealmKey is the column that names a row's realm.
const RealmKey = "realm_id"

// ShardedTables lists the tables whose rows belong to realms, in an order that satisfies their foreign keys.
func ShardedTables() []tenant.TableName {
	return []tenant.TableName{
		{Schema: "public", Name: "realms"},
		{Schema: "public", Name: "members"},
		{Schema: "ledger", Name: "accounts"},
		{Schema: "ledger", Name: "transfers"},
		{Schema: "public", Name: "documents"},
		{Schema: "public", Name: "events"},
		{Schema: "public", Name: "metrics"},
		{Schema: "public", Name: "api_tokens"},
	}
}

// Partitions lists the partitions of the partitioned ones.
func Partitions() []tenant.TableName {
	return []tenant.TableName{
		{Schema: "public", Name: "events_0"},
		{Schema: "public", Name: "events_1"},
		{Schema: "public", Name: "events_2"},
		{Schema: "public", Name: "metrics_2024"},
		{Schema: "public", Name: "metrics_2025"},
		{Schema: "public", Name: "metrics_later"},
	}
}

// ReferenceTables lists the tables that are the same on every shard, in an order that satisfies their foreign keys.
func ReferenceTables() []tenant.TableName {
	return []tenant.TableName{{Schema: "public", Name: "currencies"}, {Schema: "public", Name: "plans"}}
}

// ConstraintsWithoutRealm lists the constraints that several shards cannot enforce together, as "schema.constraint".
// A replication to more than one shard wants them accepted by name, and --fix-identity for their table.
func ConstraintsWithoutRealm() []string { return []string{"public.api_tokens_pkey"} }

// Create makes the schema in an empty database.
func Create(ctx context.Context, dsn tenant.DSN) error {
	conn, err := connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, "BEGIN; "+schemaSQL+"; COMMIT"); err != nil {
		return fmt.Errorf("create the schema: %w", err)
	}
	return nil
}

// connect keeps a connection string that cannot be parsed out of the error.
func connect(ctx context.Context, dsn tenant.DSN) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(dsn.Reveal())
	if err != nil {
		return nil, fmt.Errorf("connect to %s: not a connection string", dsn)
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", dsn, err)
	}
	return conn, nil
}
