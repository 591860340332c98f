package server

import (
	"context"
	"crypto/rand"
	"net"
	"net/http"
	"strings"
	"time"
)

// request is what the layers of one API request share.
type request struct {
	id        string
	address   string // the client's, without port
	host      string // the one that was asked
	principal *principal
	control   *http.ResponseController

	// What the audit row says beyond the operation's name; set by handlers.
	object string
	detail map[string]any
}

type requestKey struct{}

// bodyCame lifts the deadline of the request's body. net/http does so itself at the body's end, and goes on reading, to notice when
// the client goes: a deadline that the API's library sets after that, for a body that was read before or for none, would end that
// look, and with it cancel the request. What an operation takes is its own affair.
func (rq *request) bodyCame() {
	if rq.control != nil {
		_ = rq.control.SetReadDeadline(time.Time{})
	}
}

// newRequest gives a request its id; one that a proxy in front has set is kept if it looks like an id.
func newRequest(r *http.Request) *request {
	id := r.Header.Get("X-Request-Id")
	if len(id) < 8 || len(id) > 64 || strings.Trim(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
		id = rand.Text()
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	return &request{id: id, address: host, host: r.Host, detail: map[string]any{}}
}

func withRequest(ctx context.Context, rq *request) context.Context {
	return context.WithValue(ctx, requestKey{}, rq)
}

// requestOf never returns nil, so that work outside of a request can use the same code.
func requestOf(ctx context.Context) *request {
	if rq, ok := ctx.Value(requestKey{}).(*request); ok {
		return rq
	}
	return &request{detail: map[string]any{}}
}

// about names the object of the request for the audit log.
func about(ctx context.Context, object string) { requestOf(ctx).object = object }

// note adds a detail to the audit row. Never a secret.
func note(ctx context.Context, key string, value any) { requestOf(ctx).detail[key] = value }

// actor names who asks, for rows that say so.
func (r *request) actor() string {
	if r.principal == nil {
		return "anonymous"
	}
	return r.principal.actor
}
