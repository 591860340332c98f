package server

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

type replicationsOutput struct{ Body []api.Replication }

type replicationOutput struct{ Body api.Replication }

type progressOutput struct{ Body tenant.Progress }

type verificationInput struct {
	ID  string `path:"id"`
	VID string `path:"vid"`
}

type verificationOutput struct{ Body tenant.Verification }

type certificateOutput struct{ Body tenant.Certificate }

const replicationColumns = `id, database, source_label, target_url, state, slot_name, options, progress, created_at, updated_at, ended_at`

func scanReplication(row pgx.CollectableRow) (api.Replication, error) {
	var r api.Replication
	err := row.Scan(&r.ID, &r.Database, &r.From, &r.To, &r.State, &r.Slot, &r.Options, &r.Progress, &r.CreatedAt, &r.UpdatedAt, &r.EndedAt)
	return r, err
}

func notFoundReplication(id string) error {
	return tenant.Errorf(tenant.KindNotFound, "replication-not-found", "see `rehome replications`", "there is no replication %q", id)
}

// replication reads one that the asker may see.
func (s *Server) replication(ctx context.Context, id string) (api.Replication, error) {
	rows, err := s.pool.Query(ctx, `SELECT `+replicationColumns+` FROM rehome_control.replications WHERE id = $1`, id)
	if err != nil {
		return api.Replication{}, fmt.Errorf("read the replication: %w", err)
	}
	r, err := pgx.CollectExactlyOneRow(rows, scanReplication)
	if errors.Is(err, pgx.ErrNoRows) {
		about(ctx, id)
		return r, notFoundReplication(id)
	}
	if err != nil {
		return r, fmt.Errorf("read the replication: %w", err)
	}
	if permitDatabase(ctx, r.Database) != nil {
		return api.Replication{}, notFoundReplication(id)
	}
	note(ctx, "replication", id)
	return r, nil
}

func (s *Server) listReplications(ctx context.Context, _ *struct{}) (*replicationsOutput, error) {
	rows, err := s.pool.Query(ctx, `SELECT `+replicationColumns+` FROM rehome_control.replications ORDER BY created_at DESC, id`)
	if err != nil {
		return nil, fmt.Errorf("read replications: %w", err)
	}
	list, err := pgx.CollectRows(rows, scanReplication)
	if err != nil {
		return nil, fmt.Errorf("read replications: %w", err)
	}
	out := &replicationsOutput{Body: []api.Replication{}}
	for _, r := range list {
		if requestOf(ctx).principal.sees(r.Database) {
			out.Body = append(out.Body, r)
		}
	}
	return out, nil
}

type replicationInput struct {
	ID string `path:"id"`
}

func (s *Server) getReplication(ctx context.Context, in *replicationInput) (*replicationOutput, error) {
	r, err := s.replication(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	rows, err := s.pool.Query(ctx, `SELECT name, started_at, finished_at FROM rehome_control.replication_steps WHERE replication = $1 ORDER BY started_at`, r.ID)
	if err != nil {
		return nil, fmt.Errorf("read the steps: %w", err)
	}
	if r.Steps, err = pgx.CollectRows(rows, pgx.RowToStructByPos[api.ReplicationStep]); err != nil {
		return nil, fmt.Errorf("read the steps: %w", err)
	}
	return &replicationOutput{Body: r}, nil
}

func (s *Server) getProgress(ctx context.Context, in *replicationInput) (*progressOutput, error) {
	r, err := s.replication(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	p := tenant.Progress{Replication: r.ID, At: r.UpdatedAt, ETASeconds: -1}
	if r.Progress != nil {
		p = *r.Progress
	}
	// The state is the authority; the figures may be a moment older.
	if p.Phase != r.State.Phase {
		p.Throttled = "" // nothing is read any more, or something else
	}
	p.Phase, p.Reason, p.Remedy = r.State.Phase, r.State.Reason, r.State.Remedy
	return &progressOutput{Body: p}, nil
}

func (s *Server) getVerification(ctx context.Context, in *verificationInput) (*verificationOutput, error) {
	if _, err := s.replication(ctx, in.ID); err != nil {
		return nil, err
	}
	var v *tenant.Verification
	err := s.pool.QueryRow(ctx, `SELECT result FROM rehome_control.verifications
		WHERE replication = $1 AND (id = $2 OR $2 = 'latest') AND result IS NOT NULL ORDER BY coalesce(finished_at, (result->>'finished_at')::timestamptz) DESC LIMIT 1`, in.ID, in.VID).Scan(&v)
	if errors.Is(err, pgx.ErrNoRows) || (err == nil && v == nil) {
		return nil, tenant.Errorf(tenant.KindNotFound, "verification-not-found", "run rehome verify", "there is no verification %q of replication %s", in.VID, in.ID)
	}
	if err != nil {
		return nil, fmt.Errorf("read the verification: %w", err)
	}
	return &verificationOutput{Body: *v}, nil
}

func (s *Server) getCertificate(ctx context.Context, in *replicationInput) (*certificateOutput, error) {
	if _, err := s.replication(ctx, in.ID); err != nil {
		return nil, err
	}
	var c *tenant.Certificate
	err := s.pool.QueryRow(ctx, `SELECT certificate FROM rehome_control.cutovers
		WHERE replication = $1 AND certificate IS NOT NULL AND outcome = 'target' ORDER BY started_at DESC LIMIT 1`, in.ID).Scan(&c)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, tenant.Errorf(tenant.KindNotFound, "certificate-not-found", "a cutover makes one", "replication %s has no certificate", in.ID)
	}
	if err != nil {
		return nil, fmt.Errorf("read the certificate: %w", err)
	}
	return &certificateOutput{Body: *c}, nil
}
