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
// settings of that transaction (SET LOCAL) and closes the session; it opens at most Input.Jobs of each and one more, which
// looks for those who wait.
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
	// Home is set for a comparison of the way back, after a cutover, and names the shard whose rows of reference tables the
	// source gets: where another shard has others, it is named (ShardsDiffer), and is no difference. Rows on a shard that does not own them are named, but the source has them as
	// well as any other, so that they are no difference; and doubled keys are looked for at the source too.
	Home string
	// MaxDuration bounds the comparison, because its snapshots hold back vacuum on both sides; 0: no bound.
	MaxDuration time.Duration
	// PartBytes is about how large the parts are that large tables are compared in, if that uses more of the servers than
	// one scan does (see partsOf); default 128 MiB.
	PartBytes int64
	Pause     time.Duration // each worker rests so long after each table or part, for the servers' sake
	// Admit is asked before each table or part and may wait, with nothing running at the source; may be nil.
	Admit      func(context.Context) error
	OnProgress func(Progress) // called from several goroutines, one at a time; may be nil

	// Done are parts that were found equal before, at earlier positions: they are not compared again.
	Done []Part
	// UnitBytes is about how much of a large table is one such part; default 1 GiB. Only tables whose key begins with an
	// integer or a uuid are divided so.
	UnitBytes int64
	// OnPart is told of each part that is found equal now, from several goroutines, one at a time; may be nil. Its error ends
	// the comparison.
	OnPart func(Part) error
	// OnDiff is told of each row that differs, also of those that are not named, from several goroutines at the same time; may be
	// nil. A row may come more than once.
	OnDiff func(Diff)
}

// Diff is a row that differs, in a form in which it can be found again.
type Diff struct {
	Table *catalog.Table
	Key   []string // the texts of KeyColumns; nil where the table has none, or the row lacks one
	Hash  int64    // where Key is nil: RowHash of the row
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
	if in.UnitBytes <= 0 {
		in.UnitBytes = defaultUnit
	}
	if in.OnPart == nil {
		in.OnPart = func(Part) error { return nil }
	}
	if in.OnProgress == nil {
		in.OnProgress = func(Progress) {}
	}
	return in
}

// Compare compares all tables of the catalogue, and their schemas. Differences are in the result, not an error; errors are
// those of the sessions and the context, and KindTimeout with code verification-timeout when MaxDuration is over: then the
// result is there too, of what was compared until then, and is never clean. So it is with KindUnavailable and CodeGaveWay: tables
// that were changed after the position, or are to be changed while they are read, are left out. ID, Replication, Attempts and Sequences of the
// result are the caller's to fill.
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
	c := &comparison{in: in, started: started, news: newReporter(in), watch: startWatch(ctx, in), aside: map[unitAt]bool{}}
	defer c.watch.end()
	var err error
	if c.schema, err = compareSchema(ctx, in, c.watch); err == nil {
		err = c.all(ctx)
	}
	if errors.Is(err, errGaveWay) || errors.Is(err, errChanged) {
		c.why, err = fmt.Errorf("the schema: %w", err), nil
	}
	switch {
	case err == nil && c.gaveWay() != nil:
		v := c.summarise()
		failure := c.gaveWay()
		v.Error = failure.Error()
		return v, failure
	case err == nil:
		return c.summarise(), nil
	case errors.Is(context.Cause(ctx), errTimeOver):
		v := c.summarise()
		failure := tenant.Errorf(tenant.KindTimeout, "verification-timeout", "go on with it: rehome verify --resume; or give it more time",
			"the comparison gave up after %s: %s", in.MaxDuration, c.news.reached())
		v.Error = failure.Message
		return v, failure
	}
	return tenant.Verification{}, err
}

var errTimeOver = errors.New("the time given to the comparison is over")

// reached says how far the comparison came.
func (r *reporter) reached() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return fmt.Sprintf("%d of %d tables done, %d of about %d rows", r.p.TablesDone, r.p.TablesTotal, r.p.Rows, max(r.est, r.p.Rows))
}

// KeyColumns are the columns that name a row of a table; none: rows are told apart by all that they hold.
func KeyColumns(t *catalog.Table) []catalog.Column { return identityColumns(t) }

// RowHash is the expression, over a table named t, of the hash that stands for a row without key. It needs Settings.
func RowHash(t *catalog.Table, encoding string) string {
	return newRowHash(t, transcodes(encoding)).inline(1)
}

// Settings are what a transaction must run before RowHash means the same everywhere.
const Settings = settings
