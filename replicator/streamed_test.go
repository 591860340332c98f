package replicator_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/tenant"
)

// streamingCluster is a source that streams every transaction of more than 64 kB before it ends.
func streamingCluster(t *testing.T) *pgcluster.Cluster {
	t.Helper()
	c := pgcluster.StartT(t, pgcluster.Options{Settings: map[string]string{"logical_decoding_work_mem": "64kB"}})
	if v := c.Version(); v < 14 {
		t.Fatalf("these tests need Postgres 14 or later as a source, not %d", v)
	}
	return c
}

const streamedTable = `CREATE TABLE big (realm_id int NOT NULL, id int NOT NULL, body text, PRIMARY KEY (realm_id, id));
	CREATE TABLE small (realm_id int NOT NULL, id int NOT NULL, PRIMARY KEY (realm_id, id));`

func fillBig(from, to int) string {
	return fmt.Sprintf(`INSERT INTO big SELECT i %% 50, i, repeat(md5(i::text), 10) FROM generate_series(%d, %d) i`, from, to)
}

// streamedTxns says how many transactions the source has streamed before their end.
func (r *rig) streamedTxns() int64 {
	r.t.Helper()
	return scalar[int64](r.t, r.srcDB, `SELECT coalesce(sum(stream_txns), 0)::bigint FROM pg_stat_replication_slots WHERE slot_name = $1`, "rehome_"+r.id)
}

// TestStreamedTransactions lets large transactions come before they end, interleaved with each other and with small ones,
// with sub-transactions that are rolled back, and one that is rolled back whole.
func TestStreamedTransactions(t *testing.T) {
	t.Parallel()
	for _, memory := range []int{1 << 10, 0} { // to disk at once; in memory
		t.Run(fmt.Sprintf("memory %d", memory), func(t *testing.T) {
			t.Parallel()
			r := newRigOn(t, streamingCluster(t), 2, tenant.ReplicationOptions{}, streamedTable+fillBig(1, 100))
			r.spoolMemory = memory
			e, _ := r.start()
			r.waitPhase(tenant.InSync)
			a, b, c := open(t, r.source), open(t, r.source), open(t, r.source)
			exec(t, a, "BEGIN")
			exec(t, b, "BEGIN")
			exec(t, c, "BEGIN")
			exec(t, a, fillBig(10_000, 14_000))
			exec(t, b, fillBig(20_000, 24_000))
			exec(t, c, fillBig(30_000, 34_000))
			exec(t, r.srcDB, `INSERT INTO small VALUES (1, 1)`) // a small one between them
			eventually(t, "the small transaction arrives while the large ones are open", func() bool {
				return r.total("SELECT count(*) FROM small") == 1
			})
			eventually(t, "three transactions are streamed", func() bool { return e.Progress().SpooledBytes > 3<<20 })
			if n := r.total("SELECT count(*) FROM big"); n != 100 {
				t.Errorf("%d rows are at the shards before the transactions ended", n)
			}
			exec(t, a, "SAVEPOINT s")
			exec(t, a, fillBig(15_000, 18_000))
			exec(t, a, "UPDATE big SET body = 'gone' WHERE id <= 50")
			exec(t, a, "SAVEPOINT t")
			exec(t, a, "DELETE FROM big WHERE id BETWEEN 51 AND 60")
			exec(t, a, "ROLLBACK TO t")
			exec(t, a, "ROLLBACK TO s")
			exec(t, b, "UPDATE big SET body = 'kept' WHERE id BETWEEN 61 AND 70")
			exec(t, b, "UPDATE big SET realm_id = realm_id + 7 WHERE id BETWEEN 20000 AND 20100") // to other shards
			exec(t, c, "ROLLBACK")
			exec(t, a, "UPDATE big SET body = 'both' WHERE id BETWEEN 1 AND 5")
			exec(t, b, "COMMIT")
			exec(t, a, "COMMIT")
			r.verifyClean(e)
			if n := r.total("SELECT count(*) FROM big"); n != 100+2*4001 {
				t.Errorf("%d rows are at the shards, not %d", n, 100+2*4001)
			}
			eventually(t, "nothing is kept of what has ended", func() bool { return e.Progress().SpooledBytes == 0 })
			eventually(t, "the source counts what it streamed", func() bool { return r.streamedTxns() >= 3 })
		})
	}
}

