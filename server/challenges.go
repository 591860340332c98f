package server

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/otp"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

type challengeInput struct{ Body api.ChallengeRequest }

type challengeOutput struct{ Body api.Challenge }

func (s *Server) requestChallenge(ctx context.Context, in *challengeInput) (*challengeOutput, error) {
	p, err := s.challengePlan(ctx, in.Body)
	if err != nil {
		return nil, err
	}
	note(ctx, "for", p.action)
	to, err := s.recipient(ctx, p.database)
	if err != nil {
		return nil, err
	}
	rq := requestOf(ctx)
	c, err := s.otp.Request(ctx, otp.Request{
		Action: p.action, Database: p.database, Plan: p.body, PlanText: p.text, Recipient: to,
		ChannelName: in.Body.Channel, RequestedBy: rq.actor(), Address: rq.address,
	})
	if err != nil {
		return nil, err
	}
	note(ctx, "challenge", c.ID)
	return &challengeOutput{Body: api.Challenge{ID: c.ID, Action: c.Action, SentTo: c.SentTo, Channel: c.Channel, Plan: c.PlanText, ExpiresAt: c.ExpiresAt}}, nil
}

// challengePlan computes the plan of what is asked, after everything that would refuse the action itself has been
// checked: nobody is asked for a code that could not be used.
func (s *Server) challengePlan(ctx context.Context, r api.ChallengeRequest) (plan, error) {
	missing := func(member string) error {
		return tenant.Errorf(tenant.KindInvalid, "missing-plan", "send the same member as with the action itself", "a challenge for %s needs the member %q", r.Action, member)
	}
	switch r.Action {
	case actionStart:
		if r.Start == nil {
			return plan{}, missing("start")
		}
		return s.challengeStart(ctx, *r.Start)
	case actionCutover, actionRollback:
		if r.Cutover == nil {
			return plan{}, missing("cutover")
		}
		rep, err := s.replication(ctx, r.Cutover.Replication)
		if err != nil {
			return plan{}, err
		}
		p, _, err := s.planMove(ctx, r.Action, rep, *r.Cutover)
		return p, err
	case actionComplete:
		if r.Complete == nil {
			return plan{}, missing("complete")
		}
		rep, err := s.replication(ctx, r.Complete.Replication)
		if err != nil {
			return plan{}, err
		}
		if err := fitsComplete(rep.State, r.Complete.SourceDestroyed); err != nil {
			return plan{}, err
		}
		if !r.Complete.DropFence && !r.Complete.SourceDestroyed {
			return plan{}, tenant.Errorf(tenant.KindInvalid, "no-code-needed", "complete that neither drops the fence nor goes on without the source needs a confirmation, no code", "there is nothing to approve")
		}
		return planComplete(rep, r.Complete.DropFence, r.Complete.SourceDestroyed), nil
	case actionRedirect:
		if r.Redirect == nil {
			return plan{}, missing("redirect")
		}
		p, _, err := s.checkRedirect(ctx, *r.Redirect)
		return p, err
	case actionDelete:
		if r.Delete == nil {
			return plan{}, missing("delete")
		}
		p, _, err := s.checkDelete(ctx, *r.Delete)
		return p, err
	}
	return plan{}, tenant.Errorf(tenant.KindInvalid, "unknown-action", "use start-replication, cutover, rollback, complete, redirect or delete-db", "there is no challenge for %q", r.Action)
}

func (s *Server) challengeStart(ctx context.Context, r api.PlanRequest) (plan, error) {
	source, t, options, err := s.startOf(ctx, r)
	if err != nil {
		return plan{}, err
	}
	if err := s.onlyOne(ctx, t); err != nil {
		return plan{}, err
	}
	report, err := s.check(ctx, source, t, options)
	if err != nil {
		return plan{}, err
	}
	if tenant.Blocks(report.Findings) {
		return plan{}, &tenant.Error{
			Kind: tenant.KindRefused, Code: "preflight-refused", Message: "the preflight found what would go wrong: " + blocking(report.Findings),
			Hint: "apply the remedies, or accept a finding by name (--accept) where that is offered; rehome preflight shows all", Findings: report.Findings,
		}
	}
	return s.planStart(source, t, options), nil
}

