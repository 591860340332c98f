package server

import (
	"context"
	"crypto/ed25519"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/rehomedb/rehome/internal/seal"
	"github.com/rehomedb/rehome/progress"
	"github.com/rehomedb/rehome/redirect"
	"github.com/rehomedb/rehome/shard"
)

// Worker does the replications' work; package server/supervisor has it. Run blocks until ctx ends.
type Worker interface {
	Run(ctx context.Context) error
}

// Parts is what a Worker is made of: the server's own parts, ready and migrated.
type Parts struct {
	Pool         *pgxpool.Pool // control database
	Seal         *seal.Box
	Catalogue    *shard.Catalogue
	Log          *progress.Log
	Gateway      *redirect.Gateway
	Installation Installation
	Server       string // name of this server in leases and statistics
	Now          func() time.Time
	Logger       *slog.Logger
}

// Deps is what only the program can wire.
type Deps struct {
	// NewWorker makes the supervisor of the replications. Nil: this server answers requests only.
	NewWorker func(Parts) (Worker, error)
	Logger    *slog.Logger
}

// Installation is this installation's identity, from the control database.
type Installation struct {
	ID         string // short, random; part of NATS subjects
	BaseURL    string
	AdminEmail string
	PublicKey  ed25519.PublicKey
	PrivateKey ed25519.PrivateKey // signs certificates
}
