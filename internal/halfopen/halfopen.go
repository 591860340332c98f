// Package halfopen notices Postgres sessions whose connection is open on this side only: a firewall forgot it, a proxy
// swallows what is sent, the server's host came back without it. TCP's own means need acknowledgements to be missing, and
// whatever answers them on the server's behalf defeats them; a statement's time says nothing, since a copy or an index may
// rightly take hours.
//
// So a session that has waited for an answer for a while is looked up at the server, over another connection: as long as
// its backend works on something, all is well; if it waits for us while we wait for it, or is gone, what was sent in
// between is lost, and the connection is closed, which the waiting call sees as an error.
package halfopen

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// ErrLost is what a call gets whose connection was found to be open on this side only.
var ErrLost = errors.New("the connection is half open")

const (
	// DefaultPatience is how long an answer may take before the server is asked what the session does.
	DefaultPatience = 30 * time.Second
	// probeTimeout bounds one look; a server that does not even take a connection for that long is out of reach.
	probeTimeout = 10 * time.Second
	// settle is the pause before a backend that waits for us is looked at again: its answer may be on its way.
	settle = time.Second
	// unreachable is how many looks in a row must fail before the session is given up.
	unreachable = 2
	// keepIdle, keepEvery and keepCount notice within 35 s that the host of a session that waits is gone; by default that
	// takes hours.
	keepIdle, keepEvery, keepCount = 15 * time.Second, 5 * time.Second, 4
)

// Dialer notices hosts that are gone by means of TCP: keep-alives, and a bound for what is not acknowledged.
func Dialer() *net.Dialer {
	return &net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: keepIdle, Interval: keepEvery, Count: keepCount},
		Control:         boundUnacknowledged,
	}
}

// Guard makes every connection of a configuration a guarded one. It takes the hooks AfterNetConnect and AfterConnect,
// which must not be in use, and costs one round trip when a connection is made.
//
// A connection through a pooler is left alone: its backend is not the one that answers for long.
func Guard(cfg *pgconn.Config, patience time.Duration) {
	if patience <= 0 {
		patience = DefaultPatience
	}
	cfg.DialFunc = Dialer().DialContext
	cfg.AfterNetConnect = func(_ context.Context, c *pgconn.Config, nc net.Conn) (net.Conn, error) {
		_, walsender := c.RuntimeParams["replication"]
		return &conn{Conn: nc, patience: patience, walsender: walsender}, nil
	}
	cfg.AfterConnect = func(ctx context.Context, pc *pgconn.PgConn) error {
		g, ok := pc.Conn().(*conn)
		if !ok {
			return nil
		}
		res, err := pc.Exec(ctx, "SELECT pg_backend_pid()").ReadAll()
		if err != nil {
			return err
		}
		if len(res) == 1 && len(res[0].Rows) == 1 && string(res[0].Rows[0][0]) == fmt.Sprint(pc.PID()) {
			g.arm(cfg, pc.PID())
		}
		return nil
	}
}

// conn watches over the calls of Read that wait for an answer.
type conn struct {
	net.Conn
	patience  time.Duration
	walsender bool

	mu       sync.Mutex
	probe    *pgconn.Config // nil: not watched
	pid      uint32
	timer    *time.Timer
	cancel   context.CancelFunc // of a look that is under way
	reading  bool
	received int64 // counts the calls of Read that brought something
	quiet    bool  // nothing is owed to us: all that we sent is answered
	feeding  bool  // we are sending rows: the server rightly waits for the next ones
	failed   int   // looks in a row that could not be made
	lost     error
}

func (g *conn) arm(cfg *pgconn.Config, pid uint32) {
	own := cfg.Copy()
	// The fallbacks stay: with or without TLS, by whichever of the names, this server once let us in.
	own.AfterNetConnect, own.AfterConnect, own.ValidateConnect = nil, nil, nil
	// What the session is read through is its own: built once more, for the probe, it would lose what it has read.
	own.BuildFrontend, own.OnNotice, own.OnNotification = pgproto3.NewFrontend, nil, nil
	own.ConnectTimeout = probeTimeout
	own.RuntimeParams = maps.Clone(own.RuntimeParams)
	delete(own.RuntimeParams, "replication")
	own.RuntimeParams["application_name"] = "rehome-probe"
	// To the very server, whatever the name leads to by now.
	at := g.RemoteAddr()
	own.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return Dialer().DialContext(ctx, at.Network(), at.String())
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.probe, g.pid, g.quiet = own, pid, true
}

