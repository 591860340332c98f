package redirect

import (
	"context"
	"errors"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/tenant"
)

// Gateway forwards, counts, holds and redirects. It is an http.Handler for /NAME/….
type Gateway struct {
	cfg       Config
	routes    atomic.Pointer[table]
	reloading sync.Mutex
	loadedAt  time.Time // routes and holds in force are not older; guarded by reloading
	failedAt  time.Time // they could not be read; guarded by reloading
	holds     *holds
	lease     lease
	acks      *acks
	sockets   *sockets
	counts    *counts
	metrics   *metrics
	transport *http.Transport
	proxy     *httputil.ReverseProxy
	flushing  sync.Mutex
	tracked   sync.Map // net.Conn -> *tracked
}

// New makes a gateway. Before Run or Reload it knows no database.
func New(cfg Config) *Gateway {
	cfg = cfg.WithDefaults()
	g := &Gateway{cfg: cfg, holds: newHolds(cfg), acks: newAcks(), sockets: newSockets(), counts: newCounts(cfg)}
	g.metrics = newMetrics(g)
	g.transport = newTransport(cfg)
	g.proxy = g.newProxy()
	return g
}

// Run keeps routes fresh and statistics written until ctx ends. Then WebSockets are told to go away, and what was
// counted is written.
func (g *Gateway) Run(ctx context.Context) error {
	grp, gctx := errgroup.WithContext(ctx)
	grp.Go(func() error { return g.watch(gctx, grp) })
	grp.Go(func() error { return g.keepLease(gctx, grp) })
	if g.cfg.UsageStats {
		grp.Go(func() error { return g.flushLoop(gctx) })
	}
	err := grp.Wait()
	g.sockets.closeAll()
	g.transport.CloseIdleConnections()
	return err
}

// Drain tells WebSockets to go away and waits until they are gone; net/http's Shutdown does not know them.
func (g *Gateway) Drain(ctx context.Context) error {
	g.sockets.closeAll()
	return g.sockets.wait(ctx)
}

// ServeHTTP serves /NAME/….
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, rest := splitPath(r.URL)
	if g.looped(r) {
		refuse(w, http.StatusLoopDetected, tenant.KindRefused, "proxy-loop", "the request came through this server before", "the database's upstream or its redirect leads back here; change it")
		return
	}
	if g.route(name) == nil {
		unknown(w, name)
		return
	}
	if climbs(rest) {
		refuse(w, http.StatusBadRequest, tenant.KindInvalid, "bad-path", "the path leads out of the database "+name, "write it without ..")
		return
	}
	req := &request{name: name, rest: rest, upgrade: isUpgrade(r), seen: g.counts.see(r, name, g.cfg.TrustForwarded)}
	done := g.hold(w, r, req)
	if done == nil {
		return
	}
	defer done()
	// Only now: what was true before a hold may have changed in it.
	rt := g.route(name)
	now := g.cfg.Now()
	switch {
	case rt == nil:
		unknown(w, name)
	case rt.gone(now):
		g.answer(w, r, req, "refused", func(w http.ResponseWriter) {
			refuse(w, http.StatusGone, tenant.KindNotFound, "database-gone", "the database "+name+" is deleted", "")
		})
	case rt.moved(now):
		g.serveMoved(w, r, req, rt)
	case !rt.ready:
		g.answer(w, r, req, "refused", func(w http.ResponseWriter) {
			refuse(w, http.StatusServiceUnavailable, tenant.KindUnavailable, "database-not-ready", "the database "+name+" is being created", "try again soon")
		})
	case rt.state == "stopped":
		g.answer(w, r, req, "refused", func(w http.ResponseWriter) {
			refuse(w, http.StatusServiceUnavailable, tenant.KindUnavailable, "database-stopped", "the database "+name+" is stopped", "its owner can start it with: rehome start "+name)
		})
	case rt.upstream == nil:
		g.answer(w, r, req, "refused", func(w http.ResponseWriter) {
			refuse(w, http.StatusBadGateway, tenant.KindUnavailable, "no-upstream", "the database "+name+" has no application that answers HTTP", "its owner can set the upstream's URL")
		})
	default:
		g.forward(w, r, req, destination{base: rt.upstream, keepHost: rt.upstream.Scheme == "http", credentials: true, outcome: "served"})
	}
}

// request is what the gateway keeps of a request.
type request struct {
	name    string
	rest    string // escaped path after /NAME: "" or "/…"
	upgrade bool   // to WebSocket
	seen    key
}

func unknown(w http.ResponseWriter, name string) {
	refuse(w, http.StatusNotFound, tenant.KindNotFound, "database-unknown", "there is no database "+name+" here", "check the URL; it is https://host/NAME")
}

