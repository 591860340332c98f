package workload

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"

	"github.com/rehomedb/rehome/tenant"
)

const (
	// maxBody is more than the largest document that the writers send.
	maxBody = 8 << 20
	// heartbeatEvery is how often a WebSocket hears from the application.
	heartbeatEvery = 250 * time.Millisecond
	// SideHeader says in each answer which application it came from.
	SideHeader = "Workload-Side"
)

// App is the HTTP application in front of a backend:
//
//	POST /realms/{realm}/transfers     Op with a Transfer      201 done, 200 it had been done already
//	POST /realms/{realm}/documents     Op with a DocumentEdit  likewise
//	GET  /realms/{realm}/events/{id}                           200 or 404
//	GET  /ws                                                   a WebSocket with heartbeats
//
// At a fence it answers 503 with Retry-After: 0 and {"code":"moved","hint":…}; a write that breaks a rule gets 422.
// It runs on the source as on the shards: only the backend differs.
type App struct {
	Backend Backend
	Side    string // "source" or "shards"; goes into SideHeader
	Logger  *slog.Logger
}

// Answer is the body of every answer.
type Answer struct {
	Code  string `json:"code"` // done, already, moved, refused, invalid, not-found, failed
	Hint  string `json:"hint,omitempty"`
	Error string `json:"error,omitempty"`
}

// Handler is the application's routes.
func (a *App) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /realms/{realm}/transfers", func(w http.ResponseWriter, r *http.Request) { a.write(w, r, KindTransfer) })
	mux.HandleFunc("POST /realms/{realm}/documents", func(w http.ResponseWriter, r *http.Request) { a.write(w, r, KindDocument) })
	mux.HandleFunc("GET /realms/{realm}/events/{id}", a.event)
	mux.HandleFunc("GET /ws", a.socket)
	return mux
}

func (a *App) write(w http.ResponseWriter, r *http.Request, kind Kind) {
	var op Op
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&op); err != nil {
		a.answer(w, http.StatusBadRequest, Answer{Code: "invalid", Error: "the body is not JSON"})
		return
	}
	op.Realm, op.Kind = r.PathValue("realm"), kind
	pool, err := a.Backend.Pool(op.Realm)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	already, err := Apply(r.Context(), pool, op)
	switch {
	case err != nil:
		a.fail(w, r, err)
	case already:
		a.answer(w, http.StatusOK, Answer{Code: "already"})
	default:
		a.answer(w, http.StatusCreated, Answer{Code: "done"})
	}
}

func (a *App) event(w http.ResponseWriter, r *http.Request) {
	pool, err := a.Backend.Pool(r.PathValue("realm"))
	if err != nil {
		a.fail(w, r, err)
		return
	}
	done, err := Done(r.Context(), pool, r.PathValue("realm"), r.PathValue("id"))
	switch {
	case err != nil:
		a.fail(w, r, err)
	case done:
		a.answer(w, http.StatusOK, Answer{Code: "done"})
	default:
		a.answer(w, http.StatusNotFound, Answer{Code: "not-found"})
	}
}

// Heartbeat is what a WebSocket hears.
type Heartbeat struct {
	Type string    `json:"type"` // "heartbeat"
	Side string    `json:"side"`
	At   time.Time `json:"at"`
}

func (a *App) socket(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(SideHeader, a.Side)
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true}) // any origin: it serves no secrets
	if err != nil {
		a.Logger.DebugContext(r.Context(), "websocket not accepted", "error", err)
		return
	}
	defer conn.CloseNow()
	ctx := conn.CloseRead(r.Context())
	tick := time.NewTicker(heartbeatEvery)
	defer tick.Stop()
	for {
		if err := wsjson.Write(ctx, conn, Heartbeat{Type: "heartbeat", Side: a.Side, At: time.Now().UTC()}); err != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// fail answers an error. Whether a write was done is known for a fence and a broken rule only.
func (a *App) fail(w http.ResponseWriter, r *http.Request, err error) {
	switch {
	case errors.Is(err, ErrMoved):
		w.Header().Set("Retry-After", "0")
		a.answer(w, http.StatusServiceUnavailable, Answer{Code: ErrMoved.Code, Hint: tenant.AsError(err).Hint})
	case errors.Is(err, ErrRefused):
		a.answer(w, http.StatusUnprocessableEntity, Answer{Code: ErrRefused.Code, Error: err.Error()})
	default:
		a.Logger.WarnContext(r.Context(), "request failed", "path", r.URL.Path, "error", err)
		a.answer(w, http.StatusInternalServerError, Answer{Code: "failed"})
	}
}

func (a *App) answer(w http.ResponseWriter, status int, body Answer) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set(SideHeader, a.Side)
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		a.Logger.Debug("answer not sent", "error", err)
	}
}