// Read implements net.Conn.
func (g *conn) Read(p []byte) (int, error) {
	g.mu.Lock()
	g.reading = true
	if g.probe != nil {
		if g.timer == nil {
			g.timer = time.AfterFunc(g.patience, g.look)
		} else {
			g.timer.Reset(g.patience)
		}
	}
	g.mu.Unlock()
	n, err := g.Conn.Read(p)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.reading = false
	if g.timer != nil {
		g.timer.Stop()
	}
	if g.cancel != nil {
		g.cancel()
	}
	if n > 0 {
		g.received++
		g.failed = 0
		g.quiet = g.quiet || endsReady(p[:n]) // what comes unasked, as a notification, leaves nothing owed
		g.feeding = g.feeding || asksForRows(p[:n])
	}
	if err != nil && g.lost != nil {
		return n, g.lost
	}
	return n, err
}

// endsReady reports whether what came ends with ReadyForQuery (manual, "Message Formats"): nothing more is owed.
func endsReady(p []byte) bool {
	const ready = "Z\x00\x00\x00\x05"
	at := len(p) - len(ready) - 1
	return at >= 0 && string(p[at:at+len(ready)]) == ready
}

// asksForRows reports whether what came is CopyInResponse (manual, "Message Formats") alone: the server waits for rows,
// of which the first may come late.
func asksForRows(p []byte) bool {
	return len(p) > 5 && p[0] == 'G' && uint64(len(p)) == 1+uint64(binary.BigEndian.Uint32(p[1:5]))
}

// Write implements net.Conn.
func (g *conn) Write(p []byte) (int, error) {
	g.mu.Lock()
	g.quiet = false
	g.feeding = len(p) > 0 && p[0] == 'd' // CopyData
	g.mu.Unlock()
	return g.Conn.Write(p)
}

// Close implements net.Conn.
func (g *conn) Close() error {
	g.mu.Lock()
	if g.timer != nil {
		g.timer.Stop()
	}
	if g.cancel != nil {
		g.cancel()
	}
	g.mu.Unlock()
	return g.Conn.Close()
}

// look runs when a call of Read has waited for longer than the patience.
func (g *conn) look() {
	g.mu.Lock()
	if !g.reading || g.probe == nil {
		g.mu.Unlock()
		return
	}
	if g.quiet || (g.feeding && !g.walsender) {
		g.timer.Reset(g.patience)
		g.mu.Unlock()
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*probeTimeout)
	defer cancel()
	g.cancel = cancel
	before := g.received
	g.mu.Unlock()

	why, err := g.ask(ctx)
	if why != "" { // its answer may have been on its way
		t := time.NewTimer(settle)
		select {
		case <-t.C:
			why, err = g.ask(ctx)
		case <-ctx.Done():
			t.Stop()
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.cancel = nil
	if !g.reading || g.received != before {
		return
	}
	if err == nil {
		g.failed = 0
	} else if g.failed++; g.failed >= unreachable {
		why = "the server cannot be reached"
	}
	if why == "" {
		g.timer.Reset(g.patience)
		return
	}
	g.lost = fmt.Errorf("%w: no answer for %s, and %s", ErrLost, g.patience, why)
	_ = g.Conn.Close() // Read fails with it
}

// ask says why the session is lost, "" if it is not.
func (g *conn) ask(ctx context.Context) (why string, err error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	c, err := pgconn.ConnectConfig(ctx, g.probe)
	if err != nil {
		if pe, ok := errors.AsType[*pgconn.PgError](err); ok {
			if pe.Code == "57P03" { // cannot_connect_now
				return "the server is starting", nil
			}
			return "", nil // it lives, though it has no connection left for us
		}
		return "", err
	}
	defer func() {
		cctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = c.Close(cctx)
	}()
	const sql = `SELECT coalesce(wait_event_type, ''), coalesce(wait_event, '') FROM pg_stat_activity WHERE pid = $1`
	res := c.ExecParams(ctx, sql, [][]byte{[]byte(fmt.Sprint(g.pid))}, nil, nil, nil).Read()
	switch {
	case res.Err != nil:
		return "", res.Err
	case len(res.Rows) == 0:
		return "its session is gone from the server", nil
	}
	switch kind, event := string(res.Rows[0][0]), string(res.Rows[0][1]); kind {
	case "Client", "Activity":
		return "the server waits for us (" + event + ")", nil
	}
	return "", nil
}
