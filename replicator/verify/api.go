package verify

import (
	"context"
	"runtime"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// Sessions opens a session that is in a REPEATABLE READ transaction with the right snapshot imported. Compare changes
// settings of that transaction (SET LOCAL) and closes the session; it opens at most Input.Jobs of each.
type Sessions func(ctx context.Context) (*pgx.Conn, error)

// Input is what Compare works on.
type Input struct {
	Catalogue  *catalog.Catalogue
	Placement  tenant.Placement
	LSN        tenant.LSN // the position of all snapshots; part of the result and its digest
	Source     Sessions
	Shards     map[string]Sessions // by name; all that the placement names
	Jobs       int                 // tables compared at the same time; default: 1 to 4 by the CPUs
	MaxDiffs   int                 // rows named per table; default 20; the rest is counted
	OnProgress func(Progress)      // called from several goroutines, one at a time; may be nil
}

// Progress is how far a comparison has come.
type Progress struct {
	Table       string // compared last
	TablesDone  int
	TablesTotal int
	Rows        int64 // source rows compared
	RowsTotal   int64 // the catalogue's estimate, never less than Rows
}

// Defaults.
const (
	defaultMaxDiffs = 20
	maxDefaultJobs  = 4
)

func (in Input) withDefaults() Input {
	if in.Jobs <= 0 {
		in.Jobs = min(max(1, runtime.NumCPU()/2), maxDefaultJobs)
	}
	if in.MaxDiffs <= 0 {
		in.MaxDiffs = defaultMaxDiffs
	}
	if in.OnProgress == nil {
		in.OnProgress = func(Progress) {}
	}
	return in
}

// Compare compares all tables of the catalogue. Differences are in the result, not an error; errors are those of the
// sessions and the context. ID, Replication, Attempts and Sequences of the result are the caller's to fill.
func Compare(ctx context.Context, in Input) (tenant.Verification, error) {
	in = in.withDefaults()
	started := time.Now().UTC()
	tables, err := compareAll(ctx, in)
	if err != nil {
		return tenant.Verification{}, err
	}
	return summarise(in, started, tables), nil
}
