package server

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

const (
	maxIdempotencyKey = 255
	// idempotencyKept is how long an answer can be asked for again.
	idempotencyKept = 24 * time.Hour
	// idempotencyTakeover is when a request without an answer counts as lost although its server is there: no handler works
	// so long. What it may have done is guarded by its own means: codes are single use, names are unique.
	idempotencyTakeover = 10 * time.Minute
	// idempotencyAway is how long the gateway's lease of a server must be over until its requests count as lost with it: a
	// slow moment of the control database ends leases too.
	idempotencyAway = 10 * time.Second
	// idempotencyWait is how long a repeated request waits for the first one's answer: a client repeats what it lost the
	// answer of, usually because of a connection, while the first is still worked on.
	idempotencyWait = 8 * time.Second
	idempotencyPoll = 200 * time.Millisecond
	// keepPause is before an answer is kept once more, when the control database was away.
	keepPause = time.Second
	// purposeIdempotency seals kept answers: some of them carry a secret that is shown once.
	purposeIdempotency = "idempotent-answer"
)

var (
	errKeyReused = &tenant.Error{
		Kind: tenant.KindInvalid, Code: "idempotency-key-reused", Message: "this Idempotency-Key was used for another request",
		Hint: "use a new key for a new request",
	}
	errKeyBusy = &tenant.Error{
		Kind: tenant.KindConflict, Code: "request-in-progress", Message: "the request with this Idempotency-Key is still being worked on",
		Hint: "ask again in a moment",
	}
	errKeyLong = &tenant.Error{Kind: tenant.KindInvalid, Code: "bad-idempotency-key", Message: "the Idempotency-Key is too long", Hint: "use at most 255 characters"}
)

// keptAnswer is what a repeated request gets.
type keptAnswer struct {
	ContentType string `json:"content_type"`
	Location    string `json:"location,omitempty"`
	Body        []byte `json:"body"`
}

// idempotent answers a repeated POST with the first one's answer.
func (s *Server) idempotent(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := r.Header.Get("Idempotency-Key")
		rq := requestOf(r.Context())
		if r.Method != http.MethodPost || key == "" || rq.principal == nil {
			next.ServeHTTP(w, r)
			return
		}
		if len(key) > maxIdempotencyKey {
			s.writeProblem(w, r, errKeyLong)
			return
		}
		body, err := io.ReadAll(r.Body)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			s.writeProblem(w, r, fromHuma(&huma.ErrorModel{Status: http.StatusRequestTimeout}, rq.id))
			return
		}
		if err != nil {
			s.writeProblem(w, r, &tenant.Error{Kind: tenant.KindInvalid, Code: "too-large", Message: "the request's body is too large or incomplete", Err: err})
			return
		}
		mac := hmac.New(sha256.New, s.box.Derive("idempotency"))
		_, _ = fmt.Fprintf(mac, "%s %s\n", r.Method, r.URL.RequestURI())
		_, _ = mac.Write(body)
		hash, deadline := mac.Sum(nil), time.Now().Add(idempotencyWait)
		status, answer, err := s.claimKey(r.Context(), rq.principal.client, key, hash)
		for errors.Is(err, errKeyBusy) && time.Now().Before(deadline) && s.pause(r.Context(), idempotencyPoll) {
			status, answer, err = s.claimKey(r.Context(), rq.principal.client, key, hash)
		}
		if err != nil {
			s.writeProblem(w, r, err)
			return
		}
		if answer != nil {
			w.Header().Set("Content-Type", answer.ContentType)
			w.Header().Set("Idempotent-Replayed", "true")
			w.WriteHeader(status)
			_, _ = w.Write(answer.Body)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		rec := &recorder{ResponseWriter: w}
		defer func() { s.keepAnswer(r.Context(), rq.principal.client, key, rec) }()
		next.ServeHTTP(rec, r)
	})
}

