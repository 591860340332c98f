package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// auditTimeout bounds what is written of a request at its end, whether or not its client has gone: its audit row, its kept
// answer, its news. Nothing waits for them but the request itself, and a control database on a slow disk, or whose machine is
// busy with others, may take many seconds.
const auditTimeout = 30 * time.Second

type auditRow struct {
	actor, action, object, outcome, address string
	detail                                  map[string]any
}

// outcomeOf tells what became of a request: done, refused on purpose, or failed.
func outcomeOf(err error) string {
	if err == nil {
		return "ok"
	}
	if te, ok := errors.AsType[*tenant.Error](err); ok {
		switch te.Kind {
		case tenant.KindInvalid, tenant.KindRefused, tenant.KindUnauthorised, tenant.KindNotFound, tenant.KindConflict:
			return "refused"
		}
	}
	return "failed"
}

// audit writes a row. It outlives the request, so that a client that hangs up leaves its trace all the same.
func (s *Server) audit(ctx context.Context, row auditRow) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), auditTimeout)
	defer cancel()
	if row.detail == nil {
		row.detail = map[string]any{}
	}
	detail, err := json.Marshal(row.detail)
	if err != nil {
		return fmt.Errorf("encode the audit detail: %w", err)
	}
	if _, err := s.pool.Exec(ctx, `INSERT INTO rehome_control.audit (at, actor, action, object, outcome, address, detail) VALUES ($1,$2,$3,$4,$5,$6,$7)`,
		s.cfg.Now(), storable(row.actor), row.action, storable(row.object), row.outcome, row.address, bytes.ReplaceAll(detail, []byte(`\u0000`), []byte(`\ufffd`))); err != nil {
		return fmt.Errorf("write the audit log: %w", err)
	}
	return nil
}

// maxObject bounds what a request names: the rest of it says no more.
const maxObject = 512

// storable is a text that a client sent as Postgres takes it: nobody leaves the log by what he sends.
func storable(s string) string {
	s = strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", "\ufffd"), "\ufffd")
	if len(s) > maxObject {
		s = strings.ToValidUTF8(s[:maxObject], "")
	}
	return s
}

// auditRequest writes the row of an API request.
func (s *Server) auditRequest(ctx context.Context, action string, failure error) {
	rq := requestOf(ctx)
	row := auditRow{actor: "anonymous", action: action, object: rq.object, outcome: outcomeOf(failure), address: rq.address, detail: rq.detail}
	if rq.principal != nil {
		row.actor = rq.principal.actor
		row.detail["client"] = rq.principal.client
	}
	row.detail["request_id"] = rq.id
	if failure != nil {
		p := problemOf(failure, rq.id)
		row.detail["code"], row.detail["message"] = p.Code, p.Detail
	}
	if err := s.audit(ctx, row); err != nil {
		s.log.ErrorContext(ctx, "write audit row", "action", action, "request_id", rq.id, "error", err)
	}
}

type auditInput struct {
	Limit  int   `query:"limit" minimum:"1" maximum:"1000" default:"100"`
	Before int64 `query:"before" doc:"only rows with a smaller id"`
}

type auditOutput struct{ Body []api.AuditEntry }

func (s *Server) listAudit(ctx context.Context, in *auditInput) (*auditOutput, error) {
	rows, err := s.pool.Query(ctx, `SELECT id, at, actor, action, object, outcome, address, detail FROM rehome_control.audit
		WHERE $1 = 0 OR id < $1 ORDER BY id DESC LIMIT $2`, in.Before, in.Limit)
	if err != nil {
		return nil, fmt.Errorf("read the audit log: %w", err)
	}
	defer rows.Close()
	out := &auditOutput{Body: []api.AuditEntry{}}
	for rows.Next() {
		var e api.AuditEntry
		if err := rows.Scan(&e.ID, &e.At, &e.Actor, &e.Action, &e.Object, &e.Outcome, &e.Address, &e.Detail); err != nil {
			return nil, fmt.Errorf("read the audit log: %w", err)
		}
		out.Body = append(out.Body, e)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read the audit log: %w", err)
	}
	return out, nil
}
