package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/otp"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/server/config"
	"github.com/rehomedb/rehome/tenant"
)

const (
	testSecret = "a secret of the tests that is long: enough"
	testURL    = "http://own.test"
	admin      = "admin@example.com"
	owner      = "owner@example.com"
	// patience is how long a test waits for what should take milliseconds, on a busy machine.
	patience = 90 * time.Second
)

var cluster *pgcluster.Cluster

func TestMain(m *testing.M) { os.Exit(pgcluster.Main(m, pgcluster.Options{}, &cluster)) }

// clock is a clock that tests move.
type clock struct {
	mu    sync.Mutex
	shift time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.shift)
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shift += d
}

// bundle is a running server and what a test needs of it.
type bundle struct {
	*Server
	t       *testing.T
	url     string
	mailbox string
	clock   *clock
	control tenant.DSN
	logs    *syncBuffer
	stop    func() error // asks for a stop and waits for its end
	broke   bool         // the server's error is what the test wanted
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func testConfig(control tenant.DSN, mailbox string, c *clock) config.Config {
	return config.Config{DatabaseURL: control, Secret: testSecret, URL: testURL, Listen: "127.0.0.1:0", EmailURL: tenant.Secret("file://" + mailbox), Now: c.now, DrainTimeout: 10 * time.Second}
}

// setup starts a server with a control database of its own.
func setup(t *testing.T, deps ...Deps) *bundle {
	t.Helper()
	return setupWith(t, func(*config.Config) {}, deps...)
}

// setupWith is setup with settings of its own.
func setupWith(t *testing.T, change func(*config.Config), deps ...Deps) *bundle {
	t.Helper()
	b := &bundle{t: t, mailbox: t.TempDir(), clock: &clock{}, control: pgcluster.NewDatabase(t, cluster), logs: &syncBuffer{}}
	cfg := testConfig(b.control, b.mailbox, b.clock)
	change(&cfg)
	if _, err := Init(t.Context(), cfg, InitRequest{AdminEmail: admin}); err != nil {
		t.Fatal(err)
	}
	var d Deps
	if len(deps) > 0 {
		d = deps[0]
	}
	b.serve(cfg, d)
	return b
}

// serve runs a server until the test ends.
func (b *bundle) serve(cfg config.Config, d Deps) {
	b.t.Helper()
	d.Logger = slog.New(slog.NewJSONHandler(b.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	s, err := New(b.t.Context(), cfg, d)
	if err != nil {
		b.t.Fatal(err)
	}
	b.Server, b.url = s, "http://"+s.Addr().String()
	ctx, cancel := context.WithCancel(context.WithoutCancel(b.t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	b.stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(patience):
			return errors.New("the server did not stop")
		}
	})
	stop := b.stop // a bundle may be served again
	b.t.Cleanup(func() {
		if err := stop(); err != nil && !b.broke {
			b.t.Errorf("stop: %v", err)
		}
	})
	b.eventually("the server answers", func() bool {
		status, _ := b.get("/livez")
		return status == http.StatusOK
	})
}

func (b *bundle) eventually(what string, f func() bool) {
	b.t.Helper()
	deadline := time.Now().Add(patience)
	for !f() {
		if time.Now().After(deadline) {
			b.t.Fatalf("waited in vain: %s\n%s", what, b.logs)
		}
		<-time.After(20 * time.Millisecond) // between two looks at the condition
	}
}

// get reads what is open to everybody.
func (b *bundle) get(path string) (int, string) { return b.try(http.MethodGet, path, withKey("")) }

// try sends a request as the operator; status 0 says that there was no answer. It may be used from any goroutine.
func (b *bundle) try(method, path string, opts ...option) (int, string) {
	req, err := http.NewRequestWithContext(b.t.Context(), method, b.url+path, nil)
	if err != nil {
		return 0, err.Error()
	}
	withKey(testSecret)(req)
	for _, o := range opts {
		o(req)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = resp.Body.Close() }()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body)
}

// answer is what an API request got.
type answer struct {
	status  int
	header  http.Header
	body    []byte
	problem api.Problem // when the status is no success
}

type option func(*http.Request)

func withKey(key string) option {
	return func(r *http.Request) {
		if key == "" {
			r.Header.Del("Authorization")
			return
		}
		r.Header.Set("Authorization", "Bearer "+key)
	}
}

func withHeader(name, value string) option {
	return func(r *http.Request) { r.Header.Set(name, value) }
}

// do sends an API request as the operator, unless options say otherwise, and decodes a success into out.
func (b *bundle) do(method, path string, in, out any, opts ...option) answer {
	b.t.Helper()
	var body io.Reader
	switch v := in.(type) {
	case nil:
	case string:
		body = strings.NewReader(v)
	default:
		raw, err := json.Marshal(in)
		if err != nil {
			b.t.Fatal(err)
		}
		body = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(b.t.Context(), method, b.url+path, body)
	if err != nil {
		b.t.Fatal(err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	withKey(testSecret)(req)
	for _, o := range opts {
		o(req)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		b.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer func() { _ = resp.Body.Close() }()
	a := answer{status: resp.StatusCode, header: resp.Header}
	if a.body, err = io.ReadAll(resp.Body); err != nil {
		b.t.Fatal(err)
	}
	if a.status >= 300 {
		if err := json.Unmarshal(a.body, &a.problem); err != nil {
			b.t.Fatalf("%s %s: %d is no problem document: %s", method, path, a.status, a.body)
		}
		if ct := resp.Header.Get("Content-Type"); ct != "application/problem+json" {
			b.t.Errorf("%s %s: the problem's content type is %s", method, path, ct)
		}
		return a
	}
	if out != nil {
		if err := json.Unmarshal(a.body, out); err != nil {
			b.t.Fatalf("%s %s: %v in %s", method, path, err, a.body)
		}
	}
	return a
}

// must is do for what has to succeed.
func (b *bundle) must(method, path string, in, out any, opts ...option) answer {
	b.t.Helper()
	a := b.do(method, path, in, out, opts...)
	if a.status >= 300 {
		b.t.Fatalf("%s %s: %d %s\n%s", method, path, a.status, a.body, b.logs)
	}
	return a
}

// refused checks a refusal's status, kind and code.
func (b *bundle) refused(a answer, status int, kind tenant.Kind, code string) {
	b.t.Helper()
	if a.status != status || a.problem.Kind != kind.String() || a.problem.Code != code {
		b.t.Fatalf("want %d %s %s, got %d %s\n%s", status, kind, code, a.status, a.body, b.logs)
	}
}

// client makes an API client and returns its key.
func (b *bundle) client(r api.ClientRequest) string {
	b.t.Helper()
	if r.Email == "" {
		r.Email = "client@example.com"
	}
	var c api.ClientCreated
	b.must(http.MethodPost, "/v1/clients", r, &c)
	return c.ID + ":" + c.Secret
}

// lastMail is the newest mail of a kind.
func (b *bundle) lastMail(kind string) otp.Mail {
	b.t.Helper()
	mails, err := otp.ReadMailbox(b.mailbox)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, m := range slices.Backward(mails) {
		if m.Kind == kind {
			return m
		}
	}
	b.t.Fatalf("no mail of kind %s among %d\n%s", kind, len(mails), b.logs)
	return otp.Mail{}
}

// audited counts audit rows.
func (b *bundle) audited(action, outcome, code string) int {
	b.t.Helper()
	var n int
	if err := b.pool.QueryRow(b.t.Context(), `SELECT count(*) FROM rehome_control.audit WHERE action = $1 AND outcome = $2 AND ($3 = '' OR detail->>'code' = $3 OR detail->>'reason' = $3)`,
		action, outcome, code).Scan(&n); err != nil {
		b.t.Fatal(err)
	}
	return n
}

func (b *bundle) exec(sql string, args ...any) {
	b.t.Helper()
	if _, err := b.pool.Exec(b.t.Context(), sql, args...); err != nil {
		b.t.Fatal(err)
	}
}

// addShard makes the tests' cluster a shard.
func (b *bundle) addShard(name string) {
	b.t.Helper()
	b.must(http.MethodPost, "/v1/shards", api.ShardRequest{Name: name, DSN: cluster.DSN("postgres").Reveal()}, nil)
}

// createDatabase makes a sharded database with a name that no other test has.
func (b *bundle) createDatabase() api.Database {
	b.t.Helper()
	name := "acme_" + strings.ToLower(rand.Text())[:10]
	var d api.Database
	b.must(http.MethodPost, "/v1/databases", api.DatabaseRequest{Name: name, Owner: owner}, &d)
	b.t.Cleanup(func() {
		conn, err := pgx.Connect(context.WithoutCancel(b.t.Context()), cluster.DSN("postgres").Reveal())
		if err != nil {
			b.t.Error(err)
			return
		}
		defer func() { _ = conn.Close(context.WithoutCancel(b.t.Context())) }()
		if _, err := conn.Exec(context.WithoutCancel(b.t.Context()), "DROP DATABASE IF EXISTS "+tenant.QuoteIdent(name)+" WITH (FORCE)"); err != nil {
			b.t.Error(err)
		}
	})
	return d
}

// sourceDatabase is a database to replicate from.
func sourceDatabase(t *testing.T) tenant.DSN {
	t.Helper()
	dsn := pgcluster.NewDatabase(t, cluster)
	conn, err := pgx.Connect(t.Context(), dsn.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	if _, err := conn.Exec(t.Context(), `CREATE TABLE notes (realm_id text NOT NULL, id bigint NOT NULL, body text, PRIMARY KEY (realm_id, id)); INSERT INTO notes VALUES ('a', 1, 'one')`); err != nil {
		t.Fatal(err)
	}
	return dsn
}
