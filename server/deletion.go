package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/otp"
	"github.com/rehomedb/rehome/progress"
	"github.com/rehomedb/rehome/redirect"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/shard"
	"github.com/rehomedb/rehome/tenant"
)

type deleteInput struct {
	Name string `path:"name"`
	Body api.DeleteRequest
}

type confirmDeleteInput struct {
	Name string `path:"name"`
	Body api.DeleteConfirm
}

type deleteOutput struct{ Body api.DeleteStatus }

// checkDelete looks at what a deletion would harm: clients that are connected, a move that is not proven, clients that
// nobody would send to the new side. Each is a finding and can be overridden by its name.
func (s *Server) checkDelete(ctx context.Context, in api.DeletePlan) (plan, shard.Database, error) {
	var d shard.Database
	if err := permitDatabase(ctx, in.Database); err != nil {
		return plan{}, d, err
	}
	d, err := s.catalogue.Database(ctx, in.Database)
	if err != nil {
		return plan{}, d, err
	}
	if d.State == shard.Deleted || d.State == shard.Purged {
		return plan{}, d, tenant.Errorf(tenant.KindConflict, "database-deleted", "rehome databases shows until when it can be undeleted", "database %s is %s already", d.Name, d.State)
	}
	p, body, err := s.planDelete(in)
	if err != nil {
		return plan{}, d, err
	}
	if err := s.refuseWhileMoving(ctx, d.Name); err != nil {
		return plan{}, d, err
	}
	var findings []tenant.Finding
	for _, check := range []func(context.Context, shard.Database, api.DeletePlan) (*tenant.Finding, error){s.checkConnections, s.checkCertificate, s.checkWayBack, s.checkRedirected} {
		f, err := check(ctx, d, in)
		if err != nil {
			return plan{}, d, err
		}
		if f != nil {
			f.Severity, f.Object, f.Acceptable = tenant.Blocking, d.Name, true
			f.Accepted = slices.Contains(body.Force, f.Code)
			findings = append(findings, *f)
		}
	}
	if !tenant.Blocks(findings) {
		return p, d, nil
	}
	var names []string
	for _, f := range findings {
		if !f.Accepted {
			names = append(names, f.Code)
		}
	}
	return plan{}, d, &tenant.Error{
		Kind: tenant.KindRefused, Code: "delete-refused", Message: "database " + d.Name + " is not ready to be deleted: " + strings.Join(names, ", "),
		Hint: "see the findings; override by name with --force=" + strings.Join(names, ","), Findings: findings,
	}
}

func (s *Server) refuseWhileMoving(ctx context.Context, database string) error {
	var id, phase string
	err := s.pool.QueryRow(ctx, `SELECT id, phase FROM rehome_control.replications WHERE database = $1 AND phase NOT IN ('completed','cancelled')`, database).Scan(&id, &phase)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for replications: %w", err)
	}
	return tenant.Errorf(tenant.KindRefused, "replication-active", "complete or cancel it first", "replication %s of database %s is %s", id, database, phase)
}

func (s *Server) checkConnections(ctx context.Context, d shard.Database, _ api.DeletePlan) (*tenant.Finding, error) {
	st, err := s.statsOf(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("count the connections: %w", err)
	}
	if st.OpenNow == 0 && len(st.Unseen) == 0 {
		return nil, nil
	}
	// What cannot be seen may be clients: it refuses just as they do, and says what was looked at.
	f := &tenant.Finding{
		Code: forceConnections, Message: fmt.Sprintf("%d clients are connected", st.OpenNow),
		Remedy: "see who they are (rehome stats --db " + s.databaseURL(d.Name) + "), and wait until they have moved",
	}
	if len(st.Unseen) > 0 {
		f.Message = fmt.Sprintf("%d clients are seen to be connected, and there may be others that cannot be seen: %s", st.OpenNow, strings.Join(st.Unseen, "; "))
		f.Remedy = "make them visible (rehome stats --db " + s.databaseURL(d.Name) + " says what is missing), or be sure that nobody is there"
	}
	return f, nil
}

func (s *Server) checkRedirected(ctx context.Context, d shard.Database, _ api.DeletePlan) (*tenant.Finding, error) {
	_, err := s.gateway.RedirectOf(ctx, d.Name)
	var te *tenant.Error
	if errors.As(err, &te) && te.Kind == tenant.KindNotFound {
		return &tenant.Finding{Code: forceRedirect, Message: "no redirect is set: clients that come later would find nothing", Remedy: "set one (rehome redirect)"}, nil
	}
	return nil, err
}

