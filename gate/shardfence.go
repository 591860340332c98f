package gate

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// ShardFence is one shard's part of a rollback: it closes an open shard before the source decides. Its methods are called
// in order, by one goroutine: OpenShardFence, Prelock, Lock, Shut, Marker, at last Close. Shards are fenced side by side.
//
// The fence of a shard commits before the decision, unlike the source's in a cutover: once the source has opened nothing
// must be left to do at a shard, whoever dies. Until the decision the gate at the source still says that the target
// writes, at an epoch that RESOLVE raises above the fence's: then the shards are opened again by following it.
type ShardFence struct {
	a     *Attempt
	epoch int64
}

// OpenShardFence opens and warms the sessions of one shard. cfg.Source is the shard, cfg.Epoch the epoch e of the gate at
// the source before the attempt; rehome.marker must be there.
func OpenShardFence(ctx context.Context, cfg Config) (*ShardFence, error) {
	a, err := Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return &ShardFence{a: a, epoch: cfg.Epoch + 1}, nil
}

// Prelock begins the transaction and takes SHARE UPDATE EXCLUSIVE on every table: it blocks no writer, makes autovacuum
// give way and keeps it, and a rival attempt, out.
func (f *ShardFence) Prelock(ctx context.Context) error { return f.a.Prelock(ctx) }

// Tables lists what is fenced.
func (f *ShardFence) Tables() []Table { return f.a.Tables() }

// Tries says how many LOCK statements the fence took.
func (f *ShardFence) Tries() int { return f.a.Tries() }

// Culprits names who was in the way of the locks.
func (f *ShardFence) Culprits() []Culprit { return f.a.Culprits() }

// Second is the other session, outside the transaction.
func (f *ShardFence) Second() *pgx.Conn { return f.a.second }

// Lock makes every writer of the shard wait, until deadline at most. Readers are not stopped. ErrNotFenced past the
// deadline, and Culprits then names who was in the way.
func (f *ShardFence) Lock(ctx context.Context, deadline time.Time) error {
	f.a.deadline = deadline
	if err := f.a.armed(ctx); err != nil {
		return err
	}
	if err := setLocal(ctx, f.a.fence, "statement_timeout", time.Until(deadline)); err != nil {
		return err
	}
	if err := f.a.lockTables(ctx, deadline); err != nil || len(f.a.tables) == 0 {
		return err
	}
	// By the gate's xmin the statements of Shut are recognised: it must be the transaction's own.
	if err := f.a.Script(ctx, "RELEASE SAVEPOINT rehome_lock;\n"); err != nil {
		return fmt.Errorf("release the savepoint: %w", err)
	}
	return nil
}

// Shut moves the shard's gate to (e+1, closed), makes the fence stand on every table and commits: writers that waited get
// the fence's error. ErrGateMoved if the shard's gate is at that epoch or above: another attempt, or a resolution, came
// first. ErrTablesChanged if a table appeared meanwhile, ErrNotFenced past the deadline. Any other error means that the
// fence may stand; following the resolved gate opens it again.
func (f *ShardFence) Shut(ctx context.Context) error {
	a := f.a
	if err := setLocal(ctx, a.fence, "statement_timeout", time.Until(a.deadline)); err != nil {
		return err
	}
	tag, err := a.fence.Exec(ctx, `UPDATE rehome.gate SET epoch = $1, side = 'closed', attempt = $2, changed_at = clock_timestamp() WHERE epoch < $1`, f.epoch, a.cfg.Attempt)
	if hasCode(err, "57014") {
		return ErrNotFenced
	}
	if err != nil {
		return fmt.Errorf("move the shard's gate: %w", err)
	}
	if tag.RowsAffected() == 0 {
		return ErrGateMoved
	}
	if err := a.Script(ctx, closeSQL(a.tables)); err != nil {
		return fmt.Errorf("fence the shard: %w", err)
	}
	now, err := Tables(ctx, a.second)
	if err != nil {
		return err
	}
	if !sameTables(a.tables, owned(now)) {
		return ErrTablesChanged
	}
	return a.commit(ctx)
}

// Marker commits the rollback's marker at the shard, behind its fence.
func (f *ShardFence) Marker(ctx context.Context) error {
	return WriteMarker(ctx, f.a.second, f.a.cfg.Attempt, MarkRollback)
}

// Rollback lets waiting writers go on; it takes nothing back that was committed.
func (f *ShardFence) Rollback(ctx context.Context) { f.a.Rollback(ctx) }

// Close ends the sessions.
func (f *ShardFence) Close(ctx context.Context) { f.a.Close(ctx) }

// Abandon leaves the sessions as a dying process does; see Attempt.Abandon.
func (f *ShardFence) Abandon(cut bool) { f.a.Abandon(cut) }
