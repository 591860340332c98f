package replicator_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/tenant"
)

const ddlSetup = `
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE TABLE items (realm_id text NOT NULL, id bigint NOT NULL, n int, what text DEFAULT 'x', m mood, PRIMARY KEY (realm_id, id));
CREATE TABLE parts (realm_id text NOT NULL, id bigint NOT NULL, item bigint, PRIMARY KEY (realm_id, id));
CREATE TABLE plans (id int PRIMARY KEY, name text);
CREATE TABLE log (realm_id text NOT NULL, at date NOT NULL, id bigint NOT NULL, PRIMARY KEY (realm_id, at, id)) PARTITION BY RANGE (at);
CREATE TABLE log_1 PARTITION OF log FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
INSERT INTO items SELECT 'r' || (g % 17), g, g, 'w' || g, 'sad' FROM generate_series(1, 200) g;
INSERT INTO parts SELECT realm_id, id, id FROM items;
INSERT INTO plans SELECT g, 'p' || g FROM generate_series(1, 5) g;
INSERT INTO log SELECT 'r' || (g % 17), '2020-02-01', g FROM generate_series(1, 50) g;
`

func ddlRig(t *testing.T) (*rig, *replicator.Engine) {
	t.Helper()
	r := newRig(t, 2, tenant.ReplicationOptions{Reference: []string{"public.plans*"}, Exclude: []string{"public.scratch*"}}, ddlSetup)
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	return r, e
}

// caughtUp waits until every shard has what the source wrote so far.
func (r *rig) caughtUp(e *replicator.Engine) {
	r.t.Helper()
	exec(r.t, r.srcDB, `INSERT INTO plans SELECT coalesce(max(id), 0) + 1, 'mark' FROM plans`)
	last := scalar[int](r.t, r.srcDB, `SELECT max(id) FROM plans`)
	for _, sh := range r.shards {
		c := open(r.t, sh.DSN)
		eventually(r.t, "the mark arrives", func() bool {
			r.waitPhase(tenant.InSync)
			return scalar[int](r.t, c, `SELECT coalesce(max(id), 0) FROM plans`) >= last
		})
	}
}

