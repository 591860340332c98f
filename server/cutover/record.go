package cutover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/tenant"
)

// record is what rehome_control.cutovers keeps of an attempt in its column report: the report for people, and what
// another server needs to finish it.
type record struct {
	Report
	Epoch        int64                  `json:"gate_epoch"`
	HeldAt       time.Time              `json:"held_at,omitzero"`
	DecidedAt    time.Time              `json:"decided_at,omitzero"`
	MarkerLSN    tenant.LSN             `json:"marker_lsn,omitempty"`
	Shards       []tenant.ShardPosition `json:"shards,omitempty"`
	Frozen       []tenant.SequenceValue `json:"frozen_sequences,omitempty"` // the source's, as they were before
	Sequences    []tenant.SequenceSet   `json:"sequences,omitempty"`
	Verification string                 `json:"verification,omitempty"`
	Digest       string                 `json:"verification_digest,omitempty"`
	VerifiedLSN  tenant.LSN             `json:"verified_lsn,omitempty"`
	SystemID     string                 `json:"source_system_identifier,omitempty"`
	ApprovedBy   string                 `json:"approved_by,omitempty"`
	Error        string                 `json:"error,omitempty"`
	NoWayBack    bool                   `json:"no_way_back,omitempty"`   // none was wanted, or the installation has none
	Fenced       []tenant.ShardFenced   `json:"fenced,omitempty"`        // rollback: the shards, as they were closed
	WayBackLeft  bool                   `json:"way_back_left,omitempty"` // it is still to be dropped; see Tidy

	goes Direction // of one that was read
	step string
}

// raise moves the source's gate up where a shard's is ahead of it, from an earlier replication: it would not follow.
func (r *run) raise(ctx context.Context) error {
	if r.shardTop < r.rec.Epoch {
		return nil
	}
	conn, err := gate.SourceSession(ctx, r.job.Source)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	s, err := gate.Raise(ctx, conn, r.rec.Epoch, r.shardTop+1)
	if err != nil {
		return err
	}
	r.rec.Epoch = s.Epoch
	return nil
}

