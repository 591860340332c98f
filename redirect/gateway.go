package redirect

import (
	"context"
	"errors"
	"fmt"
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

// Gateway forwards, counts, holds and redirects. It is an http.Handler for /NAME/…, and for all paths of hosts that it Owns.
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
	grp.Go(func() error { return g.keepLease(gctx) })
	grp.Go(func() error { return g.keepLooking(gctx, grp) })
	if g.cfg.UsageStats {
		grp.Go(func() error { return g.flushLoop(gctx) })
	}
	err := grp.Wait()
	g.sockets.closeAll(0)
	g.transport.CloseIdleConnections()
	return err
}

// Drain tells WebSockets to go away and waits until they are gone; net/http's Shutdown does not know them. They go one
// after the other, within half of the time that ctx gives: their clients come back to the other servers.
func (g *Gateway) Drain(ctx context.Context) error {
	window := g.cfg.CloseWindow
	if deadline, ok := ctx.Deadline(); ok {
		window = min(window, time.Until(deadline)/2)
	}
	g.sockets.closeAll(window)
	return g.sockets.wait(ctx)
}

// ServeHTTP serves /NAME/…, and every path where the host stands for a database.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, prefix, rest := g.locate(r)
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
	from := g.originOf(r)
	req := &request{name: name, prefix: prefix, rest: rest, upgrade: isUpgrade(r), from: from, seen: g.counts.see(r, name, from.address)}
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

// permanentFor is how long clients may keep a permanent redirect before they ask again.
const permanentFor = 24 * time.Hour

// permanent reports whether a redirect is answered with 308: where a person said so, or when it is old enough.
func (r *Redirect) permanent(cfg Config) bool {
	return r.Permanent || (cfg.PermanentAfter > 0 && cfg.Now().Sub(r.CreatedAt) >= cfg.PermanentAfter)
}

// request is what the gateway keeps of a request.
type request struct {
	name    string
	prefix  string // "/NAME", or "" where the host stands for the database
	rest    string // escaped path after it: "" or "/…"
	from    origin
	upgrade bool // to WebSocket
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
		g.forward(w, r, req, destination{base: rt.target, credentials: sameHost(r, req.from.secure, rt.target), outcome: "proxied"})
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
			w.Header().Set("Cache-Control", "no-store")
			if rt.redirect.permanent(g.cfg) {
				status = http.StatusPermanentRedirect
				// Without a bound browsers keep it as long as they like; with one, a mistake ends.
				w.Header().Set("Cache-Control", fmt.Sprintf("max-age=%d", int(permanentFor.Seconds())))
			}
			query := r.URL.RawQuery
			if !sameHost(r, req.from.secure, rt.target) {
				query = withoutSecrets(query)
			}
			to := rt.redirect.To + req.rest
			if query != "" {
				to += "?" + query
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