// TestSchemaChangesAreFollowed runs each command with rows before, in and after its transaction.
func TestSchemaChangesAreFollowed(t *testing.T) {
	t.Parallel()
	r, e := ddlRig(t)
	row := 1000
	rows := func() string {
		row += 3
		return fmt.Sprintf(`INSERT INTO items (realm_id, id, n) VALUES ('r1', %d, 1), ('r2', %d, 2), ('r3', %d, 3);
			UPDATE items SET n = n + 1 WHERE id %% 7 = 0; DELETE FROM items WHERE id = %d;`, row, row+1, row+2, row)
	}
	for _, sql := range []string{
		`ALTER TABLE items ADD COLUMN a int`,
		`ALTER TABLE items ADD COLUMN b text NOT NULL DEFAULT 'it''s'`,
		`ALTER TABLE items ADD COLUMN at timestamptz NOT NULL DEFAULT now(), ADD COLUMN tags text[] DEFAULT '{a,"b c"}'`,
		`ALTER TABLE items ADD COLUMN double int GENERATED ALWAYS AS (n * 2) STORED`,
		`ALTER TABLE items RENAME COLUMN a TO c`,
		`ALTER TABLE items RENAME COLUMN b TO tmp; ALTER TABLE items RENAME COLUMN c TO b; ALTER TABLE items RENAME COLUMN tmp TO c`,
		`ALTER TABLE items DROP COLUMN b`,
		`ALTER TABLE items DROP COLUMN double, ADD COLUMN double bigint`,
		`ALTER TABLE items ALTER COLUMN double TYPE numeric(20,2)`,
		`ALTER TABLE items ALTER COLUMN n TYPE bigint`,
		`SET LOCAL timezone = 'Asia/Tokyo'; ALTER TABLE items ADD COLUMN local timestamp DEFAULT '2020-01-01 12:00'; ALTER TABLE items ALTER COLUMN local TYPE timestamptz; RESET timezone`,
		`ALTER TABLE items ALTER COLUMN what SET DEFAULT 'y', ALTER COLUMN c DROP DEFAULT, ALTER COLUMN c DROP NOT NULL`,
		`UPDATE items SET what = '' WHERE what IS NULL; SET CONSTRAINTS ALL IMMEDIATE`,
		`ALTER TABLE items ALTER COLUMN what SET NOT NULL`,
		`ALTER TABLE items ADD CONSTRAINT positive CHECK (id > 0), ADD CONSTRAINT one UNIQUE (realm_id, id, n)`,
		`ALTER TABLE items RENAME CONSTRAINT positive TO above; ALTER TABLE items DROP CONSTRAINT one`,
		`CREATE INDEX items_what ON items (lower(what)) WHERE n > 3`,
		`ALTER INDEX items_what RENAME TO items_lower`,
		`DROP INDEX items_lower`,
		`ALTER TABLE parts ADD FOREIGN KEY (realm_id, item) REFERENCES items NOT VALID`,
		`DELETE FROM parts WHERE NOT EXISTS (SELECT FROM items i WHERE i.realm_id = parts.realm_id AND i.id = parts.item)`,
		`ALTER TABLE parts VALIDATE CONSTRAINT parts_realm_id_item_fkey; ALTER TABLE parts DROP CONSTRAINT parts_realm_id_item_fkey`,
		`ALTER TYPE mood ADD VALUE 'angry' AFTER 'sad'`,
		`ALTER TYPE mood RENAME VALUE 'happy' TO 'glad'`,
		`CREATE TYPE colour AS ENUM ('red', 'green'); ALTER TABLE items ADD COLUMN col colour DEFAULT 'red'`,
		`CREATE TABLE fresh (realm_id text, id bigint GENERATED ALWAYS AS IDENTITY, s serial, at date DEFAULT current_date, PRIMARY KEY (realm_id, id));
			INSERT INTO fresh (realm_id) SELECT 'r' || g FROM generate_series(1, 9) g`,
		`CREATE INDEX ON fresh (s); INSERT INTO fresh (realm_id) VALUES ('r1'); UPDATE fresh SET s = 100 WHERE realm_id = 'r3'`,
		`ALTER TABLE fresh RENAME TO "fresh; DROP TABLE ""items"" -- ü"; INSERT INTO "fresh; DROP TABLE ""items"" -- ü" (realm_id) VALUES ('r5')`,
		`ALTER TABLE "fresh; DROP TABLE ""items"" -- ü" ADD COLUMN "a'b""c;$$" text DEFAULT '''); DROP TABLE items; --'`,
		`CREATE SCHEMA "Other One"; ALTER TABLE "fresh; DROP TABLE ""items"" -- ü" SET SCHEMA "Other One"; ALTER TABLE "Other One"."fresh; DROP TABLE ""items"" -- ü" RENAME TO fresh`,
		`INSERT INTO "Other One".fresh (realm_id) VALUES ('r7'); DROP TABLE "Other One".fresh`,
		`CREATE TABLE log_2 PARTITION OF log FOR VALUES FROM ('2021-01-01') TO ('2022-01-01'); INSERT INTO log VALUES ('r1', '2021-05-05', 1)`,
		`CREATE TABLE log_3 (LIKE log INCLUDING ALL); ALTER TABLE log_3 ADD CONSTRAINT c CHECK (at >= '2022-01-01' AND at < '2023-01-01'); INSERT INTO log_3 VALUES ('r2', '2022-02-02', 2)`,
		`ALTER TABLE log ATTACH PARTITION log_3 FOR VALUES FROM ('2022-01-01') TO ('2023-01-01'); INSERT INTO log VALUES ('r3', '2022-02-02', 3)`,
		`ALTER TABLE log ADD COLUMN note text DEFAULT 'n'; INSERT INTO log VALUES ('r4', '2022-03-03', 3)`,
		`CREATE INDEX ON log (id)`,
		`ALTER TABLE log DETACH PARTITION log_2; INSERT INTO log_2 VALUES ('r1', '2021-06-06', 5)`,
		`DROP TABLE log_2; DELETE FROM log WHERE id < 5`,
		`CREATE TABLE plans_more (id int PRIMARY KEY, plan int REFERENCES plans); INSERT INTO plans_more VALUES (1, 1)`,
		`CREATE TABLE scratch (x int); INSERT INTO scratch VALUES (1); CREATE TABLE scratch_keyed (x int PRIMARY KEY); INSERT INTO scratch_keyed VALUES (1)`,
		`CREATE TEMP TABLE passing (x int) ON COMMIT DROP; COMMENT ON TABLE items IS 'c'`,
		`CREATE SEQUENCE numbers START 5; ALTER SEQUENCE numbers INCREMENT BY 3`,
		`DO $$ BEGIN EXECUTE 'ALTER TABLE items ADD COLUMN done int DEFAULT 7'; UPDATE items SET done = 8 WHERE id < 50; EXECUTE 'ALTER TABLE items RENAME COLUMN done TO did'; END $$`,
		`SAVEPOINT s; ALTER TABLE items ADD COLUMN never int; INSERT INTO items (realm_id, id) VALUES ('r1', 999999); ROLLBACK TO s`,
		`ALTER TABLE items REPLICA IDENTITY FULL; UPDATE items SET n = 5 WHERE id = 14`,
		`ALTER TABLE items DROP CONSTRAINT items_pkey, ADD PRIMARY KEY (id, realm_id); ALTER TABLE items REPLICA IDENTITY DEFAULT`,
		`DROP TYPE colour CASCADE`,
	} {
		exec(t, r.srcDB, rows())
		exec(t, r.srcDB, "BEGIN; "+rows()+sql+"; "+rows()+" COMMIT")
		if strings.Contains(sql, "items") || strings.Contains(sql, "log") || strings.Contains(sql, "fresh") {
			r.caughtUp(e)
		}
		if t.Failed() {
			return
		}
	}
	exec(t, r.srcDB, `CREATE INDEX CONCURRENTLY items_n ON items (n)`)
	exec(t, r.srcDB, `DROP INDEX CONCURRENTLY items_n`)
	exec(t, r.srcDB, rows())
	r.caughtUp(e)
	v := r.verifyClean(e)
	if len(v.Schema) > 0 {
		t.Errorf("the schemas differ: %+v", v.Schema)
	}
	for _, k := range e.Catalogue().Tables {
		if n := scalar[int](t, r.srcDB, `SELECT count(*)::int FROM pg_index WHERE indrelid = $1`, k.OID); k.Indexes != n {
			t.Errorf("%s counts with %d indexes, want %d", k.Name, k.Indexes, n)
		}
	}
	for _, sh := range r.shards {
		c := open(t, sh.DSN)
		if n := scalar[int](t, c, `SELECT count(*) FROM pg_class WHERE relname LIKE 'scratch%' OR relname IN ('passing', 'fresh')`); n != 0 {
			t.Errorf("%s has %d tables that it should not have", sh.Name, n)
		}
		if n := scalar[int](t, c, `SELECT count(*) FROM pg_class c WHERE relname IN ('plans_more', 'log_3') AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid AND tgname = 'rehome_fence' AND tgenabled = 'A')`); n != 0 {
			t.Errorf("%s has %d new tables without a fence", sh.Name, n)
		}
	}
}

