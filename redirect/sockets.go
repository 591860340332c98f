package redirect

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// Close codes that clients see. 4000–4999 are an application's own (RFC 6455, 7.4.2).
const (
	// CloseMoved says that the database has moved; the reason is its new URL. 301 is HTTP's word for the same.
	CloseMoved websocket.StatusCode = 4301
	// maxReason is what a close frame has room for (RFC 6455, 5.5).
	maxReason = 123
)

// notice is the text message that announces a move.
type notice struct {
	Type string `json:"type"` // moving, moved
	URL  string `json:"url,omitempty"`
}

func (n notice) bytes() []byte {
	b, err := json.Marshal(n)
	if err != nil { // two strings: cannot be
		return []byte(`{}`)
	}
	return b
}

// ending is why and how a WebSocket is closed.
type ending struct {
	moved  string // new URL; "" where nothing moved
	code   websocket.StatusCode
	reason string
	at     time.Time // pacing: not all clients come back at once; zero: now
}

// socket is an open WebSocket, as far as others may touch it.
type socket struct {
	name     string
	upstream string        // where it goes
	target   string        // it is proxied to this redirect; "" where it goes to the database's own upstream
	moving   chan struct{} // one slot: announce a hold
	end      chan ending   // one slot: the first reason counts
	told     string        // why it is being ended, by routes; guarded by sockets
}

func newSocket(name, upstream, target string) *socket {
	return &socket{name: name, upstream: upstream, target: target, moving: make(chan struct{}, 1), end: make(chan ending, 1)}
}

func (s *socket) finish(e ending) {
	select {
	case s.end <- e:
	default:
	}
}

// sockets are the WebSockets that this server has open.
type sockets struct {
	mu      sync.Mutex
	byName  map[string]map[*socket]struct{}
	n       int
	closing bool
	empty   chan struct{} // closed while none is open
}

func newSockets() *sockets {
	empty := make(chan struct{})
	close(empty)
	return &sockets{byName: map[string]map[*socket]struct{}{}, empty: empty}
}

func (s *sockets) add(c *socket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byName[c.name] == nil {
		s.byName[c.name] = map[*socket]struct{}{}
	}
	s.byName[c.name][c] = struct{}{}
	if s.n++; s.n == 1 {
		s.empty = make(chan struct{})
	}
	if s.closing {
		c.finish(goingAway())
	}
}

func (s *sockets) remove(c *socket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byName[c.name], c)
	if len(s.byName[c.name]) == 0 {
		delete(s.byName, c.name)
	}
	if s.n--; s.n == 0 {
		close(s.empty)
	}
}

func (s *sockets) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

// announce tells the clients of a database that it is about to move.
func (s *sockets) announce(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.byName[name] {
		select {
		case c.moving <- struct{}{}:
		default:
		}
	}
}

func goingAway() ending {
	return ending{code: websocket.StatusGoingAway, reason: "the server stops"}
}

// turn waits until it is a WebSocket's turn to end. An ending that comes meanwhile and is sooner takes its place.
func (s *socket) turn(ctx context.Context, e ending) ending {
	for {
		left := time.Until(e.at)
		if left <= 0 {
			return e
		}
		t := time.NewTimer(left)
		select {
		case <-t.C:
		case next := <-s.end:
			if next.at.Before(e.at) {
				e = next
			}
		case <-ctx.Done():
			t.Stop()
			return e
		}
		t.Stop()
	}
}

// closeStep is between two WebSockets that are closed, as long as the window has room for that: 200 clients a second come
// back, each with a handshake and a query or two.
const closeStep = 5 * time.Millisecond

// pace gives the i-th of n endings its time: one after the other, all within the window.
func pace(i, n int, window time.Duration) time.Time {
	spread := min(window, time.Duration(n)*closeStep)
	return time.Now().Add(spread * time.Duration(i) / time.Duration(n))
}

// closeAll tells every WebSocket to go away, and those that come later.
func (s *sockets) closeAll(window time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closing = true
	i := 0
	for _, set := range s.byName {
		for c := range set {
			e := goingAway()
			e.at = pace(i, s.n, window)
			c.finish(e)
			i++
		}
	}
}

// wait blocks until none is open.
func (s *sockets) wait(ctx context.Context) error {
	for {
		s.mu.Lock()
		n, empty := s.n, s.empty
		s.mu.Unlock()
		if n == 0 {
			return nil
		}
		select {
		case <-empty:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// follow ends what the new routes no longer serve, paced.
func (s *sockets) follow(t *table, cfg Config) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := cfg.Now()
	for name, set := range s.byName {
		ends := map[*socket]ending{}
		for c := range set {
			e, over := c.over(t.routes[name], now)
			if why := e.reason + e.moved; over && c.told != why {
				c.told = why
				ends[c] = e
			}
		}
		i := 0
		for c, e := range ends { // in no order: who came first is not first to come back
			e.at = pace(i, len(ends), cfg.CloseWindow)
			c.finish(e)
			i++
		}
	}
}

// over decides whether a WebSocket must end under a route.
func (s *socket) over(r *route, now time.Time) (ending, bool) {
	switch {
	case r == nil || r.gone(now):
		return ending{code: websocket.StatusGoingAway, reason: "the database is gone"}, true
	case r.moved(now):
		if r.redirect.Mode == ModeProxy && s.target == r.redirect.To {
			return ending{}, false
		}
		e := ending{moved: r.redirect.To, code: CloseMoved, reason: r.redirect.To}
		if len(e.reason) > maxReason {
			e.reason = "" // half a URL would mislead; the notice has the whole
		}
		return e, true
	case s.target != "":
		return ending{code: websocket.StatusServiceRestart, reason: "the redirect has been taken back"}, true
	case r.state == "stopped":
		return ending{code: websocket.StatusGoingAway, reason: "the database is stopped"}, true
	case r.upstream == nil || s.upstream != r.upstream.String():
		return ending{code: websocket.StatusServiceRestart, reason: "connect again: the database has moved to another application"}, true
	}
	return ending{}, false
}
