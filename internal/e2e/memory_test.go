package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/tenant"
)

// maxRSS is what the server may use, in MiB, however much it copies and however large a transaction is.
const maxRSS = 300

// TestMemory copies many megabytes (REHOME_MEMORY_MB), applies one transaction of many rows (REHOME_MEMORY_ROWS), and one
// that rolls as many back to a savepoint.
func TestMemory(t *testing.T) {
	t.Parallel()
	mb, rows := envInt(t, "REHOME_MEMORY_MB", 150), envInt(t, "REHOME_MEMORY_ROWS", 100_000)
	source := pgcluster.StartT(t, pgcluster.Options{Settings: map[string]string{"max_wal_size": "8GB"}})
	src := pgcluster.NewDatabase(t, source)
	conn := open(t, src)
	execSQL(t, conn, `CREATE TABLE documents (realm_id text NOT NULL, id bigint NOT NULL, body text, PRIMARY KEY (realm_id, id));
		CREATE TABLE numbers (realm_id text NOT NULL, id bigint NOT NULL, n int NOT NULL, note text, PRIMARY KEY (realm_id, id))`)
	// A row of about 1 KB that TOAST leaves alone, and now and then one of 200 KB.
	execSQL(t, conn, fmt.Sprintf(`INSERT INTO documents SELECT 'r' || (g %% 1000), g, CASE WHEN g %% 1000 = 0 THEN (SELECT string_agg(md5(g::text || i), '') FROM generate_series(1, 6400) i)
		ELSE repeat(md5(g::text), 30) END FROM generate_series(1, %d) g`, mb*850))
	size := scalar[int64](t, conn, `SELECT pg_total_relation_size('documents')`)

	inst := newInstallation(t, pgcluster.NewDatabase(t, shared))
	inst.addShards(pgcluster.StartT(t, pgcluster.Options{}), pgcluster.StartT(t, pgcluster.Options{}))
	inst.must("create", "big", "--owner", "owner@example.com")
	inst.mustApproved(moveArgs("start-replication", src.Reveal(), inst.url+"/big")...)
	inst.waitPhase(tenant.InSync)
	_, peak := inst.rss()
	t.Logf("copied %d MB: peak RSS of the server %d MiB", size>>20, peak)
	if peak > maxRSS {
		t.Errorf("peak RSS %d MiB while copying, at most %d are allowed", peak, maxRSS)
	}
	execSQL(t, conn, `INSERT INTO numbers SELECT 'r' || (g % 1000), g, g, repeat('x', 50) FROM generate_series(1, $1::int) g`, rows)
	applied := func() {
		t.Helper()
		want, err := tenant.ParseLSN(scalar[string](t, conn, `SELECT pg_current_wal_lsn()::text`))
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the transaction is applied", func() bool {
			p := inst.progress()
			if p.Phase == tenant.Paused {
				t.Fatal(p.Reason)
			}
			for _, s := range p.Shards {
				if s.LSN < want {
					return false
				}
			}
			return len(p.Shards) > 0
		})
	}
	applied()
	_, peak = inst.rss()
	t.Logf("applied one transaction of %d rows: peak RSS of the server %d MiB", rows, peak)
	if peak > maxRSS {
		t.Errorf("peak RSS %d MiB after a transaction of %d rows, at most %d are allowed", peak, rows, maxRSS)
	}
	execSQL(t, conn, "BEGIN")
	execSQL(t, conn, "SAVEPOINT s")
	execSQL(t, conn, `INSERT INTO numbers SELECT 'a' || (g % 1000), g, g, repeat('x', 50) FROM generate_series(1, $1::int) g`, rows)
	execSQL(t, conn, "ROLLBACK TO s")
	execSQL(t, conn, `INSERT INTO numbers VALUES ('a', 0, 0, 'the only row that counts')`)
	execSQL(t, conn, "COMMIT")
	applied()
	_, peak = inst.rss()
	t.Logf("a transaction that rolled back %d rows to a savepoint: peak RSS of the server %d MiB", rows, peak)
	if peak > maxRSS {
		t.Errorf("peak RSS %d MiB after %d rows were rolled back to a savepoint, at most %d are allowed", peak, rows, maxRSS)
	}
	if v := mustJSON[tenant.Verification](inst, "verify"); !v.Clean || v.Rows < int64(rows) {
		t.Errorf("verification: %+v", v)
	}
	if out := inst.must("replication-progress"); !strings.Contains(out, "in sync") && !strings.Contains(out, "in_sync") {
		t.Errorf("progress: %s", out)
	}
}