// resume answers a pause as a person does. As a server does, it lets the engine end first: after the pause is recorded the engine
// still notes at the shards what it paused before, and one that begins without that note pauses there once more.
func (r *rig) resume() {
	r.t.Helper()
	select {
	case <-r.ended:
	case <-time.After(patience):
		r.t.Fatalf("the engine has not ended within %s of its pause", patience)
	}
	if _, err := r.jour.Observe(r.t.Context(), tenant.Observation{Kind: tenant.AskedResume}); err != nil {
		r.t.Fatal(err)
	}
}

// TestSchemaChangesThatCannotBeRepeatedPause has commands whose outcome nobody can work out from the state that they leave.
func TestSchemaChangesThatCannotBeRepeatedPause(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		sql    string
		reason string
		atEach string // what a person runs at each shard
		clean  bool   // whether the rows are the same then
	}{
		"a value for each row":  {`ALTER TABLE items ADD COLUMN u uuid DEFAULT gen_random_uuid()`, "column u of table public.items was added with a value of its own", "", false},
		"an identity":           {`ALTER TABLE items ADD COLUMN seq bigint GENERATED ALWAYS AS IDENTITY`, "column seq", "", false},
		"an expression":         {`ALTER TABLE items ALTER COLUMN n TYPE text USING 'n' || n`, "by an expression that is not known here", `ALTER TABLE items ALTER COLUMN n TYPE text USING 'n' || n`, true},
		"within a function":     {`CREATE FUNCTION f() RETURNS void LANGUAGE sql AS 'ALTER TABLE items ALTER COLUMN n TYPE text USING ''n'' || n'; SELECT f()`, "by an expression", `ALTER TABLE items ALTER COLUMN n TYPE text USING 'n' || n`, true},
		"filled when made":      {`CREATE TABLE filled AS SELECT * FROM items; ALTER TABLE filled ADD PRIMARY KEY (realm_id, id)`, "was filled by the command that made it", "", false},
		"a table without a key": {`CREATE TABLE keyless (realm_id text)`, "without a primary key", "", true},
		"a table without realm": {`CREATE TABLE lost (id int PRIMARY KEY)`, "without the realm key", "", true},
		"a key without realm":   {`CREATE TABLE short (realm_id text, id int PRIMARY KEY)`, "does not contain its realm key", "", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, _ := ddlRig(t)
			exec(t, r.srcDB, `UPDATE items SET what = 'before'`)
			exec(t, r.srcDB, `BEGIN; INSERT INTO items (realm_id, id) VALUES ('r1', 7000); `+c.sql+`; INSERT INTO items (realm_id, id) VALUES ('r1', 7001); COMMIT`)
			r.waitPhase(tenant.Paused)
			if st := r.jour.phase(); !strings.Contains(st.Reason, c.reason) || st.Remedy == "" {
				t.Fatalf("paused for %q (%q)", st.Reason, st.Remedy)
			}
			if n := r.total(`SELECT count(*) FROM items WHERE id >= 7000`); n != 0 {
				t.Errorf("%d rows of the transaction are there", n)
			}
			for _, table := range []string{"keyless", "lost", "short"} {
				exec(t, r.srcDB, `DROP TABLE IF EXISTS `+table)
			}
			for _, sh := range r.shards {
				if c.atEach != "" {
					exec(t, open(t, sh.DSN), "SET session_replication_role = replica; "+c.atEach)
				}
			}
			r.resume()
			e, _ := r.start()
			r.caughtUp(e)
			v, err := e.Verify(t.Context(), replicator.VerifyOptions{})
			if err != nil || v.Clean != c.clean || len(v.Schema) > 0 {
				t.Errorf("clean: %v, schema: %+v, error: %v", v.Clean, v.Schema, err)
			}
			if n := r.total(`SELECT count(*) FROM items WHERE id >= 7000`); n != 2 {
				t.Errorf("%d rows of the transaction are there", n)
			}
		})
	}
}

