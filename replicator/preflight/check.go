// Package preflight finds what would go wrong.
package preflight

import (
	"context"
	"log/slog"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// Target is one shard's database.
type Target struct {
	Shard string
	DSN   tenant.DSN // of the tenant's database on that shard
}

// Input is what is checked.
type Input struct {
	Source  tenant.DSN
	Targets []Target
	Options tenant.ReplicationOptions
	Shards  int // 0: len(Targets)
	Logger  *slog.Logger
}

// Report is what was found. Catalogue is nil when the source could not be described.
type Report struct {
	Findings  []tenant.Finding
	Catalogue *catalog.Catalogue
}

// Check looks at both sides and changes neither.
func Check(ctx context.Context, in Input) (Report, error) {
	return Report{}, nil
}
