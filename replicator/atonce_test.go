package replicator_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/tenant"
)

// atOnceDDL are a table's rows, those of a partitioned one, and of one without a key.
const atOnceDDL = `
CREATE TABLE items (realm_id text NOT NULL, id int NOT NULL, n int, PRIMARY KEY (realm_id, id));
CREATE TABLE parts (realm_id text NOT NULL, id int NOT NULL, n int, PRIMARY KEY (realm_id, id)) PARTITION BY RANGE (id);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (7); CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (7) TO (10000);
CREATE TABLE fulls (realm_id text NOT NULL, id int, n int, doc json);
ALTER TABLE fulls REPLICA IDENTITY FULL;
INSERT INTO items SELECT 'r1', i, 0 FROM generate_series(1, 20) i;
INSERT INTO parts SELECT 'r1', i, 0 FROM generate_series(1, 20) i;
INSERT INTO fulls SELECT 'r1', i, NULL, '{"a": 1}' FROM generate_series(1, 20) i;
`

// settled has a small transaction made at the source, and waits until the engine sent it with its COMMIT.
func (r *rig) settled(e *replicator.Engine, sql, applied string) {
	r.t.Helper()
	before := e.SentWithCommit()
	exec(r.t, r.srcDB, sql)
	eventually(r.t, "applied: "+sql, func() bool { return r.total(applied) == 1 })
	eventually(r.t, "sent with its COMMIT: "+sql, func() bool { return e.SentWithCommit() > before })
}

// TestSmallGroupsWithTheirCommit: a transaction of a lane that keeps up is sent with its COMMIT. One that hits no row, or
// meets one, commits nothing, and says which row it was.
func TestSmallGroupsWithTheirCommit(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, table, shard, source, reason string }{
		{"an update of a row that is gone", "items", `DELETE FROM items WHERE id = 5`, `UPDATE items SET n = -1 WHERE id = 5`, "is not there"},
		{"a delete of a row that is gone", "items", `DELETE FROM items WHERE id = 5`, `DELETE FROM items WHERE id = 5`, "is not there"},
		{"an insert of a row that is there", "items", `INSERT INTO items (realm_id, id, n) VALUES ('r1', 9001, 0)`, `INSERT INTO items (realm_id, id, n) VALUES ('r1', 9001, 1)`, "cannot be written"},
		{"a row of a partition that is gone", "parts", `DELETE FROM parts WHERE id = 5`, `UPDATE parts SET id = 12000 - 3000, n = -1 WHERE id = 5`, "is not there"},
		{"a row without a key that is gone", "fulls", `DELETE FROM fulls WHERE id = 5`, `UPDATE fulls SET n = -1 WHERE id = 5`, "is not there"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, 1, tenant.ReplicationOptions{}, atOnceDDL)
			e, _ := r.start()
			r.waitPhase(tenant.InSync)
			shard := open(t, r.shards[0].DSN)
			set := func(n, id int) string {
				return strings.NewReplacer("$t", tt.table, "$n", fmt.Sprint(n), "$id", fmt.Sprint(id)).Replace(`UPDATE $t SET n = $n WHERE id = $id`)
			}
			r.settled(e, set(41, 6), `SELECT count(*) FROM `+tt.table+` WHERE n = 41`)
			r.settled(e, `BEGIN; INSERT INTO `+tt.table+` VALUES ('r1', 9500, 44); DELETE FROM `+tt.table+` WHERE id = 8; `+set(45, 9)+`; COMMIT`,
				`SELECT count(*) FROM `+tt.table+` a JOIN `+tt.table+` b ON a.n = 44 AND b.n = 45 WHERE NOT EXISTS (SELECT FROM `+tt.table+` WHERE id = 8)`)
			exec(t, shard, `SET session_replication_role = replica`)
			exec(t, shard, `SELECT set_config('rehome.pass', $1, false)`, pass.Reveal())
			exec(t, shard, tt.shard)
			exec(t, r.srcDB, `BEGIN; `+set(42, 6)+`; `+tt.source+`; `+set(43, 7)+`; COMMIT`)
			r.waitPhase(tenant.Paused)
			if st := r.jour.phase(); !strings.Contains(st.Reason, tt.reason) || !strings.Contains(st.Reason, "public."+tt.table) {
				t.Errorf("paused for %q", st.Reason)
			}
			if n := r.total(`SELECT count(*) FROM ` + tt.table + ` WHERE n IN (-1, 42, 43)`); n != 0 {
				t.Errorf("%d rows of a transaction that does not fit were written", n)
			}
		})
	}
}

// TestManyPartitions: a change of a partitioned table locks the partition that it is about, however many there are; and
// where statements over arrays, which lock all of them, are too much for the server, the changes are applied one by one.
func TestManyPartitions(t *testing.T) {
	t.Parallel()
	const ddl = `CREATE TABLE parts (realm_id text NOT NULL, id int NOT NULL, n int, PRIMARY KEY (realm_id, id)) PARTITION BY RANGE (id);
		DO $$ BEGIN FOR i IN 0..99 LOOP EXECUTE format('CREATE TABLE parts_%s PARTITION OF parts FOR VALUES FROM (%s) TO (%s)', i, i * 10, i * 10 + 10); END LOOP; END $$;
		INSERT INTO parts SELECT 'r1', i, 0 FROM generate_series(0, 999) i`
	r := newRig(t, 1, tenant.ReplicationOptions{}, ddl)
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	// The lock table of this server is taken to have room for 40 relations.
	shard := open(t, r.shards[0].DSN)
	exec(t, shard, `CREATE FUNCTION public.locks() RETURNS trigger LANGUAGE plpgsql AS $$
		DECLARE n int; BEGIN
			SELECT count(*) INTO n FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'relation';
			IF n > 40 THEN RAISE EXCEPTION '% locks', n USING ERRCODE = '53200'; END IF;
			RETURN NULL;
		END $$; CREATE TRIGGER locks AFTER INSERT OR UPDATE OR DELETE ON public.parts FOR EACH STATEMENT EXECUTE FUNCTION public.locks();
		ALTER TABLE public.parts ENABLE ALWAYS TRIGGER locks`, pgx.QueryExecModeSimpleProtocol)
	r.settled(e, `UPDATE parts SET n = 41 WHERE id = 555`, `SELECT count(*) FROM parts WHERE n = 41`)
	r.settled(e, `BEGIN; INSERT INTO parts VALUES ('r2', 1, 42); UPDATE parts SET n = 42 WHERE id = 556; DELETE FROM parts WHERE id = 557; COMMIT`, `SELECT count(*) FROM parts WHERE id = 556 AND n = 42`)
	// More than are sent with their COMMIT.
	exec(t, r.srcDB, `UPDATE parts SET n = 43 WHERE id BETWEEN 100 AND 119`)
	eventually(t, "a larger transaction is applied", func() bool { return r.total(`SELECT count(*) FROM parts WHERE n = 43`) == 20 })
	exec(t, shard, `DROP TRIGGER locks ON public.parts`)
	r.verifyClean(e)
}