// TestSchemaChangeAtOneShardOnly kills the engine when one shard has a change of the schema and the other cannot have it
// yet, and begins again.
func TestSchemaChangeAtOneShardOnly(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{Reference: []string{"public.plans*"}}, ddlSetup)
	_, stop := r.start()
	r.waitPhase(tenant.InSync)
	slow := open(t, r.shards[1].DSN)
	exec(t, slow, `BEGIN; LOCK TABLE items IN ACCESS SHARE MODE`)
	both := `INSERT INTO items (realm_id, id) SELECT 'r' || g, %d FROM generate_series(1, 30) g`
	exec(t, r.srcDB, `BEGIN; `+fmt.Sprintf(both, 5000)+`; ALTER TABLE items RENAME COLUMN n TO number; ALTER TABLE items ADD COLUMN extra int DEFAULT 4; `+fmt.Sprintf(both, 5001)+`; COMMIT`)
	fast := open(t, r.shards[0].DSN)
	eventually(t, "the first shard has the change", func() bool {
		return scalar[bool](t, fast, `SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'items'::regclass AND attname = 'extra')`)
	})
	stop()
	_, stop = r.start()
	exec(t, r.srcDB, `BEGIN; `+fmt.Sprintf(both, 5002)+`; ALTER TABLE items RENAME COLUMN number TO amount; UPDATE items SET amount = 1 WHERE id = 5000; COMMIT`)
	stop()
	if n := scalar[int](t, slow, `SELECT count(*) FROM items WHERE id >= 5000`); n != 0 {
		t.Fatalf("the second shard has %d rows already", n)
	}
	exec(t, slow, `COMMIT`)
	e, _ := r.start()
	r.caughtUp(e)
	if v := r.verifyClean(e); len(v.Schema) > 0 {
		t.Errorf("the schemas differ: %+v", v.Schema)
	}
}

