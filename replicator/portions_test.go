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

// TestIndexOfASmallTableFails has an index that the shards refuse among those that are created together:
// the error names it.
func TestIndexOfASmallTableFails(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, tenant.ReplicationOptions{CopyJobs: 1}, manySmall())
	name := scalar[string](t, r.srcDB, `SELECT current_database()`)
	exec(t, r.srcDB, `CREATE FUNCTION refuse(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN IF current_database() <> '`+name+`' THEN RAISE EXCEPTION 'refused at the shard'; END IF; RETURN $1; END $$;
		CREATE INDEX bad ON small_05 (refuse(id))`)
	r.start()
	r.waitPhase(tenant.Paused)
	if st := r.jour.phase(); !strings.Contains(st.Reason, "bad") || !strings.Contains(st.Reason, "refused at the shard") {
		t.Errorf("paused without the index' name: %s", st.Reason)
	}
}
