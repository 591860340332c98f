package redirect

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// echoApp echoes messages, and says first what it was asked.
func echoApp(t *testing.T, name string) string {
	return app(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/deny" {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"v2"}})
		if err != nil {
			return
		}
		c.SetReadLimit(-1)
		defer func() { _ = c.CloseNow() }()
		hello := name + " " + r.URL.RequestURI() + " origin=" + r.Header.Get("Origin") + " cookie=" + r.Header.Get("Cookie") + " prefix=" + r.Header.Get("X-Forwarded-Prefix")
		if c.Write(r.Context(), websocket.MessageText, []byte(hello)) != nil {
			return
		}
		for {
			typ, msg, err := c.Read(r.Context())
			if err != nil {
				return
			}
			if string(msg) == "bye" {
				_ = c.Close(4007, "as you wish")
				return
			}
			if c.Write(r.Context(), typ, msg) != nil {
				return
			}
		}
	}).URL
}

type wsClient struct {
	*websocket.Conn
	t *testing.T
}

// dial opens a WebSocket; on an error it gives the answer's status and Location.
func (b *bundle) dial(t *testing.T, path string, header http.Header) (c *wsClient, refused answer, err error) {
	t.Helper()
	conn, resp, err := websocket.Dial(t.Context(), b.srv.URL+path, &websocket.DialOptions{HTTPClient: b.http, HTTPHeader: header, Subprotocols: []string{"v1", "v2"}})
	if err != nil {
		if resp != nil {
			refused = answer{status: resp.StatusCode, header: resp.Header}
			_ = resp.Body.Close()
		}
		return nil, refused, err
	}
	conn.SetReadLimit(-1)
	t.Cleanup(func() { _ = conn.CloseNow() })
	return &wsClient{conn, t}, refused, nil
}

func (c *wsClient) read() string {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 15*time.Second)
	defer cancel()
	_, msg, err := c.Read(ctx)
	must(c.t, err)
	return string(msg)
}

func (c *wsClient) notice() (n notice) {
	c.t.Helper()
	must(c.t, json.Unmarshal([]byte(c.read()), &n))
	return n
}

func (c *wsClient) closed() websocket.CloseError {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 15*time.Second)
	defer cancel()
	_, msg, err := c.Read(ctx)
	var ce websocket.CloseError
	if !errors.As(err, &ce) {
		c.t.Fatalf("got %q, %v; want a close", msg, err)
	}
	return ce
}

func TestWebSocketPassesMessages(t *testing.T) {
	b := setup(t, nil)
	b.database(t, "acme", echoApp(t, "old"))
	host := strings.TrimPrefix(b.srv.URL, "http://")
	c, _, err := b.dial(t, "/acme/live?x=1", http.Header{"Origin": {"http://" + host}, "Cookie": {"a=b"}, "User-Agent": {"wsclient/1.2"}})
	must(t, err)
	if got := c.read(); got != "old /live?x=1 origin=http://"+host+" cookie=a=b prefix=/acme" {
		t.Error(got)
	}
	if c.Subprotocol() != "v2" {
		t.Errorf("subprotocol %q", c.Subprotocol())
	}
	for _, msg := range []string{"", "hello", strings.Repeat("long ", 1<<20)} {
		must(t, c.Write(t.Context(), websocket.MessageBinary, []byte(msg)))
		if got := c.read(); got != msg {
			t.Errorf("%d bytes came back of %d", len(got), len(msg))
		}
	}
	open := b.Open("acme")
	if len(open) != 1 || open[0].Protocol != "websocket" || open[0].Client != "wsclient" || open[0].Version != "1.2" || open[0].Open != 1 {
		t.Errorf("%+v", open)
	}
	must(t, c.Write(t.Context(), websocket.MessageText, []byte("bye")))
	if ce := c.closed(); ce.Code != 4007 || ce.Reason != "as you wish" {
		t.Errorf("%+v", ce)
	}
	eventually(t, "nothing is open", func() bool { return len(b.Open("acme")) == 0 && b.sockets.len() == 0 })
	s, err := b.StatsFor(t.Context(), "acme")
	must(t, err)
	if s.LastMinute != 1 {
		t.Errorf("%+v", s)
	}
	// The client's close reaches the upstream, and what the upstream refuses reaches the client.
	c, _, err = b.dial(t, "/acme/live", nil)
	must(t, err)
	_ = c.read()
	must(t, c.Close(websocket.StatusNormalClosure, "done"))
	eventually(t, "nothing is open", func() bool { return b.sockets.len() == 0 })
	_, resp, err := b.dial(t, "/acme/deny", nil)
	if err == nil || resp.status != http.StatusForbidden {
		t.Errorf("%v %+v", err, resp)
	}
}

