package redirect

import (
	"context"
	"net"
	"net/http"
	"sync"
)

type connKey struct{}

// tracked is a client's connection to the HTTP server, and what it was used for.
type tracked struct {
	conn net.Conn

	mu     sync.Mutex
	used   map[key]struct{}
	closed bool
}

// ConnContext belongs into http.Server: it lets the gateway know which connection a request came on.
func (g *Gateway) ConnContext(ctx context.Context, c net.Conn) context.Context {
	t := &tracked{conn: c}
	g.tracked.Store(c, t)
	return context.WithValue(ctx, connKey{}, t)
}

// ConnState belongs into http.Server: it lets the gateway know when a connection ends.
func (g *Gateway) ConnState(c net.Conn, state http.ConnState) {
	if state != http.StateClosed && state != http.StateHijacked {
		return
	}
	if v, ok := g.tracked.LoadAndDelete(c); ok {
		if t, ok := v.(*tracked); ok {
			t.end(g.counts)
		}
	}
}

// touch counts the connection as open for a key, once.
func (t *tracked) touch(c *counts, k key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.used[k]; ok || t.closed {
		return
	}
	if t.used == nil {
		t.used = map[key]struct{}{}
	}
	t.used[k] = struct{}{}
	c.add(k, 1)
}

func (t *tracked) end(c *counts) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for k := range t.used {
		c.add(k, -1)
	}
	t.used = nil
}

// clientLeft reports whether the client closed its side while its request was held.
func clientLeft(r *http.Request) bool {
	if r.Context().Err() != nil {
		return true
	}
	t, ok := r.Context().Value(connKey{}).(*tracked)
	return ok && peerGone(t.conn)
}
