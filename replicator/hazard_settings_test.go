package replicator_test

import (
	"crypto/rand"
	"fmt"
	"strings"
	"testing"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/tenant"
)

// hostile are settings that a database may have for all of its sessions, and that change what texts of values look like or
// how they are read.
var hostile = map[string]string{
	"DateStyle": "German, DMY", "IntervalStyle": "sql_standard", "TimeZone": "Asia/Kathmandu", "bytea_output": "escape", "extra_float_digits": "-15", "xmloption": "document",
	"array_nulls": "off", "standard_conforming_strings": "off", "quote_all_identifiers": "on", "search_path": "nowhere", "client_encoding": "LATIN1",
	"transform_null_equals": "on", "row_security": "off", "default_text_search_config": "german", "lc_numeric": "C", "escape_string_warning": "off", "backslash_quote": "off",
}

const settingsDDL = `CREATE TYPE public.mood AS ENUM ('so\so', 'ok'); CREATE TABLE public.vals (realm_id text NOT NULL, id int NOT NULL, d date DEFAULT '2001-02-03', ts timestamp, tz timestamptz, iv interval DEFAULT '-1 day 02:03:04', b bytea DEFAULT '\x5c00',
		f float8, r real, x xml, m money, a text[], s text DEFAULT 'back\slash', e public.mood DEFAULT 'so\so', n numeric, PRIMARY KEY (realm_id, id));
	CREATE TABLE public.whole (LIKE public.vals INCLUDING ALL); ALTER TABLE public.whole DROP CONSTRAINT whole_pkey; ALTER TABLE public.whole REPLICA IDENTITY FULL;
	INSERT INTO public.vals SELECT 'r' || g, g, '2003-02-01', '2003-02-01 12:00', '2003-02-01 12:00+05', make_interval(0, -1, 0, 2, -3, 4, -5.25), '\x00275cff', 0.1 + 0.2, 0.1, XMLPARSE(CONTENT 'a<b/>c'), '1234.5', ARRAY[NULL, 'NULL', 'a\b'], 'it''s \ ü'
		FROM generate_series(1, 10) g; INSERT INTO public.whole SELECT * FROM public.vals;`

// TestHazardSettings gives source and shards settings of their own that no row may depend on.
func TestHazardSettings(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{}, "SELECT 1")
	script(t, r.srcDB, settingsDDL)
	harden := func(dsn tenant.DSN) {
		c := open(t, dsn)
		for name, value := range hostile {
			script(t, c, fmt.Sprintf("DO $$ BEGIN EXECUTE format('ALTER DATABASE %%I SET %s = %s', current_database()); END $$", name, strings.ReplaceAll(tenant.QuoteLiteral(value), "'", "''")))
		}
	}
	harden(r.source)
	for _, sh := range r.shards {
		harden(sh.DSN)
	}
	both := []string{"public.vals", "public.whole"}
	hazard{stream: []string{
		each(both, `UPDATE %s SET n = 1, iv = iv * 2 WHERE id < 6`),
		each(both, `INSERT INTO %s SELECT 's' || g, g, '2003-12-01', '2003-02-11 12:00', '2003-02-01 12:00+05', make_interval(0, -1, 0, 2, -3, 4, -5.25), '\x00275cff', 0.1 + 0.2, 0.1, XMLPARSE(CONTENT 'a<b/>c'), '1234.5', ARRAY[NULL, 'NULL', 'a\b'], '\', 'so\so' FROM generate_series(1, 9) g`),
		each(both, `BEGIN; UPDATE %[1]s SET realm_id = 'm' || realm_id WHERE id %% 2 = 0; UPDATE %[1]s SET a = a || ARRAY[NULL, '\'], s = NULL WHERE id %% 3 = 0; DELETE FROM %[1]s WHERE id = 7; COMMIT`),
	}}.runOn(t, r)
}