// claimKey takes the key for this request, or finds the answer of an earlier one. It takes over from a server that has gone: one
// without a lease, and a former start of this one.
func (s *Server) claimKey(ctx context.Context, client, key string, hash []byte) (int, *keptAnswer, error) {
	now := s.cfg.Now()
	tag, err := s.pool.Exec(ctx, `INSERT INTO rehome_control.idempotency_keys AS k (client, key, request_hash, created_at, server) VALUES ($1,$2,$3,$4,$7)
		ON CONFLICT (client, key) DO UPDATE SET created_at = $4, request_hash = $3, server = $7, status = NULL, response = NULL
		WHERE k.created_at < $5 OR (k.status IS NULL AND k.request_hash = $3 AND (k.created_at < $6 OR (k.server = $7 AND k.created_at < $8)
			OR NOT EXISTS (SELECT FROM rehome_control.gateways g WHERE g.server = k.server AND g.lease_expires_at > clock_timestamp() - make_interval(secs => $9))))`,
		client, key, hash, now, now.Add(-idempotencyKept), now.Add(-idempotencyTakeover), s.name, s.started, idempotencyAway.Seconds())
	if err != nil {
		return 0, nil, fmt.Errorf("claim the idempotency key: %w", err)
	}
	if tag.RowsAffected() == 1 {
		return 0, nil, nil
	}
	var was, sealed []byte
	var status *int
	err = s.pool.QueryRow(ctx, `SELECT request_hash, status, response FROM rehome_control.idempotency_keys WHERE client = $1 AND key = $2`, client, key).Scan(&was, &status, &sealed)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return 0, nil, errKeyBusy // given back in this moment
	case err != nil:
		return 0, nil, fmt.Errorf("read the idempotency key: %w", err)
	case !hmac.Equal(was, hash):
		return 0, nil, errKeyReused
	case status == nil:
		return 0, nil, errKeyBusy
	}
	plain, err := s.box.Open(purposeIdempotency, sealed)
	if err != nil {
		return 0, nil, fmt.Errorf("open the kept answer: %w", err)
	}
	var answer keptAnswer
	if err := json.Unmarshal([]byte(plain), &answer); err != nil {
		return 0, nil, fmt.Errorf("read the kept answer: %w", err)
	}
	return *status, &answer, nil
}

// keepAnswer keeps what was answered, or gives the key back when asking again makes sense. While the control database is away it
// tries again: a key without an answer has the client wait.
func (s *Server) keepAnswer(ctx context.Context, client, key string, rec *recorder) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), auditTimeout)
	defer cancel()
	err := s.keepOnce(ctx, client, key, rec)
	for err != nil && s.pause(ctx, keepPause) {
		err = s.keepOnce(ctx, client, key, rec)
	}
	if err != nil {
		s.log.WarnContext(ctx, "keep an idempotent answer", "error", err)
	}
}

// keepOnce leaves alone what another server has taken over meanwhile.
func (s *Server) keepOnce(ctx context.Context, client, key string, rec *recorder) error {
	if rec.status == 0 || rec.status >= http.StatusInternalServerError || rec.status == http.StatusTooManyRequests {
		_, err := s.pool.Exec(ctx, `DELETE FROM rehome_control.idempotency_keys WHERE client = $1 AND key = $2 AND server = $3 AND status IS NULL`, client, key, s.name)
		return err
	}
	plain, err := json.Marshal(keptAnswer{ContentType: rec.Header().Get("Content-Type"), Body: rec.body.Bytes()})
	if err != nil {
		return err
	}
	_, err = s.pool.Exec(ctx, `UPDATE rehome_control.idempotency_keys SET status = $3, response = $4 WHERE client = $1 AND key = $2 AND server = $5`,
		client, key, rec.status, s.box.Seal(purposeIdempotency, string(plain)), s.name)
	return err
}

// recorder passes an answer on and keeps a copy.
type recorder struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
}

// WriteHeader implements http.ResponseWriter.
func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	r.body.Write(b)
	return r.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