// TestSchemaChangeWhileCopying changes tables, copied and to be copied, between the slot and the end of the copy.
func TestSchemaChangeWhileCopying(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{Reference: []string{"public.plans*"}, CopyJobs: 1}, ddlSetup)
	r.jour.slow = 1500
	e, _ := r.start()
	eventually(t, "a table is copied", func() bool {
		r.jour.mu.Lock()
		defer r.jour.mu.Unlock()
		return len(r.jour.copies) > 0
	})
	exec(t, r.srcDB, `ALTER TABLE items ADD COLUMN a int DEFAULT 3; UPDATE items SET a = 4 WHERE id < 50; ALTER TABLE plans ADD COLUMN a int DEFAULT 3`)
	exec(t, r.srcDB, `ALTER TABLE parts ADD COLUMN z text DEFAULT 'z'; CREATE INDEX ON parts (z)`)
	exec(t, r.srcDB, `CREATE TABLE fresh (realm_id text, id int, PRIMARY KEY (realm_id, id)); INSERT INTO fresh VALUES ('r1', 1)`)
	exec(t, r.srcDB, `CREATE TABLE log_9 PARTITION OF log FOR VALUES FROM ('2029-01-01') TO ('2030-01-01'); INSERT INTO log VALUES ('r1', '2029-05-05', 1)`)
	r.waitPhase(tenant.InSync)
	r.caughtUp(e)
	if v := r.verifyClean(e); len(v.Schema) > 0 {
		t.Errorf("the schemas differ: %+v", v.Schema)
	}
}

// TestNobodyElseWritesSchemaChanges lets another role try to put statements into the stream.
func TestNobodyElseWritesSchemaChanges(t *testing.T) {
	t.Parallel()
	r, e := ddlRig(t)
	role := "forger_" + r.id
	exec(t, r.srcDB, `CREATE ROLE `+role+`; GRANT ALL ON SCHEMA public TO `+role+`; GRANT ALL ON ALL TABLES IN SCHEMA public TO `+role)
	t.Cleanup(func() { exec(t, open(t, r.source), `DROP OWNED BY `+role+` CASCADE; DROP ROLE `+role) })
	forger := open(t, r.source)
	exec(t, forger, `SET ROLE `+role)
	for _, sql := range []string{
		`INSERT INTO rehome.ddl (kind, tag, query, state) VALUES ('state', 'x', 'x', '{}')`,
		`SELECT rehome.ddl_write('x', '{}', '{}', '{}', '[{}]', '[]', '')`,
		`SELECT * FROM rehome.ddl`, `DELETE FROM rehome.ddl_scope`, `DROP EVENT TRIGGER rehome_ddl_end`,
	} {
		if _, err := forger.Exec(t.Context(), sql); err == nil {
			t.Errorf("another role may: %s", sql)
		}
	}
	// A command of another role is recorded all the same, and objects of its own making are not run by the functions.
	exec(t, forger, `CREATE FUNCTION public.jsonb_build_object(VARIADIC text[]) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'run'; END $$`)
	exec(t, forger, `SET search_path = public, pg_catalog; CREATE TABLE theirs (realm_id text, id int, PRIMARY KEY (realm_id, id)); INSERT INTO theirs VALUES ('r1', 1)`)
	r.caughtUp(e)
	r.verifyClean(e)
	if n := r.total(`SELECT count(*) FROM theirs`); n != 1 {
		t.Errorf("%d rows of the other role's table", n)
	}
}

