package verify

import (
	"context"
	"errors"
	"fmt"
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
	Catalogue *catalog.Catalogue
	Placement tenant.Placement
	LSN       tenant.LSN // the position of all snapshots; part of the result and its digest
	Source    Sessions
	Shards    map[string]Sessions // by name; all that the placement names
	Jobs      int                 // tables compared at the same time; default: 1 to 4 by the CPUs
	MaxDiffs  int                 // rows named per table; default 20; the rest is counted
	// Accepted are the findings that were accepted by name ("code:object"): foreign keys among them may be missing at a shard.
	Accepted []string
	// MaxDuration bounds the comparison, because its snapshots hold back vacuum on both sides; 0: no bound.
	MaxDuration time.Duration
	// PartBytes is about how large the parts are that large tables are compared in, if that uses more of the servers than
	// one scan does (see partsOf); default 128 MiB.
	PartBytes  int64
	Pause      time.Duration  // each worker rests so long after each table or part, for the servers' sake
	OnProgress func(Progress) // called from several goroutines, one at a time; may be nil
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
	defaultPart     = 128 << 20
)

func (in Input) withDefaults() Input {
	if in.Jobs <= 0 {
		in.Jobs = min(max(1, runtime.NumCPU()/2), maxDefaultJobs)
	}
	if in.MaxDiffs <= 0 {
		in.MaxDiffs = defaultMaxDiffs
	}
	if in.PartBytes <= 0 {
		in.PartBytes = defaultPart
	}
	if in.OnProgress == nil {
		in.OnProgress = func(Progress) {}
	}
	return in
}

// Compare compares all tables of the catalogue, and their schemas. Differences are in the result, not an error; errors are
// those of the sessions and the context, and KindTimeout with code verification-timeout when MaxDuration is over: it says
// how far the comparison came. ID, Replication, Attempts and Sequences of the result are the caller's to fill.
func Compare(ctx context.Context, in Input) (tenant.Verification, error) {
	in = in.withDefaults()
	started := time.Now().UTC()
	if err := in.Placement.Validate(); err != nil {
		return tenant.Verification{}, fmt.Errorf("verify: %w", err)
	}
	for _, name := range in.Placement.Shards() {
		if in.Shards[name] == nil {
			return tenant.Verification{}, fmt.Errorf("verify: the placement names shard %s, for which there are no sessions", name)
		}
	}
	if in.MaxDuration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, in.MaxDuration, errTimeOver)
		defer cancel()
	}
	news := newReporter(in)
	schema, err := compareSchema(ctx, in)
	if err != nil {
		return tenant.Verification{}, news.gaveUp(ctx, in, err)
	}
	tables, err := compareAll(ctx, in, news, schema)
	if err != nil {
		return tenant.Verification{}, news.gaveUp(ctx, in, err)
	}
	return summarise(in, started, tables, schema), nil
}

var errTimeOver = errors.New("the time given to the comparison is over")

// gaveUp makes of an error that comes from the end of the time given one that says how far the comparison came.
func (r *reporter) gaveUp(ctx context.Context, in Input, err error) error {
	if !errors.Is(context.Cause(ctx), errTimeOver) {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return tenant.Errorf(tenant.KindTimeout, "verification-timeout", "give it more time, or compare when the servers are less busy",
		"the comparison gave up after %s: %d of %d tables done, %d of about %d rows", in.MaxDuration, r.p.TablesDone, r.p.TablesTotal, r.p.Rows, max(r.est, r.p.Rows))
}