// TestHazardLatin1 converts the texts of a source in another encoding, its names and realms too.
func TestHazardLatin1(t *testing.T) {
	t.Parallel()
	r := newRig(t, 3, tenant.ReplicationOptions{TableKeys: map[string]string{`"tänt"`: "köy"}}, "SELECT 1")
	r.recode("LATIN1")
	rows := func(realm string) string {
		return fmt.Sprintf(`INSERT INTO "tänt" SELECT 'ä%s' || g, g, 'grüße ÿ' || chr(160) || g, ARRAY['é', '"'], 'schön', '\xff00' FROM generate_series(1, 9) g;`, realm)
	}
	hazard{
		before: `CREATE TYPE "mööd" AS ENUM ('schön', 'übel'); CREATE TABLE "tänt" ("köy" text NOT NULL, id int NOT NULL, v text, a text[], m "mööd", raw bytea, PRIMARY KEY ("köy", id));
			CREATE TABLE whole (realm_id varchar(20) NOT NULL, v text, w xml, c regclass); ALTER TABLE whole REPLICA IDENTITY FULL; INSERT INTO whole SELECT 'é' || g % 3, 'ü', '<a>ß</a>', '"tänt"' FROM generate_series(1, 9) g;` + rows("x"),
		stream: []string{
			rows("y") + rows("z"), `UPDATE "tänt" SET v = v || 'ß', m = 'übel' WHERE id % 2 = 0; UPDATE "tänt" SET "köy" = 'Ü' || id WHERE "köy" LIKE 'äx%'; DELETE FROM "tänt" WHERE id = 5`,
			`UPDATE whole SET v = 'ö' WHERE realm_id = 'é1'; UPDATE whole SET realm_id = 'Ý' WHERE ctid = (SELECT min(ctid) FROM whole WHERE realm_id = 'é0'); DELETE FROM whole WHERE ctid = (SELECT min(ctid) FROM whole WHERE realm_id = 'é2')`,
		},
	}.runOn(t, r)
}

// recode makes the source anew in another encoding.
func (r *rig) recode(encoding string) {
	r.t.Helper()
	template := "enc_" + strings.ToLower(rand.Text())
	admin := open(r.t, cluster.DSN("postgres"))
	exec(r.t, admin, "CREATE DATABASE "+template+" TEMPLATE template0 ENCODING "+tenant.QuoteLiteral(encoding)+" LC_COLLATE 'C' LC_CTYPE 'C'")
	r.t.Cleanup(func() { exec(r.t, open(r.t, cluster.DSN("postgres")), "DROP DATABASE "+template) })
	r.source = pgcluster.NewDatabaseFrom(r.t, cluster, template)
	r.srcDB = open(r.t, r.source)
	exec(r.t, r.srcDB, "SET client_encoding = 'UTF8'")
}

// TestHazardPreparedTransactions commits and rolls back transactions in two phases: before the start, while it streams,
// and over a restart of the engine. A cluster of its own, since slots wait for the transactions of all databases.
func TestHazardPreparedTransactions(t *testing.T) {
	t.Parallel()
	src := pgcluster.StartT(t, pgcluster.Options{})
	r := newRigOn(t, src, 2, tenant.ReplicationOptions{}, itemsDDL)
	prepare := func(gid, sql string) { script(t, r.srcDB, "BEGIN; "+sql+"; PREPARE TRANSACTION '"+gid+"'") }
	prepare("open at the start", `INSERT INTO items VALUES ('r1', 5001, 1); UPDATE items SET n = 50 WHERE id = 1`)
	_, stop := r.start()
	eventually(t, "the slot waits for the prepared transaction", func() bool {
		return scalar[int](t, r.srcDB, `SELECT count(*)::int FROM pg_stat_activity WHERE application_name = $1 AND wait_event_type = 'Lock'`, "rehome-stream-"+r.id) == 1
	})
	script(t, r.srcDB, `COMMIT PREPARED 'open at the start'`)
	r.waitPhase(tenant.InSync)
	r.sameRows()
	prepare("kept", `INSERT INTO items VALUES ('r2', 5002, 1); UPDATE items SET n = 51 WHERE id = 2; DELETE FROM items WHERE id = 3`)
	prepare("dropped", `INSERT INTO items VALUES ('r2', 5003, 1); SAVEPOINT a; UPDATE items SET n = 99 WHERE id = 4; ROLLBACK TO a`)
	script(t, r.srcDB, `UPDATE items SET n = 60 WHERE id BETWEEN 10 AND 30`)
	eventually(t, "what is not prepared goes on", func() bool { return r.total(`SELECT count(*) FROM items WHERE n = 60`) == 21 })
	if n := r.total(`SELECT count(*) FROM items WHERE id > 5001`); n != 0 {
		t.Errorf("%d rows of prepared transactions are there before their commit", n)
	}
	stop()
	for _, sql := range []string{`COMMIT PREPARED 'kept'`, `UPDATE items SET n = 52 WHERE id = 2`, `ROLLBACK PREPARED 'dropped'`} {
		script(t, r.srcDB, sql)
	}
	e, _ := r.start()
	eventually(t, "the stream is back", func() bool { return r.total(`SELECT count(*) FROM items WHERE id = 5002 OR n = 52`) == 2 })
	r.verifyClean(e)
	r.sameRows()
	if n := r.total(`SELECT count(*) FROM items WHERE id = 5003 OR n = 99`); n != 0 {
		t.Errorf("%d rows of a transaction that was rolled back", n)
	}
}
