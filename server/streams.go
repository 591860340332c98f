package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"golang.org/x/sync/errgroup"

	"github.com/rehomedb/rehome/progress"
	"github.com/rehomedb/rehome/tenant"
)

// heartbeatEvery keeps idle streams open through proxies, whose usual idle timeout is 30 to 60 s.
const heartbeatEvery = 15 * time.Second

// errDraining ends a stream in a stop; its client reconnects elsewhere with Last-Event-ID.
var errDraining = errors.New("the server drains")

type replicationEventsInput struct {
	ID   string `path:"id"`
	Last string `header:"Last-Event-ID" doc:"sequence number after which to go on"`
}

type eventsInput struct {
	Subject string `query:"subject" doc:"NATS pattern: * one token, > the rest"`
	After   string `query:"after" doc:"id after which to begin; 0: from the oldest that is kept; empty: from now on"`
	Last    string `header:"Last-Event-ID"`
}

// streams registers the server-sent events.
func (s *Server) streams(a huma.API) {
	add(s, a, operation{
		method: http.MethodGet, path: "/v1/replications/{id}/events", name: "watch-replication", scope: scopeRead,
		summary: "Server-sent events of a replication: CloudEvents, the id is their sequence",
	}, s.watchReplication)
	add(s, a, operation{
		method: http.MethodGet, path: "/v1/events", name: "watch-events", scope: scopeRead, whole: true,
		summary: "Server-sent events of the installation: CloudEvents, the id is their place in the log",
	}, s.watchEvents)
}

func cursor(text string) (int64, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return 0, tenant.Errorf(tenant.KindInvalid, "bad-event-id", "send the id of the last event that was received", "%q is not an event's id", text)
	}
	return n, nil
}

func (s *Server) watchReplication(ctx context.Context, in *replicationEventsInput) (*huma.StreamResponse, error) {
	r, err := s.replication(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	after := int64(0)
	if in.Last != "" {
		if after, err = cursor(in.Last); err != nil {
			return nil, err
		}
	}
	return s.stream(func(ctx context.Context, send func(id int64, e progress.Event) error) error {
		return s.events.Watch(ctx, r.ID, after, func(e progress.Event) error { return send(e.Sequence, e) })
	}), nil
}

func (s *Server) watchEvents(ctx context.Context, in *eventsInput) (*huma.StreamResponse, error) {
	text := in.Last
	if text == "" {
		text = in.After
	}
	var after int64
	var err error
	if text == "" {
		after, err = s.events.LastID(ctx)
	} else {
		after, err = cursor(text)
	}
	if err != nil {
		return nil, err
	}
	return s.stream(func(ctx context.Context, send func(id int64, e progress.Event) error) error {
		return s.events.WatchAll(ctx, after, func(e progress.Stored) error {
			if !progress.Match(in.Subject, e.Event.Subject) {
				return nil
			}
			return send(e.ID, e.Event)
		})
	}), nil
}

// sse is one message, or a comment when it has no data.
type sse struct {
	id   int64
	data []byte
}

// stream writes server-sent events (HTML Living Standard §9.2) until the client goes or the server stops.
func (s *Server) stream(watch func(context.Context, func(int64, progress.Event) error) error) *huma.StreamResponse {
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		hc.SetHeader("Content-Type", "text/event-stream")
		hc.SetHeader("X-Accel-Buffering", "no") // nginx would hold the stream back
		hc.SetStatus(http.StatusOK)
		w, ok := hc.BodyWriter().(http.ResponseWriter)
		if !ok {
			return
		}
		rc := http.NewResponseController(w)
		ctx, cancel := context.WithCancel(hc.Context())
		defer cancel()
		g, ctx := errgroup.WithContext(ctx)
		out := make(chan sse)
		g.Go(func() error {
			return watch(ctx, func(id int64, e progress.Event) error {
				data, err := json.Marshal(e)
				if err != nil {
					return fmt.Errorf("encode the event: %w", err)
				}
				select {
				case out <- sse{id, data}:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			})
		})
		g.Go(func() error { return s.writeStream(ctx, w, rc, out) })
		if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, errDraining) {
			s.log.DebugContext(hc.Context(), "event stream ended", "request_id", requestOf(hc.Context()).id, "error", err)
		}
	}}
}

// stillValid ends a stream whose key was revoked or has expired since: streams last for days. That the control database
// does not answer ends none.
func (s *Server) stillValid(ctx context.Context) error {
	p := requestOf(ctx).principal
	if p == nil || p.operator {
		return nil
	}
	var ended bool
	err := s.pool.QueryRow(ctx, `SELECT NOT EXISTS (SELECT FROM rehome_control.api_clients
		WHERE id = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $2))`, p.client, s.cfg.Now()).Scan(&ended)
	if err == nil && ended {
		return errBadCredentials
	}
	return nil
}

func (s *Server) writeStream(ctx context.Context, w http.ResponseWriter, rc *http.ResponseController, in <-chan sse) error {
	beat := time.NewTicker(heartbeatEvery)
	defer beat.Stop()
	// The first comment lets the client know that the stream stands.
	if _, err := w.Write([]byte(": rehome\n\n")); err != nil {
		return err
	}
	for {
		if err := rc.Flush(); err != nil {
			return err
		}
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.draining:
			return errDraining
		case <-beat.C:
			if err := s.stillValid(ctx); err != nil {
				return err
			}
			_, err = w.Write([]byte(": \n\n"))
		case m := <-in:
			_, err = fmt.Fprintf(w, "id: %d\ndata: %s\n\n", m.id, m.data)
		}
		if err != nil {
			return err
		}
	}
}
