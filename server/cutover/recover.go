package cutover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/tenant"
)

// Resolution is what ResolveAndFollow found.
type Resolution struct {
	State    gate.State // the gate's, committed
	Foreign  bool       // the gate says target, but another replication's: the source was cut over to somewhere else
	Resolved []Report   // attempts that were unfinished and have an outcome now
}

// Decided reports whether this replication's target may write.
func (r Resolution) Decided() bool { return r.State.Side == gate.SideTarget && !r.Foreign }

// ResolveAndFollow ends what another server, or this one before a crash, left unfinished: it resolves every unfinished
// attempt of the replication at the source, makes the shards follow the gate, and writes outcomes and certificates. It
// may be called at any time, by several servers at once, except while this server itself runs an attempt that it wants
// to succeed: it would abort it. KindUnavailable while the source or a shard cannot be reached; call it again then.
// A source without a gate (before the first preparation, or after its removal) has nothing to resolve.
func (c *Coordinator) ResolveAndFollow(ctx context.Context, job Job) (Resolution, error) {
	recs, err := c.unfinished(ctx, job.Replication)
	if err != nil {
		return Resolution{}, err
	}
	var res Resolution
	if len(recs) == 0 {
		// What the gate says is committed, and following it is always right.
		res.State, err = c.readGate(ctx, job.Source)
		if errors.Is(err, gate.ErrNoGate) {
			return res, nil
		}
		if err != nil {
			return res, err
		}
		if res.Foreign, err = c.foreign(ctx, job, res.State); err != nil || !res.Decided() {
			return res, err
		}
		if err := c.followAll(ctx, job, res.State); err != nil {
			return res, err
		}
		return res, c.switchClients(ctx, job, res.State)
	}
	for _, rec := range recs {
		res.State, err = gate.Resolve(ctx, job.Source, rec.Epoch)
		if err != nil {
			return res, &tenant.Error{
				Kind: tenant.KindUnavailable, Code: "cutover-in-doubt", Message: "the source cannot be asked which side may write",
				Hint: "the shards stay closed until it answers", Err: err,
			}
		}
	}
	// The last resolution's state is the newest: epochs only rise.
	if res.Foreign, err = c.foreign(ctx, job, res.State); err != nil {
		return res, err
	}
	verdicts := make([]Verdict, len(recs))
	attempts := make([]string, len(recs))
	for i, rec := range recs {
		attempts[i], verdicts[i] = rec.Attempt, Decide(rec.goes, rec.Epoch, rec.Attempt, res.State, res.Foreign)
		if err := c.plausible(job, rec, verdicts[i], res.State); err != nil {
			return res, err
		}
	}
	if res.Foreign {
		c.cfg.Logger.Error("the source was cut over to another target", "replication", job.Replication, "attempt", res.State.Attempt, "target", res.State.NewURL)
	} else {
		if err := c.followAll(ctx, job, res.State); err != nil {
			return res, followUpError(err)
		}
		if err := c.switchClients(ctx, job, res.State, attempts...); err != nil {
			return res, followUpError(err)
		}
	}
	for i, rec := range recs {
		if err := c.conclude(ctx, job, rec, verdicts[i], res.State); err != nil {
			return res, followUpError(err)
		}
		c.cfg.Logger.Info("resolved an unfinished attempt", "replication", job.Replication, "direction", string(rec.goes), "attempt", rec.Attempt, "outcome", rec.Outcome, "gate_epoch", res.State.Epoch)
		res.Resolved = append(res.Resolved, rec.Report)
	}
	return res, nil
}

// plausible compares what the gate says with where the attempt's record ends.
func (c *Coordinator) plausible(job Job, rec *record, v Verdict, s gate.State) error {
	log := c.cfg.Logger.With("replication", job.Replication, "attempt", rec.Attempt, "direction", string(rec.goes), "step", rec.step, "gate_epoch", s.Epoch, "gate_side", string(s.Side))
	switch {
	case !v.Known:
		log.Error("the gate says nothing of the attempt")
	case Find(rec.goes, rec.step).Allows(v):
		return nil
	case v.Won:
		// The control database lost something, and not the gate: what the gate says is done.
		log.Warn("the gate decided further than the attempt's record goes")
		return nil
	default:
		log.Error("the decision is recorded, and the gate does not have it")
	}
	return tenant.Errorf(tenant.KindRefused, "gate-went-back", "see whether the source was restored from a backup or failed over to a standby that was behind, and stop its clients; decide by hand which side is right",
		"the gate at the source (epoch %d, %s) does not fit attempt %s, which had come to step %s", s.Epoch, s.Side, rec.Attempt, rec.step)
}