// intend writes the intent down, durably, before the gate is touched.
func (r *run) intend(ctx context.Context) error {
	r.rec.ApprovedBy = r.at.ApprovedBy
	raw, err := json.Marshal(r.rec)
	if err != nil {
		return fmt.Errorf("write the intent down: %w", err)
	}
	// One at a time: whatever is unfinished is resolved first, and the replication's row keeps two from beginning at once.
	one := false
	another := tenant.Errorf(tenant.KindConflict, "another-attempt", "wait until it has ended; see rehome replications", "another cutover or rollback of replication %s is under way", r.job.Replication)
	write := func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT FROM rehome_control.replications WHERE id = $1 FOR UPDATE`, r.job.Replication); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, `INSERT INTO rehome_control.cutovers (attempt, replication, direction, gate_epoch, step, max_pause_ms, approved_by, report)
			SELECT $1, $2, $3, $4, $5, $6, $7, $8
			WHERE NOT EXISTS (SELECT FROM rehome_control.cutovers WHERE replication = $2 AND finished_at IS NULL)`,
			r.at.ID, r.job.Replication, string(r.goes), r.rec.Epoch, StepIntent, r.at.MaxPause.Milliseconds(), r.at.ApprovedBy, raw)
		one = err == nil && tag.RowsAffected() == 1
		if err == nil && !one { // nothing else of this transaction is to stay
			err = another
		}
		return err
	}
	if r.at.Begin != nil {
		err = r.at.Begin(ctx, write)
	} else {
		err = pgx.BeginFunc(ctx, r.c.cfg.Pool, write)
	}
	if err == nil && !one { // whoever begins attempts found one under way
		err = another
	}
	if err != nil {
		return fmt.Errorf("write the intent down: %w", err)
	}
	r.last = StepIntent
	return nil
}

// save persists the step with the draft of the report. Within the pause it does not wait for the control database's
// disk: should the row be lost, RESOLVE needs no more than the intent.
func (r *run) save(ctx context.Context, step string, durable bool) error {
	if err := r.saved(); err != nil { // or it would come late, over this one
		return err
	}
	raw, err := r.draft(step)
	if err != nil {
		return err
	}
	return r.write(ctx, step, raw, durable)
}

// draft is the report as it stands.
func (r *run) draft(step string) ([]byte, error) {
	if !MayFollow(r.goes, r.last, step) {
		return nil, fmt.Errorf("write step %s down: it does not follow %s", step, r.last)
	}
	r.last = step
	raw, err := json.Marshal(r.rec)
	if err != nil {
		return nil, fmt.Errorf("write step %s down: %w", step, err)
	}
	return raw, nil
}

func (r *run) write(ctx context.Context, step string, raw []byte, durable bool) error {
	batch := &pgx.Batch{}
	if !durable {
		batch.Queue(`SELECT set_config('synchronous_commit', 'off', true)`)
	}
	var n int64
	batch.Queue(`UPDATE rehome_control.cutovers SET step = $2, report = $3 WHERE attempt = $1 AND finished_at IS NULL`, r.at.ID, step, raw).
		Exec(func(ct pgconn.CommandTag) error { n = ct.RowsAffected(); return nil })
	// A batch is one implicit transaction, so the setting covers its commit.
	if err := r.c.cfg.Pool.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("write step %s down: %w", step, err)
	}
	if n == 0 {
		return errTaken
	}
	return nil
}

// step runs and times something.
func (r *run) step(name string, fn func() error) error {
	start := time.Now()
	err := fn()
	r.took(name, start)
	return err
}

// took notes how long a step took that began at start and ends now.
func (r *run) took(name string, start time.Time) {
	s := stepTime(name, start)
	s.AtMillis, s.Pause = millis(start.Sub(r.began)), r.pausing
	r.rec.Steps = append(r.rec.Steps, s)
}

// mark runs, times and persists a step.
func (r *run) mark(ctx context.Context, name string, fn func() error) error {
	run := func() error { return r.step(name, fn) }
	if name == StepSequences { // it timed itself, beside others
		run = fn
	}
	if err := run(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	save := r.save
	if r.pausing && r.c.cfg.Crash == nil { // tests that kill it want the step written first
		save = func(ctx context.Context, step string, _ bool) error { return r.saveLater(ctx, step) }
	}
	if err := save(ctx, name, false); err != nil {
		return err
	}
	return r.c.crash(name)
}

// finish writes the outcome down, once: whoever comes later leaves it as it is, and ours is false.
func (c *Coordinator) finish(ctx context.Context, rec *record, cert *tenant.Certificate) (ours bool, err error) {
	raw, err := json.Marshal(rec)
	if err != nil {
		return false, fmt.Errorf("write the outcome down: %w", err)
	}
	var certificate []byte
	if cert != nil {
		if certificate, err = json.Marshal(cert); err != nil {
			return false, fmt.Errorf("write the certificate down: %w", err)
		}
	}
	side := rec.Outcome
	if side == OutcomeRehearsed {
		side = OutcomeSource
	}
	tag, err := c.cfg.Pool.Exec(ctx, `UPDATE rehome_control.cutovers SET step = $2, outcome = $3, report = $4, certificate = $5, finished_at = now()
		WHERE attempt = $1 AND finished_at IS NULL`, rec.Attempt, StepFinished, side, raw, certificate)
	if err != nil {
		return false, fmt.Errorf("write the outcome down: %w", err)
	}
	return tag.RowsAffected() > 0, nil
}

// certify signs the certificate and finishes the attempt.
func (c *Coordinator) certify(ctx context.Context, job Job, rec *record, state gate.State) error {
	cert := &tenant.Certificate{
		Version: CertificateVersion, Installation: c.cfg.Signer.Installation, Database: job.Database, Source: job.SourceLabel, Target: job.TargetURL,
		Replication: job.Replication, Attempt: rec.Attempt, GateEpoch: state.Epoch, Placement: job.Placement, SystemID: rec.SystemID,
		MarkerLSN: rec.MarkerLSN, Shards: rec.Shards, Verification: rec.Verification, Digest: rec.Digest, VerifiedLSN: rec.VerifiedLSN,
		Sequences: rec.Sequences, PauseMillis: rec.PauseMillis, Steps: rec.Steps, ApprovedBy: rec.ApprovedBy, DecidedAt: rec.DecidedAt,
		WayBack: WayBackOpen,
	}
	if rec.NoWayBack {
		cert.WayBack = WayBackNone
	}
	if cert.Sequences == nil {
		cert.Sequences = []tenant.SequenceSet{}
	}
	if err := Sign(cert, c.cfg.Signer.Key); err != nil {
		return err
	}
	// The row keeps the certificate once, in its own column.
	rec.Certificate = nil
	if _, err := c.finish(ctx, rec, cert); err != nil {
		return err
	}
	rec.Certificate = cert
	return nil
}

// isSequenceMoved: ALTER SEQUENCE … MAXVALUE below the sequence's value (invalid_parameter_value).
func isSequenceMoved(err error) bool {
	pe, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pe.Code == "22023"
}

// millis rounds to microseconds, so that a figure keeps its text in any JSON store.
func millis(d time.Duration) float64 { return math.Round(float64(d)/float64(time.Microsecond)) / 1000 }

func stepTime(name string, start time.Time) tenant.StepTime {
	return tenant.StepTime{Step: name, Millis: millis(time.Since(start))}
}
