package cutover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

// complete is everything after the decision: forward only, idempotent, and finished by another server if this one dies.
func (r *run) complete(ctx context.Context, state gate.State) (Report, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), followTimeout)
	defer cancel()
	r.rec.Outcome, r.rec.DecidedAt = OutcomeTarget, r.c.cfg.Now().UTC().Truncate(time.Microsecond)
	start := time.Now()
	if r.gate != nil && !r.gate.Replicated() && !r.gate.Second().IsClosed() {
		if behind, err := gate.WaitStandbys(ctx, r.gate.Second(), standbyTimeout); err != nil || behind > 0 {
			r.log.Warn("standbys of the source are behind the decision", "standbys", behind, "error", err)
			r.rec.Findings = append(r.rec.Findings, tenant.Finding{
				Severity: tenant.Warning, Code: "standby-behind", Object: "source",
				Message: "a standby of the source had not received the decision when the target opened", Remedy: "do not fail over to it before it has caught up",
			})
		}
	}
	var opening errgroup.Group
	var first sync.Once
	var crashErr error
	opening.Go(func() error {
		return r.follow(ctx, state, func() {
			first.Do(func() { crashErr = r.c.crash(StepFollowOne) })
		})
	})
	// Written beside the opening, not before it: whether it arrives changes nothing.
	saved := r.save(ctx, StepDecided, false)
	followed := opening.Wait()
	if crashErr != nil {
		return r.die(crashErr)
	}
	if err := r.c.crash(StepDecided); err != nil {
		return r.die(err)
	}
	r.took("follow", start)
	if followed != nil {
		r.closeSessions(ctx)
		return r.rec.Report, followUpError(followed)
	}
	if saved != nil {
		r.log.Warn("write the decision down", "error", saved)
	}
	// First of all that is left: held clients wait for it.
	if err := r.step("switch", func() error { return r.c.switchClients(ctx, r.job, state, r.at.ID) }); err != nil {
		r.closeSessions(ctx)
		return r.rec.Report, followUpError(err)
	}
	if !r.rec.HeldAt.IsZero() {
		r.rec.PauseMillis = millis(r.c.cfg.Now().Sub(r.rec.HeldAt))
	}
	r.pausing = false
	if err := r.mark(ctx, StepFollowed, func() error { return nil }); err != nil {
		if crashed(err) {
			return r.die(err)
		}
		r.log.Warn("write the opening down", "error", err)
	}
	r.closeSessions(ctx)
	if err := r.c.certify(ctx, r.job, r.rec, state); err != nil {
		return r.rec.Report, followUpError(err)
	}
	if err := r.c.crash(StepFinished); err != nil {
		return r.die(err)
	}
	return r.rec.Report, nil
}

func followUpError(err error) error {
	return &tenant.Error{
		Kind: tenant.KindUnavailable, Code: "cutover-follow", Message: "the target may write, but not everything agrees with that yet",
		Hint: "it is carried on by itself as soon as what is missing can be reached", Err: err,
	}
}

// follow opens every shard, side by side; opened is called as each is done.
func (r *run) follow(ctx context.Context, state gate.State, opened func()) error {
	var g errgroup.Group
	for _, s := range r.shards {
		g.Go(func() error {
			if s.follower != nil && !s.conn.IsClosed() && s.conn.PgConn().TxStatus() == 'T' {
				if _, err := s.follower.Follow(ctx, state); err == nil {
					opened()
					return nil
				}
			}
			if s.conn != nil { // it may hold the prelock that the next session would wait for
				_ = s.conn.Close(ctx)
			}
			if err := followShard(ctx, s.Shard, state); err != nil {
				return err
			}
			opened()
			return nil
		})
	}
	return g.Wait()
}

// followShard makes one shard follow by a session of its own, and tries until ctx ends.
func followShard(ctx context.Context, s Shard, state gate.State) error {
	for {
		err := func() error {
			conn, err := gate.ShardSession(ctx, s.DSN)
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
			_, err = gate.Follow(ctx, conn, state)
			return err
		}()
		if err == nil {
			return nil
		}
		t := time.NewTimer(followRetry)
		select {
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("shard %s: %w", s.Name, err)
		case <-t.C:
		}
	}
}

// ThawSource lets the source's sequences run on again, as they could before the cutover: for the side whose fence is
// dropped when the replication is completed, or that takes the writes back. Nothing happens if no cutover froze them.
func (c *Coordinator) ThawSource(ctx context.Context, replication string, source *pgx.Conn) error {
	values, err := c.frozen(ctx, replication)
	if err != nil || len(values) == 0 {
		return err
	}
	return catalog.ThawSequences(ctx, source, values)
}

// frozen reads the source's sequences as they were before the last cutover froze them; none if none did.
func (c *Coordinator) frozen(ctx context.Context, replication string) ([]tenant.SequenceValue, error) {
	var raw []byte
	err := c.cfg.Pool.QueryRow(ctx, `SELECT report->'frozen_sequences' FROM rehome_control.cutovers
		WHERE replication = $1 AND direction = 'cutover' AND outcome = 'target' ORDER BY gate_epoch DESC LIMIT 1`, replication).Scan(&raw)
	if errors.Is(err, pgx.ErrNoRows) || (err == nil && raw == nil) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the frozen sequences: %w", err)
	}
	var values []tenant.SequenceValue
	if err := json.Unmarshal(raw, &values); err != nil {
		return nil, fmt.Errorf("read the frozen sequences: %w", err)
	}
	return values, nil
}
