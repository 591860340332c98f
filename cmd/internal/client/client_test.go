package client

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/tenant"
)

const bearer = "client1:very-secret"

func newClient(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	c, err := New(Options{Base: srv.URL, Bearer: bearer, FirstPause: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func problem(w http.ResponseWriter, p api.Problem) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p)
}

func TestCredentialsStayAtTheirHost(t *testing.T) {
	t.Parallel()
	for _, status := range []int{301, 302, 303, 307, 308} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			var reached sync.Once
			leaked := false
			thief := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Do(func() { leaked = true }) }))
			c := newClient(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, thief.URL+r.URL.Path, status) })
			var err error
			if method == http.MethodGet {
				_, err = c.Shards(t.Context())
			} else {
				_, err = c.AddShard(t.Context(), api.ShardRequest{Name: "a", DSN: "postgres://u:pw@h/d"})
			}
			thief.Close()
			var e *tenant.Error
			if !errors.As(err, &e) || e.Code != "cross-host-redirect" || e.Kind != tenant.KindRefused || !strings.Contains(e.Message, thief.URL) {
				t.Errorf("%d %s: got %v", status, method, err)
			}
			if leaked {
				t.Errorf("%d %s: the other host was asked", status, method)
			}
		}
	}
}

func TestSameHostRedirectIsFollowed(t *testing.T) {
	t.Parallel()
	c := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/shards" {
			http.Redirect(w, r, "/v1/other", http.StatusTemporaryRedirect)
			return
		}
		if r.Header.Get("Authorization") != "Bearer "+bearer {
			t.Errorf("credentials are missing after a redirect at the same host")
		}
		_, _ = io.WriteString(w, `[]`)
	})
	if _, err := c.Shards(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestProblemBecomesError(t *testing.T) {
	t.Parallel()
	finding := tenant.Finding{Severity: tenant.Blocking, Code: "wal-level", Object: "server", Message: "wal_level is replica", Remedy: "set it"}
	for kind := tenant.KindInternal; kind <= tenant.KindUnavailable; kind++ {
		c := newClient(t, func(w http.ResponseWriter, _ *http.Request) {
			problem(w, api.Problem{Status: kind.HTTPStatus(), Title: "T", Detail: "what failed", Code: "some-code", Kind: kind.String(), Hint: "do this", Findings: []tenant.Finding{finding}})
		})
		_, err := c.Preflight(t.Context(), api.PlanRequest{})
		want := &tenant.Error{Kind: kind, Code: "some-code", Message: "what failed", Hint: "do this", Findings: []tenant.Finding{finding}}
		var got *tenant.Error
		if !errors.As(err, &got) {
			t.Fatalf("%s: got %v", kind, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", kind, diff)
		}
	}
}

func TestStatusWithoutProblem(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]tenant.Kind{401: tenant.KindUnauthorised, 403: tenant.KindUnauthorised, 404: tenant.KindNotFound, 409: tenant.KindConflict, 500: tenant.KindInternal, 502: tenant.KindUnavailable} {
		c := newPlace(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, "<html>")
		})
		_, err := c.Shards(t.Context())
		var e *tenant.Error
		if !errors.As(err, &e) || e.Kind != want {
			t.Errorf("%d: got %v", status, err)
		}
	}
}

func TestRetriesWithTheSameKey(t *testing.T) {
	t.Parallel()
	var keys, bodies []string
	c := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		keys, bodies = append(keys, r.Header.Get("Idempotency-Key")), append(bodies, string(b))
		switch len(keys) {
		case 1: // the connection breaks after the server has worked
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			_ = conn.Close()
		case 2: // the first request is still at work
			problem(w, api.Problem{Status: 409, Code: "request-in-progress", Kind: "conflict", Detail: "busy"})
		case 3:
			w.WriteHeader(http.StatusBadGateway)
		default:
			_, _ = io.WriteString(w, `{"name":"eu-1"}`)
		}
	})
	s, err := c.AddShard(t.Context(), api.ShardRequest{Name: "eu-1"})
	if err != nil || s.Name != "eu-1" {
		t.Fatalf("got %v, %v", s, err)
	}
	if len(keys) != 4 || keys[0] == "" || keys[1] != keys[0] || keys[3] != keys[0] || bodies[3] != bodies[0] || bodies[0] == "" {
		t.Errorf("tries are not the same request: keys %q, bodies %q", keys, bodies)
	}
	if _, err := c.AddShard(t.Context(), api.ShardRequest{Name: "eu-1"}); err != nil {
		t.Fatal(err)
	}
	if keys[4] == keys[0] {
		t.Error("another request has the same key")
	}
}

func TestRefusalsAreNotRetried(t *testing.T) {
	t.Parallel()
	n := 0
	c := newClient(t, func(w http.ResponseWriter, _ *http.Request) {
		n++
		problem(w, api.Problem{Status: 504, Code: "restored", Kind: "timeout", Detail: "the former state is restored"})
	})
	_, err := c.Cutover(t.Context(), api.CutoverRequest{CutoverPlan: api.CutoverPlan{Replication: "x"}})
	var e *tenant.Error
	if !errors.As(err, &e) || e.Kind != tenant.KindTimeout || n != 1 {
		t.Fatalf("got %v after %d tries", err, n)
	}
}

// A PUT has no Idempotency-Key at the server and carries a code that is used once.
func TestPutIsNotRepeatedOnceSent(t *testing.T) {
	t.Parallel()
	var n atomic.Int32
	c := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			_, _ = io.WriteString(w, `[]`)
			return
		}
		n.Add(1)
		if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
			_ = conn.Close()
		}
	})
	if _, err := c.Shards(t.Context()); err != nil { // its connection is kept: net/http repeats by itself on such, where it may
		t.Fatal(err)
	}
	_, err := c.SetRedirect(t.Context(), api.RedirectRequest{RedirectPlan: api.RedirectPlan{Database: "acme"}})
	if err == nil || n.Load() != 1 {
		t.Fatalf("got %v after %d tries", err, n.Load())
	}
}

func TestNotAnInstallation(t *testing.T) {
	t.Parallel()
	c := newClient(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>welcome</html>") })
	_, err := c.Shards(t.Context())
	var e *tenant.Error
	if !errors.As(err, &e) || e.Code != "no-installation" {
		t.Fatalf("got %v", err)
	}
}
