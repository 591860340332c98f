package replicator_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/rehomedb/rehome/tenant"
)

const smallTables = 40

// manySmall are tables that one worker copies ten in a transaction.
func manySmall() string {
	var sql strings.Builder
	for i := range smallTables {
		fmt.Fprintf(&sql, `CREATE TABLE small_%02[1]d (id int NOT NULL, realm_id text, UNIQUE (id, realm_id));
			INSERT INTO small_%02[1]d SELECT g, 'r' || (g & 15) FROM generate_series(1, 50) g;
			ALTER TABLE small_%02[1]d REPLICA IDENTITY FULL;`, i)
	}
	return sql.String()
}

// blockAt makes the copy of a table at a shard wait; let lets it go on.
func (r *rig) blockAt(shard int, table string) (blocked func() bool, let func()) {
	r.t.Helper()
	c := open(r.t, r.shards[shard].DSN)
	exec(r.t, c, "BEGIN; LOCK TABLE "+table+" IN SHARE MODE")
	look := open(r.t, r.shards[shard].DSN)
	blocked = func() bool {
		return scalar[bool](r.t, look, `SELECT EXISTS (SELECT FROM pg_locks WHERE relation = $1::regclass AND mode = 'RowExclusiveLock' AND NOT granted)`, table)
	}
	return blocked, func() { exec(r.t, c, "ROLLBACK") }
}

// TestSmallTablesAreCopiedTogether kills the engine in the middle of a transaction that copies several tables: each table is
// there with its note or not at all, nothing comes twice, and one that was rewritten meanwhile does not hold up the others.
func TestSmallTablesAreCopiedTogether(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{CopyJobs: 1, RealmsNeverChange: []string{"*"}}, manySmall())
	first := make(chan struct{})
	r.jour.first = first
	_, stop := r.start()
	<-first
	stop()
	done := r.atShards(`SELECT count(*) FROM rehome.copied`)
	if done[0] != 10 || done[1] != 10 {
		t.Errorf("%d tables are copied after the first transaction, want 10 at each shard", done)
	}

	blocked, let := r.blockAt(1, "small_12")
	_, stop = r.start()
	eventually(t, "the copy waits in the middle of a transaction", blocked)
	stop()
	let()
	for i, sh := range r.shards {
		c := open(t, sh.DSN)
		for n := range smallTables {
			table := fmt.Sprintf("small_%02d", n)
			rows := scalar[int64](t, c, "SELECT count(*) FROM "+table)
			if noted := scalar[int64](t, c, `SELECT coalesce(sum(rows), 0)::bigint FROM rehome.copied WHERE relation = $1`, "public."+table); rows != noted {
				t.Errorf("shard %d: %s has %d rows, its note says %d", i, table, rows, noted)
			}
		}
	}
	if now := r.atShards(`SELECT count(*) FROM rehome.copied`); now[1] != 10 {
		t.Errorf("the shard that did not commit has notes of %d tables, want 10", now[1])
	}

	// A shard that committed while the other failed has rows of a table that does not count.
	c := open(t, r.shards[1].DSN)
	exec(t, c, `DELETE FROM rehome.copied WHERE relation = 'public.small_03'`)
	blocked, let = r.blockAt(1, "small_12")
	e, _ := r.start()
	eventually(t, "the copy waits again", blocked)
	exec(t, r.srcDB, `SET lock_timeout = '5s'; BEGIN; TRUNCATE small_39; INSERT INTO small_39 SELECT g, 'r' || (g & 15) FROM generate_series(1001, 1020) g; COMMIT`)
	let()
	r.waitPhase(tenant.InSync)
	if n := r.total(`SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid WHERE c.relname LIKE 'small\_%' AND i.indisvalid`); n != 2*smallTables {
		t.Errorf("%d of %d indexes are there", n, 2*smallTables)
	}
	r.verifyClean(e)
}

// TestSmallTableThatFailsIsNamed has one row without a realm among many tables.
func TestSmallTableThatFailsIsNamed(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{CopyJobs: 1, RealmsNeverChange: []string{"*"}}, manySmall()+`INSERT INTO small_27 VALUES (51, NULL)`)
	r.start()
	r.waitPhase(tenant.Paused)
	if st := r.jour.phase(); !strings.Contains(st.Reason, "small_27") {
		t.Errorf("paused without the table's name: %s", st.Reason)
	}
	for i, n := range r.atShards(`SELECT count(*) FROM rehome.copied WHERE relation BETWEEN 'public.small_20' AND 'public.small_29'`) {
		if n != 0 {
			t.Errorf("shard %d has notes of %d tables of the transaction that failed", i, n)
		}
	}
}

// TestIndexThatFailsIsNamed has an index that the shards refuse, of a table whose indexes are created together with those of
// other small ones, or side by side.
func TestIndexThatFailsIsNamed(t *testing.T) {
	t.Parallel()
	for name, rows := range map[string]int{"small": 0, "large": 10000} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, 1, tenant.ReplicationOptions{CopyJobs: 1}, manySmall()+fmt.Sprintf(`INSERT INTO small_05 SELECT g, 'r' || (g & 15) FROM generate_series(100, 100 + %d) g;
				CREATE INDEX ON small_05 (realm_id); CREATE INDEX ON small_05 (realm_id, id)`, rows))
			db := scalar[string](t, r.srcDB, `SELECT current_database()`)
			exec(t, r.srcDB, `CREATE FUNCTION refuse(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN IF current_database() <> '`+db+`' THEN RAISE EXCEPTION 'refused at the shard'; END IF; RETURN $1; END $$;
				CREATE INDEX bad ON small_05 (refuse(id))`)
			r.start()
			r.waitPhase(tenant.Paused)
			if st := r.jour.phase(); !strings.Contains(st.Reason, "bad") || !strings.Contains(st.Reason, "refused at the shard") {
				t.Errorf("paused without the index' name: %s", st.Reason)
			}
		})
	}
}

// TestIndexesSideBySide has a table that is large enough for its indexes to be created side by side: all are there, and the
// table is analysed behind the last of them, expressions included.
func TestIndexesSideBySide(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{}, `CREATE TABLE wide (id bigint NOT NULL, realm_id text NOT NULL, n int NOT NULL, note text, PRIMARY KEY (id, realm_id), UNIQUE (realm_id, n));
		INSERT INTO wide SELECT g, 'r' || (g & 15), g, repeat('x', 60) FROM generate_series(1, 10000) g;
		CREATE INDEX wide_note ON wide (note); CREATE INDEX wide_upper ON wide (upper(realm_id)); CREATE INDEX wide_part ON wide (n) WHERE n > 5000;
		CREATE UNIQUE INDEX wide_id ON wide (id, realm_id, n); ALTER TABLE wide REPLICA IDENTITY USING INDEX wide_id; CLUSTER wide USING wide_note`)
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	for what, want := range map[string]int64{
		`SELECT count(*) FROM pg_index WHERE indrelid = 'wide'::regclass AND indisvalid`:                         6,
		`SELECT count(*) FROM pg_index WHERE indrelid = 'wide'::regclass AND (indisreplident OR indisclustered)`: 2,
		`SELECT count(*) FROM pg_stats WHERE tablename IN ('wide', 'wide_upper')`:                                5,
		`SELECT count(*) FROM pg_class WHERE oid = 'wide'::regclass AND reltuples > 1000`:                        1,
	} {
		for i, n := range r.atShards(what) {
			if n != want {
				t.Errorf("shard %d: %d, want %d: %s", i, n, want, what)
			}
		}
	}
	r.verifyClean(e)
}
