package schema_test

import (
	"errors"
	"testing"
	"time"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/replicator/schema"
	"github.com/rehomedb/rehome/tenant"
)

// TestInterruptedDumpMayBeTriedAgain lets pg_dump's session end, and its snapshot be gone, as when the source restarts. What
// is wrong in itself stays an error for a person.
func TestInterruptedDumpMayBeTriedAgain(t *testing.T) {
	t.Parallel()
	dsn := pgcluster.NewDatabase(t, cluster)
	conn := connect(t, dsn)
	execute(t, conn, `CREATE TABLE held (realm_id text NOT NULL, id int NOT NULL, PRIMARY KEY (realm_id, id))`)
	cat, err := catalog.Describe(t.Context(), conn, tenant.ReplicationOptions{}.WithDefaults())
	if err != nil {
		t.Fatal(err)
	}
	kind := func(dsn tenant.DSN, snapshot string) tenant.Kind {
		t.Helper()
		_, err := schema.Dump(t.Context(), schema.Config{DSN: dsn, Snapshot: snapshot, Catalogue: cat, Options: tenant.ReplicationOptions{}.WithDefaults()})
		if err == nil {
			t.Fatal("no error")
		}
		te, ok := errors.AsType[*tenant.Error](err)
		if !ok {
			return tenant.KindInternal
		}
		return te.Kind
	}
	if k := kind(dsn, "0000007F-0000001B-1"); k != tenant.KindUnavailable {
		t.Errorf("a snapshot that is gone: %v", k)
	}

	execute(t, conn, `BEGIN; LOCK TABLE held IN ACCESS EXCLUSIVE MODE`)
	killer := connect(t, dsn)
	go func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for range tick.C {
			var ended bool
			err := killer.QueryRow(t.Context(), `SELECT coalesce(bool_or(pg_terminate_backend(pid)), false) FROM pg_stat_activity
				WHERE datname = current_database() AND application_name = 'rehome schema' AND wait_event_type = 'Lock'`).Scan(&ended)
			if ended || err != nil {
				return
			}
		}
	}()
	if k := kind(dsn, ""); k != tenant.KindUnavailable {
		t.Errorf("a session that was ended: %v", k)
	}
	execute(t, conn, `ROLLBACK`)
	execute(t, conn, `DROP ROLE IF EXISTS stranger; CREATE ROLE stranger LOGIN PASSWORD 'stranger'`)
	if k := kind(cluster.DSNAs("stranger", "stranger", one[string](t, conn, `SELECT current_database()`)), ""); k == tenant.KindUnavailable {
		t.Errorf("what can never work is to be tried again: %v", k)
	}
}