// deleteDatabase begins a deletion: after the code, a second mail asks to confirm.
func (s *Server) deleteDatabase(ctx context.Context, in *deleteInput) (*deleteOutput, error) {
	if in.Body.Database != "" && in.Body.Database != in.Name {
		return nil, tenant.Errorf(tenant.KindInvalid, "other-database", "name the same one in path and body", "the body names database %s", in.Body.Database)
	}
	in.Body.Database = in.Name
	p, d, err := s.checkDelete(ctx, in.Body.DeletePlan)
	if err != nil {
		return nil, err
	}
	note(ctx, "force", orEmpty(in.Body.Force))
	grant, err := s.approve(ctx, p, in.Body.Approval)
	if err != nil {
		return nil, err
	}
	if err := s.otp.Use(ctx, s.pool, grant); err != nil {
		return nil, err
	}
	to, err := s.recipient(ctx, d.Name)
	if err != nil {
		return nil, err
	}
	former := d.State
	if former == shard.Deleting { // asked again: what it was before the first time
		if former, err = s.formerState(ctx, d.Name); err != nil {
			return nil, err
		}
	}
	if _, err := s.catalogue.BeginDelete(ctx, d.Name); err != nil {
		return nil, err
	}
	rq := requestOf(ctx)
	c, err := s.confirmations().Begin(ctx, otp.ConfirmationRequest{
		Database: d.Name, Recipient: to, By: rq.actor(), Address: rq.address, Text: p.text,
		Args: deletionArgs{Former: former, ApprovedBy: grant.ApprovedBy, Force: orEmpty(in.Body.Force), Certificate: in.Body.Certificate, CertificateKey: in.Body.CertificateKey},
	})
	if err != nil {
		// Nothing waits for a confirmation, so nothing is being deleted either.
		return nil, errors.Join(err, s.abandonDelete(ctx, d.Name, d.State))
	}
	s.tell(ctx, progress.Entry{Database: d.Name, Kind: "database", ID: d.Name, Event: "deletion-begun", Data: map[string]any{"confirm_before": c.ExpiresAt}})
	return &deleteOutput{Body: api.DeleteStatus{Database: d.Name, State: shard.Deleting, SentTo: c.SentTo, ConfirmBefore: &c.ExpiresAt}}, nil
}

// abandonDelete takes a deletion back that nobody confirms: the database is in its former state again.
func (s *Server) abandonDelete(ctx context.Context, database, former string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), auditTimeout)
	defer cancel()
	if former == shard.Deleting {
		return nil
	}
	if _, err := s.catalogue.Undelete(ctx, database); err != nil {
		return fmt.Errorf("take the deletion of %s back: %w", database, err)
	}
	// A server that died just after the confirmation has left it.
	if err := s.clearTombstone(ctx, database); err != nil {
		return err
	}
	if former != shard.Stopped {
		return nil
	}
	if _, err := s.catalogue.UpdateDatabase(ctx, database, shard.Update{State: &former}); err != nil {
		return fmt.Errorf("stop %s again: %w", database, err)
	}
	return nil
}