// TestLargeTransactionAbortedInASavepoint rolls back very many rows and keeps one.
func TestLargeTransactionAbortedInASavepoint(t *testing.T) {
	t.Parallel()
	const rows = 100_000
	r := newRigOn(t, streamingCluster(t), 2, tenant.ReplicationOptions{}, streamedTable+fillBig(1, 10))
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	exec(t, r.srcDB, "BEGIN")
	exec(t, r.srcDB, "INSERT INTO small VALUES (1, 1)")
	exec(t, r.srcDB, "SAVEPOINT s")
	exec(t, r.srcDB, `INSERT INTO big SELECT i % 50, i, 'x' FROM generate_series(1000, 999 + $1::int) i`, rows)
	exec(t, r.srcDB, "ROLLBACK TO s")
	exec(t, r.srcDB, "INSERT INTO small VALUES (2, 2)")
	exec(t, r.srcDB, "COMMIT")
	eventually(t, "both rows that count", func() bool { return r.total("SELECT count(*) FROM small") == 2 })
	if n := r.total("SELECT count(*) FROM big"); n != 10 {
		t.Errorf("%d rows are at the shards, not 10", n)
	}
	r.verifyClean(e)
}

// TestShapeWithinAStreamedTransaction changes a table within transactions in progress: what is rolled back must not be
// noticed, and what commits must pause before the first row of the new shape.
func TestShapeWithinAStreamedTransaction(t *testing.T) {
	t.Parallel()
	r := newRigOn(t, streamingCluster(t), 2, tenant.ReplicationOptions{}, streamedTable+fillBig(1, 10))
	r.asOwner()
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	exec(t, r.srcDB, "BEGIN")
	exec(t, r.srcDB, fillBig(1000, 2000))
	exec(t, r.srcDB, "SAVEPOINT s")
	exec(t, r.srcDB, "ALTER TABLE big ADD COLUMN extra int")
	exec(t, r.srcDB, "UPDATE big SET extra = 1")
	exec(t, r.srcDB, "ROLLBACK TO s")
	exec(t, r.srcDB, "UPDATE big SET body = 'after' WHERE id < 1500")
	exec(t, r.srcDB, "COMMIT")
	r.verifyClean(e)
	exec(t, r.srcDB, "BEGIN")
	exec(t, r.srcDB, fillBig(3000, 4000))
	exec(t, r.srcDB, "ALTER TABLE big ADD COLUMN extra int")
	exec(t, r.srcDB, "UPDATE big SET extra = 1")
	exec(t, r.srcDB, "COMMIT")
	r.waitPhase(tenant.Paused)
	if st := r.jour.phase(); !strings.Contains(st.Reason, "extra") {
		t.Errorf("paused with %q", st.Reason)
	}
	if n := r.total("SELECT count(*) FROM big"); n != 10+1001 {
		t.Errorf("%d rows are at the shards though the transaction cannot be applied", n)
	}
}

// TestRestartWithinAStreamedTransaction takes the engine, then the source's connection away while a transaction is being
// streamed: it comes again from its beginning.
func TestRestartWithinAStreamedTransaction(t *testing.T) {
	t.Parallel()
	r := newRigOn(t, streamingCluster(t), 2, tenant.ReplicationOptions{}, streamedTable+fillBig(1, 10))
	e, stopEngine := r.start()
	r.waitPhase(tenant.InSync)
	tx := open(t, r.source)
	exec(t, tx, "BEGIN")
	exec(t, tx, fillBig(1000, 4000))
	eventually(t, "rows are streamed", func() bool { return e.Progress().SpooledBytes > 0 })
	stopEngine()
	exec(t, tx, "SAVEPOINT s")
	exec(t, tx, fillBig(5000, 6000))
	exec(t, tx, "ROLLBACK TO s")
	e, _ = r.start()
	eventually(t, "rows are streamed again", func() bool { return e.Progress().SpooledBytes > 0 })
	exec(t, r.srcDB, `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1`, "rehome_"+r.id)
	exec(t, tx, fillBig(7000, 8000))
	exec(t, tx, "COMMIT")
	eventually(t, "all rows that count", func() bool { return r.total("SELECT count(*) FROM big") == 10+3001+1001 })
	r.verifyClean(e)
}
