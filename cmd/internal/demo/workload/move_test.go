package workload_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/rehomedb/rehome/cmd/internal/demo/workload"
	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/tenant"
)

// move is a small stand-in for the whole journey: a fence, a copy behind it, a switch.
type move struct {
	source    *pgxpool.Pool
	sourceDSN tenant.DSN
	shards    map[string]*pgxpool.Pool
	placement tenant.Placement
	ledger    *workload.Ledger

	old, new *httptest.Server // what clients call; the new application

	posts atomic.Int64
	mu    sync.Mutex
	held  chan struct{} // not nil: requests wait until it is closed
	moved chan struct{} // closed once the new side is open
}

func newMove(t *testing.T) *move {
	t.Helper()
	m := &move{shards: map[string]*pgxpool.Pool{}, moved: make(chan struct{}), placement: tenant.Placement{
		Epoch: 1, Home: "eu-1", Pins: map[string]string{"rlm-0001": "eu-2"},
		Ranges: []tenant.Range{{From: 0, To: 8191, Shard: "eu-1"}, {From: 8192, To: tenant.Buckets - 1, Shard: "eu-2"}},
	}}
	m.sourceDSN, m.source, _ = newSource(t, 1, 3)
	for _, name := range m.placement.Shards() {
		dsn := pgcluster.NewDatabase(t, cluster)
		if err := workload.Create(t.Context(), dsn); err != nil {
			t.Fatal(err)
		}
		m.shards[name] = openPool(t, dsn)
	}
	baseline, err := workload.ReadBaseline(t.Context(), m.source)
	if err != nil {
		t.Fatal(err)
	}
	m.ledger = workload.NewLedger(baseline)

	onSource := &workload.App{Backend: workload.Single{DB: m.source}, Side: workload.SideSource, Logger: testLogger(t)}
	onShards := &workload.App{Backend: workload.Sharded{Placement: m.placement, Shards: m.shards}, Side: workload.SideShards, Logger: testLogger(t)}
	m.new = httptest.NewServer(onShards.Handler())
	t.Cleanup(m.new.Close)
	m.old = httptest.NewServer(m.gateway(onSource.Handler()))
	t.Cleanup(m.old.Close)
	return m
}

// gateway holds and then redirects, as the real one does.
func (m *move) gateway(app http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.mu.Lock()
		held := m.held
		m.mu.Unlock()
		if held != nil {
			<-held
		}
		select {
		case <-m.moved:
			http.Redirect(w, r, m.new.URL+r.URL.Path, http.StatusPermanentRedirect)
			return
		default:
		}
		if r.URL.Path != "/ws" {
			// Now and then the client hears nothing: the write never arrived, or it was done and the answer was lost.
			switch m.posts.Add(1) % 17 {
			case 0:
				panic(http.ErrAbortHandler)
			case 5:
				app.ServeHTTP(httptest.NewRecorder(), r)
				panic(http.ErrAbortHandler)
			}
			app.ServeHTTP(w, r)
			return
		}
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer conn.CloseNow()
		ctx := conn.CloseRead(r.Context())
		beat := time.NewTicker(200 * time.Millisecond) // so that nobody takes a long move for a dead connection
		defer beat.Stop()
		for waiting := true; waiting; {
			select {
			case <-m.moved:
				waiting = false
			case <-ctx.Done():
				return
			case <-beat.C:
				_ = conn.Write(ctx, websocket.MessageText, []byte(`{"type":"heartbeat"}`)) // the context says when it is over
			}
		}
		_ = conn.Write(ctx, websocket.MessageText, fmt.Appendf(nil, `{"type":"moved","url":%q}`, m.new.URL)) // the close says it again
		_ = conn.Close(4301, m.new.URL)
	})
}

func (m *move) resolve(_ context.Context, realm string) (*pgxpool.Pool, error) {
	select {
	case <-m.moved:
		return m.shards[m.placement.ShardOf(realm)], nil
	default:
		return nil, errors.New("not moved yet")
	}
}

