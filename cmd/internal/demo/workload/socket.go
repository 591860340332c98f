package workload

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/coder/websocket"
)

const (
	// silence is how long a socket may hear nothing before it is opened anew: several heartbeats.
	silence = 10 * time.Second
	// noticesKept bounds the report.
	noticesKept = 20
)

// SocketReport is what the WebSockets saw.
type SocketReport struct {
	Opened     int64            `json:"opened"`
	Heartbeats int64            `json:"heartbeats"`
	Notices    []string         `json:"notices"` // messages that were no heartbeats, the first ones
	Closes     map[string]int64 `json:"closes"`  // by "code reason"
	MovedTo    string           `json:"moved_to,omitempty"`
}

func (r SocketReport) clone() SocketReport {
	r.Notices = slices.Clone(r.Notices)
	r.Closes = maps.Clone(r.Closes)
	return r
}

// socket listens, and follows when it is told where the database went.
type socket struct {
	w      *Writers
	base   string
	client *http.Client
}

func newSocket(w *Writers) *socket {
	return &socket{w: w, base: strings.TrimSuffix(w.cfg.URL, "/"), client: &http.Client{Transport: &http.Transport{}}}
}

func (s *socket) run(ctx context.Context) error {
	defer s.client.CloseIdleConnections()
	for ctx.Err() == nil {
		err := s.listen(ctx)
		if ctx.Err() != nil {
			break
		}
		s.w.cfg.Logger.DebugContext(ctx, "websocket ended", "error", err)
		if !wait(ctx, retryMost) {
			break
		}
	}
	return nil
}

// listen opens a socket and reads until it ends.
func (s *socket) listen(ctx context.Context) error {
	dial, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	header := http.Header{"User-Agent": {"rehome-demo-socket/1"}}
	conn, resp, err := websocket.Dial(dial, s.base+"/ws", &websocket.DialOptions{HTTPClient: s.client, HTTPHeader: header})
	if resp != nil && resp.Body != nil {
		defer resp.Body.Close()
	}
	if err != nil {
		return fmt.Errorf("open a websocket: %w", err)
	}
	defer conn.CloseNow()
	s.see(func(r *SocketReport) { r.Opened++ })
	for {
		read, cancel := context.WithTimeout(ctx, silence)
		_, message, err := conn.Read(read)
		cancel()
		if err != nil {
			s.closed(err)
			return fmt.Errorf("read a websocket: %w", err)
		}
		s.heard(message)
	}
}

func (s *socket) heard(message []byte) {
	var m struct {
		Type string `json:"type"`
		URL  string `json:"url"`
	}
	if json.Unmarshal(message, &m) == nil && m.Type == "heartbeat" {
		s.see(func(r *SocketReport) { r.Heartbeats++ })
		return
	}
	s.follow(m.URL)
	s.see(func(r *SocketReport) {
		if len(r.Notices) < noticesKept {
			r.Notices = append(r.Notices, string(message))
		}
	})
}

func (s *socket) closed(err error) {
	ce, ok := errors.AsType[websocket.CloseError](err)
	if !ok {
		return
	}
	s.follow(ce.Reason)
	s.see(func(r *SocketReport) { r.Closes[strings.TrimSpace(fmt.Sprintf("%d %s", ce.Code, ce.Reason))]++ })
}

// follow goes where a notice or a close's reason points to.
func (s *socket) follow(url string) {
	if strings.HasPrefix(url, "http://") || strings.HasPrefix(url, "https://") {
		s.base = strings.TrimSuffix(url, "/")
		s.see(func(r *SocketReport) { r.MovedTo = s.base })
	}
}

func (s *socket) see(f func(*SocketReport)) {
	s.w.stats.mu.Lock()
	defer s.w.stats.mu.Unlock()
	f(&s.w.stats.sockets)
}
