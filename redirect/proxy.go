package redirect

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/rehomedb/rehome/tenant"
)

// destination is where a request is forwarded to.
type destination struct {
	base        *url.URL // its path comes before the rest
	keepHost    bool     // the client's Host goes with it
	credentials bool     // so do its credentials
	outcome     string
}

type forwardKey struct{}

type forwarding struct {
	req *request
	to  destination
}

func newTransport(cfg Config) *http.Transport {
	return &http.Transport{
		DialContext:         (&net.Dialer{Timeout: cfg.DialTimeout, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout: cfg.DialTimeout,
		ForceAttemptHTTP2:   true,
		MaxIdleConnsPerHost: 128, // an application has few addresses and many requests
		IdleConnTimeout:     90 * time.Second,
		DisableCompression:  true, // bytes pass as they are
	}
}

func (g *Gateway) newProxy() *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Transport: g.transport,
		ErrorLog:  slog.NewLogLogger(g.cfg.Logger.Handler(), slog.LevelDebug),
		Rewrite: func(p *httputil.ProxyRequest) {
			f, ok := p.In.Context().Value(forwardKey{}).(*forwarding)
			if !ok {
				return
			}
			p.Out.URL.RawQuery = p.In.URL.RawQuery // as the client wrote it: nothing here reads it
			setTarget(p.Out.URL, f)
			p.Out.Host = ""
			if f.to.keepHost {
				p.Out.Host = p.In.Host
			}
			g.setHeaders(p.In, p.Out.Header, f)
		},
		ModifyResponse: func(resp *http.Response) error {
			if f, ok := resp.Request.Context().Value(forwardKey{}).(*forwarding); ok && !f.to.credentials {
				resp.Header.Del("Set-Cookie") // the client would send it here, not there
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if errors.Is(err, errClientLeft) || (errors.Is(err, context.Canceled) && r.Context().Err() != nil) {
				panic(http.ErrAbortHandler) // the client went away
			}
			g.metrics.upstreamErrors.Inc()
			g.cfg.Logger.WarnContext(r.Context(), "upstream not reachable", "database", nameOf(r), "error", err)
			refuse(w, http.StatusBadGateway, tenant.KindUnavailable, "upstream-unreachable", "the application of this database does not answer", "try again; if it lasts, its owner should look after it")
		},
	}
}

func nameOf(r *http.Request) string {
	if f, ok := r.Context().Value(forwardKey{}).(*forwarding); ok {
		return f.req.name
	}
	return ""
}

// setTarget replaces scheme, host and path; the query stays, but for credentials that must not go there.
func setTarget(u *url.URL, f *forwarding) {
	u.Scheme, u.Host = f.to.base.Scheme, f.to.base.Host
	escaped := strings.TrimSuffix(f.to.base.EscapedPath(), "/") + f.req.rest
	if escaped == "" {
		escaped = "/"
	}
	path, err := url.PathUnescape(escaped)
	if err != nil { // it was parsed before, so it cannot be
		path = escaped
	}
	u.Path, u.RawPath, u.User = path, escaped, nil
	if !f.to.credentials {
		u.RawQuery = withoutSecrets(u.RawQuery)
	}
}

// setHeaders writes X-Forwarded-*, names this server in Via, and takes away what must not go there.
func (g *Gateway) setHeaders(in *http.Request, out http.Header, f *forwarding) {
	proto := "http"
	if f.req.from.secure {
		proto = "https"
	}
	out.Set("X-Forwarded-For", strings.Join(f.req.from.chain, ", "))
	out.Set("X-Forwarded-Host", in.Host)
	out.Set("X-Forwarded-Proto", proto)
	if out.Del("X-Forwarded-Prefix"); f.req.prefix != "" {
		out.Set("X-Forwarded-Prefix", f.req.prefix)
	}
	out.Add("Via", "1.1 "+g.viaName())
	if !f.to.credentials {
		dropSecrets(out)
	}
}

// viaName is this server's pseudonym in Via (RFC 9110, 7.6.3).
func (g *Gateway) viaName() string {
	return "rehome-" + strings.Map(func(r rune) rune {
		if r == '-' || r == '.' || r == '_' || (r >= '0' && r <= '9') || (r >= 'a' && r <= 'z') || (r >= 'A' && r <= 'Z') {
			return r
		}
		return '_'
	}, g.cfg.Server)
}

func (g *Gateway) looped(r *http.Request) bool {
	name := g.viaName()
	for _, v := range r.Header.Values("Via") {
		if slices.Contains(strings.FieldsFunc(v, func(c rune) bool { return c == ' ' || c == ',' }), name) {
			return true
		}
	}
	return false
}

// forward sends a request on, counted while it lasts.
func (g *Gateway) forward(w http.ResponseWriter, r *http.Request, req *request, to destination) {
	f := &forwarding{req: req, to: to}
	g.metrics.requests.WithLabelValues(req.seen.protocol, to.outcome).Inc()
	if req.upgrade {
		g.serveSocket(w, r, f)
		return
	}
	done := g.counts.enter(r, req.seen)
	defer done()
	cw := &countingWriter{ResponseWriter: w, timeout: g.cfg.WriteTimeout}
	defer func() { // also when the copy is aborted by a panic
		cw.finish()
		g.counts.opened(req.seen, to.outcome, cw.n)
		g.metrics.bytes.WithLabelValues(req.seen.protocol).Add(float64(cw.n))
	}()
	g.proxy.ServeHTTP(cw, r.WithContext(context.WithValue(r.Context(), forwardKey{}, f)))
}

// countingWriter counts the body's bytes and cuts off a client that takes none of them for too long.
type countingWriter struct {
	http.ResponseWriter
	timeout time.Duration
	n       int64
	armed   time.Time
}

// writeDeadlineStep saves a system call per write.
const writeDeadlineStep = time.Second

func (w *countingWriter) Write(p []byte) (int, error) {
	if now := time.Now(); now.Sub(w.armed) > writeDeadlineStep {
		w.armed = now
		_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(now.Add(w.timeout)) // unsupported in tests with a recorder
	}
	n, err := w.ResponseWriter.Write(p)
	w.n += int64(n)
	return n, err
}

// Unwrap is for http.ResponseController.
func (w *countingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// finish sends what is buffered under the deadline and lifts it, for whoever uses the connection next.
func (w *countingWriter) finish() {
	if w.armed.IsZero() {
		return
	}
	rc := http.NewResponseController(w.ResponseWriter)
	if w.n > 4096 { // less than that fits into the buffers of any client
		_ = rc.Flush()
	}
	_ = rc.SetWriteDeadline(time.Time{})
}
