package shard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/internal/seal"
	"github.com/rehomedb/rehome/migrations"
	"github.com/rehomedb/rehome/tenant"
)

// Two servers: one is one shard.
var cluster, cluster2 *pgcluster.Cluster

func TestMain(m *testing.M) {
	second, err := pgcluster.Start(context.Background(), pgcluster.Options{})
	if err != nil {
		fmt.Fprintln(os.Stderr, "start a Postgres cluster for the tests:", err)
		os.Exit(1)
	}
	cluster2 = second
	code := pgcluster.Main(m, pgcluster.Options{}, &cluster)
	if err := second.Remove(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

type bundle struct {
	*Catalogue
	pool *pgxpool.Pool
	now  time.Time
	logs *strings.Builder
}

// setup makes a control database of its own with a catalogue on it.
func setup(t *testing.T) *bundle {
	t.Helper()
	dsn := pgcluster.NewDatabase(t, cluster)
	cfg, err := pgx.ParseConfig(dsn.Reveal())
	must(t, err)
	_, err = migrations.Up(t.Context(), cfg)
	must(t, err)
	pool, err := pgxpool.New(t.Context(), dsn.Reveal())
	must(t, err)
	t.Cleanup(pool.Close)
	box, err := seal.New(tenant.Secret(strings.Repeat(t.Name(), 40)))
	must(t, err)
	b := &bundle{pool: pool, now: time.Now().Truncate(time.Second), logs: &strings.Builder{}}
	b.Catalogue = New(pool, box, slog.New(slog.NewTextHandler(b.logs, nil)), WithNow(func() time.Time { return b.now }))
	return b
}

// withShards adds a (weight 100) and b (weight 300).
func (b *bundle) withShards(t *testing.T) *bundle {
	t.Helper()
	for name, c := range map[string]*pgcluster.Cluster{"a": cluster, "b": cluster2} {
		w := 100
		if name == "b" {
			w = 300
		}
		_, err := b.AddShard(t.Context(), AddRequest{Name: name, DSN: c.DSN("postgres"), Weight: w})
		must(t, err)
	}
	return b
}

// create makes a database that is dropped at the test's end.
func (b *bundle) create(t *testing.T, req CreateRequest) Database {
	t.Helper()
	b.dropLater(t, req.Name)
	d, err := b.CreateDatabase(t.Context(), req)
	must(t, err)
	return d
}

func (b *bundle) dropLater(t *testing.T, name string) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		for _, c := range []*pgcluster.Cluster{cluster, cluster2} {
			conn, err := pgx.Connect(ctx, c.DSN("postgres").Reveal())
			must(t, err)
			_, err = conn.Exec(ctx, `DROP DATABASE IF EXISTS `+tenant.QuoteIdent(name)+` WITH (FORCE)`)
			must(t, err)
			must(t, conn.Close(ctx))
		}
	})
}

// dropRole is for cleanups, when the test's context is over.
func dropRole(t *testing.T, role string, databases ...string) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, cluster.DSN("postgres").Reveal())
	must(t, err)
	for _, d := range databases {
		_, err = conn.Exec(ctx, `DROP DATABASE IF EXISTS `+tenant.QuoteIdent(d)+` WITH (FORCE)`)
		must(t, err)
	}
	_, err = conn.Exec(ctx, `DROP ROLE `+tenant.QuoteIdent(role))
	must(t, err)
	must(t, conn.Close(ctx))
}

func open(t *testing.T, dsn tenant.DSN) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn.Reveal())
	must(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func exec(t *testing.T, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	_, err := conn.Exec(t.Context(), sql, args...)
	must(t, err)
}

func query[T any](t *testing.T, conn interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}, sql string, args ...any,
) T {
	t.Helper()
	var v T
	must(t, conn.QueryRow(t.Context(), sql, args...).Scan(&v))
	return v
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wants checks an error's kind and code.
func wants(t *testing.T, err error, kind tenant.Kind, code string) {
	t.Helper()
	_ = wanted(t, err, kind, code)
}

// wanted is wants that gives the error back.
func wanted(t *testing.T, err error, kind tenant.Kind, code string) *tenant.Error {
	t.Helper()
	var e *tenant.Error
	if !errors.As(err, &e) || e.Kind != kind || e.Code != code {
		t.Fatalf("got %v (%#v), want %s %s", err, err, kind, code)
	}
	return e
}
