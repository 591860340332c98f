package replicator_test

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/tenant"
)

const itemsDDL = `CREATE TABLE items (realm_id text NOT NULL, id bigint NOT NULL, n int, big text, PRIMARY KEY (realm_id, id));
	ALTER TABLE items ALTER big SET STORAGE EXTERNAL;
	INSERT INTO items SELECT 'r' || (g % 20), g, 0, repeat('x', 10) FROM generate_series(1, 200) g;`

// total sums an expression over all shards.
func (r *rig) total(sql string, args ...any) int64 {
	r.t.Helper()
	var n int64
	r.asking.Lock()
	defer r.asking.Unlock()
	for _, sh := range r.shards {
		n += scalar[int64](r.t, r.asker(sh.DSN), sql, args...)
	}
	return n
}

// asker is a session that total and atShards keep: conditions are polled, and a new one for each look is dearer than the look.
func (r *rig) asker(dsn tenant.DSN) *pgx.Conn {
	r.t.Helper()
	c := r.askers[dsn]
	if c == nil || c.Ping(r.t.Context()) != nil { // the server was restarted, perhaps
		c = open(r.t, dsn)
		if r.askers == nil {
			r.askers = map[tenant.DSN]*pgx.Conn{}
		}
		r.askers[dsn] = c
	}
	return c
}

func TestTransactionsInCommitOrder(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{}, itemsDDL)
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	a, b := open(t, r.source), open(t, r.source)
	exec(t, a, "BEGIN")
	exec(t, a, "INSERT INTO items VALUES ('r1', 1001, 1)")
	exec(t, b, "BEGIN")
	exec(t, b, "INSERT INTO items VALUES ('r1', 1002, 1), ('r2', 1002, 1)")
	exec(t, b, "COMMIT")
	exec(t, a, "SAVEPOINT s")
	exec(t, a, "INSERT INTO items VALUES ('r1', 1003, 1)")
	exec(t, a, "ROLLBACK TO s")
	exec(t, a, "UPDATE items SET n = 5 WHERE id = 1002 AND realm_id = 'r2'")
	exec(t, a, "COMMIT")
	r.verifyClean(e)
	if n := r.total(`SELECT coalesce(sum(n), 0) FROM items WHERE id > 1000`); n != 7 {
		t.Errorf("sum %d, want 7: one of two interleaved transactions is missing", n)
	}
}

func TestRowsThatChangeTheirRealm(t *testing.T) {
	t.Parallel()
	r := newRig(t, 3, tenant.ReplicationOptions{}, itemsDDL+`ALTER TABLE items REPLICA IDENTITY FULL; UPDATE items SET big = repeat('y', 9000) WHERE id % 3 = 0;`)
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	exec(t, r.srcDB, `UPDATE items SET realm_id = 'moved' || (id % 7) WHERE id % 2 = 0`) // large values unchanged, sent in the old row
	exec(t, r.srcDB, `BEGIN; UPDATE items SET realm_id = 'a' WHERE id = 3; UPDATE items SET realm_id = 'b', n = 9 WHERE id = 3; UPDATE items SET realm_id = 'r3' WHERE id = 3; COMMIT`)
	exec(t, r.srcDB, `UPDATE items SET id = id + 100000 WHERE id % 5 = 0`)
	exec(t, r.srcDB, `DELETE FROM items WHERE id % 11 = 0`)
	v := r.verifyClean(e)
	if v.Rows < 150 {
		t.Errorf("only %d rows were compared", v.Rows)
	}
}

func TestUnchangedLargeValues(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{}, itemsDDL+`UPDATE items SET big = repeat('y', 9000) WHERE id % 3 = 0;`)
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	exec(t, r.srcDB, `UPDATE items SET n = n + 1`)
	exec(t, r.srcDB, `UPDATE items SET big = NULL WHERE id = 6`)
	r.verifyClean(e)
	if n := r.total(`SELECT count(*) FROM items WHERE length(big) = 9000`); n != 65 {
		t.Errorf("%d large values are left, want 65", n)
	}
}

