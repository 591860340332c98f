package server

import (
	"context"
	"net/http"
	"reflect"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// operation describes one endpoint.
type operation struct {
	method, path string
	name         string // operation id; also the action in the audit log
	summary      string
	scope        string
	whole        bool // concerns the whole installation: not for keys that are bound to databases
	status       int  // of success; default 200, or 204 without a body
	quiet        bool // changes nothing that matters: no audit row although it is no GET
}

func typeOf[T any]() reflect.Type { return reflect.TypeFor[T]() }

// none is the output of operations that answer 204.
type none struct{}

// add registers an endpoint: scope check, audit row and error mapping are the same for all of them.
func add[I, O any](s *Server, a huma.API, op operation, h func(context.Context, *I) (*O, error)) {
	tag, _, _ := strings.Cut(strings.TrimPrefix(op.path, "/v1/"), "/")
	hop := huma.Operation{
		OperationID: op.name, Method: op.method, Path: op.path, Summary: op.summary, Tags: []string{tag}, DefaultStatus: op.status,
		Description: "Needs the scope " + op.scope + ".", Security: []map[string][]string{{"key": {}}}, MaxBodyBytes: maxBody,
		BodyReadTimeout: s.bodyTimeout,
		Responses:       problemResponses(a),
	}
	if hop.DefaultStatus == 0 {
		hop.DefaultStatus = http.StatusOK
		if typeOf[O]() == typeOf[none]() {
			hop.DefaultStatus = http.StatusNoContent
		}
	}
	audited := op.method != http.MethodGet && !op.quiet
	huma.Register(a, hop, func(ctx context.Context, in *I) (*O, error) {
		var out *O
		rq := requestOf(ctx)
		rq.bodyCame()
		err := permit(rq.principal, op.scope, op.whole)
		if err == nil {
			out, err = h(ctx, in)
		}
		err = whyCancelled(ctx, err)
		if audited {
			s.auditRequest(ctx, op.name, err)
		}
		if err == nil {
			return out, nil
		}
		p := problemOf(err, rq.id)
		if p.hidden != nil {
			s.log.ErrorContext(ctx, "request failed", "request_id", rq.id, "operation", op.name, "code", p.Code, "error", p.hidden)
		}
		return nil, p
	})
}
