package supervisor

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/internal/seal"
	"github.com/rehomedb/rehome/migrations"
	"github.com/rehomedb/rehome/progress"
	"github.com/rehomedb/rehome/server/api"
	"github.com/rehomedb/rehome/server/cutover"
	"github.com/rehomedb/rehome/shard"
	"github.com/rehomedb/rehome/tenant"
)

var cluster *pgcluster.Cluster

func TestMain(m *testing.M) {
	code := pgcluster.Main(m, pgcluster.Options{Settings: map[string]string{"max_connections": "300", "max_replication_slots": "40", "max_wal_senders": "40"}}, &cluster)
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// patience is how long a test waits for what must happen.
const patience = 120 * time.Second

// world is an installation with one shard, a source, and a replication between them.
type world struct {
	t       *testing.T
	pool    *pgxpool.Pool
	box     *seal.Box
	cat     *shard.Catalogue
	source  *pgx.Conn
	target  tenant.DSN
	id      string // of the replication
	name    string // of the database
	private ed25519.PrivateKey
}

const itemsDDL = `CREATE TABLE items (realm_id text NOT NULL, id bigint PRIMARY KEY, n int);
	INSERT INTO items SELECT 'r' || (g % 20), g, 0 FROM generate_series(1, 200) g;`

func newWorld(t *testing.T, ddl string) *world {
	t.Helper()
	ctx := t.Context()
	w := &world{t: t, id: "t" + strings.ToLower(rand.Text()[:11]), name: "db" + strings.ToLower(rand.Text()[:10])}
	control := pgcluster.NewDatabase(t, cluster)
	cfg, err := pgx.ParseConfig(control.Reveal())
	must(t, err)
	_, err = migrations.Up(ctx, cfg)
	must(t, err)
	w.pool, err = pgxpool.New(ctx, control.Reveal())
	must(t, err)
	t.Cleanup(w.pool.Close)
	w.box, err = seal.New(tenant.Secret(strings.Repeat("s", seal.MinSecret)))
	must(t, err)
	_, w.private, err = ed25519.GenerateKey(nil)
	must(t, err)
	w.cat = shard.New(w.pool, w.box, slog.New(slog.DiscardHandler))
	_, err = w.cat.AddShard(ctx, shard.AddRequest{Name: "eu-1", DSN: cluster.DSN("postgres"), Weight: 100})
	must(t, err)
	_, err = w.cat.CreateDatabase(ctx, shard.CreateRequest{Name: w.name, Owner: "owner@example.org"})
	must(t, err)
	t.Cleanup(func() {
		c := open(t, cluster.DSN("postgres"))
		exec(t, c, "DROP DATABASE IF EXISTS "+tenant.QuoteIdent(w.name)+" WITH (FORCE)")
	})
	w.target, err = w.cat.DatabaseDSN(ctx, w.name, "eu-1")
	must(t, err)
	source := pgcluster.NewDatabase(t, cluster)
	w.source = open(t, source)
	t.Cleanup(func() { // a slot left behind would keep the source's database from being dropped
		exec(t, w.source, `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active_pid IS NOT NULL`, "rehome_"+w.id)
		eventually(t, "the slot is dropped", func() bool {
			_, err := w.source.Exec(context.Background(), `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1`, "rehome_"+w.id)
			return err == nil
		})
	})
	exec(t, w.source, ddl)
	w.start(source, tenant.State{Phase: tenant.Created})
	return w
}

// start records a replication, as the server does after its approval.
func (w *world) start(source tenant.DSN, st tenant.State) {
	w.t.Helper()
	state, err := json.Marshal(st)
	must(w.t, err)
	_, err = w.pool.Exec(w.t.Context(), `INSERT INTO rehome_control.replications (id, database, source_dsn_sealed, source_label, target_url, options, state, phase, slot_name, publication, placement_epoch)
		VALUES ($1, $2, $3, $4, 'https://own.example/acme', '{"accept":[]}', $5, $6, $7, $7, 1)`,
		w.id, w.name, w.box.Seal("source-dsn", source.Reveal()), source.String(), string(state), string(st.Phase), "rehome_"+w.id)
	must(w.t, err)
}

// supervisor makes one of the servers that share the control database.
func (w *world) supervisor(server string) *Supervisor {
	return New(Config{
		Pool: w.pool, Seal: w.box, Catalogue: w.cat, Log: progress.NewLog(w.pool, "inst", "https://own.example"), Gateway: noGateways{},
		Signer: cutover.Signer{Installation: "inst", Key: w.private}, Server: server,
		Logger: slog.New(slog.NewTextHandler(testWriter{w.t}, &slog.HandlerOptions{Level: slog.LevelInfo})).With("server", server),
	})
}

// serve runs a supervisor until stop, which waits for it.
func (w *world) serve(server string) (stop func()) {
	s := w.supervisor(server)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("server %s: %v", server, err)
		}
	})
	w.t.Cleanup(stop)
	return stop
}