func TestTruncateAndIdleAdvance(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{}, itemsDDL)
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	exec(t, r.srcDB, `BEGIN; INSERT INTO items VALUES ('r1', 5000, 1); TRUNCATE items; INSERT INTO items SELECT 'r' || g, g, 1 FROM generate_series(1, 9) g; COMMIT`)
	r.verifyClean(e)
	if n := r.total(`SELECT count(*) FROM items`); n != 9 {
		t.Errorf("%d rows, want 9", n)
	}
	// On an idle database the heartbeat lets the slot advance, so that it pins no WAL.
	at := scalar[string](t, r.srcDB, `SELECT pg_current_wal_lsn()::text`)
	eventually(t, "the slot advances on an idle database", func() bool {
		return scalar[bool](t, r.srcDB, `SELECT confirmed_flush_lsn >= $1::pg_lsn FROM pg_replication_slots WHERE slot_name = $2`, at, "rehome_"+r.id)
	})
}

func TestDivergenceIsNamed(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]string{
		"missing": `DELETE FROM items WHERE id = 7`,
		"extra":   `INSERT INTO items VALUES ('r9', 7000, 1)`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, 1, tenant.ReplicationOptions{}, itemsDDL)
			e, _ := r.start()
			r.waitPhase(tenant.InSync)
			c := open(t, r.shards[0].DSN)
			exec(t, c, `SELECT set_config('rehome.pass', $1, false)`, pass.Reveal())
			exec(t, c, fault)
			exec(t, r.srcDB, `UPDATE items SET n = 2 WHERE id = 7`)
			exec(t, r.srcDB, `INSERT INTO items VALUES ('r9', 7000, 1)`)
			r.waitPhase(tenant.Paused)
			st := r.jour.phase()
			if !strings.Contains(st.Reason, "public.items") || !strings.Contains(st.Reason, "id=7") || st.Remedy == "" {
				t.Errorf("paused for %q, remedy %q", st.Reason, st.Remedy)
			}
			_ = e
		})
	}
}

func TestFormerOwnerCommitsNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{}, itemsDDL)
	_, stopFirst := r.start()
	r.waitPhase(tenant.InSync)
	// A second worker takes over while the first still runs; the first notices at its next commit and ends.
	e, _ := r.start()
	for i := range 50 {
		exec(t, r.srcDB, `INSERT INTO items VALUES ($1, $2, 1)`, "r"+string(rune('a'+i%5)), 10000+i)
	}
	eventually(t, "the second worker streams", func() bool { return len(e.Progress().Shards) == 2 })
	r.verifyClean(e)
	stopFirst()
	r.verifyClean(e)
}

func TestSlotTrouble(t *testing.T) {
	t.Parallel()
	t.Run("missing", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, 1, tenant.ReplicationOptions{}, itemsDDL)
		_, stop := r.start()
		r.waitPhase(tenant.InSync)
		stop()
		eventually(t, "the slot is free", func() bool {
			_, err := r.srcDB.Exec(t.Context(), `SELECT pg_drop_replication_slot($1)`, "rehome_"+r.id)
			return err == nil
		})
		r.start()
		r.waitPhase(tenant.Paused)
		if st := r.jour.phase(); !strings.Contains(st.Reason, "is gone") {
			t.Errorf("paused for %q", st.Reason)
		}
	})
	t.Run("ahead of a shard", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, 1, tenant.ReplicationOptions{}, itemsDDL)
		_, stop := r.start()
		r.waitPhase(tenant.InSync)
		stop()
		exec(t, r.srcDB, `INSERT INTO items VALUES ('r1', 9000, 1)`)
		eventually(t, "the slot moves", func() bool {
			_, err := r.srcDB.Exec(t.Context(), `SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())`, "rehome_"+r.id)
			return err == nil
		})
		r.start()
		r.waitPhase(tenant.Paused)
		if st := r.jour.phase(); !strings.Contains(st.Reason, "acknowledged up to") {
			t.Errorf("paused for %q", st.Reason)
		}
	})
}

