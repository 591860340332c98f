package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/otp"
	"github.com/rehomedb/rehome/progress"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

const (
	commandsChannel     = "rehome_commands"     // NOTIFY: the payload is the replication's id
	replicationsChannel = "rehome_replications" // NOTIFY: a replication was made
	// maxWait bounds a long poll, below the idle timeouts of common proxies.
	maxWait = 30 * time.Second
	// commandPoll is how late an answer is; a look-up by primary key each.
	commandPoll = 150 * time.Millisecond
)

// askKinds are the commands that need no person's code, save complete that drops the fence or
// goes on without the source.
var askKinds = [...]string{api.CommandPause, api.CommandResume, api.CommandCancel, api.CommandVerify, api.CommandComplete}

type askInput struct {
	ID   string `path:"id"`
	Body *api.CommandRequest
}

type commandOutput struct{ Body api.Command }

type getCommandInput struct {
	ID   string `path:"id"`
	Wait int    `query:"wait" minimum:"0" maximum:"30" doc:"seconds to wait for its end"`
}

// observation is what asking for a command means to the state machine.
func observation(kind string) (tenant.ObservationKind, bool) {
	switch kind {
	case api.CommandPause:
		return tenant.AskedPause, true
	case api.CommandResume:
		return tenant.AskedResume, true
	case api.CommandCancel:
		return tenant.AskedCancel, true
	case api.CommandCutover:
		return tenant.AskedCutover, true
	case api.CommandRollback:
		return tenant.AskedRollback, true
	case api.CommandComplete:
		return tenant.AskedComplete, true
	}
	return "", false
}

// fits refuses a command that the replication's state does not allow. The worker asks the state machine again when it
// executes: this answer is for the person who waits.
func fits(state tenant.State, kind string) error {
	if kind == api.CommandVerify {
		if p := state.Phase; p != tenant.CatchingUp && p != tenant.InSync && p != tenant.CutOver && p != tenant.RolledBack {
			return &tenant.Error{
				Kind: tenant.KindConflict, Code: tenant.ErrTransition.Code, Message: fmt.Sprintf("verify does not fit: the replication is %s", p),
				Hint: "verification compares while both sides move: wait for in_sync, or verify after the cutover; see replication-progress",
			}
		}
		return nil
	}
	o, ok := observation(kind)
	if !ok {
		return tenant.Errorf(tenant.KindInvalid, "unknown-command", "", "there is no command %q", kind)
	}
	_, _, err := tenant.Next(state, tenant.Observation{Kind: o})
	return err
}

// mendable reports whether a replication is paused while the source takes the writes: what stopped it may be what a repair
// mends.
func mendable(st tenant.State) bool {
	return st.Phase == tenant.Paused && oneOf(string(st.Resume), string(tenant.CatchingUp), string(tenant.InSync), string(tenant.RolledBack))
}

// fitsComplete is fits for a completion. One whose source is declared destroyed ends what is in doubt, too.
func fitsComplete(state tenant.State, sourceDestroyed bool) error {
	if sourceDestroyed && (state.Phase == tenant.CuttingOver || state.Phase == tenant.RollingBack) {
		return nil
	}
	return fits(state, api.CommandComplete)
}

func (s *Server) ask(kind string) func(context.Context, *askInput) (*commandOutput, error) {
	return func(ctx context.Context, in *askInput) (*commandOutput, error) {
		r, err := s.replication(ctx, in.ID)
		if err != nil {
			return nil, err
		}
		var body api.CommandRequest
		if in.Body != nil {
			body = *in.Body
		}
		args := api.CommandArgs{Reason: body.Reason}
		if kind == api.CommandVerify {
			if args.Verify, err = verifyRequest(body.VerifyRequest); err != nil {
				return nil, err
			}
		}
		if kind == api.CommandCancel {
			args.SourceDestroyed = body.SourceDestroyed
			note(ctx, "source_destroyed", body.SourceDestroyed)
		}
		if kind == api.CommandComplete {
			args.DropFence, args.SourceDestroyed = body.DropFence, body.SourceDestroyed
			note(ctx, "source_destroyed", body.SourceDestroyed)
			note(ctx, "drop_fence", body.DropFence)
		}
		err = fits(r.State, kind)
		if args.Verify.Stop || args.Verify.Repair && mendable(r.State) {
			err = nil
		}
		if kind == api.CommandComplete {
			err = fitsComplete(r.State, args.SourceDestroyed)
		}
		if err != nil {
			return nil, err
		}
		if args.DropFence || kind == api.CommandComplete && args.SourceDestroyed {
			grant, err := s.approve(ctx, planComplete(r, args.DropFence, args.SourceDestroyed), body.Approval)
			if err != nil {
				return nil, err
			}
			return s.approvedCommand(ctx, r, kind, args, grant)
		}
		return s.command(ctx, r, kind, args)
	}
}

// command hands a request to the replication's worker. A request of the same kind that is not finished yet is answered
// instead of a second one, unless it carries a person's approval: that belongs to one execution.
func (s *Server) command(ctx context.Context, r api.Replication, kind string, args api.CommandArgs) (*commandOutput, error) {
	return s.handOver(ctx, r, kind, args, func(context.Context, pgx.Tx) error { return nil })
}

