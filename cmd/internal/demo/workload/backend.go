package workload

import (
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/rehomedb/rehome/tenant"
)

// Backend knows where a realm's rows are.
type Backend interface {
	Pool(realm string) (*pgxpool.Pool, error)
}

// Single is a backend of one database.
type Single struct{ DB *pgxpool.Pool }

// Pool implements Backend.
func (s Single) Pool(string) (*pgxpool.Pool, error) { return s.DB, nil }

// Sharded is a backend of several, by placement.
type Sharded struct {
	Placement tenant.Placement
	Shards    map[string]*pgxpool.Pool // by the shards' names
}

// Pool implements Backend.
func (s Sharded) Pool(realm string) (*pgxpool.Pool, error) {
	name := s.Placement.ShardOf(realm)
	pool, ok := s.Shards[name]
	if !ok {
		return nil, fmt.Errorf("find the shard of realm %s: there is no shard %s", realm, name)
	}
	return pool, nil
}
