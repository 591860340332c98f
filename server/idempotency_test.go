package server

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

func TestIdempotency(t *testing.T) {
	t.Parallel()
	b := setup(t)
	key := withHeader("Idempotency-Key", "once")
	req := api.ClientRequest{Email: "twice@example.com"}
	first, second := b.must("POST", "/v1/clients", req, nil, key), b.must("POST", "/v1/clients", req, nil, key)
	if first.status != second.status || !bytes.Equal(first.body, second.body) || second.header.Get("Idempotent-Replayed") != "true" {
		t.Fatalf("got %d %s and %d %s", first.status, first.body, second.status, second.body)
	}
	var n int
	if err := b.pool.QueryRow(t.Context(), `SELECT count(*) FROM rehome_control.api_clients WHERE email = 'twice@example.com'`).Scan(&n); err != nil || n != 1 {
		t.Fatalf("%d clients, %v", n, err)
	}
	b.refused(b.do("POST", "/v1/clients", api.ClientRequest{Email: "other@example.com"}, nil, key), 422, tenant.KindInvalid, "idempotency-key-reused")
	// Another client's key of the same name is another key.
	other := b.client(api.ClientRequest{Scopes: []string{"admin"}})
	b.must("POST", "/v1/clients", api.ClientRequest{Email: "other@example.com"}, nil, key, withKey(other))
	// A refusal is kept too, so that a retry does not do what was refused.
	refused := withHeader("Idempotency-Key", "refused")
	b.refused(b.do("POST", "/v1/clients", api.ClientRequest{Email: "bad"}, nil, refused), 422, tenant.KindInvalid, "bad-email")
	a := b.do("POST", "/v1/clients", api.ClientRequest{Email: "bad"}, nil, refused)
	b.refused(a, 422, tenant.KindInvalid, "bad-email")
	if a.header.Get("Idempotent-Replayed") == "" {
		t.Error("the refusal was computed anew")
	}
	// Answers carry secrets that are shown once: they are kept sealed.
	var kept []byte
	if err := b.pool.QueryRow(t.Context(), `SELECT response FROM rehome_control.idempotency_keys WHERE key = 'once' AND client = 'operator'`).Scan(&kept); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(kept, []byte("twice@example.com")) {
		t.Error("the answer is kept in the open")
	}
	// A request that is still worked on.
	b.exec(`UPDATE rehome_control.idempotency_keys SET status = NULL, response = NULL WHERE key = 'once'`)
	b.refused(b.do("POST", "/v1/clients", req, nil, key), 409, tenant.KindConflict, "request-in-progress")
	// One whose server has gone: nobody works on it any more.
	for _, gone := range []string{`server = 'another'`, `created_at = '` + b.started.Add(-time.Minute).Format(time.RFC3339) + `'`} {
		b.exec(`UPDATE rehome_control.idempotency_keys SET status = NULL, response = NULL, ` + gone + ` WHERE key = 'once'`)
		if a := b.must("POST", "/v1/clients", req, nil, key); a.header.Get("Idempotent-Replayed") != "" || bytes.Equal(a.body, first.body) {
			t.Errorf("%s: answered %s", gone, a.body)
		}
		if a := b.must("POST", "/v1/clients", req, nil, key); a.header.Get("Idempotent-Replayed") == "" {
			t.Errorf("%s: done once more", gone)
		}
	}
	b.refused(b.do("POST", "/v1/clients", req, nil, withHeader("Idempotency-Key", strings.Repeat("k", 300))), 422, tenant.KindInvalid, "bad-idempotency-key")
	b.clock.advance(idempotencyKept + time.Hour)
	if err := b.prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a := b.must("POST", "/v1/clients", req, nil, key); a.header.Get("Idempotent-Replayed") != "" || bytes.Equal(a.body, first.body) {
		t.Error("an old key was remembered")
	}
}
