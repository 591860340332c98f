package server

import (
	"context"
	"errors"
	"fmt"
	"net/url"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/progress"
	"github.com/rehomedb/rehome/redirect"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/shard"
	"github.com/rehomedb/rehome/tenant"
)

type redirectInput struct {
	Name string `path:"name"`
	Body api.RedirectRequest
}

type redirectOutput struct{ Body api.Redirect }

func redirectBody(r redirect.Redirect) api.Redirect {
	return api.Redirect{Database: r.Database, To: r.To, Mode: string(r.Mode), Permanent: r.Permanent, CreatedAt: r.CreatedAt, TombstoneUntil: r.TombstoneUntil}
}

// checkRedirect refuses a redirect while this side still takes writes, unless that is forced: clients that arrive at the
// new side would find it closed, and those that do not would write where nobody looks any more.
func (s *Server) checkRedirect(ctx context.Context, in api.RedirectPlan) (plan, redirectPlan, error) {
	if err := permitDatabase(ctx, in.Database); err != nil {
		return plan{}, redirectPlan{}, err
	}
	d, err := s.catalogue.Database(ctx, in.Database)
	if err != nil {
		return plan{}, redirectPlan{}, err
	}
	if d.State == shard.Deleted || d.State == shard.Purged {
		return plan{}, redirectPlan{}, tenant.Errorf(tenant.KindConflict, "database-deleted", "undelete it first (rehome undelete)", "database %s is %s", d.Name, d.State)
	}
	p, body, err := s.planRedirect(in)
	if err != nil {
		return p, body, err
	}
	if body.Mode == string(redirect.ModeProxy) { // then it is this server that connects
		to, err := url.Parse(body.To)
		if err != nil {
			return plan{}, body, fmt.Errorf("read the redirect's URL: %w", err)
		}
		if err := permitHost(ctx, to.Hostname()); err != nil {
			return plan{}, body, err
		}
	}
	if in.Force {
		return p, body, nil
	}
	state, err := s.gateOf(ctx, d)
	const hint = "cut over first (rehome cutover); or --force, if you know that nobody writes here"
	switch {
	case errors.Is(err, gate.ErrNoGate):
		return plan{}, body, tenant.Errorf(tenant.KindRefused, "source-still-writes", hint, "database %s was never cut over: it still accepts writes", d.Name)
	case err != nil:
		return plan{}, body, err
	case d.Kind == shard.KindAdopted && state.Side != gate.SideTarget:
		return plan{}, body, tenant.Errorf(tenant.KindRefused, "source-still-writes", hint, "database %s still accepts writes (its gate says %s, epoch %d)", d.Name, state.Side, state.Epoch)
	case d.Kind == shard.KindSharded && state.Side == gate.SideTarget:
		return plan{}, body, tenant.Errorf(tenant.KindRefused, "source-still-writes", hint, "database %s still accepts writes on its shards (epoch %d)", d.Name, state.Epoch)
	}
	return p, body, nil
}

// gateOf reads the gate of an adopted database, or of a sharded one's first shard.
func (s *Server) gateOf(ctx context.Context, d shard.Database) (gate.State, error) {
	var dsn tenant.DSN
	var err error
	switch {
	case d.Kind == shard.KindAdopted:
		dsn, err = s.catalogue.AdoptedDSN(ctx, d.Name)
	case len(d.Shards) > 0:
		dsn, err = s.catalogue.DatabaseDSN(ctx, d.Name, d.Shards[0])
	default:
		return gate.State{}, gate.ErrNoGate
	}
	if err != nil {
		return gate.State{}, err
	}
	conn, err := open(ctx, dsn)
	if err != nil {
		return gate.State{}, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	state, err := gate.ReadGate(ctx, conn)
	if err != nil {
		return state, fmt.Errorf("read the gate of %s: %w", d.Name, err)
	}
	return state, nil
}

func (s *Server) getRedirect(ctx context.Context, in *namedInput) (*redirectOutput, error) {
	if err := permitDatabase(ctx, in.Name); err != nil {
		return nil, err
	}
	r, err := s.gateway.RedirectOf(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	return &redirectOutput{Body: redirectBody(r)}, nil
}

func (s *Server) setRedirect(ctx context.Context, in *redirectInput) (*redirectOutput, error) {
	if in.Body.Database != "" && in.Body.Database != in.Name {
		return nil, tenant.Errorf(tenant.KindInvalid, "other-database", "name the same one in path and body", "the body names database %s", in.Body.Database)
	}
	in.Body.Database = in.Name
	p, body, err := s.checkRedirect(ctx, in.Body.RedirectPlan)
	if err != nil {
		return nil, err
	}
	note(ctx, "to", body.To)
	note(ctx, "mode", body.Mode)
	grant, err := s.approve(ctx, p, in.Body.Approval)
	if err != nil {
		return nil, err
	}
	if err := s.otp.Use(ctx, s.pool, grant); err != nil {
		return nil, err
	}
	r, err := s.gateway.SetRedirect(ctx, redirect.Redirect{Database: in.Name, To: body.To, Mode: redirect.Mode(body.Mode), Permanent: body.Permanent, CreatedBy: grant.ApprovedBy})
	if err != nil {
		return nil, err
	}
	s.tell(ctx, progress.Entry{Database: in.Name, Kind: "database", ID: in.Name, Event: "redirected", Data: map[string]any{"to": body.To, "mode": body.Mode, "permanent": body.Permanent}})
	return &redirectOutput{Body: redirectBody(r)}, nil
}

func (s *Server) clearRedirect(ctx context.Context, in *namedInput) (*none, error) {
	if err := permitDatabase(ctx, in.Name); err != nil {
		return nil, err
	}
	var te *tenant.Error
	d, err := s.catalogue.Database(ctx, in.Name)
	switch {
	case errors.As(err, &te) && te.Kind == tenant.KindNotFound: // only the redirect is left
	case err != nil:
		return nil, err
	case d.State == shard.Purged: // it frees the name, and ends the tombstone: the installation's decision
		if err := permit(requestOf(ctx).principal, scopeAdmin, true); err != nil {
			return nil, err
		}
	case d.State == shard.Deleted:
		// It could not be set again, and its clients would be left with nothing.
		return nil, tenant.Errorf(tenant.KindConflict, "database-deleted", "undelete it first (rehome undelete)", "database %s is %s: its redirect is all that its clients have", d.Name, d.State)
	}
	if err := s.gateway.ClearRedirect(ctx, in.Name); err != nil {
		return nil, err
	}
	s.tell(ctx, progress.Entry{Database: in.Name, Kind: "database", ID: in.Name, Event: "redirect-cleared", Data: map[string]any{"name": in.Name}})
	return nil, nil
}