// hold waits while the database is held. done is nil where the request has been answered, or its client is gone; otherwise
// it must be called at the request's end.
func (g *Gateway) hold(w http.ResponseWriter, r *http.Request, req *request) (done func()) {
	began := time.Now()
	outcome, done, waited := g.pass(r.Context(), req.name, mayWrite(r) && !req.upgrade)
	if waited {
		g.metrics.heldTime.Observe(time.Since(began).Seconds())
		g.counts.opened(req.seen, "held", 0)
	}
	switch outcome {
	case tooMany, tooLong:
		g.metrics.heldRefused.Inc()
		code, detail := "too-many-held", "the database "+req.name+" is moving and too many requests wait for it"
		if outcome == tooLong {
			code, detail = "held-too-long", "the database "+req.name+" is moving and it takes longer than a request may wait"
		}
		g.answer(w, r, req, "refused", func(w http.ResponseWriter) {
			retryAfter(w, g.holds.left(req.name))
			refuse(w, http.StatusServiceUnavailable, tenant.KindUnavailable, code, detail, "try again as Retry-After says")
		})
		return nil
	}
	if outcome == clientGone || waited && clientLeft(r) {
		if done != nil {
			done()
		}
		g.metrics.heldDropped.Inc()
		panic(http.ErrAbortHandler) // nobody is there to answer; the connection is closed
	}
	if waited {
		guardHeldBody(r)
	}
	return done
}

// mayWrite reports whether a request's method is not one of the safe ones (RFC 9110, 9.2.1).
func mayWrite(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return false
	}
	return true
}

// serveMoved answers for a database that lives elsewhere now.
func (g *Gateway) serveMoved(w http.ResponseWriter, r *http.Request, req *request, rt *route) {
	switch rt.redirect.Mode {
	case ModeProxy:
		same := strings.EqualFold(rt.target.Host, r.Host)
		g.forward(w, r, req, destination{base: rt.target, credentials: same, outcome: "proxied"})
	case ModeRefuse:
		g.answer(w, r, req, "refused", func(w http.ResponseWriter) {
			writeProblem(w, problem{
				Status: http.StatusMisdirectedRequest, Kind: tenant.KindRefused.String(), Code: "database-moved",
				Detail: "the database " + req.name + " has moved", Hint: "use " + rt.redirect.To, MovedTo: rt.redirect.To,
			})
		})
	default:
		g.answer(w, r, req, "redirected", func(w http.ResponseWriter) {
			status := http.StatusTemporaryRedirect
			if rt.redirect.Permanent {
				status = http.StatusPermanentRedirect
			}
			to := rt.redirect.To + req.rest
			if r.URL.RawQuery != "" {
				to += "?" + r.URL.RawQuery
			}
			w.Header().Set("Location", to)
			w.Header().Set("Connection", "close") // or it would stay open here, idle, and be counted
			w.Header().Set("Content-Length", "0")
			w.WriteHeader(status)
		})
	}
}

// answer counts a request that is not forwarded.
func (g *Gateway) answer(w http.ResponseWriter, r *http.Request, req *request, outcome string, write func(http.ResponseWriter)) {
	done := g.counts.enter(r, req.seen)
	defer done()
	cw := &countingWriter{ResponseWriter: w, timeout: g.cfg.WriteTimeout}
	write(cw)
	g.counts.opened(req.seen, outcome, cw.n)
	g.metrics.requests.WithLabelValues(req.seen.protocol, outcome).Inc()
}

// splitPath divides /NAME/rest. The path stays escaped, so that the next server sees what the client wrote.
func splitPath(u *url.URL) (name, rest string) {
	path := strings.TrimPrefix(u.EscapedPath(), "/")
	if i := strings.IndexByte(path, '/'); i >= 0 {
		return path[:i], path[i:]
	}
	return path, ""
}

// climbs reports whether a path has a segment "..", however it is written. Clients resolve those themselves (RFC 3986,
// 5.2.4); forwarded or redirected, one would lead out of the path under which the database is known elsewhere, into
// another database.
func climbs(rest string) bool {
	if !strings.Contains(rest, ".") && !strings.ContainsAny(rest, "%") {
		return false
	}
	path, err := url.PathUnescape(rest)
	if err != nil {
		return true
	}
	for segment := range strings.FieldsFuncSeq(path, func(r rune) bool { return r == '/' || r == '\\' }) {
		if segment == ".." {
			return true
		}
	}
	return false
}

func isNoRows(err error) bool { return errors.Is(err, pgx.ErrNoRows) }
