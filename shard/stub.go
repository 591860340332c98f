package shard

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

var errTODO = errors.New("not built yet")

// AddShard adds a shard.
func (c *Catalogue) AddShard(ctx context.Context, req AddRequest) (Shard, error) { return Shard{}, errTODO }

// UpdateShard changes a shard.
func (c *Catalogue) UpdateShard(ctx context.Context, name string, u ShardUpdate) (Shard, error) {
	return Shard{}, errTODO
}

// RemoveShard removes a shard that holds nothing.
func (c *Catalogue) RemoveShard(ctx context.Context, name string) error { return errTODO }

// Shards lists shards with reachability and sizes.
func (c *Catalogue) Shards(ctx context.Context) ([]Shard, error) { return nil, errTODO }

// ShardDSN is the DSN to the shard's maintenance database.
func (c *Catalogue) ShardDSN(ctx context.Context, name string) (tenant.DSN, error) { return "", errTODO }

// CreateDatabase creates a database.
func (c *Catalogue) CreateDatabase(ctx context.Context, req CreateRequest) (Database, error) {
	return Database{}, errTODO
}

// AdoptDatabase adopts a database.
func (c *Catalogue) AdoptDatabase(ctx context.Context, req AdoptRequest) (Database, error) {
	return Database{}, errTODO
}

// Database reads one.
func (c *Catalogue) Database(ctx context.Context, name string) (Database, error) {
	return Database{}, errTODO
}

// Databases lists all.
func (c *Catalogue) Databases(ctx context.Context) ([]Database, error) { return nil, errTODO }

// MeasureDatabases fills Bytes.
func (c *Catalogue) MeasureDatabases(ctx context.Context, dbs []Database) error { return errTODO }

// UpdateDatabase changes a database.
func (c *Catalogue) UpdateDatabase(ctx context.Context, name string, u Update) (Database, error) {
	return Database{}, errTODO
}

// DatabaseDSN is the tenant database on a shard.
func (c *Catalogue) DatabaseDSN(ctx context.Context, database, shard string) (tenant.DSN, error) {
	return "", errTODO
}

// AdoptedDSN is the adopted database itself.
func (c *Catalogue) AdoptedDSN(ctx context.Context, database string) (tenant.DSN, error) {
	return "", errTODO
}

// Placement in force.
func (c *Catalogue) Placement(ctx context.Context, database string) (tenant.Placement, error) {
	return tenant.Placement{}, errTODO
}

// ShardOrdinals of a database's shards.
func (c *Catalogue) ShardOrdinals(ctx context.Context, database string) (map[string]int, error) {
	return nil, errTODO
}

// Realms by size.
func (c *Catalogue) Realms(ctx context.Context, database string, q RealmQuery) ([]Realm, error) {
	return nil, errTODO
}

// BeginDelete: active, stopped -> deleting.
func (c *Catalogue) BeginDelete(ctx context.Context, name string) (Database, error) {
	return Database{}, errTODO
}

// SoftDelete: active, stopped, deleting -> deleted.
func (c *Catalogue) SoftDelete(ctx context.Context, name string, grace time.Duration) (Database, error) {
	return Database{}, errTODO
}

// Undelete: deleting, deleted -> active.
func (c *Catalogue) Undelete(ctx context.Context, name string) (Database, error) {
	return Database{}, errTODO
}

// DuePurges names the databases whose grace is over.
func (c *Catalogue) DuePurges(ctx context.Context) ([]string, error) { return nil, errTODO }

// Purge destroys a deleted database.
func (c *Catalogue) Purge(ctx context.Context, name string, opts PurgeOptions) (PurgeResult, error) {
	return PurgeResult{}, errTODO
}

// Provision makes the schema rehome in a shard's tenant database. Idempotent.
func Provision(ctx context.Context, conn *pgx.Conn) error { return errTODO }

// ApplyPlacement writes what a shard owns; an older epoch than what is there changes nothing.
func ApplyPlacement(ctx context.Context, conn *pgx.Conn, p tenant.Placement, shard string) error {
	return errTODO
}

