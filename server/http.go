package server

import (
	"encoding/json"
	"fmt"
	"net/http"
	"runtime/debug"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

const (
	// maxBody bounds the body of an API request: a certificate with thousands of sequences fits in.
	maxBody = 1 << 20
	// bodyTimeout is how long a client may take to send it, over a slow line.
	bodyTimeout = 30 * time.Second
	// readHeaderTimeout is against clients that open a connection and say nothing (slow loris).
	readHeaderTimeout = 10 * time.Second
	// idleTimeout is longer than that of common load balancers (60 s), so that they are the ones who close.
	idleTimeout = 120 * time.Second
	// maxHeader bounds a request's header, cookies of the application behind the gateway included.
	maxHeader = 64 << 10
)

// handler is the whole HTTP face. It is no ServeMux: that one would redirect the gateway's paths to cleaned ones.
func (s *Server) handler() http.Handler {
	apiHandler := s.apiHandler()
	metrics := s.metrics.handler()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case s.gateway.Owns(r): // a database's own host: nothing of ours lies there
			s.gateway.ServeHTTP(w, r)
		case r.URL.Path == "/livez":
			s.livez(w, r)
		case r.URL.Path == "/readyz", r.URL.Path == "/healthz":
			s.readyz(w, r)
		case r.URL.Path == "/metrics":
			metrics.ServeHTTP(w, r)
		case r.URL.Path == "/v1", strings.HasPrefix(r.URL.Path, "/v1/"):
			apiHandler.ServeHTTP(w, r)
		default:
			s.gateway.ServeHTTP(w, r)
		}
	})
}

// apiHandler is /v1: request id, log, metrics, limits, authentication, idempotency, then the operations.
func (s *Server) apiHandler() http.Handler {
	mux := http.NewServeMux()
	cfg := huma.DefaultConfig("Rehome", s.cfg.Version)
	cfg.Info.Description = "Moves a tenant database to its owner's own machines while its users keep working. " +
		"Errors are RFC 9457 problem documents with a stable code; actions that need a person's code take a challenge of POST /v1/challenges."
	cfg.OpenAPIPath, cfg.DocsPath, cfg.SchemasPath = "/v1/openapi", "", ""
	cfg.CreateHooks = nil // no $schema links in answers
	cfg.FieldsOptionalByDefault = true
	cfg.Servers = []*huma.Server{{URL: s.installation.BaseURL}}
	cfg.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"key": {Type: "http", Scheme: "bearer", Description: "CLIENT_ID:SECRET of an API client, or the installation's REHOME_SECRET"},
	}
	cfg.Transformers = append(cfg.Transformers, func(ctx huma.Context, _ string, v any) (any, error) {
		if m, ok := v.(*huma.ErrorModel); ok {
			return fromHuma(m, requestOf(ctx.Context()).id), nil
		}
		return v, nil
	})
	a := humago.New(mux, cfg)
	s.operations(a)
	mux.HandleFunc("GET /v1/delete/{name}/{token}", s.deletePage)
	mux.HandleFunc("POST /v1/delete/{name}/{token}", s.deletePageConfirm)

	return s.observe(s.guard(s.idempotent(s.route(mux))))
}

// route answers unknown paths and wrong methods with problem documents too.
func (s *Server) route(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h, pattern := mux.Handler(r)
		if pattern != "" {
			mux.ServeHTTP(w, r)
			return
		}
		probe := &statusProbe{header: http.Header{}}
		h.ServeHTTP(probe, r)
		if probe.status == http.StatusMethodNotAllowed {
			allow := probe.header.Get("Allow")
			w.Header().Set("Allow", allow)
			p := problemOf(tenant.Errorf(tenant.KindInvalid, "method-not-allowed", "allowed: "+allow, "%s is not possible here", r.Method), requestOf(r.Context()).id)
			p.Status, p.Title = http.StatusMethodNotAllowed, http.StatusText(http.StatusMethodNotAllowed)
			s.writeProblem(w, r, p)
			return
		}
		s.writeProblem(w, r, tenant.Errorf(tenant.KindNotFound, "no-such-endpoint", "see /v1/openapi.json", "there is nothing at %s", r.URL.Path))
	})
}

// statusProbe learns what the mux would answer to what it does not know.
type statusProbe struct {
	header http.Header
	status int
}

