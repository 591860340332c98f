package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/progress"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// PurposeSourceDSN is the seal's purpose of replications.source_dsn_sealed.
const PurposeSourceDSN = "source-dsn"

const uniqueViolation = "23505" // Postgres manual, appendix A

type startInput struct{ Body api.StartRequest }

// startOf finds both ends of what is asked for, and fills in what was left out: the realm key is the database's.
func (s *Server) startOf(ctx context.Context, r api.PlanRequest) (tenant.DSN, target, tenant.ReplicationOptions, error) {
	source, err := checkSource(r.From)
	if err != nil {
		return "", target{}, r.Options, err
	}
	t, err := s.targetOf(ctx, r.To)
	if err != nil {
		return "", t, r.Options, err
	}
	if err := permitSource(ctx, source); err != nil {
		return "", t, r.Options, err
	}
	return source, t, t.options(r.Options), nil
}

// options fills in what was left out.
func (t target) options(o tenant.ReplicationOptions) tenant.ReplicationOptions {
	if o.RealmKey == "" {
		o.RealmKey = t.database.RealmKey
	}
	return o.WithDefaults()
}

// onlyOne refuses a second replication of a database.
func (s *Server) onlyOne(ctx context.Context, t target) error {
	var id, phase string
	err := s.pool.QueryRow(ctx, `SELECT id, phase FROM rehome_control.replications WHERE database = $1 AND phase NOT IN ('completed','cancelled')`, t.database.Name).Scan(&id, &phase)
	if err == nil {
		return alreadyReplicating(t.database.Name, id, phase)
	}
	if !errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("look for other replications: %w", err)
	}
	return nil
}

func alreadyReplicating(database, id, phase string) error {
	return tenant.Errorf(tenant.KindConflict, "replication-exists", "resume it (rehome resume-replication), or cancel it first (rehome cancel-replication)", "database %s has a replication already: %s, %s", database, id, phase)
}

// startReplication records the replication; a worker takes it from there.
func (s *Server) startReplication(ctx context.Context, in *startInput) (*replicationOutput, error) {
	source, t, options, err := s.startOf(ctx, in.Body.PlanRequest)
	if err != nil {
		return nil, err
	}
	name := t.database.Name
	p := s.planStart(source, t, options)
	note(ctx, "source", source.String())
	grant, err := s.approve(ctx, p, in.Body.Approval)
	if err != nil {
		return nil, err
	}
	// Only now: whoever replays a code learns that it is used, not what else is going on.
	if err := s.onlyOne(ctx, t); err != nil {
		return nil, err
	}
	id := newID()
	note(ctx, "replication", id)
	now := s.cfg.Now()
	state := tenant.State{Phase: tenant.Created}
	encodedState, err := json.Marshal(state)
	if err != nil {
		return nil, fmt.Errorf("encode the state: %w", err)
	}
	sourceDatabase, err := s.adoptedSource(ctx, source)
	if err != nil {
		return nil, err
	}
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if err := s.otp.Use(ctx, tx, grant); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO rehome_control.replications (id, database, source_dsn_sealed, source_label, target_url, options, state, phase,
				slot_name, publication, placement_epoch, approved_by, created_at, updated_at, source_database)
			VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$9,$10,$11,$12,$12,$13)`,
			id, name, s.box.Seal(PurposeSourceDSN, source.Reveal()), source.String(), t.url, options, string(encodedState), string(state.Phase),
			"rehome_"+id, t.placement.Epoch, grant.ApprovedBy, now, sourceDatabase)
		var pg *pgconn.PgError
		if errors.As(err, &pg) && pg.Code == uniqueViolation && pg.ConstraintName == "replications_one_active" {
			return alreadyReplicating(name, "another", "just started")
		}
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `SELECT pg_notify($1, $2)`, replicationsChannel, id); err != nil {
			return err
		}
		_, err = s.events.Append(ctx, tx, progress.Entry{
			Stream: id, Database: name, Kind: "replication", ID: id, Event: "created",
			Data: map[string]any{"from": source.String(), "to": t.url, "options": options, "approved_by": grant.ApprovedBy},
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("record the replication: %w", err)
	}
	return s.getReplication(ctx, &replicationInput{ID: id})
}
