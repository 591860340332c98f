package progress_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/migrations"
	"github.com/rehomedb/rehome/progress"
)

var cluster *pgcluster.Cluster

func TestMain(m *testing.M) {
	code := pgcluster.Main(m, pgcluster.Options{}, &cluster)
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func controlDatabase(t *testing.T) *pgxpool.Pool {
	t.Helper()
	dsn := pgcluster.NewDatabase(t, cluster)
	conf, err := pgx.ParseConfig(dsn.Reveal())
	if err != nil {
		t.Fatal("the test's DSN does not parse")
	}
	if _, err := migrations.Up(t.Context(), conf); err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.New(t.Context(), dsn.Reveal())
	if err != nil {
		t.Fatal("the pool cannot be made")
	}
	t.Cleanup(pool.Close)
	return pool
}

func newLog(t *testing.T) (*progress.Log, *pgxpool.Pool) {
	t.Helper()
	pool := controlDatabase(t)
	return progress.NewLog(pool, "inst1", "https://own.example"), pool
}

func entry(stream, event string, data any) progress.Entry {
	return progress.Entry{Stream: stream, Database: "acme", Kind: "replication", ID: stream, Event: event, Data: data}
}

func begin(t *testing.T, pool *pgxpool.Pool) pgx.Tx {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }) // no-op after a commit
	return tx
}

func mustAppend(t *testing.T, l *progress.Log, db progress.DB, e progress.Entry) progress.Event {
	t.Helper()
	ev, err := l.Append(t.Context(), db, e)
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

func mustCommit(t *testing.T, tx pgx.Tx) {
	t.Helper()
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// eventually polls until a condition holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
		<-time.After(10 * time.Millisecond)
	}
}