// blocking names what refuses.
func blocking(findings []tenant.Finding) string {
	var names []string
	for _, f := range findings {
		if f.Severity == tenant.Blocking && !f.Accepted {
			names = append(names, f.ID())
		}
	}
	if n := len(names); n > 5 {
		names = append(names[:5], fmt.Sprintf("and %d more", n-5))
	}
	return strings.Join(names, ", ")
}

// recipient is whose decision it is: the database's owner, else the installation's administrator.
func (s *Server) recipient(ctx context.Context, database string) (string, error) {
	var owner, admin string
	err := s.pool.QueryRow(ctx, `SELECT d.owner_email, i.admin_email FROM rehome_control.databases d, rehome_control.installations i WHERE d.name = $1`, database).Scan(&owner, &admin)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return "", notFoundDatabase(database)
	case err != nil:
		return "", fmt.Errorf("find whom to ask: %w", err)
	case owner != "":
		return owner, nil
	case admin != "":
		return admin, nil
	}
	return "", tenant.Errorf(tenant.KindRefused, "nobody-to-ask", "name the installation's administrator (rehome init --email) or the database's owner", "there is no e-mail address to send the code to")
}

// approve redeems the person's code for a plan.
func (s *Server) approve(ctx context.Context, p plan, a api.Approval) (otp.Grant, error) {
	if a.ID == "" || a.Code == "" {
		return otp.Grant{}, tenant.Errorf(tenant.KindUnauthorised, "approval-missing", "ask for a code with POST /v1/challenges and send its id and code", "%s needs a person's code", p.action)
	}
	rq := requestOf(ctx)
	g, err := s.otp.Redeem(ctx, otp.Redemption{ID: a.ID, Code: a.Code, Action: p.action, Database: p.database, Plan: p.body, By: rq.actor(), Address: rq.address})
	if err != nil {
		return g, err
	}
	note(ctx, "challenge", g.Challenge)
	note(ctx, "approved_by", g.ApprovedBy)
	return g, nil
}

// auditOTP is the hook of package otp.
func (s *Server) auditOTP(ctx context.Context, e otp.AuditEntry) error {
	if rq := requestOf(ctx); rq.id != "" && e.Detail != nil {
		e.Detail["request_id"] = rq.id
	}
	return s.audit(ctx, auditRow{actor: e.Actor, action: e.Action, object: e.Object, outcome: e.Outcome, address: e.Address, detail: e.Detail})
}

type enrolInput struct{ Body api.TOTPEnrolRequest }

type enrolOutput struct{ Body api.TOTPEnrolment }

type confirmTOTPInput struct{ Body api.TOTPConfirm }

type emailInput struct {
	Email string `path:"email"`
}

// permitTOTP: an authenticator approves what its owner decides, so only the owner's own key begins an enrolment, or the
// operator. That is not enough to end it: that takes the code which is mailed to the address.
func permitTOTP(ctx context.Context, email string) error {
	about(ctx, email)
	p := requestOf(ctx).principal
	if p == nil || (!p.operator && !strings.EqualFold(p.actor, email)) {
		return tenant.Errorf(tenant.KindUnauthorised, "not-your-address", "use a key of that address, or the operator's REHOME_SECRET", "this key is not of that address")
	}
	return nil
}

func (s *Server) enrolTOTP(ctx context.Context, in *enrolInput) (*enrolOutput, error) {
	if err := permitTOTP(ctx, in.Body.Email); err != nil {
		return nil, err
	}
	rq := requestOf(ctx)
	e, err := s.otp.Enrol(ctx, in.Body.Email, rq.actor(), rq.address)
	if err != nil {
		return nil, err
	}
	return &enrolOutput{Body: api.TOTPEnrolment{Email: e.Email, URI: e.URI, SentTo: e.SentTo, ExpiresAt: e.ExpiresAt}}, nil
}

func (s *Server) confirmTOTP(ctx context.Context, in *confirmTOTPInput) (*none, error) {
	if err := permitTOTP(ctx, in.Body.Email); err != nil {
		return nil, err
	}
	rq := requestOf(ctx)
	return nil, s.otp.ConfirmTOTP(ctx, in.Body.Email, in.Body.MailCode, in.Body.Code, rq.actor(), rq.address)
}

func (s *Server) removeTOTP(ctx context.Context, in *emailInput) (*none, error) {
	if err := permitTOTP(ctx, in.Email); err != nil {
		return nil, err
	}
	rq := requestOf(ctx)
	return nil, s.otp.RemoveTOTP(ctx, in.Email, rq.actor(), rq.address)
}