// run fences the source, copies everything and opens the shards. Requests are held for the second half of it only, so
// that clients see the fence too.
func (m *move) run(t *testing.T) {
	t.Helper()
	fence := `CREATE FUNCTION test_fence() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		RAISE EXCEPTION USING ERRCODE = 'RH001', MESSAGE = 'database has moved', HINT = 'It accepts writes at ` + m.new.URL + `'; END $$;`
	var names []string
	for _, table := range append(append(workload.ShardedTables(), workload.Partitions()...), workload.ReferenceTables()...) {
		names = append(names, table.Quoted())
		fence += `CREATE TRIGGER test_fence BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON ` + table.Quoted() + ` EXECUTE FUNCTION test_fence();`
	}
	until(t, "all tables are locked", func() bool {
		// Writers take their locks in an order of their own: whoever is chosen to end a deadlock tries again.
		_, err := m.source.Exec(t.Context(), "BEGIN; LOCK TABLE "+strings.Join(names, ",")+" IN SHARE ROW EXCLUSIVE MODE; "+fence+" COMMIT")
		var pe *pgconn.PgError
		if err != nil && (!errors.As(err, &pe) || pe.Code != "40P01") {
			t.Fatal(err)
		}
		return err == nil
	})

	hold := make(chan struct{})
	m.mu.Lock()
	m.held = hold
	m.mu.Unlock()
	m.copyAll(t)
	close(m.moved)
	m.mu.Lock()
	m.held = nil
	m.mu.Unlock()
	close(hold)
}

func (m *move) copyAll(t *testing.T) {
	t.Helper()
	realms := map[string][]string{}
	for _, r := range m.ledger.Baseline().Realms {
		shard := m.placement.ShardOf(r.ID)
		realms[shard] = append(realms[shard], r.ID)
	}
	ordinal := 0
	for name, pool := range m.shards {
		exec(t, pool, "ALTER DATABASE "+one[string](t, pool, "SELECT quote_ident(current_database())")+" SET timezone = 'Asia/Tokyo'")
		for _, table := range append(workload.ReferenceTables(), workload.ShardedTables()...) {
			columns := one[string](t, m.source, `SELECT string_agg(quote_ident(attname), ',' ORDER BY attnum) FROM pg_attribute
				WHERE attrelid = $1::text::regclass AND attnum > 0 AND attgenerated = ''`, table.Quoted())
			where := ""
			if strings.Contains(columns, workload.RealmKey) {
				where = " WHERE realm_id IN ('" + strings.Join(realms[name], "','") + "')"
			}
			copyTable(t, m.source, pool, "(SELECT "+columns+" FROM "+table.Quoted()+where+")", table.Quoted()+" ("+columns+")")
		}
		for _, sequence := range []string{"ledger.receipts", "ledger.transfers_entry_seq", "public.members_id_seq"} {
			last := one[int64](t, m.source, "SELECT last_value FROM "+sequence)
			exec(t, pool, fmt.Sprintf("ALTER SEQUENCE %s INCREMENT BY 64 RESTART WITH %d", sequence, last+100+int64(ordinal)))
		}
		ordinal++
	}
}

func copyTable(t *testing.T, from, to *pgxpool.Pool, what, into string) {
	t.Helper()
	var buf bytes.Buffer
	err := from.AcquireFunc(t.Context(), func(c *pgxpool.Conn) error {
		_, err := c.Conn().PgConn().CopyTo(t.Context(), &buf, "COPY "+what+" TO STDOUT")
		return err
	})
	if err != nil {
		t.Fatalf("copy %s: %v", what, err)
	}
	err = pgx.BeginFunc(t.Context(), to, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), "SET LOCAL session_replication_role = replica"); err != nil {
			return err
		}
		_, err := tx.Conn().PgConn().CopyFrom(t.Context(), &buf, "COPY "+into+" FROM STDIN")
		return err
	})
	if err != nil {
		t.Fatalf("copy into %s: %v", into, err)
	}
}