// approvedCommand hands over what a person approved. The approval is used up if and only if the command is there.
func (s *Server) approvedCommand(ctx context.Context, r api.Replication, kind string, args api.CommandArgs, grant otp.Grant) (*commandOutput, error) {
	args.ApprovedBy, args.Grant = grant.ApprovedBy, grant.ID
	return s.handOver(ctx, r, kind, args, func(ctx context.Context, tx pgx.Tx) error { return s.otp.Use(ctx, tx, grant) })
}

func (s *Server) handOver(ctx context.Context, r api.Replication, kind string, args api.CommandArgs, first func(context.Context, pgx.Tx) error) (*commandOutput, error) {
	encoded, err := json.Marshal(args)
	if err != nil {
		return nil, fmt.Errorf("encode the command: %w", err)
	}
	var id string
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if err := first(ctx, tx); err != nil {
			return err
		}
		// The lock makes the look-up and the insert one step.
		if _, err := tx.Exec(ctx, `SELECT 1 FROM rehome_control.replications WHERE id = $1 FOR UPDATE`, r.ID); err != nil {
			return err
		}
		err := tx.QueryRow(ctx, `SELECT id FROM rehome_control.replication_commands WHERE replication = $1 AND kind = $2 AND args = $3 AND finished_at IS NULL
			ORDER BY created_at LIMIT 1`, r.ID, kind, encoded).Scan(&id)
		if err == nil || !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		id = newID()
		if _, err := tx.Exec(ctx, `INSERT INTO rehome_control.replication_commands (id, replication, kind, args, requested_by, created_at) VALUES ($1,$2,$3,$4,$5,clock_timestamp())`,
			id, r.ID, kind, encoded, requestOf(ctx).actor()); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `SELECT pg_notify($1, $2)`, commandsChannel, r.ID); err != nil {
			return err
		}
		_, err = s.events.Append(ctx, tx, progress.Entry{
			Stream: r.ID, Database: r.Database, Kind: "replication", ID: r.ID, Event: kind + "-requested",
			Data: map[string]any{"command": id, "by": requestOf(ctx).actor(), "dry_run": args.DryRun},
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("hand the command over: %w", err)
	}
	note(ctx, "command", id)
	c, err := s.readCommand(ctx, id)
	if err != nil {
		return nil, err
	}
	return &commandOutput{Body: c}, nil
}

// openCommand refuses while another command that moves write authority is under way.
func (s *Server) openCommand(ctx context.Context, replication string, kinds ...string) error {
	var kind string
	err := s.pool.QueryRow(ctx, `SELECT kind FROM rehome_control.replication_commands WHERE replication = $1 AND kind = ANY($2) AND finished_at IS NULL
		AND NOT coalesce((args->>'dry_run')::boolean, false) LIMIT 1`, replication, kinds).Scan(&kind)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for open commands: %w", err)
	}
	return tenant.Errorf(tenant.KindConflict, "command-under-way", "wait for its end; see rehome events", "a %s of this replication is under way", kind)
}

func (s *Server) readCommand(ctx context.Context, id string) (api.Command, error) {
	var c api.Command
	var result, failure []byte
	var database string
	err := s.pool.QueryRow(ctx, `SELECT c.id, c.replication, c.kind, c.created_at, c.started_at, c.finished_at, c.result, c.error, r.database
		FROM rehome_control.replication_commands c JOIN rehome_control.replications r ON r.id = c.replication WHERE c.id = $1`, id).
		Scan(&c.ID, &c.Replication, &c.Kind, &c.CreatedAt, &c.StartedAt, &c.FinishedAt, &result, &failure, &database)
	if errors.Is(err, pgx.ErrNoRows) || (err == nil && !requestOf(ctx).principal.sees(database)) {
		return c, tenant.Errorf(tenant.KindNotFound, "command-not-found", "", "there is no command %q", id)
	}
	if err != nil {
		return c, fmt.Errorf("read the command: %w", err)
	}
	c.Result = result
	if failure != nil {
		if c.Error, err = commandError(failure); err != nil {
			return c, fmt.Errorf("read the command's error: %w", err)
		}
	}
	return c, nil
}

// commandError reads what a worker wrote: a problem document, or a tenant.Error's fields.
func commandError(b []byte) (*api.Problem, error) {
	var p struct {
		api.Problem
		Message string `json:"message"`
	}
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, err
	}
	if p.Detail == "" {
		p.Detail = p.Message
	}
	kind := tenant.KindOf(p.Kind)
	p.Kind = kind.String()
	if p.Status == 0 {
		p.Status = kind.HTTPStatus()
	}
	if p.Title == "" {
		p.Title = p.Code
	}
	return &p.Problem, nil
}

func (s *Server) getCommand(ctx context.Context, in *getCommandInput) (*commandOutput, error) {
	deadline := time.Now().Add(min(time.Duration(in.Wait)*time.Second, maxWait))
	for {
		c, err := s.readCommand(ctx, in.ID)
		if err != nil {
			return nil, err
		}
		if c.FinishedAt != nil || !time.Now().Before(deadline) || !s.pause(ctx, commandPoll) {
			return &commandOutput{Body: c}, nil
		}
	}
}

// pause sleeps; false says that the client has gone or a stop has begun.
func (s *Server) pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.draining:
	case <-ctx.Done():
	}
	return false
}

// oneOf reports whether a value is among others.
func oneOf(v string, list ...string) bool { return slices.Contains(list, v) }
