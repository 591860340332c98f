package replicator_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/tenant"
)

var cluster *pgcluster.Cluster

func TestMain(m *testing.M) {
	code := pgcluster.Main(m, pgcluster.Options{Settings: map[string]string{"max_connections": "200", "max_replication_slots": "60", "max_wal_senders": "60"}}, &cluster)
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

const patience = 120 * time.Second

// rig is a source, its shards, and an engine between them.
type rig struct {
	t      *testing.T
	source tenant.DSN
	shards []replicator.Shard
	place  tenant.Placement
	opts   tenant.ReplicationOptions
	jour   *memory
	id     string
	epoch  int64
	srcDB  *pgx.Conn
	// lookers are sessions at the shards that only look.
	lookers []*pgx.Conn
	// spoolMemory is how much of transactions in progress the engine keeps in memory; 0: the default.
	spoolMemory int
	aheadFrom   int64 // from what size on transactions run ahead; 0: the default

	throttle     tenant.Throttle
	slotPatience time.Duration

	ended <-chan struct{} // closed when the engine that was started last has ended

	asking sync.Mutex // of askers, see total
	askers map[tenant.DSN]*pgx.Conn
}

// memory is a journal that lives as long as the test: what the control database keeps over a crash of the server.
type memory struct {
	mu      sync.Mutex
	state   tenant.State
	origin  *replicator.Origin
	changes []tenant.SourceChange
	notes   []string
	copies  []string
	// first, when set, is closed at the first table's end, where the engine then waits to be stopped.
	first chan struct{}
	// slow is how many milliseconds the note of a copied table takes.
	slow int
}

func (m *memory) Observe(_ context.Context, o tenant.Observation) (tenant.State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	next, _, err := tenant.Next(m.state, o)
	m.state = next
	return next, err
}

func (m *memory) SaveOrigin(_ context.Context, o replicator.Origin) error {
	raw, err := json.Marshal(o) // as the control database would
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.origin = &replicator.Origin{Catalogue: &catalog.Catalogue{}}
	return json.Unmarshal(raw, m.origin)
}

func (m *memory) ChangeSource(_ context.Context, c tenant.SourceChange) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.changes = append(m.changes, c)
	return nil
}

func (m *memory) CopiedTable(ctx context.Context, relation string, chunk int, _ tenant.LSN, _, _ int64) error {
	m.mu.Lock()
	if chunk > 0 {
		relation = fmt.Sprintf("%s %d", relation, chunk)
	}
	m.copies = append(m.copies, relation)
	first := m.first
	m.first = nil
	slow := m.slow
	m.mu.Unlock()
	if slow > 0 {
		select {
		case <-time.After(time.Duration(slow) * time.Millisecond):
		case <-ctx.Done():
		}
	}
	if first != nil {
		close(first)
		<-ctx.Done()
	}
	return nil
}

func (m *memory) Note(_ context.Context, event string, data any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.notes = append(m.notes, fmt.Sprint(event, " ", data))
}

func (m *memory) phase() tenant.State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

const pass = tenant.Secret("a pass of the tests")

type gates struct{ id string }

func (gates) InstallSource(ctx context.Context, c *pgx.Conn) error {
	return gate.InstallSource(ctx, c, pass)
}

func (gates) InstallShard(ctx context.Context, c *pgx.Conn) error {
	return gate.InstallShard(ctx, c, pass)
}

func (gates) FenceTable(t tenant.TableName) []string { return gate.FenceTableSQL(t) }

func (gates) FenceShard(ctx context.Context, c *pgx.Conn) error {
	_, err := gate.FenceShardTables(ctx, c)
	return err
}

func (g gates) Heartbeat(ctx context.Context, c *pgx.Conn) error { return gate.Heartbeat(ctx, c, g.id) }

var ids struct {
	sync.Mutex
	n int
}

func newRig(t *testing.T, shards int, opts tenant.ReplicationOptions, ddl string) *rig {
	t.Helper()
	return newRigOn(t, cluster, shards, opts, ddl)
}

