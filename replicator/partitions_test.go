package replicator_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/tenant"
)

// TestTruncateOfALaterPartition truncates partitions that were made or attached after the start, each alone, and ends the
// replication after they went elsewhere.
func TestTruncateOfALaterPartition(t *testing.T) {
	t.Parallel()
	r, e := ddlRig(t)
	const tree = `(realm_id text NOT NULL, at date NOT NULL, id bigint NOT NULL, PRIMARY KEY (realm_id, at, id)) PARTITION BY `
	script(t, r.srcDB, `
		CREATE TABLE log_2 PARTITION OF log FOR VALUES FROM ('2021-01-01') TO ('2022-01-01');
		CREATE TABLE log_3 (LIKE log INCLUDING ALL); ALTER TABLE log ATTACH PARTITION log_3 FOR VALUES FROM ('2022-01-01') TO ('2023-01-01');
		CREATE SCHEMA "Else where"; CREATE TABLE "Else where"."log 4" PARTITION OF log FOR VALUES FROM ('2023-01-01') TO ('2024-01-01') PARTITION BY LIST (realm_id);
		CREATE TABLE "Else where"."log 4 a" PARTITION OF "Else where"."log 4" FOR VALUES IN ('r1'); CREATE TABLE log_4_rest PARTITION OF "Else where"."log 4" DEFAULT;
		CREATE TABLE later `+tree+`RANGE (at); CREATE TABLE later_1 PARTITION OF later DEFAULT;
		CREATE TABLE keyless (realm_id text NOT NULL, id int NOT NULL) PARTITION BY RANGE (id); CREATE TABLE keyless_1 PARTITION OF keyless DEFAULT; ALTER TABLE keyless REPLICA IDENTITY FULL; ALTER TABLE keyless_1 REPLICA IDENTITY FULL`)
	fill := `INSERT INTO log SELECT 'r' || g % 7, date '2021-02-02' + (g % 3) * 365, g FROM generate_series(1000, 1100) g ON CONFLICT DO NOTHING;
		INSERT INTO later SELECT 'r' || g % 7, '2021-02-02', g FROM generate_series(1, 50) g ON CONFLICT DO NOTHING; INSERT INTO keyless SELECT 'r' || g % 7, g FROM generate_series(1, 50) g;`
	for _, name := range []string{`log_2`, `log_3`, `"Else where"."log 4 a"`, `"Else where"."log 4"`, `log_4_rest`, `later_1`, `keyless_1`} {
		script(t, r.srcDB, fill+`TRUNCATE `+name+`; INSERT INTO later VALUES ('after', '2020-01-01', 1) ON CONFLICT DO NOTHING`)
	}
	script(t, r.srcDB, `BEGIN; CREATE TABLE log_5 PARTITION OF log FOR VALUES FROM ('2025-01-01') TO ('2026-01-01'); INSERT INTO log VALUES ('r1', '2025-01-01', 1);
		TRUNCATE log_5; INSERT INTO log VALUES ('r2', '2025-01-01', 1); COMMIT;
		ALTER TABLE log DETACH PARTITION log_3; ALTER TABLE log_3 RENAME TO log_three; TRUNCATE log_three; ALTER TABLE log_2 RENAME TO log_two; TRUNCATE log_two`)
	r.caughtUp(e)
	r.verifyClean(e)
	if n := scalar[int](t, r.srcDB, `SELECT count(*) FROM rehome.ddl WHERE tag = 'CREATE TRIGGER' OR kind <> 'state'`); n != 0 {
		t.Errorf("%d records of the engine's own triggers", n)
	}

	const left = `SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'rehome\_truncated\_%'`
	before := scalar[int](t, r.srcDB, left)
	changes := slices.Clone(r.jour.changes)
	r.epoch++
	_, stop := r.start()
	stop()
	e, err := replicator.New(r.config())
	if err != nil {
		t.Fatal(err)
	}
	if err := e.CleanUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, c := range slices.Backward(changes) {
		if strings.HasPrefix(c.Object, "event triggers") {
			exec(t, r.srcDB, c.Undo)
		}
	}
	if n := scalar[int](t, r.srcDB, left); before < 9 || n != 0 {
		t.Errorf("of %d triggers %d are left", before, n)
	}
	exec(t, r.srcDB, `DROP FUNCTION rehome.note_truncation()`)
}

// TestPartitionWithoutATruncateTrigger cannot give a new partition its trigger: its owner gets it, and is told.
func TestPartitionWithoutATruncateTrigger(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{Reference: []string{"public.plans*"}, Exclude: []string{"public.scratch*"}}, ddlSetup)
	_, stop := r.start()
	r.waitPhase(tenant.InSync)
	exec(t, r.srcDB, `ALTER FUNCTION rehome.note_truncation() RENAME TO note_away`)
	exec(t, r.srcDB, `CREATE TABLE log_2 PARTITION OF log FOR VALUES FROM ('2021-01-01') TO ('2022-01-01'); INSERT INTO log VALUES ('r1', '2021-01-01', 1)`)
	r.waitPhase(tenant.Paused)
	stop() // it notes for what it paused before it ends
	st := r.jour.phase()
	if !strings.Contains(st.Reason, "partition public.log_2") || !strings.Contains(st.Reason, "note_truncation") {
		t.Fatalf("paused: %+v", st)
	}
	exec(t, r.srcDB, `ALTER FUNCTION rehome.note_away() RENAME TO note_truncation`)
	mend := st.Remedy[strings.Index(st.Remedy, "CREATE TRIGGER"):strings.Index(st.Remedy, "; or see")]
	exec(t, r.srcDB, `SET application_name = 'rehome gate'; `+mend)
	r.resume()
	e, _ := r.start()
	r.caughtUp(e)
	exec(t, r.srcDB, `TRUNCATE log_2`)
	r.caughtUp(e)
	r.verifyClean(e)
}
