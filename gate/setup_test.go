package gate_test

import (
	"context"
	"crypto/rand"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/tenant"
)

var cluster *pgcluster.Cluster

func TestMain(m *testing.M) {
	os.Exit(pgcluster.Main(m, pgcluster.Options{Settings: map[string]string{"max_connections": "200", "max_prepared_transactions": "10"}}, &cluster))
}

const (
	pass   = tenant.Secret("the appliers' pass")
	newURL = "https://own.example/acme"
)

const schemaSQL = `
CREATE TABLE accounts (id int PRIMARY KEY, realm_id text NOT NULL, balance bigint NOT NULL DEFAULT 0);
CREATE TABLE "Odd ""name." (id int PRIMARY KEY);
CREATE SCHEMA app;
CREATE TABLE app.events (id bigint GENERATED ALWAYS AS IDENTITY, at date NOT NULL) PARTITION BY RANGE (at);
CREATE TABLE app.events_2025 PARTITION OF app.events FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE app.events_2026 PARTITION OF app.events FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
INSERT INTO accounts SELECT i, 'r' || i % 3, 0 FROM generate_series(1, 100) i;
INSERT INTO app.events (at) VALUES ('2025-06-01'), ('2026-06-01');
`

// side is a database with tables, as its owner (a role without any special right) and a superuser see it.
type side struct {
	owner, admin, client tenant.DSN // client: a role that may write the tables and owns nothing
	ownerName            string
	conn                 *pgx.Conn // the owner's
}

func setup(t *testing.T, ddl string) side {
	t.Helper()
	admin := pgcluster.NewDatabase(t, cluster)
	root := connect(t, admin)
	suffix := strings.ToLower(rand.Text()[:10])
	s := side{admin: admin, ownerName: "owner_" + suffix}
	clientName := "client_" + suffix
	database := root.Config().Database
	for _, sql := range []string{
		"CREATE ROLE " + s.ownerName + " LOGIN PASSWORD 'pw'", "CREATE ROLE " + clientName + " LOGIN PASSWORD 'pw'",
		"GRANT CREATE ON DATABASE " + database + " TO " + s.ownerName, "GRANT CREATE ON SCHEMA public TO " + s.ownerName,
	} {
		exec(t, root, sql)
	}
	t.Cleanup(func() {
		conn, err := pgx.Connect(context.Background(), cluster.DSN(database).Reveal())
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = conn.Close(context.Background()) }()
		for _, role := range []string{s.ownerName, clientName} {
			_, _ = conn.Exec(context.Background(), "DROP OWNED BY "+role+" CASCADE")
			if _, err := conn.Exec(context.Background(), "DROP ROLE "+role); err != nil {
				t.Error(err)
			}
		}
	})
	s.owner, s.client = as(t, admin, s.ownerName), as(t, admin, clientName)
	s.conn = connect(t, s.owner)
	if ddl != "" {
		exec(t, s.conn, ddl)
		exec(t, s.conn, "GRANT USAGE ON SCHEMA app TO "+clientName+"; GRANT ALL ON ALL TABLES IN SCHEMA public, app TO "+clientName)
	}
	return s
}

func as(t *testing.T, dsn tenant.DSN, role string) tenant.DSN {
	t.Helper()
	u, err := url.Parse(dsn.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, "pw")
	return tenant.DSN(u.String())
}

func connect(t *testing.T, dsn tenant.DSN) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func exec(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// stall is more than a busy machine lets a statement stand, and less than one waits that a fence lets wait until its end.
const stall = 5 * time.Second

// waits are a writer's statements that waited while a fence was tried for.
type waits []time.Duration

func (w *waits) add(took time.Duration) {
	if took > 50*time.Millisecond { // the others met no try
		*w = append(*w, took)
	}
}

// check: a try of the fence, 0.4 s at most, lets a writer wait no longer. One statement may meet a stall of the machine.
func (w *waits) check(t *testing.T) {
	t.Helper()
	slices.Sort(*w)
	if len(*w) == 0 {
		t.Fatal("no writer met a try of the fence")
	}
	half, longest := (*w)[len(*w)/2], (*w)[len(*w)-1]
	t.Logf("%d waits of a writer, half of them to %s, the longest %s", len(*w), half, longest)
	if half > 900*time.Millisecond || longest > stall {
		t.Errorf("a writer waited %s, half of the time %s", longest, half)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually polls until ok holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	limit := time.After(15 * time.Second)
	for !ok() {
		select {
		case <-limit:
			t.Fatalf("never happened: %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func open(t *testing.T, s side, epoch int64) *gate.Attempt {
	t.Helper()
	a, err := gate.Open(t.Context(), gate.Config{Source: s.owner, Attempt: "att1", Epoch: epoch, NewURL: newURL})
	must(t, err)
	t.Cleanup(func() { a.Close(context.Background()) })
	return a
}

// cutOver runs the source's half of a cutover.
func cutOver(t *testing.T, s side, epoch int64) {
	t.Helper()
	a := open(t, s, epoch)
	must(t, a.Prelock(t.Context()))
	must(t, a.Fence(t.Context(), time.Now().Add(5*time.Second)))
	must(t, a.Marker(t.Context()))
	must(t, a.CreateTriggers(t.Context()))
	must(t, a.Commit(t.Context()))
}

// accepts reports whether a plain write to accounts is accepted; any other refusal than the fence's fails the test.
func accepts(t *testing.T, conn *pgx.Conn) bool {
	t.Helper()
	_, err := conn.Exec(t.Context(), "UPDATE accounts SET balance = balance + 1 WHERE id = 1")
	if err != nil && !gate.IsFenced(err) {
		t.Fatalf("a write failed, and not by the fence: %v", err)
	}
	return err == nil
}
