package server

import (
	"context"
	"encoding/json"
	"net/http"
	"time"
)

// readyTimeout is below the one second after which common probes give up. One that did not answer within it counts as up as
// long as the gateway's lease is: it answered a question of the last seconds then, and a slow moment of the one control
// database must not take all servers out of a load balancer at once.
const readyTimeout = 900 * time.Millisecond

// health is what /readyz answers. A load balancer reads the status, a person the body.
type health struct {
	Ready           bool   `json:"ready"`
	ControlDatabase string `json:"control_database"` // up, down
	Draining        bool   `json:"draining"`
	NATS            string `json:"nats"` // up, down; down does not make the server unready: news wait in the control database
	Version         string `json:"version"`
}

// livez says that the process answers.
func (s *Server) livez(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte("ok\n"))
}

// readyz says whether requests should be sent here: the control database answers and the server is not stopping. That
// it is migrated is given: the server does not listen before.
func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	h := health{ControlDatabase: "up", Draining: s.isDraining(), NATS: "down", Version: s.cfg.Version}
	ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
	defer cancel()
	var one int
	if err := s.pool.QueryRow(ctx, "SELECT 1").Scan(&one); err != nil && (ctx.Err() == nil || !s.gateway.Believed()) {
		h.ControlDatabase = "down"
	}
	if s.news.Up() {
		h.NATS = "up"
	}
	h.Ready = h.ControlDatabase == "up" && !h.Draining
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if !h.Ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(h)
}
