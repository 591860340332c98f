package server

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

// Codes that decide the status together with the kind.
const (
	codeInternal      = "internal"
	codeNoCredentials = "no-credentials"
	codeBadKey        = "bad-credentials"
	codeRateLimited   = "rate-limited"
)

// problem is what a client reads instead of an answer. It carries its status and content type to huma.
type problem struct {
	api.Problem
	hidden error // what the client does not read; logged
}

// Error implements error.
func (p *problem) Error() string { return p.Detail }

// GetStatus implements huma.StatusError.
func (p *problem) GetStatus() int { return p.Status }

// ContentType implements huma.ContentTypeFilter (RFC 9457 §3).
func (p *problem) ContentType(string) string { return "application/problem+json" }

// problemOf is the one place where an error becomes what a client reads. What is no tenant.Error is never shown.
func problemOf(err error, requestID string) *problem {
	if p, ok := errors.AsType[*problem](err); ok {
		return p
	}
	te := known(err)
	out := &problem{Problem: api.Problem{
		Title: http.StatusText(statusOf(te)), Status: statusOf(te), Detail: te.Message, Code: te.Code, Kind: te.Kind.String(),
		Hint: te.Hint, Findings: te.Findings, Request: requestID,
	}}
	if te.Err != nil || te.Kind == tenant.KindInternal {
		out.hidden = err
	}
	return out
}

// known finds the tenant.Error in a chain, or says in general terms what the failure means to the client.
func known(err error) *tenant.Error {
	var te *tenant.Error
	if errors.As(err, &te) && te.Code != codeInternal {
		return te
	}
	var connect *pgconn.ConnectError
	var pg *pgconn.PgError
	switch {
	case errors.Is(err, errStopping):
		return &tenant.Error{Kind: tenant.KindUnavailable, Code: "stopping", Message: "the server stops", Hint: "ask again; another server or the next start answers", Err: err}
	case errors.Is(err, context.Canceled): // by its client: nobody reads this but the log
		return &tenant.Error{Kind: tenant.KindUnavailable, Code: "client-gone", Message: "the request's client went before it was answered", Hint: "ask again", Err: err}
	case errors.Is(err, context.DeadlineExceeded):
		return &tenant.Error{Kind: tenant.KindUnavailable, Code: "timed-out", Message: "it took too long", Hint: "ask again; if it stays so, see the server's log for the request id", Err: err}
	case errors.As(err, &connect), errors.As(err, &pg) && (strings.HasPrefix(pg.Code, "08") || strings.HasPrefix(pg.Code, "57P")):
		return &tenant.Error{Kind: tenant.KindUnavailable, Code: "database-unreachable", Message: "a Postgres server that is needed cannot be reached", Hint: "see /readyz and the server's log for the request id", Err: err}
	}
	return &tenant.Error{Kind: tenant.KindInternal, Code: codeInternal, Message: "something failed that should not", Hint: "the server's log tells more; look for the request id", Err: err}
}

// tookTooLong is the end of the time that an operation has by itself. Unlike a slow moment ("timed-out") it is not tried again: the
// next would take as long.
func tookTooLong(what string, within time.Duration) error {
	return tenant.Errorf(tenant.KindUnavailable, "took-too-long", "see the server's log for the request id, and whether the databases answer", "%s did not end within %s", what, within)
}

// ownTime is an error of an operation, or tookTooLong where that is why it failed.
func ownTime(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && errors.Is(err, context.DeadlineExceeded) {
		return cause
	}
	return err
}

// whyCancelled is an error of a request's work, or who gave the request up when that is why it failed: this server that stops, or
// the client.
func whyCancelled(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && errors.Is(err, context.Canceled) {
		return cause
	}
	return err
}

// statusOf refines the kind's status: a key that is missing or wrong is 401, too many tries 429 (RFC 6585 §4).
func statusOf(te *tenant.Error) int {
	if te.Kind == tenant.KindUnauthorised {
		switch te.Code {
		case codeNoCredentials, codeBadKey:
			return http.StatusUnauthorized
		case codeRateLimited:
			return http.StatusTooManyRequests
		}
	}
	return te.Kind.HTTPStatus()
}

// fromHuma turns what huma found wrong with a request into the shape of every other problem. Values are left out: they
// may be secrets.
func fromHuma(m *huma.ErrorModel, requestID string) *problem {
	kind, code, hint := tenant.KindInvalid, "invalid-request", "see /v1/openapi.json for what is expected"
	detail := m.Detail
	switch {
	case m.Status >= http.StatusInternalServerError:
		return problemOf(&tenant.Error{Kind: tenant.KindInternal, Code: codeInternal, Message: m.Detail}, requestID)
	case m.Status == http.StatusRequestEntityTooLarge:
		code, hint, detail = "too-large", "send less", "the request's body is too large"
	case m.Status == http.StatusRequestTimeout:
		kind, code, hint, detail = tenant.KindUnavailable, "slow-body", "ask again", "the request's body did not come in time"
	case m.Status == http.StatusUnsupportedMediaType:
		code, hint = "unsupported-media-type", "send application/json"
	}
	for i, e := range m.Errors {
		sep := "; "
		if i == 0 {
			sep = ": "
		}
		// The location is enough where the message quotes what was sent.
		message := e.Message
		if e.Location == "body" && e.Value != nil {
			message = "it is not the JSON that is expected"
		}
		detail += sep + strings.TrimSpace(e.Location+" "+message)
	}
	return &problem{Problem: api.Problem{Title: http.StatusText(m.Status), Status: m.Status, Detail: detail, Code: code, Kind: kind.String(), Hint: hint, Request: requestID}}
}

// errStopping is the cause with which a stop cuts what did not finish in time.
var errStopping = errors.New("the server stops")