func exec(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// until polls a condition.
func until(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("waited 30 s in vain until %s", what)
		}
		<-tick.C
	}
}

func TestWritersKeepWritingThroughAMove(t *testing.T) {
	t.Parallel()
	m := newMove(t)
	writers, err := workload.NewWriters(workload.WriterConfig{
		Ledger: m.ledger, URL: m.old.URL, HTTPWriters: 3, Sockets: 2, Source: m.sourceDSN, DirectWriters: 2, Resolve: m.resolve,
		Pace: 2 * time.Millisecond, Seed: 1, Logger: testLogger(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- writers.Run(ctx) }()
	until(t, "the source has acknowledged writes of each kind", func() bool {
		c := m.ledger.Counts()
		return c.BySide[workload.SideSource] > 300 && len(c.ByKind) == 6
	})
	until(t, "the sockets are open", func() bool { s := writers.Report().Sockets; return s.Opened >= 2 && s.Heartbeats >= 4 })
	exec(t, m.source, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'demo writer%'")
	m.ledger.ResetGaps()
	m.run(t)
	until(t, "the shards have acknowledged writes", func() bool { return m.ledger.Counts().BySide[workload.SideShards] > 300 })
	before := writers.Report().Sockets.Heartbeats
	until(t, "the sockets have followed", func() bool {
		s := writers.Report().Sockets
		return s.MovedTo == m.new.URL && s.Heartbeats > before+4
	})
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}

	report := writers.Report()
	t.Logf("%+v", report)
	if report.Counts.Unknown != 0 {
		t.Errorf("%d writes of unknown outcome, though everything answered", report.Counts.Unknown)
	}
	if report.Redirects == 0 || report.Retries["fenced"] == 0 || report.Retries["no answer"] == 0 || report.GapMillis <= 0 || report.SlowestMillis <= 0 {
		t.Errorf("the move left no trace: %+v", report)
	}
	if s := report.Sockets; s.MovedTo != m.new.URL || s.Closes["4301 "+m.new.URL] == 0 || len(s.Notices) == 0 {
		t.Errorf("sockets were not told: %+v", s)
	}
	if n := one[int64](t, m.source, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'demo writer%'"); n != 0 {
		t.Errorf("%d direct writers are still connected to the source", n)
	}
	for _, r := range m.check(t) {
		if !r.OK || r.Figure == 0 {
			t.Errorf("%s: %d %s: %s", r.Name, r.Figure, r.Unit, r.Detail)
		}
	}
	m.tamper(t)
}

func (m *move) check(t *testing.T) []workload.CheckResult {
	t.Helper()
	return workload.Check(t.Context(), m.ledger, m.placement, m.shards, m.source)
}

// tamper breaks one thing after the other and expects the checks that are there for it to fail, and no others.
func (m *move) tamper(t *testing.T) {
	t.Helper()
	eu1, eu2 := m.shards["eu-1"], m.shards["eu-2"]
	const aTransfer = `(SELECT id FROM ledger.transfers WHERE tags = '{writer}' ORDER BY id LIMIT 1)`
	cases := []struct {
		name string
		pool *pgxpool.Pool
		do   string
		undo string
		fail []string
	}{
		{
			"an event vanishes", eu1,
			`CREATE TABLE kept AS SELECT * FROM events WHERE id = ` + aTransfer + `; DELETE FROM events WHERE id IN (SELECT id FROM kept)`,
			`INSERT INTO events SELECT * FROM kept; DROP TABLE kept`,
			[]string{workload.CheckPresent, workload.CheckWhole},
		},
		{
			"an event nobody sent", eu1,
			`INSERT INTO events SELECT realm_id, '00000000-0000-4000-8000-000000000000', kind, payload FROM events WHERE id = ` + aTransfer,
			`DELETE FROM events WHERE id = '00000000-0000-4000-8000-000000000000'`,
			[]string{workload.CheckOnce},
		},
		{
			"a transfer vanishes", eu1,
			`CREATE TABLE kept AS SELECT * FROM ledger.transfers WHERE id = ` + aTransfer + `; DELETE FROM ledger.transfers WHERE id IN (SELECT id FROM kept)`,
			`INSERT INTO ledger.transfers SELECT * FROM kept; DROP TABLE kept`,
			[]string{workload.CheckWhole, workload.CheckBalances},
		},
		{
			"money appears", eu2,
			`UPDATE ledger.accounts SET balance = balance + 0.01 WHERE realm_id = 'rlm-0001' AND id = 1`,
			`UPDATE ledger.accounts SET balance = balance - 0.01 WHERE realm_id = 'rlm-0001' AND id = 1`,
			[]string{workload.CheckMoney, workload.CheckBalances},
		},
		{
			"a row on a shard that does not own it", eu1,
			`SET session_replication_role = replica; INSERT INTO metrics VALUES ('rlm-0001', 'stray', now(), 1); RESET session_replication_role`,
			`DELETE FROM metrics WHERE name = 'stray'`,
			[]string{workload.CheckPlaced},
		},
		{
			"a document is renamed behind the writers", eu2,
			`UPDATE documents SET title = title || '!' WHERE id = (SELECT id FROM documents WHERE labels = '{written}' ORDER BY id LIMIT 1)`,
			`UPDATE documents SET title = left(title, -1) WHERE id = (SELECT id FROM documents WHERE labels = '{written}' ORDER BY id LIMIT 1)`,
			[]string{workload.CheckDocuments},
		},
		{
			"an old event vanishes", eu2,
			`CREATE TABLE kept AS SELECT * FROM events WHERE payload @> '{"from": "fill"}' LIMIT 1; DELETE FROM events WHERE id IN (SELECT id FROM kept)`,
			`INSERT INTO events SELECT * FROM kept; DROP TABLE kept`,
			[]string{workload.CheckStart},
		},
		{
			"a reference table differs", eu2,
			`UPDATE plans SET price = price + 1`, `UPDATE plans SET price = price - 1`,
			[]string{workload.CheckReference},
		},
		{
			"a sequence value is given twice", eu2,
			`UPDATE ledger.transfers SET receipt = (SELECT max(receipt) FROM ledger.transfers) WHERE receipt = (SELECT min(receipt) FROM ledger.transfers)`,
			`UPDATE ledger.transfers SET receipt = -1 WHERE ctid = (SELECT min(ctid) FROM ledger.transfers WHERE receipt = (SELECT max(receipt) FROM ledger.transfers))`,
			[]string{workload.CheckSequences},
		},
		{
			"an index is missing", eu1,
			`DROP INDEX documents_edited`, `CREATE INDEX documents_edited ON documents (realm_id, edited_at DESC)`,
			[]string{workload.CheckConstraints},
		},
		{
			"a foreign key was never validated", eu1,
			`ALTER TABLE api_tokens DROP CONSTRAINT api_tokens_realm_id_fkey, ADD CONSTRAINT api_tokens_realm_id_fkey FOREIGN KEY (realm_id) REFERENCES realms NOT VALID`,
			`ALTER TABLE api_tokens VALIDATE CONSTRAINT api_tokens_realm_id_fkey`,
			[]string{workload.CheckConstraints},
		},
		{
			"one table of the source is open", m.source,
			`ALTER TABLE metrics_2024 DISABLE TRIGGER test_fence`, `ALTER TABLE metrics_2024 ENABLE ALWAYS TRIGGER test_fence`,
			[]string{workload.CheckFenced},
		},
	}
	for _, c := range cases {
		exec(t, c.pool, c.do)
		var failed []string
		for _, r := range m.check(t) {
			if !r.OK {
				failed = append(failed, r.Name)
			}
		}
		if strings.Join(failed, " ") != strings.Join(c.fail, " ") {
			t.Errorf("%s: %v fail, want %v", c.name, failed, c.fail)
		}
		exec(t, c.pool, c.undo)
	}
	for _, r := range m.check(t) {
		if !r.OK {
			t.Errorf("after all is mended: %s: %s", r.Name, r.Detail)
		}
	}
}