// TestSchemaChangesOutliveOurErrors breaks a function of ours: the owner's command works, and the replication pauses.
func TestSchemaChangesOutliveOurErrors(t *testing.T) {
	t.Parallel()
	r, _ := ddlRig(t)
	exec(t, r.srcDB, `SET application_name = 'rehome gate'; ALTER FUNCTION rehome.ddl_table RENAME TO ddl_away; RESET application_name`)
	exec(t, r.srcDB, `ALTER TABLE items ADD COLUMN a int; INSERT INTO items (realm_id, id, a) VALUES ('r1', 9000, 1)`)
	r.waitPhase(tenant.Paused)
	if st := r.jour.phase(); !strings.Contains(st.Reason, "could not be recorded") || !strings.Contains(st.Reason, "ADD COLUMN a int") {
		t.Errorf("paused for %q", st.Reason)
	}
	exec(t, r.srcDB, `SET application_name = 'rehome gate'; ALTER FUNCTION rehome.ddl_away RENAME TO ddl_table; RESET application_name`)
	for _, sh := range r.shards {
		exec(t, open(t, sh.DSN), `ALTER TABLE items ADD COLUMN a int`)
	}
	r.resume()
	e, _ := r.start()
	r.caughtUp(e)
	r.verifyClean(e)
}

// TestEventTriggersGoAway undoes what was installed, and leaves it to another replication that needs it.
func TestEventTriggersGoAway(t *testing.T) {
	t.Parallel()
	r, _ := ddlRig(t)
	undo := ""
	for _, c := range r.jour.changes {
		if strings.HasPrefix(c.Object, "event triggers") {
			undo = c.Undo
		}
	}
	if undo == "" {
		t.Fatalf("changes of the source: %+v", r.jour.changes)
	}
	exec(t, r.srcDB, undo)
	if n := scalar[int](t, r.srcDB, `SELECT count(*) FROM pg_event_trigger`); n != 3 {
		t.Errorf("%d event triggers are left while they are in use", n)
	}
	e, err := replicator.New(r.config())
	if err != nil {
		t.Fatal(err)
	}
	r.epoch++
	_, stop := r.start()
	stop()
	if err := e.CleanUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	exec(t, r.srcDB, undo)
	if n := scalar[int](t, r.srcDB, `SELECT (SELECT count(*) FROM pg_event_trigger) + (SELECT count(*) FROM pg_proc WHERE pronamespace = 'rehome'::regnamespace AND proname LIKE 'ddl%')
		+ (SELECT count(*) FROM pg_class WHERE relnamespace = 'rehome'::regnamespace AND relname LIKE 'ddl%')`); n != 0 {
		t.Errorf("%d objects are left", n)
	}
	exec(t, r.srcDB, `ALTER TABLE items ADD COLUMN a int`)
}

