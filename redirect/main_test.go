package redirect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/migrations"
	"github.com/rehomedb/rehome/tenant"
)

var cluster *pgcluster.Cluster

func TestMain(m *testing.M) {
	code := pgcluster.Main(m, pgcluster.Options{}, &cluster)
	http.DefaultClient.CloseIdleConnections()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// clock is a time that tests move.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

type bundle struct {
	*Gateway
	pool  *pgxpool.Pool
	clock *clock
	srv   *httptest.Server
	http  *http.Client
}

// setup makes a control database, a gateway on it and an HTTP server with the gateway's hooks.
func setup(t *testing.T, change func(*Config)) *bundle {
	t.Helper()
	dsn := pgcluster.NewDatabase(t, cluster)
	cfg, err := pgx.ParseConfig(dsn.Reveal())
	must(t, err)
	_, err = migrations.Up(t.Context(), cfg)
	must(t, err)
	pool, err := pgxpool.New(t.Context(), dsn.Reveal())
	must(t, err)
	t.Cleanup(pool.Close)
	b := &bundle{pool: pool, clock: &clock{t: time.Now().Truncate(time.Second)}}
	c := Config{Pool: pool, Now: b.clock.now, Server: "one", UsageStats: true}
	if change != nil {
		change(&c)
	}
	b.Gateway = New(c)
	b.srv = b.serve(t, b.Gateway)
	b.http = client(t)
	return b
}

func (b *bundle) serve(t *testing.T, g *Gateway) *httptest.Server {
	srv := httptest.NewUnstartedServer(g)
	srv.Config.ConnContext = g.ConnContext
	srv.Config.ConnState = g.ConnState
	srv.Start()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		defer cancel()
		must(t, g.Drain(ctx))
		srv.Close()
		g.transport.CloseIdleConnections()
	})
	return srv
}

func client(t *testing.T) *http.Client {
	tr := &http.Transport{MaxIdleConnsPerHost: 100}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// run runs the gateway until the test's end.
func (b *bundle) run(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-done)
	})
}

func (b *bundle) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	_, err := b.pool.Exec(t.Context(), sql, args...)
	must(t, err)
}

// database records one and lets the gateway know.
func (b *bundle) database(t *testing.T, name, upstream string) {
	t.Helper()
	b.exec(t, `INSERT INTO rehome_control.databases (name, kind, upstream_url, placement_epoch) VALUES ($1, 'sharded', $2, 1)`, name, upstream)
	must(t, b.Reload(t.Context()))
}

func (b *bundle) state(t *testing.T, name, state string) {
	t.Helper()
	b.exec(t, `UPDATE rehome_control.databases SET state = $2 WHERE name = $1`, name, state)
	must(t, b.Reload(t.Context()))
}

// hold holds a database, and fails the test where that is not possible.
func (b *bundle) hold(t *testing.T, database string, until time.Time) (release func()) {
	t.Helper()
	release, culprits, err := b.Hold(t.Context(), database, "attempt", until)
	must(t, err)
	if len(culprits) > 0 {
		t.Errorf("culprits: %s", culprits)
	}
	return release
}

type answer struct {
	status int
	header http.Header
	body   string
	prob   problem
}

func (b *bundle) do(t *testing.T, method, path string, header ...string) answer {
	t.Helper()
	a, err := b.try(t.Context(), method, path, nil, header...)
	must(t, err)
	return a
}

func (b *bundle) try(ctx context.Context, method, path string, body io.Reader, header ...string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, b.srv.URL+path, body)
	if err != nil {
		return answer{}, err
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return b.answerOf(req)
}

// send sends a request and fails the test where nobody answers.
func (b *bundle) send(t *testing.T, req *http.Request) answer {
	t.Helper()
	a, err := b.answerOf(req)
	must(t, err)
	return a
}

func (b *bundle) answerOf(req *http.Request) (answer, error) {
	resp, err := b.http.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	a := answer{status: resp.StatusCode, header: resp.Header, body: string(raw)}
	if resp.Header.Get("Content-Type") == "application/problem+json" {
		err = errors.Join(err, json.Unmarshal(raw, &a.prob))
	}
	return a, err
}

// app is an upstream that tells what it got.
func app(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	if h == nil {
		h = func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			_, _ = fmt.Fprintf(w, "%s %s host=%s body=%s", r.Method, r.URL.RequestURI(), r.Host, body)
			for _, n := range []string{"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Prefix", "Authorization", "Cookie", "Via"} {
				_, _ = fmt.Fprintf(w, " %s=%s", n, strings.Join(r.Header.Values(n), "|"))
			}
		}
	}
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv
}

// eventually polls a condition.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
		wait(t.Context(), 5*time.Millisecond)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wants(t *testing.T, err error, kind tenant.Kind, code string) {
	t.Helper()
	var e *tenant.Error
	if !errors.As(err, &e) || e.Kind != kind || e.Code != code {
		t.Fatalf("got %v, want %s %s", err, kind, code)
	}
}
