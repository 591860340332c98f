package redirect

import (
	"context"
	"errors"
	"io"
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

var errClientLeft = errors.New("the client went away")

// heldBody is the body of a request that was held. The end of a client that left may lie behind a body which filled the
// buffers, and is seen only when the body has been read; then its last bytes are kept back, so that the request never
// becomes whole at the upstream.
type heldBody struct {
	io.ReadCloser
	conn net.Conn
	left int64 // of Content-Length; below 0: not known, and only the end of the stream tells
}

// Read implements io.Reader.
func (b *heldBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	last := errors.Is(err, io.EOF)
	if b.left >= 0 {
		b.left -= int64(n)
		last = last || b.left <= 0
	}
	if last && peerGone(b.conn) {
		return 0, errClientLeft
	}
	return n, err
}

// guardHeldBody puts a heldBody into a request that was held.
func guardHeldBody(r *http.Request) {
	t, ok := r.Context().Value(connKey{}).(*tracked)
	if !ok || r.Body == nil || r.Body == http.NoBody {
		return
	}
	r.Body = &heldBody{ReadCloser: r.Body, conn: t.conn, left: r.ContentLength}
}
