package shard

import (
	"context"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/rehomedb/rehome/internal/seal"
)

// Timeouts of conversations with shards.
const (
	connectTimeout = 10 * time.Second // a person waits for add-shard; DNS and TLS of a far host fit in
	probeTimeout   = 3 * time.Second  // list of shards: an unreachable one must not hold up the others for long
	probeParallel  = 16               // enough for real installations, few enough sockets
)

// Purposes of sealed values.
const (
	sealShard   = "shard-dsn"
	sealAdopted = "adopted-dsn"
)

// RoutesChannel is the NOTIFY channel that tells gateways that databases changed.
const RoutesChannel = "rehome_routes"

// Catalogue knows shards and databases. It is safe for concurrent use and keeps no state of its own.
type Catalogue struct {
	pool *pgxpool.Pool
	box  *seal.Box
	log  *slog.Logger
	now  func() time.Time
}

// Option changes a Catalogue.
type Option func(*Catalogue)

// WithNow injects the clock that graces are counted by.
func WithNow(now func() time.Time) Option { return func(c *Catalogue) { c.now = now } }

// New returns the catalogue of the installation whose control database pool is connected to.
func New(pool *pgxpool.Pool, box *seal.Box, log *slog.Logger, opts ...Option) *Catalogue {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	c := &Catalogue{pool: pool, box: box, log: log, now: time.Now}
	for _, o := range opts {
		o(c)
	}
	return c
}

// execer is a pool, a connection or a transaction.
type execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

func notifyRoutes(ctx context.Context, db execer) error {
	_, err := db.Exec(ctx, `SELECT pg_notify($1, '')`, RoutesChannel)
	return err
}
