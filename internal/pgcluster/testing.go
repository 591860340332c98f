package pgcluster

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/tenant"
)

// cleanUpTimeout bounds what a test does after its end; a hanging DROP DATABASE should be seen, not waited for.
const cleanUpTimeout = 30 * time.Second

// Main starts one cluster for the tests of a package, runs them and removes the cluster. Use it in TestMain:
//
//	var cluster *pgcluster.Cluster
//
//	func TestMain(m *testing.M) { os.Exit(pgcluster.Main(m, pgcluster.Options{}, &cluster)) }
//
// Without Postgres the tests fail; they are not skipped.
func Main(m *testing.M, opts Options, shared **Cluster) int {
	c, err := Start(context.Background(), opts)
	if err != nil {
		fmt.Fprintln(os.Stderr, "start a Postgres cluster for the tests:", err)
		return 1
	}
	*shared = c
	code := m.Run()
	if err := c.Remove(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return max(code, 1)
	}
	return code
}

// StartT starts a cluster for one test and removes it at the test's end.
func StartT(t testing.TB, opts Options) *Cluster {
	t.Helper()
	c, err := Start(t.Context(), opts)
	if err != nil {
		t.Fatalf("start a Postgres cluster: %v", err)
	}
	t.Cleanup(func() {
		if err := c.Remove(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// NewDatabase makes an empty database with a random name and drops it at the test's end, together with its slots and
// whoever is still connected.
func NewDatabase(t testing.TB, c *Cluster) tenant.DSN {
	t.Helper()
	return NewDatabaseFrom(t, c, "template1")
}

// NewDatabaseFrom is NewDatabase with another template, to which nobody may be connected.
func NewDatabaseFrom(t testing.TB, c *Cluster, template string) tenant.DSN {
	t.Helper()
	name := "t_" + strings.ToLower(rand.Text())
	create := "CREATE DATABASE " + tenant.QuoteIdent(name) + " TEMPLATE " + tenant.QuoteIdent(template)
	if err := c.exec(t.Context(), create); err != nil {
		t.Fatalf("create a database for the test: %v", err)
	}
	t.Cleanup(func() { // the test's own context has ended by then
		ctx, cancel := context.WithTimeout(context.Background(), cleanUpTimeout)
		defer cancel()
		if err := c.dropDatabase(ctx, name); err != nil {
			t.Errorf("drop the test's database: %v", err)
		}
	})
	return c.DSN(name)
}

// dropDatabase drops a database and what would hold it: sessions and logical slots.
func (c *Cluster) dropDatabase(ctx context.Context, name string) error {
	if c.Pid() == 0 {
		return nil // the test stopped the server for good
	}
	// Before 14 pg_terminate_backend does not wait, so that a slot may be in use for a moment.
	const dropSlots = `
		SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = $1 AND active_pid IS NULL`
	const endSessions = `
		SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = $1 AND active_pid IS NOT NULL`
	const none = `SELECT 1 / (count(*) = 0)::int FROM pg_replication_slots WHERE database = $1`
	conn, err := c.admin(ctx)
	if err != nil {
		return err
	}
	defer c.keep(conn)
	exec := func(sql string, args ...any) error {
		_, err := conn.Exec(ctx, sql, args...)
		return err
	}
	tick := time.NewTicker(2 * pollEvery)
	defer tick.Stop()
	for {
		if err := exec(endSessions, name); err != nil {
			return err
		}
		err := exec(dropSlots, name)
		if err == nil && exec(none, name) == nil {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("drop the slots of %s: %w", name, errors.Join(context.Cause(ctx), err))
		case <-tick.C:
		}
	}
	return exec("DROP DATABASE IF EXISTS " + tenant.QuoteIdent(name) + " WITH (FORCE)")
}

// exec runs one statement in the maintenance database.
func (c *Cluster) exec(ctx context.Context, sql string, args ...any) error {
	conn, err := c.admin(ctx)
	if err != nil {
		return err
	}
	defer c.keep(conn)
	_, err = conn.Exec(ctx, sql, args...)
	return err
}

// admin is a session in the maintenance database: one that was kept and still answers, or a new one.
func (c *Cluster) admin(ctx context.Context) (*pgx.Conn, error) {
	for {
		c.mu.Lock()
		n := len(c.kept)
		if n == 0 {
			c.mu.Unlock()
			break
		}
		conn := c.kept[n-1]
		c.kept = c.kept[:n-1]
		c.mu.Unlock()
		if conn.Ping(ctx) == nil {
			return conn, nil
		}
		_ = conn.Close(ctx) // of a server that was restarted
	}
	conn, err := pgx.Connect(ctx, c.DSN("postgres").Reveal())
	if err != nil {
		return nil, fmt.Errorf("connect to the test's cluster: %w", err)
	}
	return conn, nil
}

// keep puts a session aside for the next one who needs it: to open one costs a quarter of what making a database does.
func (c *Cluster) keep(conn *pgx.Conn) {
	if conn.IsClosed() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kept = append(c.kept, conn)
}
