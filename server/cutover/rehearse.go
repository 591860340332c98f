package cutover

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// A rehearsal is a cutover up to its decision, which it does not take: the way back is made, gateways hold, the source is
// fenced, the marker drained, sequences frozen and set, the shards opened in transactions that are rolled back. So the pause
// that it reports is the one that a cutover would have taken just now, but for the decision's own COMMIT, which takes about
// as long as the marker's. Then everything goes back: the source by ROLLBACK and RESOLVE (the gate's epoch moves from e to
// e+2), the shards' sequences to what they were, the way back is dropped.

// errRehearsed ends a rehearsal that fitted into the pause.
var errRehearsed = errors.New("rehearsed")

// noun is what people call it.
func (r *run) noun() string { return string(r.goes) }

// shardSequences is what a rehearsal puts back at a shard.
type shardSequences struct {
	values     []tenant.SequenceValue
	increments []int64
}

// rememberSequences reads, before the pause, what a rehearsal will change at the shards.
func (r *run) rememberSequences(ctx context.Context) error {
	if !r.at.Rehearse || len(r.job.catalogueSequences()) == 0 {
		return nil
	}
	var g errgroup.Group
	for _, s := range r.shards {
		g.Go(func() error {
			values, err := catalog.ReadSequences(ctx, s.aside, r.job.Catalogue)
			if err != nil {
				return fmt.Errorf("shard %s: %w", s.Name, err)
			}
			names := make([]string, len(values))
			for i, v := range values {
				names[i] = v.Name.Quoted()
			}
			rows, err := s.aside.Query(ctx, `SELECT q.seqincrement FROM unnest($1::text[]) WITH ORDINALITY n(name, i)
				JOIN pg_catalog.pg_sequence q ON q.seqrelid = n.name::regclass ORDER BY n.i`, names)
			if err != nil {
				return fmt.Errorf("shard %s: read its sequences: %w", s.Name, err)
			}
			increments, err := pgx.CollectRows(rows, pgx.RowTo[int64])
			if err != nil || len(increments) != len(values) {
				return fmt.Errorf("shard %s: read its sequences: %d of %d: %w", s.Name, len(increments), len(values), err)
			}
			s.before = shardSequences{values: values, increments: increments}
			return nil
		})
	}
	return g.Wait()
}

// restoreSequences puts the shards' sequences back. Nobody drew from them: the shards are closed. Should it fail nothing is
// lost, since a cutover sets them ahead of the source in any case; it is said.
func (r *run) restoreSequences(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	var g errgroup.Group
	errs := make([]error, len(r.shards))
	for i, s := range r.shards {
		if s == nil || len(s.before.values) == 0 {
			continue
		}
		g.Go(func() error {
			errs[i] = pgx.BeginFunc(ctx, s.aside, func(tx pgx.Tx) error {
				batch := &pgx.Batch{}
				for k, v := range s.before.values {
					batch.Queue(fmt.Sprintf("ALTER SEQUENCE %s INCREMENT BY %d", v.Name.Quoted(), s.before.increments[k]))
					batch.Queue(`SELECT setval($1::text::regclass, $2, $3)`, v.Name.Quoted(), v.Last, v.Called)
				}
				return tx.SendBatch(ctx, batch).Close()
			})
			return nil
		})
	}
	_ = g.Wait() // they return none: every shard is tried
	for i, err := range errs {
		if err == nil {
			continue
		}
		r.log.Warn("put a shard's sequences back", "shard", r.shards[i].Name, "error", err)
		r.rec.Findings = append(r.rec.Findings, tenant.Finding{
			Severity: tenant.Notice, Code: "shard-sequences", Object: "shard " + r.shards[i].Name,
			Message: "its sequences were set ahead of the source's and not put back; the shard is closed, and a cutover sets them anew",
		})
	}
}

// rehearseEnd does what a cutover does after its last look, but for the decision: the opening of the shards in
// their prelocked transactions, which are rolled back. Nobody sees them open.
func (r *run) rehearseEnd(ctx context.Context) error {
	err := r.step("follow", func() error {
		var g errgroup.Group
		for _, s := range r.shards {
			g.Go(func() error {
				if err := s.follower.Rehearse(ctx, r.decided()); err != nil {
					return fmt.Errorf("shard %s: %w", s.Name, err)
				}
				return nil
			})
		}
		return g.Wait()
	})
	if err != nil {
		return err
	}
	return errRehearsed
}

// endRehearsal takes a rehearsal back that fitted.
func (r *run) endRehearsal(ctx context.Context) (Report, error) {
	ctx = context.WithoutCancel(ctx)
	r.gate.Rollback(ctx)
	r.endPause()
	state, err := r.resolve(ctx)
	if err == nil && state.Side != gate.SideSource {
		err = fmt.Errorf("the gate says %s at epoch %d", state.Side, state.Epoch)
	}
	if err != nil {
		r.closeSessions(ctx)
		return r.rec.Report, inDoubt(err)
	}
	r.restoreSequences(ctx)
	r.closeSessions(ctx)
	r.rec.Outcome = OutcomeRehearsed
	r.rec.WayBackLeft = r.job.WayBack != nil && !r.rec.NoWayBack
	ours, err := r.c.finish(ctx, r.rec, nil)
	if err != nil {
		return r.rec.Report, err
	}
	if ours {
		r.c.discardWayBack(ctx, r.job, r.rec)
	}
	return r.rec.Report, nil
}

// resolve burns the attempt's epoch, however it ended.
func (r *run) resolve(ctx context.Context) (state gate.State, err error) {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	err = r.step("resolve", func() (err error) {
		state, err = gate.Resolve(ctx, r.job.Source, r.rec.Epoch)
		return err
	})
	return state, err
}

func inDoubt(err error) error {
	return &tenant.Error{
		Kind: tenant.KindUnavailable, Code: "cutover-in-doubt", Message: "the source cannot be asked which side may write",
		Hint: "the shards stay closed until it answers; then the attempt is resolved by itself", Err: err,
	}
}

// endPause lets held work go on, and notes how long it was held.
func (r *run) endPause() {
	if !r.rec.HeldAt.IsZero() && r.pausing {
		r.rec.PauseMillis = millis(time.Since(r.held))
	}
	r.pausing = false
	r.letGo()
}