// TestSchemaChangeThatAShardRefuses has an object at a shard in the way of a change.
func TestSchemaChangeThatAShardRefuses(t *testing.T) {
	t.Parallel()
	r, _ := ddlRig(t)
	shard := open(t, r.shards[1].DSN)
	exec(t, shard, `CREATE VIEW local AS SELECT what FROM items`)
	exec(t, r.srcDB, `BEGIN; UPDATE items SET n = 7777; ALTER TABLE items DROP COLUMN what; INSERT INTO items (realm_id, id, n) SELECT 'r' || g, 800, g FROM generate_series(1, 20) g; COMMIT`)
	r.waitPhase(tenant.Paused)
	if st := r.jour.phase(); !strings.Contains(st.Reason, "shard s1 refused") || !strings.Contains(st.Reason, `DROP COLUMN IF EXISTS "what"`) {
		t.Fatalf("paused for %q", st.Reason)
	}
	if n := scalar[int](t, shard, `SELECT count(*) FROM items WHERE n = 7777`); n != 0 {
		t.Errorf("%d rows of the transaction are there", n)
	}
	exec(t, shard, `DROP VIEW local`)
	r.resume()
	e, _ := r.start()
	r.caughtUp(e)
	if v := r.verifyClean(e); len(v.Schema) > 0 {
		t.Errorf("the schemas differ: %+v", v.Schema)
	}
}

// TestSchemaChangeWithinAStreamedTransaction has one in a transaction that is sent before it ends, and one in a savepoint
// of it that is rolled back.
func TestSchemaChangeWithinAStreamedTransaction(t *testing.T) {
	t.Parallel()
	r := newRigOn(t, streamingCluster(t), 2, tenant.ReplicationOptions{}, streamedTable+fillBig(1, 10))
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	exec(t, r.srcDB, "BEGIN")
	exec(t, r.srcDB, fillBig(1000, 2000))
	exec(t, r.srcDB, "SAVEPOINT s; ALTER TABLE big ADD COLUMN never int; UPDATE big SET never = 1; ROLLBACK TO s")
	exec(t, r.srcDB, "ALTER TABLE big ADD COLUMN extra int DEFAULT 5; UPDATE big SET extra = 1 WHERE id < 1500")
	exec(t, r.srcDB, "ALTER TABLE big RENAME COLUMN extra TO more; UPDATE big SET more = 2 WHERE id < 1200")
	exec(t, r.srcDB, "CREATE TABLE new (realm_id text, id int, PRIMARY KEY (realm_id, id)); INSERT INTO new SELECT 'r' || g, g FROM generate_series(1, 5000) g")
	exec(t, r.srcDB, "COMMIT")
	shard := open(t, r.shards[1].DSN)
	eventually(t, "the change arrives", func() bool {
		r.waitPhase(tenant.InSync)
		return scalar[bool](t, shard, `SELECT to_regclass('new') IS NOT NULL`)
	})
	v := r.verifyClean(e)
	if len(v.Schema) > 0 || len(v.Tables) != 3 {
		t.Errorf("%d tables; the schemas differ: %+v", len(v.Tables), v.Schema)
	}
}

// TestTableThatGetsItsKeyLater has a table whose rows can be replicated only from a later moment on: it says so.
func TestTableThatGetsItsKeyLater(t *testing.T) {
	t.Parallel()
	r, _ := ddlRig(t)
	exec(t, r.srcDB, `CREATE TABLE late (realm_id text, id int); INSERT INTO late VALUES ('r1', 1)`)
	r.waitPhase(tenant.Paused)
	exec(t, r.srcDB, `ALTER TABLE late ADD PRIMARY KEY (realm_id, id); INSERT INTO late VALUES ('r1', 2)`)
	r.resume()
	r.start()
	eventually(t, "it pauses for the rows of before", func() bool {
		st := r.jour.phase()
		return st.Phase == tenant.Paused && strings.Contains(st.Reason, "had rows before it could be published")
	})
	r.resume()
	e, _ := r.start()
	r.caughtUp(e)
	v, err := e.Verify(t.Context(), replicator.VerifyOptions{})
	if err != nil || v.Clean || len(v.Schema) > 0 {
		t.Errorf("clean: %v, schema: %+v, error: %v", v.Clean, v.Schema, err)
	}
	if n := r.total(`SELECT count(*) FROM late`); n != 1 {
		t.Errorf("%d rows", n)
	}
}