// conclude writes the outcome of an attempt down that another server began, and drops a way back that nobody needs.
func (c *Coordinator) conclude(ctx context.Context, job Job, rec *record, v Verdict, s gate.State) error {
	now := c.cfg.Now()
	rec.Outcome = v.Outcome
	rec.WayBackLeft = v.Discard && job.WayBack != nil && !rec.NoWayBack
	if v.Won {
		if rec.DecidedAt.IsZero() {
			rec.DecidedAt = now.UTC().Truncate(time.Microsecond)
		}
		if !rec.HeldAt.IsZero() {
			rec.PauseMillis = millis(now.Sub(rec.HeldAt))
		}
	} else if rec.Error == "" {
		rec.Error = "the server that ran the attempt went away"
	}
	if v.Certify {
		return c.certify(ctx, job, rec, s)
	}
	if v.Won {
		rec.Rollback = c.rollbackRecord(job, rec, s)
	}
	ours, err := c.finish(ctx, rec, nil)
	if err == nil && ours {
		c.discardWayBack(ctx, job, rec)
	}
	return err
}

// unfinished reads the attempts without an outcome, oldest first.
func (c *Coordinator) unfinished(ctx context.Context, replication string) ([]*record, error) {
	rows, err := c.cfg.Pool.Query(ctx, `SELECT attempt, direction, step, gate_epoch, report FROM rehome_control.cutovers
		WHERE replication = $1 AND direction IN ('cutover', 'rollback', 'rehearsal') AND finished_at IS NULL ORDER BY gate_epoch, started_at`, replication)
	if err != nil {
		return nil, fmt.Errorf("look for unfinished attempts: %w", err)
	}
	recs, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*record, error) {
		var attempt, direction, step string
		var epoch int64
		var raw []byte
		if err := row.Scan(&attempt, &direction, &step, &epoch, &raw); err != nil {
			return nil, err
		}
		rec := &record{}
		if err := json.Unmarshal(raw, rec); err != nil {
			return nil, err
		}
		rec.Attempt, rec.Epoch, rec.goes, rec.step = attempt, epoch, Direction(direction), step
		return rec, nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for unfinished attempts: %w", err)
	}
	return recs, nil
}

// foreign reports whether a decision for the target is another replication's. A source has one gate, whoever replicates
// from it, and only the shards that the decision was for may follow it: others would take writes beside them. The record
// of the attempt tells; where there is none, since it was made by another installation or the control database was
// restored, the address that the gate names.
func (c *Coordinator) foreign(ctx context.Context, job Job, s gate.State) (bool, error) {
	if s.Side != gate.SideTarget {
		return false, nil
	}
	var replication string
	err := c.cfg.Pool.QueryRow(ctx, `SELECT replication FROM rehome_control.cutovers WHERE attempt = $1`, s.Attempt).Scan(&replication)
	if errors.Is(err, pgx.ErrNoRows) {
		return s.NewURL != job.TargetURL, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for the attempt that decided: %w", err)
	}
	return replication != job.Replication, nil
}

func (c *Coordinator) followAll(ctx context.Context, job Job, state gate.State) error {
	ctx, cancel := context.WithTimeout(ctx, followTimeout)
	defer cancel()
	var g errgroup.Group
	for _, s := range job.Shards {
		g.Go(func() error { return followShard(ctx, s, state) })
	}
	return g.Wait()
}

func (c *Coordinator) readGate(ctx context.Context, source tenant.DSN) (gate.State, error) {
	conn, err := gate.SourceSession(ctx, source)
	if err != nil {
		return gate.State{}, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	return gate.ReadGate(ctx, conn)
}