// abandonExpired takes back the deletions whose confirmation nobody gave in time.
func (s *Server) abandonExpired(ctx context.Context) error {
	rows, err := s.pool.Query(ctx, `SELECT d.name FROM rehome_control.databases d WHERE d.state = 'deleting'
		AND NOT EXISTS (SELECT FROM rehome_control.delete_confirmations c WHERE c.database = d.name AND c.expires_at > $1)`, s.cfg.Now())
	if err != nil {
		return fmt.Errorf("look for expired deletions: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("look for expired deletions: %w", err)
	}
	for _, name := range names {
		former, err := s.formerState(ctx, name)
		if err == nil {
			err = errors.Join(s.abandonDelete(ctx, name, former), s.confirmations().Cancel(ctx, name))
		}
		if aerr := s.audit(ctx, auditRow{actor: "server " + s.name, action: "abandon-deletion", object: name, outcome: outcomeOf(err)}); err != nil || aerr != nil {
			return errors.Join(err, aerr)
		}
		s.tell(ctx, progress.Entry{Database: name, Kind: "database", ID: name, Event: "deletion-expired", Data: map[string]any{"name": name}})
	}
	return nil
}

// deletionArgs is what a deletion that waits keeps of its approval.
type deletionArgs struct {
	Former         string              `json:"former_state"`
	ApprovedBy     string              `json:"approved_by"`
	Force          []string            `json:"force"`
	Certificate    *tenant.Certificate `json:"certificate,omitempty"`
	CertificateKey string              `json:"certificate_key,omitempty"`
}

// stillDeletable looks again at what a deletion would harm: up to a day lies between its approval and its confirmation,
// and clients may have come back in it.
func (s *Server) stillDeletable(ctx context.Context, c otp.Confirmation) error {
	var args deletionArgs
	if err := json.Unmarshal(c.Args, &args); err != nil {
		return fmt.Errorf("read what was approved: %w", err)
	}
	_, d, err := s.checkDelete(ctx, api.DeletePlan{Database: c.Database, Force: args.Force, Certificate: args.Certificate, CertificateKey: args.CertificateKey})
	if err == nil && d.State != shard.Deleting {
		err = otp.ErrNoConfirmation // it was taken back, and the confirmation is about to be
	}
	return err
}

// formerState is what a database was before its deletion began.
func (s *Server) formerState(ctx context.Context, database string) (string, error) {
	c, err := s.confirmations().Waiting(ctx, database)
	if errors.Is(err, otp.ErrNoConfirmation) {
		return shard.Active, nil
	}
	var args deletionArgs
	if err == nil {
		err = json.Unmarshal(c.Args, &args)
	}
	if err != nil {
		return "", fmt.Errorf("read what %s was before its deletion: %w", database, err)
	}
	if args.Former != shard.Stopped {
		return shard.Active, nil
	}
	return args.Former, nil
}

// clearTombstone makes a redirect one without an end again.
func (s *Server) clearTombstone(ctx context.Context, database string) error {
	if _, err := s.pool.Exec(ctx, `WITH cleared AS (UPDATE rehome_control.redirects SET tombstone_until = NULL WHERE database = $1) SELECT pg_notify($2, '')`, database, redirect.RoutesChannel); err != nil {
		return fmt.Errorf("take the tombstone of %s back: %w", database, err)
	}
	return nil
}

func (s *Server) confirmations() *otp.Confirmations {
	return otp.NewConfirmations(s.otp, s.installation.BaseURL)
}

func (s *Server) confirmDelete(ctx context.Context, in *confirmDeleteInput) (*deleteOutput, error) {
	if err := permitDatabase(ctx, in.Name); err != nil {
		return nil, err
	}
	waiting, err := s.confirmations().Waiting(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	if err := s.stillDeletable(ctx, waiting); err != nil {
		return nil, err
	}
	rq := requestOf(ctx)
	if _, err := s.confirmations().ConfirmByCode(ctx, in.Name, in.Body.Code, rq.actor(), rq.address); err != nil {
		return nil, err
	}
	st, err := s.finishDelete(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	return &deleteOutput{Body: st}, nil
}

// finishDelete takes the database out of reach. Its redirect becomes a tombstone first: from then on only the purge is
// left to do, and it is done by whatever server is alive.
func (s *Server) finishDelete(ctx context.Context, database string) (api.DeleteStatus, error) {
	ctx = context.WithoutCancel(ctx) // confirmed is confirmed: a client that hangs up does not leave it half done
	until := s.cfg.Now().Add(s.cfg.Tombstone)
	st := api.DeleteStatus{Database: database, State: shard.Deleted}
	err := s.gateway.SetTombstone(ctx, database, until)
	var te *tenant.Error
	switch {
	case err == nil:
		st.TombstoneUntil = &until
	case errors.As(err, &te) && te.Kind == tenant.KindNotFound: // deleted without a redirect, by force
	default:
		return st, err
	}
	d, err := s.catalogue.SoftDelete(ctx, database, s.cfg.DeleteGrace)
	if err != nil {
		return st, err
	}
	st.State, st.PurgeAfter = d.State, d.PurgeAfter
	s.reload(ctx)
	s.tell(ctx, progress.Entry{Database: database, Kind: "database", ID: database, Event: "deleted", Data: map[string]any{"purge_after": d.PurgeAfter, "tombstone_until": st.TombstoneUntil}})
	return st, nil
}

// undelete takes a deletion back while the data is there; a redirect stays, without its end.
func (s *Server) undelete(ctx context.Context, in *namedInput) (*databaseOutput, error) {
	if err := permitDatabase(ctx, in.Name); err != nil {
		return nil, err
	}
	d, err := s.catalogue.Undelete(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	if err := s.confirmations().Cancel(ctx, in.Name); err != nil {
		return nil, err
	}
	if err := s.clearTombstone(ctx, in.Name); err != nil {
		return nil, err
	}
	s.reload(ctx)
	s.tell(ctx, progress.Entry{Database: d.Name, Kind: "database", ID: d.Name, Event: "undeleted", Data: map[string]any{"name": d.Name}})
	return s.describe(ctx, d)
}