func TestChangedShapePausesAndGoesOn(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{}, itemsDDL)
	r.asOwner()
	_, stop := r.start()
	r.waitPhase(tenant.InSync)
	exec(t, r.srcDB, `ALTER TABLE items ADD COLUMN extra text`)
	exec(t, r.srcDB, `INSERT INTO items VALUES ('r1', 900, 1, NULL, 'new')`)
	r.waitPhase(tenant.Paused)
	if st := r.jour.phase(); !strings.Contains(st.Reason, "lacks extra") {
		t.Fatalf("paused for %q", st.Reason)
	}
	stop()
	for _, sh := range r.shards {
		exec(t, open(t, sh.DSN), `ALTER TABLE items ADD COLUMN extra text`)
	}
	r.resume()
	e, stop := r.start()
	eventually(t, "the row of the new shape arrives", func() bool { return r.total(`SELECT count(*) FROM items WHERE extra = 'new'`) == 1 })
	r.verifyClean(e)
	stop()
	e, _ = r.start() // with what the shards remember
	eventually(t, "it streams again and is the same", func() bool {
		v, err := e.Verify(t.Context(), replicator.VerifyOptions{})
		return err == nil && v.Clean
	})
}

// TestFinishedTablesAreNotCopiedAgain stops the copy while one table is done and another cannot be.
func TestFinishedTablesAreNotCopiedAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{CopyJobs: 1}, itemsDDL+`CREATE TABLE other (realm_id text NOT NULL, id bigint NOT NULL, PRIMARY KEY (realm_id, id));
		INSERT INTO other SELECT 'r' || g, g FROM generate_series(1, 100) g;`)
	first := make(chan struct{})
	r.jour.first = first
	_, stop := r.start()
	<-first
	exec(t, r.srcDB, `INSERT INTO other VALUES ('r2', 2000); UPDATE items SET n = 4`) // between the two snapshots
	stop()
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	exec(t, r.srcDB, `INSERT INTO other VALUES ('r1', 1000); UPDATE items SET n = 3`)
	r.verifyClean(e)
	counts := map[string]int{}
	for _, c := range r.jour.copies {
		counts[c]++
	}
	for table, n := range counts {
		if n != 1 {
			t.Errorf("table %s was copied %d times", table, n)
		}
	}
	if len(counts) != 2 {
		t.Errorf("copied %v", counts)
	}
}

// TestServersComeAndGo restarts the source and a shard under load, as by a power cut.
func TestServersComeAndGo(t *testing.T) {
	t.Parallel()
	src := pgcluster.StartT(t, pgcluster.Options{})
	dst := pgcluster.StartT(t, pgcluster.Options{Fsync: true})
	r := newRigOn(t, src, 2, tenant.ReplicationOptions{Reference: []string{"public.plans"}}, shopDDL)
	r.shards[1].DSN = pgcluster.NewDatabase(t, dst)
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	for range 2 {
		stop := writers(t, r.source, 2)
		waitTicks(t, 300)
		if err := dst.Kill(); err != nil {
			t.Fatal(err)
		}
		waitTicks(t, 200)
		if err := dst.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		waitTicks(t, 500)
		stop()
		if err := src.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the stream is back", func() bool { return len(e.Progress().Shards) == 2 })
		verifyWhenBack(t, r, e)
	}
}

// verifyWhenBack tries until the stream is there again; what it then finds must be clean.
func verifyWhenBack(t *testing.T, r *rig, e *replicator.Engine) {
	t.Helper()
	var v tenant.Verification
	eventually(t, "a verification can run", func() bool {
		var err error
		v, err = e.Verify(t.Context(), replicator.VerifyOptions{})
		if err != nil && !replicator.IsRetryable(err) {
			t.Fatal(err)
		}
		return err == nil
	})
	if !v.Clean {
		t.Fatalf("not clean: %+v", v.Tables)
	}
}
