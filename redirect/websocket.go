package redirect

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/net/http/httpguts"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/tenant"
)

const (
	pingEvery    = 30 * time.Second // finds clients that vanished without a word, before a load balancer's usual minute
	socketBuffer = 32 << 10
)

// errSocketOver ends the goroutines of a WebSocket.
var errSocketOver = errors.New("the websocket is over")

// isUpgrade reports whether a request asks for a WebSocket (RFC 6455, 4.2.1).
func isUpgrade(r *http.Request) bool {
	return httpguts.HeaderValuesContainsToken(r.Header["Upgrade"], "websocket") && httpguts.HeaderValuesContainsToken(r.Header["Connection"], "upgrade")
}

// socketHeaders are the client's, without those of the connection: the handshake with the upstream is a new one.
func socketHeaders(in http.Header) http.Header {
	out := in.Clone()
	for _, list := range in["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			out.Del(strings.TrimSpace(name))
		}
	}
	for name := range out {
		hop := slices.Contains([]string{"Connection", "Upgrade", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Proxy-Connection", "Forwarded"}, name)
		if hop || strings.HasPrefix(name, "Sec-Websocket-") || strings.HasPrefix(name, "X-Forwarded-") {
			delete(out, name)
		}
	}
	return out
}

// serveSocket opens a WebSocket to the destination, accepts the client's, and passes messages until one side ends, the
// database moves or the server stops.
func (g *Gateway) serveSocket(w http.ResponseWriter, r *http.Request, f *forwarding) {
	up, resp, err := g.dialSocket(r, f) //nolint:bodyclose // of a handshake it need not be closed, says the library
	if err != nil {
		g.socketRefused(w, r, f, resp, err)
		return
	}
	defer func() { _ = up.CloseNow() }()
	if f.to.credentials {
		for _, c := range resp.Header.Values("Set-Cookie") {
			w.Header().Add("Set-Cookie", c)
		}
	}
	opts := &websocket.AcceptOptions{InsecureSkipVerify: true} // the upstream has seen the Origin and agreed
	if p := up.Subprotocol(); p != "" {
		opts.Subprotocols = []string{p}
	}
	client, err := websocket.Accept(w, r, opts)
	if err != nil { // Accept has answered
		g.cfg.Logger.DebugContext(r.Context(), "websocket not accepted", "database", f.req.name, "error", err)
		return
	}
	defer func() { _ = client.CloseNow() }()
	client.SetReadLimit(g.cfg.MaxMessage)
	up.SetReadLimit(g.cfg.MaxMessage)

	target := ""
	if rt := g.route(f.req.name); f.to.outcome == "proxied" && rt != nil && rt.redirect != nil {
		target = rt.redirect.To
	}
	s := newSocket(f.req.name, f.to.base.String(), target)
	g.sockets.add(s)
	defer g.sockets.remove(s)
	if e, over := s.over(g.route(f.req.name), g.cfg.Now()); over { // the route changed during the handshake
		s.finish(e)
	}
	g.counts.add(f.req.seen, 1)
	defer g.counts.add(f.req.seen, -1)
	g.counts.opened(f.req.seen, f.to.outcome, 0)
	bytes := g.passMessages(context.WithoutCancel(r.Context()), client, up, s)
	g.counts.count(f.req.seen, f.to.outcome, 0, bytes)
	g.metrics.bytes.WithLabelValues(protoWebSocket).Add(float64(bytes))
}

func (g *Gateway) dialSocket(r *http.Request, f *forwarding) (*websocket.Conn, *http.Response, error) {
	u := *r.URL
	setTarget(&u, f)
	header := socketHeaders(r.Header)
	g.setHeaders(r, header, f)
	opts := &websocket.DialOptions{
		HTTPHeader: header,
		HTTPClient: &http.Client{
			Transport:     g.transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	for _, list := range r.Header.Values("Sec-WebSocket-Protocol") {
		for p := range strings.SplitSeq(list, ",") {
			if p = strings.TrimSpace(p); f.to.credentials || !isSecretProtocol(p) {
				opts.Subprotocols = append(opts.Subprotocols, p)
			}
		}
	}
	if f.to.keepHost {
		opts.Host = r.Host
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	limit := time.AfterFunc(2*g.cfg.DialTimeout, cancel) // the handshake's; the connection outlives it
	defer limit.Stop()
	conn, resp, err := websocket.Dial(ctx, u.String(), opts)
	if err != nil {
		cancel()
	}
	return conn, resp, err
}

// socketRefused passes on what the upstream answered instead of an upgrade (its first kilobyte), or says that it did
// not answer.
func (g *Gateway) socketRefused(w http.ResponseWriter, r *http.Request, f *forwarding, resp *http.Response, err error) {
	g.counts.opened(f.req.seen, "refused", 0)
	if resp == nil || resp.StatusCode == http.StatusSwitchingProtocols {
		g.metrics.upstreamErrors.Inc()
		g.cfg.Logger.WarnContext(r.Context(), "upstream not reachable", "database", f.req.name, "error", err)
		refuse(w, http.StatusBadGateway, tenant.KindUnavailable, "upstream-unreachable", "the application of this database does not answer", "try again; if it lasts, its owner should look after it")
		return
	}
	for _, name := range []string{"Content-Type", "Location", "Www-Authenticate", "Retry-After", "Set-Cookie"} {
		if name == "Set-Cookie" && !f.to.credentials {
			continue
		}
		for _, v := range resp.Header.Values(name) {
			w.Header().Add(name, v)
		}
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body) // the client may be gone
}

// passMessages runs a WebSocket until it is over, and returns the bytes of its messages.
func (g *Gateway) passMessages(ctx context.Context, client, up *websocket.Conn, s *socket) int64 {
	var bytes atomic.Int64
	grp, gctx := errgroup.WithContext(ctx)
	grp.Go(func() error { return g.pump(gctx, up, client, &bytes) })
	grp.Go(func() error { return g.pump(gctx, client, up, &bytes) })
	grp.Go(func() error { return g.mindSocket(gctx, client, up, s) })
	if err := grp.Wait(); err != nil && !errors.Is(err, errSocketOver) {
		g.cfg.Logger.DebugContext(ctx, "websocket ended", "database", s.name, "error", err)
	}
	return bytes.Load()
}

// pump passes messages from one side to the other. When the sender closes, the receiver is closed with the same code.
func (g *Gateway) pump(ctx context.Context, to, from *websocket.Conn, bytes *atomic.Int64) error {
	buf := make([]byte, socketBuffer)
	for {
		typ, msg, err := from.Reader(ctx)
		if err == nil {
			err = g.passMessage(ctx, to, typ, msg, buf, bytes)
		}
		if err == nil {
			continue
		}
		var ce websocket.CloseError
		switch {
		case errors.As(err, &ce):
			_ = to.Close(ce.Code, ce.Reason)
		case ctx.Err() == nil:
			_ = to.Close(websocket.StatusBadGateway, "the other side went away")
		}
		return errSocketOver
	}
}

// passMessage streams one message. A receiver that takes nothing for WriteTimeout ends the WebSocket.
func (g *Gateway) passMessage(ctx context.Context, to *websocket.Conn, typ websocket.MessageType, msg io.Reader, buf []byte, bytes *atomic.Int64) error {
	wctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var slow atomic.Bool
	guard := time.AfterFunc(g.cfg.WriteTimeout, func() { slow.Store(true); cancel() })
	defer guard.Stop()
	out, err := to.Writer(wctx, typ)
	if err != nil {
		return err
	}
	for {
		guard.Stop() // the sender may take its time
		n, rerr := msg.Read(buf)
		guard.Reset(g.cfg.WriteTimeout)
		if n > 0 {
			bytes.Add(int64(n))
			if _, err = out.Write(buf[:n]); err != nil {
				break
			}
		}
		if errors.Is(rerr, io.EOF) {
			err = out.Close()
			break
		}
		if rerr != nil {
			return rerr
		}
	}
	if err != nil && slow.Load() {
		g.metrics.socketsSlow.Inc()
	}
	return err
}

// mindSocket pings the client, announces holds, and ends the WebSocket when told to.
func (g *Gateway) mindSocket(ctx context.Context, client, up *websocket.Conn, s *socket) error {
	ping := time.NewTicker(pingEvery)
	defer ping.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ping.C:
			pctx, cancel := context.WithTimeout(ctx, g.cfg.WriteTimeout)
			err := client.Ping(pctx)
			cancel()
			if err != nil && ctx.Err() == nil {
				_ = up.Close(websocket.StatusGoingAway, "the client went away")
				return errSocketOver
			}
		case <-s.moving:
			g.tell(ctx, client, notice{Type: "moving"})
		case e := <-s.end:
			e = s.turn(ctx, e)
			if e.moved != "" {
				g.tell(ctx, client, notice{Type: "moved", URL: e.moved})
			}
			_ = client.Close(e.code, e.reason)
			_ = up.Close(websocket.StatusGoingAway, "the client was sent elsewhere")
			return errSocketOver
		}
	}
}

// tell sends a notice; a client that does not take it is closed by the pumps.
func (g *Gateway) tell(ctx context.Context, client *websocket.Conn, n notice) {
	tctx, cancel := context.WithTimeout(ctx, g.cfg.WriteTimeout)
	defer cancel()
	_ = client.Write(tctx, websocket.MessageText, n.bytes())
}
