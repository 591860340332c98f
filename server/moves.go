package server

import (
	"context"

	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

type cutoverInput struct {
	ID   string `path:"id"`
	Body api.CutoverRequest
}

// planMove computes the plan of a cutover or rollback, after the phase and other commands have been looked at.
func (s *Server) planMove(ctx context.Context, action string, r api.Replication, in api.CutoverPlan) (plan, cutoverPlan, error) {
	if err := fits(r.State, action); err != nil {
		return plan{}, cutoverPlan{}, err
	}
	if err := s.openCommand(ctx, r.ID, api.CommandCutover, api.CommandRollback, api.CommandComplete, api.CommandCancel); err != nil {
		return plan{}, cutoverPlan{}, err
	}
	if action == actionRollback {
		return s.planRollback(ctx, r, in)
	}
	return s.planCutover(ctx, r, in)
}

func (s *Server) cutover(ctx context.Context, in *cutoverInput) (*commandOutput, error) {
	return s.move(ctx, actionCutover, in)
}

func (s *Server) rollback(ctx context.Context, in *cutoverInput) (*commandOutput, error) {
	return s.move(ctx, actionRollback, in)
}

func (s *Server) move(ctx context.Context, action string, in *cutoverInput) (*commandOutput, error) {
	r, err := s.replication(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if in.Body.Replication != "" && in.Body.Replication != in.ID {
		return nil, tenant.Errorf(tenant.KindInvalid, "other-replication", "name the same one in path and body", "the body names replication %s", in.Body.Replication)
	}
	in.Body.Replication = in.ID
	if in.Body.DryRun {
		note(ctx, "dry_run", true)
		// What would refuse is the dry run's answer, so nothing is refused here but another phase's impossibility.
		if r.State.Phase.Terminal() {
			return nil, fits(r.State, action)
		}
		body, err := s.moveBody(ctx, action, r, in.Body.CutoverPlan)
		if err != nil {
			return nil, err
		}
		return s.command(ctx, r, action, api.CommandArgs{DryRun: true, MaxPauseMS: body.MaxPauseMS, NoWayBack: body.NoWayBack, PlacementEpoch: body.PlacementEpoch})
	}
	p, body, err := s.planMove(ctx, action, r, in.Body.CutoverPlan)
	if err != nil {
		return nil, err
	}
	grant, err := s.approve(ctx, p, in.Body.Approval)
	if err != nil {
		return nil, err
	}
	return s.approvedCommand(ctx, r, action, api.CommandArgs{
		MaxPauseMS: body.MaxPauseMS, NoWayBack: body.NoWayBack, Rehearse: body.Rehearse,
		Verification: body.Verification, VerificationDigest: body.VerificationDigest, PlacementEpoch: body.PlacementEpoch,
	}, grant)
}