type noGateways struct{}

func (noGateways) Hold(context.Context, string, string, time.Time) (func(), []string, error) {
	return func() {}, nil, nil
}

func (noGateways) Switch(context.Context, string, string, int64, bool, ...string) error { return nil }

// ask records a command and returns its id.
func (w *world) ask(kind string, args api.CommandArgs) string {
	w.t.Helper()
	id := strings.ToLower(rand.Text()[:12])
	raw, err := json.Marshal(args)
	must(w.t, err)
	_, err = w.pool.Exec(w.t.Context(), `INSERT INTO rehome_control.replication_commands (id, replication, kind, args, requested_by, created_at) VALUES ($1, $2, $3, $4, 'tester', clock_timestamp())`, id, w.id, kind, raw)
	must(w.t, err)
	_, err = w.pool.Exec(w.t.Context(), `SELECT pg_notify('rehome_commands', $1)`, w.id)
	must(w.t, err)
	return id
}

// answer waits for a command's end.
func (w *world) answer(id string) (result map[string]any, problem *api.Problem) {
	w.t.Helper()
	eventually(w.t, "an answer", func() bool {
		var res, prob []byte
		var done bool
		must(w.t, w.pool.QueryRow(w.t.Context(), `SELECT finished_at IS NOT NULL, result, error FROM rehome_control.replication_commands WHERE id = $1`, id).Scan(&done, &res, &prob))
		if !done {
			return false
		}
		if res != nil {
			must(w.t, json.Unmarshal(res, &result))
		}
		if prob != nil {
			problem = &api.Problem{}
			must(w.t, json.Unmarshal(prob, problem))
		}
		return true
	})
	return result, problem
}

func (w *world) state() (st tenant.State) {
	w.t.Helper()
	var raw []byte
	must(w.t, w.pool.QueryRow(w.t.Context(), `SELECT state FROM rehome_control.replications WHERE id = $1`, w.id).Scan(&raw))
	must(w.t, json.Unmarshal(raw, &st))
	return st
}

func (w *world) waitPhase(want tenant.Phase) {
	w.t.Helper()
	eventually(w.t, "phase "+string(want), func() bool {
		st := w.state()
		if st.Phase == tenant.Paused && want != tenant.Paused {
			w.t.Fatalf("paused: %s (%s)", st.Reason, st.Remedy)
		}
		return st.Phase == want
	})
}

func (w *world) holder() (name string) {
	w.t.Helper()
	must(w.t, w.pool.QueryRow(w.t.Context(), `SELECT coalesce(max(holder), '') FROM rehome_control.leases WHERE resource = $1 AND expires_at > now()`, resource(w.id)).Scan(&name))
	return name
}

// arrives waits until a row that is inserted at the source is at the shard.
func (w *world) arrives(id int) {
	w.t.Helper()
	exec(w.t, w.source, `INSERT INTO items VALUES ('r1', $1, 1)`, id)
	w.there(id)
}

func (w *world) there(id int) {
	w.t.Helper()
	c := open(w.t, w.target)
	defer func() { _ = c.Close(context.Background()) }()
	eventually(w.t, fmt.Sprintf("row %d at the shard", id), func() bool {
		return scalar[int](w.t, c, `SELECT count(*)::int FROM items WHERE id = $1`, id) == 1
	})
}

// events counts the events of a name.
func (w *world) events(name string) (n int) {
	w.t.Helper()
	must(w.t, w.pool.QueryRow(w.t.Context(), `SELECT count(*) FROM rehome_control.events WHERE stream = $1 AND event->>'type' LIKE '%' || $2`, w.id, name).Scan(&n))
	return n
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, dsn tenant.DSN) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(context.Background(), dsn.Reveal())
	must(t, err)
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

func exec(t testing.TB, c *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := c.Exec(context.Background(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func scalar[T any](t testing.TB, c *pgx.Conn, sql string, args ...any) (v T) {
	t.Helper()
	if err := c.QueryRow(context.Background(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
		<-tick.C
	}
}