func (p *statusProbe) Header() http.Header         { return p.header }
func (p *statusProbe) Write(b []byte) (int, error) { return len(b), nil }
func (p *statusProbe) WriteHeader(status int)      { p.status = status }

// observe gives the request its id, logs and counts it, and turns a panic into a problem.
func (s *Server) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rq := newRequest(r)
		rq.control = http.NewResponseController(w)
		if r.Body != nil && r.Body != http.NoBody { // also for who does not read it: what is left is read before an answer goes out
			_ = rq.control.SetReadDeadline(time.Now().Add(s.bodyTimeout))
		}
		if address := s.gateway.ClientAddress(r); address != "" {
			rq.address = address
		}
		ctx := withRequest(r.Context(), rq)
		r = r.WithContext(ctx)
		w.Header().Set("X-Request-Id", rq.id)
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		sw := &statusWriter{ResponseWriter: w}
		start := time.Now()
		s.metrics.inFlight.Inc()
		defer func() {
			s.metrics.inFlight.Dec()
			if v := recover(); v != nil {
				if v == http.ErrAbortHandler { //nolint:errorlint // net/http compares it so
					panic(v)
				}
				s.log.ErrorContext(ctx, "request panicked", "request_id", rq.id, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
				if sw.status == 0 {
					s.writeProblem(sw, r, fmt.Errorf("panic: %v", v))
				}
			}
			took := time.Since(start)
			s.metrics.request(r.Method, sw.status, took)
			actor := ""
			if rq.principal != nil {
				actor = rq.principal.actor
			}
			s.log.DebugContext(ctx, "request", "request_id", rq.id, "method", r.Method, "path", redactPath(r.URL.Path), "status", sw.status,
				"took_ms", took.Milliseconds(), "actor", actor, "address", rq.address)
		}()
		next.ServeHTTP(sw, r)
	})
}

// redactPath hides the token of a confirmation link.
func redactPath(path string) string {
	if rest, ok := strings.CutPrefix(path, "/v1/delete/"); ok {
		name, _, _ := strings.Cut(rest, "/")
		return "/v1/delete/" + name + "/[redacted]"
	}
	return path
}

// guard limits the body and finds out who asks. Two things are open to everybody: the API's description and the page
// behind a confirmation link, whose token is the key.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		if !utf8.ValidString(r.URL.Path) || strings.ContainsRune(r.URL.Path, 0) { // no name has them, and Postgres takes them for no text
			s.writeProblem(w, r, tenant.Errorf(tenant.KindInvalid, "bad-path", "see /v1/openapi.json", "the path holds bytes that are no text"))
			return
		}
		if strings.HasPrefix(r.URL.Path, "/v1/openapi") || strings.HasPrefix(r.URL.Path, "/v1/delete/") {
			next.ServeHTTP(w, r)
			return
		}
		rq := requestOf(r.Context())
		p, err := s.authenticate(r.Context(), r.Header.Get("Authorization"), rq.address)
		if err != nil {
			if outcomeOf(err) == "refused" && known(err).Code == codeBadKey {
				rq.object = r.Method + " " + r.URL.Path
				s.auditRequest(r.Context(), "authenticate", err)
			}
			s.writeProblem(w, r, err)
			return
		}
		rq.principal = p
		next.ServeHTTP(w, r)
	})
}

// writeProblem answers with a problem document outside of huma.
func (s *Server) writeProblem(w http.ResponseWriter, r *http.Request, err error) {
	p := problemOf(whyCancelled(r.Context(), err), requestOf(r.Context()).id)
	s.logProblem(r, p)
	challengeHeader(w, p)
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p.Problem)
}

func (s *Server) logProblem(r *http.Request, p *problem) {
	if p.hidden != nil {
		s.log.ErrorContext(r.Context(), "request failed", "request_id", p.Request, "code", p.Code, "error", p.hidden)
	}
}

// statusWriter remembers the status.
type statusWriter struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements http.ResponseWriter.
func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *statusWriter) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController flush streams and set deadlines.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// problemResponses documents what every operation may answer instead.
func problemResponses(a huma.API) map[string]*huma.Response {
	schema := huma.SchemaFromType(a.OpenAPI().Components.Schemas, typeOf[api.Problem]())
	return map[string]*huma.Response{"default": {
		Description: "A problem document (RFC 9457)",
		Content:     map[string]*huma.MediaType{"application/problem+json": {Schema: schema}},
	}}
}
