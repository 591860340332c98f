package cutover

import (
	"context"
	"crypto/ed25519"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// Stream is the running replication, as the engine has it.
type Stream interface {
	// WaitMarker blocks until every shard has durably applied everything up to the marker of the attempt, and returns
	// the marker's position and the shards'.
	WaitMarker(ctx context.Context, attempt string) (tenant.LSN, []tenant.ShardPosition, error)
	// Progress is the state of now, from memory.
	Progress() tenant.Progress
}

// Gateways hold and switch the clients' connections, in all servers of the installation.
type Gateways interface {
	// Hold keeps new work of a database waiting until release is called, or the time comes. It returns when every gateway
	// that lives has acknowledged that; culprits are those that were waited for in vain, or still have work from before.
	// With an error nothing is held.
	Hold(ctx context.Context, database, attempt string, until time.Time) (release func(), culprits []string, err error)
	// Switch records which side the clients of a database go to since an epoch of its replication's gate, and ends the
	// holds of the attempts that are over: their work goes on there. Older epochs than the recorded one change no route.
	Switch(ctx context.Context, database, replication string, epoch int64, target bool, attempts ...string) error
}

// Config is what a coordinator is made of. All but Gateways, Now and Crash is required.
type Config struct {
	Pool     *pgxpool.Pool // control database
	Gateways Gateways      // nil: nothing is held
	Signer   Signer
	Logger   *slog.Logger
	Now      func() time.Time
	// Crash is for tests: it is called after every persisted step, and an error from it makes the coordinator stop where
	// it stands, without cleaning up: ErrKilled with closed sockets, any other with open ones. Nil in production.
	Crash func(step string) error
}

// Signer signs certificates in an installation's name.
type Signer struct {
	Installation string
	Key          ed25519.PrivateKey
}

// Coordinator runs cutovers. It has no state of its own; any number may exist.
type Coordinator struct{ cfg Config }

// New makes a coordinator.
func New(cfg Config) *Coordinator {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Coordinator{cfg: cfg}
}

// Shard is a shard's tenant database.
type Shard struct {
	Name    string
	Ordinal int // never used again; the offset of its sequence values
	DSN     tenant.DSN
}

// Job is what is cut over: a replication with both its ends.
type Job struct {
	Replication string
	Database    string
	Source      tenant.DSN
	SourceLabel string // the source without credentials, for the certificate
	TargetURL   string // becomes the fence's hint
	Publication string
	Lanes       string // application_name of the sessions that apply at the shards, to find out who blocks them; empty: not looked for
	Placement   int64  // the placement's epoch
	Shards      []Shard
	Catalogue   *catalog.Catalogue // what is replicated; gives the sequences
	Accept      []string           // findings accepted by name
	WayBack     WayBack            // nil: none is wanted
}

// DefaultMaxPause bounds the pause when the plan names none.
const DefaultMaxPause = 5 * time.Second

// Attempt is one request to cut over.
type Attempt struct {
	ID         string        // empty: a new one
	MaxPause   time.Duration // of steps hold to COMMIT; 0: DefaultMaxPause
	ApprovedBy string
	DryRun     bool // preflight only: nothing changes
	Rehearse   bool // everything but the decision, then back: see rehearse.go
	NoWayBack  bool // findings about the way back do not refuse
	// Begin is called once nothing stands in the way, and before anything is touched. It calls write in the transaction that
	// records that the attempt begins: both are committed, or neither is. Nil: write has a transaction of its own.
	Begin func(ctx context.Context, write func(pgx.Tx) error) error
	// Check adds findings to a rollback's preflight: what stands between the shards' data and the source. Nil: nothing.
	Check func(ctx context.Context) ([]tenant.Finding, error)
	// Tail verifies, behind the fence and after the drain, what the last verification did not see. Nil: nothing.
	Tail func(ctx context.Context, source pgx.Tx) error
}

// Report tells what an attempt did.
type Report = api.CutoverReport

// Outcomes of a report.
const (
	OutcomeTarget = "target"
	OutcomeSource = "source"
	OutcomeDryRun = "dry_run"
	// OutcomeRehearsed is of a rehearsal that fitted into the pause: the source goes on. Its row says source.
	OutcomeRehearsed = "rehearsed"
)

// Steps, as persisted and as a Crash hook gets them.
const (
	StepIntent     = "intent"
	StepWayBack    = "way-back" // made before the pause
	StepPrelock    = "prelock"
	StepHold       = "hold"
	StepFence      = "fence"
	StepMarker     = "marker"
	StepDrain      = "drain"
	StepSequences  = "sequences"
	StepTail       = "tail"
	StepCommitting = "committing" // persisted just before COMMIT
	StepCommitted  = "committed"  // after the COMMIT, before anything is persisted of it: an unanswered COMMIT
	StepDecided    = "decided"
	StepLock       = "lock"       // rollback: every shard's writers wait
	StepFenceOne   = "fence-one"  // rollback: the first shard is fenced; not persisted
	StepTake       = "take"       // rollback: the source's transaction holds the gate
	StepFollowOne  = "follow-one" // after the first shard opened; not persisted
	StepFollowed   = "followed"
	StepFinished   = "finished"
)

// Steps lists all of a cutover's in order, RollbackSteps a rollback's, for tests.
var (
	Steps         = StepsOf(DirectionCutover)
	RollbackSteps = StepsOf(DirectionRollback)
)