func newRigOn(t *testing.T, source *pgcluster.Cluster, shards int, opts tenant.ReplicationOptions, ddl string) *rig {
	t.Helper()
	ids.Lock()
	ids.n++
	n := ids.n
	ids.Unlock()
	r := &rig{t: t, source: pgcluster.NewDatabase(t, source), opts: opts, id: fmt.Sprintf("t%d", n), jour: &memory{state: tenant.State{Phase: tenant.Created}}}
	width := tenant.Buckets / shards
	for i := range shards {
		name := fmt.Sprintf("s%d", i)
		r.shards = append(r.shards, replicator.Shard{Name: name, Ordinal: i, DSN: pgcluster.NewDatabase(t, cluster)})
		to := (i+1)*width - 1
		if i == shards-1 {
			to = tenant.Buckets - 1
		}
		r.place.Ranges = append(r.place.Ranges, tenant.Range{From: i * width, To: to, Shard: name})
	}
	r.place.Epoch, r.place.Home = 1, "s0"
	r.srcDB = open(t, r.source)
	exec(t, r.srcDB, ddl)
	t.Cleanup(func() { // a slot left behind would keep the source's database from being dropped
		e, err := replicator.New(r.config())
		if err != nil {
			t.Error(err)
			return
		}
		if err := e.CleanUp(context.Background()); err != nil {
			t.Logf("clean up: %v", err)
		}
	})
	return r
}

func (r *rig) config() replicator.Config {
	r.jour.mu.Lock()
	defer r.jour.mu.Unlock()
	return replicator.Config{
		Replication: r.id, Source: r.source, Slot: "rehome_" + r.id, Publication: "rehome_" + r.id, Shards: r.shards, Placement: r.place, Options: r.opts,
		Epoch: r.epoch, Pass: pass, Origin: r.jour.origin, State: r.jour.state, Journal: r.jour, Gate: gates{r.id}, Heartbeat: time.Second, Watch: 100 * time.Millisecond, SpoolMemory: r.spoolMemory, AheadFrom: r.aheadFrom,
		Throttle: r.throttle, SlotPatience: r.slotPatience,
		Logger: slog.New(slog.NewTextHandler(testWriter{r.t}, &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

// start runs an engine as a server that takes the replication over: with a higher epoch. stop ends it at once.
func (r *rig) start() (e *replicator.Engine, stop func()) {
	r.t.Helper()
	r.epoch++
	e, err := replicator.New(r.config())
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	var failure error
	go func() {
		defer close(ended)
		failure = e.Run(ctx)
	}()
	r.ended = ended
	stop = sync.OnceFunc(func() {
		cancel()
		<-ended
		if failure != nil {
			r.t.Logf("engine ended: %v", failure)
		}
	})
	r.t.Cleanup(stop)
	return e, stop
}

func (r *rig) waitPhase(want tenant.Phase) {
	r.t.Helper()
	eventually(r.t, "phase "+string(want), func() bool {
		st := r.jour.phase()
		if st.Phase == tenant.Paused && want != tenant.Paused {
			r.t.Fatalf("paused: %s (%s)", st.Reason, st.Remedy)
		}
		return st.Phase == want
	})
}

// verifyClean compares both sides through the engine and fails the test with what differs. It waits for an engine that streams: one that
// has just begun, or lost a session, is in the phase that it was in before.
func (r *rig) verifyClean(e *replicator.Engine) (v tenant.Verification) {
	r.t.Helper()
	var err error
	eventually(r.t, "a stream to compare at", func() bool {
		v, err = e.Verify(r.t.Context(), replicator.VerifyOptions{})
		te, ok := errors.AsType[*tenant.Error](err)
		return !ok || te.Code != "not-streaming" || r.jour.phase().Phase == tenant.Paused
	})
	if err != nil {
		r.t.Fatalf("verify: %v", err)
	}
	if !v.Clean {
		raw, _ := json.MarshalIndent(v, "", " ")
		r.t.Fatalf("not clean: %s", raw)
	}
	return v
}

func open(t testing.TB, dsn tenant.DSN) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(context.Background(), dsn.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

// openAs opens a session with the name of another.
func openAs(t testing.TB, dsn tenant.DSN, name string) *pgx.Conn {
	t.Helper()
	cfg, err := pgx.ParseConfig(dsn.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	cfg.RuntimeParams["application_name"] = name
	c, err := pgx.ConnectConfig(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

// within is a context that ends with the patience of the tests.
func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func exec(t testing.TB, c *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := c.Exec(context.Background(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func scalar[T any](t testing.TB, c *pgx.Conn, sql string, args ...any) T {
	t.Helper()
	var v T
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

// waitTicks lets about so many milliseconds of other work pass: a random moment, not a condition.
func waitTicks(t testing.TB, ms int) {
	t.Helper()
	timer := time.NewTimer(time.Duration(ms) * time.Millisecond)
	defer timer.Stop()
	<-timer.C
}