func TestWebSocketIsToldAndClosed(t *testing.T) {
	b := setup(t, func(c *Config) { c.Now = nil })
	b.database(t, "acme", echoApp(t, "old"))
	ctx := t.Context()
	c, _, err := b.dial(t, "/acme/live", nil)
	must(t, err)
	_ = c.read()
	release := b.hold(t, "acme", time.Now().Add(time.Minute))
	if n := c.notice(); n.Type != "moving" {
		t.Errorf("%+v", n)
	}
	release()
	_, err = b.SetRedirect(ctx, Redirect{Database: "acme", To: "https://own.example/acme"})
	must(t, err)
	if n := c.notice(); n != (notice{Type: "moved", URL: "https://own.example/acme"}) {
		t.Errorf("%+v", n)
	}
	if ce := c.closed(); ce.Code != CloseMoved || ce.Reason != "https://own.example/acme" {
		t.Errorf("%+v", ce)
	}
	_, resp, err := b.dial(t, "/acme/live", nil)
	if err == nil || resp.status != 307 || resp.header.Get("Location") != "https://own.example/acme/live" {
		t.Errorf("%v %+v", err, resp)
	}
	eventually(t, "nothing is open", func() bool { return len(b.Open("acme")) == 0 })
	_, err = b.SetRedirect(ctx, Redirect{Database: "acme", To: "https://own.example/acme", Mode: ModeRefuse})
	must(t, err)
	if _, resp, err = b.dial(t, "/acme/live", nil); err == nil || resp.status != 421 {
		t.Errorf("%v %+v", err, resp)
	}
}

// In proxy mode open ones are closed, new ones go to the new side without their credentials and stay, and end when the
// redirect is taken back.
func TestWebSocketInProxyMode(t *testing.T) {
	b := setup(t, nil)
	b.database(t, "acme", echoApp(t, "old"))
	next := echoApp(t, "new")
	ctx := t.Context()
	long := next + "/" + strings.Repeat("x", 130) + "/acme"
	c, _, err := b.dial(t, "/acme/live", nil)
	must(t, err)
	_ = c.read()
	_, err = b.SetRedirect(ctx, Redirect{Database: "acme", To: long, Mode: ModeProxy})
	must(t, err)
	if n := c.notice(); n.URL != long {
		t.Errorf("%+v", n)
	}
	if ce := c.closed(); ce.Code != CloseMoved || ce.Reason != "" {
		t.Errorf("%+v", ce)
	}
	c, _, err = b.dial(t, "/acme/live", http.Header{"Cookie": {"secret=1"}})
	must(t, err)
	if got := c.read(); !strings.HasPrefix(got, "new /") || !strings.Contains(got, "/acme/live ") || strings.Contains(got, "secret") {
		t.Error(got)
	}
	must(t, b.Reload(ctx))
	must(t, c.Write(ctx, websocket.MessageText, []byte("still here")))
	if got := c.read(); got != "still here" {
		t.Error(got)
	}
	must(t, b.ClearRedirect(ctx, "acme"))
	if ce := c.closed(); ce.Code != websocket.StatusServiceRestart {
		t.Errorf("%+v", ce)
	}
}

