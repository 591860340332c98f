package server

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/progress"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

type throttleInput struct {
	ID   string `path:"id"`
	Body api.ThrottleUpdate
}

type throttleOutput struct{ Body api.ThrottleStatus }

func (s *Server) getThrottle(ctx context.Context, in *replicationInput) (*throttleOutput, error) {
	r, err := s.replication(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	out := &throttleOutput{Body: api.ThrottleStatus{Replication: r.ID, Phase: r.State.Phase}}
	if err := s.pool.QueryRow(ctx, `SELECT throttle FROM rehome_control.replications WHERE id = $1`, r.ID).Scan(&out.Body.Set); err != nil {
		return nil, fmt.Errorf("read the throttle: %w", err)
	}
	if p := r.Progress; p != nil && r.State.Phase == p.Phase {
		out.Body.Throttled, out.Body.Care = p.Throttled, p.Care
	}
	return out, nil
}

// setThrottle changes the limits in the control database; whoever works on the replication notices within a second.
func (s *Server) setThrottle(ctx context.Context, in *throttleInput) (*throttleOutput, error) {
	r, err := s.replication(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if r.State.Phase.Terminal() {
		return nil, tenant.Errorf(tenant.KindConflict, "replication-ended", "", "replication %s is %s", r.ID, r.State.Phase)
	}
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		var was tenant.Throttle
		if err := tx.QueryRow(ctx, `SELECT throttle FROM rehome_control.replications WHERE id = $1 FOR UPDATE`, r.ID).Scan(&was); err != nil {
			return err
		}
		now := applyThrottle(was, in.Body)
		if now == was {
			return nil
		}
		raw, err := json.Marshal(now)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE rehome_control.replications SET throttle = $2, updated_at = now() WHERE id = $1`, r.ID, raw); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `SELECT pg_notify($1, $2)`, commandsChannel, r.ID); err != nil {
			return err
		}
		note(ctx, "throttle", now)
		_, err = s.events.Append(ctx, tx, progress.Entry{
			Stream: r.ID, Database: r.Database, Kind: "replication", ID: r.ID, Event: "throttle-set", Data: map[string]any{"set": now, "by": requestOf(ctx).actor()},
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("set the throttle: %w", err)
	}
	return s.getThrottle(ctx, &replicationInput{ID: in.ID})
}

// applyThrottle gives the limits after a change. A limit that is set ends "off".
func applyThrottle(t tenant.Throttle, u api.ThrottleUpdate) tenant.Throttle {
	if u.Off != nil && *u.Off {
		return tenant.Throttle{Off: true}
	}
	before := t
	set(&t.MaxRate, u.MaxRate)
	set(&t.MaxLagBytes, u.MaxLagBytes)
	set(&t.MaxLagSeconds, u.MaxLagSeconds)
	set(&t.MaxSlotWAL, u.MaxSlotWAL)
	set(&t.CopyJobs, u.CopyJobs)
	if u.Query != nil {
		t.Query = strings.TrimSpace(*u.Query)
	}
	if t != before || u.Off != nil {
		t.Off = false
	}
	return t
}

func set[T any](field, value *T) {
	if value != nil {
		*field = *value
	}
}
