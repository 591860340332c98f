package replicator_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/tenant"
)

// TestSchemaChangeKeepsWhatTheOptionsSay changes tables whose rows are found in special ways.
func TestSchemaChangeKeepsWhatTheOptionsSay(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{RealmsNeverChange: []string{"items", "later"}, Reference: []string{"plans"}}, `
		CREATE TYPE mood AS ENUM ('sad', 'happy');
		CREATE DOMAIN feeling AS mood;
		CREATE TABLE items (id bigint PRIMARY KEY, realm_id text NOT NULL, n int);
		CREATE TABLE felt (realm_id text, f feeling, n int, PRIMARY KEY (realm_id, f));
		CREATE TABLE plans (id int PRIMARY KEY, name text);
		INSERT INTO items SELECT g, 'r' || (g % 20), 0 FROM generate_series(1, 100) g;
		INSERT INTO felt SELECT 'r' || g, 'sad', 0 FROM generate_series(1, 20) g;`)
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	for _, sql := range []string{
		`ALTER TABLE items ADD COLUMN a int; ALTER TABLE felt ADD COLUMN a int`,
		`UPDATE felt SET n = 1 WHERE realm_id = 'r1'`, `DELETE FROM felt WHERE realm_id > 'r2'`,
		`DELETE FROM items WHERE id % 7 = 0`, `UPDATE items SET id = id + 1000 WHERE id % 5 = 0`,
		`CREATE TABLE later (id int PRIMARY KEY, realm_id text NOT NULL)`, `INSERT INTO later SELECT g, 'r' || g FROM generate_series(1, 9) g`, `DELETE FROM later WHERE id < 5`,
	} {
		exec(t, r.srcDB, sql)
	}
	r.caughtUp(e)
	r.verifyClean(e)
}

// TestChunkKeyIsRenamedLater renames the column by which a table was cut, when the stream has brought all chunks of an
// interrupted copy to one position.
func TestChunkKeyIsRenamedLater(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{CopyJobs: 1, ChunkBytes: 24 << 10, Reference: []string{"public.plans"}}, `
		CREATE TABLE plans (id int PRIMARY KEY, name text);
		CREATE TABLE items (id bigint, realm_id text, n int NOT NULL DEFAULT 0, pad text, PRIMARY KEY (id, realm_id));
		INSERT INTO items SELECT g, 'r' || (g & 15), 0, repeat('x', 80) FROM generate_series(1, 4000) g; ANALYZE;`)
	r.jour.first = make(chan struct{})
	first := r.jour.first
	_, stop := r.start()
	<-first
	stop()
	exec(t, r.srcDB, `UPDATE items SET n = 1`)
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	exec(t, r.srcDB, `ALTER TABLE items RENAME COLUMN id TO number; UPDATE items SET number = -number WHERE number % 5 = 0; DELETE FROM items WHERE number % 7 = 0`)
	r.caughtUp(e)
	r.verifyClean(e)
}

// TestMarkerReadAgain has a marker come again to a shard that had it before, and more: the shard's position stays.
func TestMarkerReadAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{}, `CREATE TABLE items (realm_id text, id bigint, PRIMARY KEY (realm_id, id))`)
	_, stop := r.start()
	r.waitPhase(tenant.InSync)
	slow, fast := open(t, r.shards[1].DSN), open(t, r.shards[0].DSN)
	exec(t, slow, `BEGIN; LOCK TABLE items`)
	exec(t, r.srcDB, `INSERT INTO items SELECT 'r' || g, 1 FROM generate_series(1, 30) g`)
	if err := gate.WriteMarker(t.Context(), r.srcDB, "a", "cutover"); err != nil {
		t.Fatal(err)
	}
	exec(t, r.srcDB, `INSERT INTO items SELECT 'r' || g, 2 FROM generate_series(1, 30) g`)
	eventually(t, "the first shard has all", func() bool { return scalar[bool](t, fast, `SELECT EXISTS (SELECT FROM items WHERE id = 2)`) })
	stop()
	exec(t, slow, `COMMIT`)
	e, _ := r.start()
	if _, _, err := e.WaitMarker(within(t), "a"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*pgx.Conn{fast, slow} {
		if n := scalar[int](t, c, `SELECT count(*) FROM (SELECT lsn, lag(lsn) OVER (ORDER BY seq) AS before FROM rehome.progress) p WHERE lsn < before`); n != 0 {
			t.Errorf("a shard's position went back %d times", n)
		}
	}
	r.verifyClean(e)
}

// TestPausesComeWhenLanesHaveWhatIsBefore has a shard that is behind when the schema changes in a way that a person must
// repeat: rows of the old shape that it still lacks must reach it before.
func TestPausesComeWhenLanesHaveWhatIsBefore(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{
		"not recorded":     `ALTER TABLE items DROP COLUMN n`,
		"by an expression": `ALTER TABLE items ALTER COLUMN n TYPE text USING 'n' || n`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, 2, tenant.ReplicationOptions{Reference: []string{"public.plans*"}}, ddlSetup)
			r.start()
			r.waitPhase(tenant.InSync)
			if name == "not recorded" {
				exec(t, r.srcDB, `SET application_name = 'rehome gate'`) // as where event triggers are not permitted
			}
			slow := open(t, r.shards[1].DSN)
			exec(t, slow, `BEGIN; LOCK TABLE items IN EXCLUSIVE MODE`)
			exec(t, r.srcDB, `INSERT INTO items (realm_id, id, n) SELECT 'r' || g, 5000, 1 FROM generate_series(1, 30) g`)
			exec(t, r.srcDB, sql)
			exec(t, r.srcDB, `INSERT INTO items (realm_id, id) SELECT 'r' || g, 5001 FROM generate_series(1, 30) g`)
			waitTicks(t, 1500)
			if p := r.jour.phase().Phase; p == tenant.Paused {
				t.Error("paused while a shard lacks what comes before")
			}
			exec(t, slow, `COMMIT`)
			r.waitPhase(tenant.Paused)
			for _, sh := range r.shards {
				exec(t, open(t, sh.DSN), "SET session_replication_role = replica; "+sql)
			}
			r.resume()
			e, _ := r.start()
			r.caughtUp(e)
			r.verifyClean(e)
		})
	}
}

// TestNothingIsLeftOfRenamedPartitions takes back what was changed at the source after a partition got another name.
func TestNothingIsLeftOfRenamedPartitions(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, tenant.ReplicationOptions{Reference: []string{"public.plans*"}}, ddlSetup)
	e, stop := r.start()
	r.waitPhase(tenant.InSync)
	exec(t, r.srcDB, `ALTER TABLE log_1 RENAME TO "log ''one"`)
	r.caughtUp(e)
	stop()
	if err := e.CleanUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, c := range r.jour.changes {
		exec(t, r.srcDB, c.Undo)
	}
	if err := gate.UninstallSource(t.Context(), r.srcDB, false); err != nil {
		t.Error(err)
	}
	if n := scalar[int](t, r.srcDB, `SELECT (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'rehome%') + (SELECT count(*) FROM pg_namespace WHERE nspname = 'rehome')`); n != 0 {
		t.Errorf("%d objects are left", n)
	}
}