func TestWebSocketEndsWithItsDatabaseAndServer(t *testing.T) {
	b := setup(t, nil)
	b.database(t, "acme", echoApp(t, "old"))
	c, _, err := b.dial(t, "/acme/live", nil)
	must(t, err)
	_ = c.read()
	b.state(t, "acme", "stopped")
	if ce := c.closed(); ce.Code != websocket.StatusGoingAway || !strings.Contains(ce.Reason, "stopped") {
		t.Errorf("%+v", ce)
	}
	b.state(t, "acme", "active")
	c, _, err = b.dial(t, "/acme/live", nil)
	must(t, err)
	_ = c.read()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	drained := make(chan error, 1)
	go func() { drained <- b.Drain(ctx) }()
	if ce := c.closed(); ce.Code != websocket.StatusGoingAway {
		t.Errorf("%+v", ce)
	}
	must(t, <-drained)
}

// A client that vanishes without a word, and one that takes nothing, do not stay open for ever.
func TestWebSocketSlowReaderIsClosed(t *testing.T) {
	b := setup(t, func(c *Config) { c.WriteTimeout = 300 * time.Millisecond })
	up := app(t, func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer func() { _ = c.CloseNow() }()
		for c.Write(r.Context(), websocket.MessageBinary, make([]byte, 1<<20)) == nil {
		}
	})
	b.database(t, "acme", up.URL)
	_, _, err := b.dial(t, "/acme/flood", nil)
	must(t, err)
	eventually(t, "it is closed", func() bool { return b.sockets.len() == 0 && metricValue(t, b.metrics.socketsSlow) == 1 })
}

// Many WebSockets of a moved database end one after the other, within the window: their clients do not come back at once.
func TestWebSocketsAreClosedPaced(t *testing.T) {
	t.Parallel()
	const n, window = 300, time.Second
	b := setup(t, func(c *Config) { c.Now = nil; c.CloseWindow = window })
	b.database(t, "acme", echoApp(t, "old"))
	ended := make(chan time.Time, n)
	var wg sync.WaitGroup
	defer wg.Wait()
	for range n {
		c, _, err := b.dial(t, "/acme/live", nil)
		must(t, err)
		_ = c.read()
		wg.Go(func() {
			for {
				if _, _, err := c.Read(t.Context()); err != nil {
					if websocket.CloseStatus(err) == CloseMoved {
						ended <- time.Now()
					}
					return
				}
			}
		})
	}
	began := time.Now()
	_, err := b.SetRedirect(t.Context(), Redirect{Database: "acme", To: "https://own.example/acme"})
	must(t, err)
	must(t, b.Reload(t.Context())) // a second reading does not begin anew
	perTenth := map[int]int{}
	var last time.Duration
	for range n {
		select {
		case at := <-ended:
			last = at.Sub(began)
			perTenth[int(last/(window/10))]++
		case <-time.After(15 * time.Second):
			t.Fatal("not all were closed")
		}
	}
	most := 0
	for _, k := range perTenth {
		most = max(most, k)
	}
	t.Logf("%d WebSockets closed within %s; at most %d in a tenth of the window", n, last, most)
	if last < window*8/10 || most > n/2 {
		t.Errorf("the closing took %s, with %d at once", last, most)
	}
}

// A cutover that changes the application ends the WebSockets to the former one, and clients that come again reach the new.
func TestWebSocketsFollowTheSwitch(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *Config) { c.Now = nil })
	b.exec(t, `INSERT INTO rehome_control.databases (name, kind, source_upstream_url, upstream_url, placement_epoch) VALUES ('acme', 'sharded', $1, $2, 1)`, echoApp(t, "old"), echoApp(t, "new"))
	must(t, b.Reload(t.Context()))
	for round, want := range []string{"old", "new", "old"} {
		c, _, err := b.dial(t, "/acme/live", nil)
		must(t, err)
		if got := c.read(); !strings.HasPrefix(got, want+" ") {
			t.Errorf("round %d: %s", round, got)
		}
		must(t, b.Switch(t.Context(), "acme", "r", int64(round+1), round == 0))
		if round == 2 {
			break // it stays at its side
		}
		if ce := c.closed(); ce.Code != websocket.StatusServiceRestart {
			t.Errorf("round %d: %+v", round, ce)
		}
	}
}
