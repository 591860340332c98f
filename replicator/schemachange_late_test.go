package replicator_test

import (
	"context"
	"strings"
	"testing"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/tenant"
)

// TestTypesAreRenamed renames the type of a column between rows: the source does not describe the table again for that, and
// statements with the old name that the shards' sessions do not know yet cannot be prepared any more.
func TestTypesAreRenamed(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{Reference: []string{"public.plans*"}}, ddlSetup+`
		CREATE TABLE whole (realm_id text NOT NULL, id int, m mood); ALTER TABLE whole REPLICA IDENTITY FULL; INSERT INTO whole SELECT 'r' || g % 7, g, 'sad' FROM generate_series(1, 60) g`)
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	script(t, r.srcDB, `INSERT INTO whole VALUES ('r1', 100, 'happy')`) // its description is sent with it
	r.caughtUp(e)
	script(t, r.srcDB, `ALTER TYPE mood RENAME TO "The mood"`)
	script(t, r.srcDB, `UPDATE whole SET m = 'happy', id = id + 1 WHERE id % 2 = 0`)
	r.caughtUp(e)
	script(t, r.srcDB, `BEGIN; UPDATE items SET n = 2; ALTER TYPE "The mood" RENAME TO feeling; UPDATE items SET n = n + id, m = NULL; DELETE FROM whole WHERE id % 3 = 0; COMMIT`)
	r.caughtUp(e)
	if v := r.verifyClean(e); len(v.Schema) > 0 {
		t.Errorf("the schemas differ: %+v", v.Schema)
	}
	r.sameRows()
}

// TestNamesOfOtherTypes has composite types and domains, in tables of whose rows all is compared.
func TestNamesOfOtherTypes(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{Reference: []string{"public.plans*"}}, ddlSetup+`
		CREATE TYPE pair AS (a int, b text); CREATE DOMAIN short AS text CHECK (length(VALUE) < 9);
		CREATE TABLE whole (realm_id text NOT NULL, id int, m mood, ms mood[], p pair, ps pair[], d short, ds short[]); ALTER TABLE whole REPLICA IDENTITY FULL;
		CREATE TABLE keyed (realm_id text NOT NULL, id int, m mood, ms mood[], p pair, ps pair[], d short, ds short[], PRIMARY KEY (realm_id, id, d));
		INSERT INTO whole SELECT 'r' || g % 7, g, 'sad', '{sad,happy}', format('(%s,x)', g)::pair, ARRAY[format('(%s,y)', g)::pair], 'd' || g, '{a,b}' FROM generate_series(1, 60) g; INSERT INTO keyed SELECT * FROM whole;`)
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	change := `UPDATE whole SET id = id + 1 WHERE id % 2 = 0; UPDATE keyed SET ms = ms || m, ps = ps || p, ds = ds || d; DELETE FROM keyed WHERE id % 11 = 0; INSERT INTO keyed SELECT realm_id, 1000 + id, m, ms, p, ps, d, ds FROM whole ON CONFLICT DO NOTHING;`
	script(t, r.srcDB, change)
	r.caughtUp(e)
	for _, sql := range []string{
		`ALTER TYPE pair RENAME TO "a pair"`, `ALTER DOMAIN short RENAME TO brief`, `ALTER TYPE mood RENAME TO feeling`, `CREATE SCHEMA "Kinds [] of"`, `ALTER TYPE "a pair" SET SCHEMA "Kinds [] of"`,
		`ALTER DOMAIN brief SET SCHEMA "Kinds [] of"`, `ALTER SCHEMA "Kinds [] of" RENAME TO kinds`, `ALTER TYPE kinds.brief RENAME TO short`,
	} {
		script(t, r.srcDB, "BEGIN; "+change+sql+"; "+change+" COMMIT")
		script(t, r.srcDB, change)
		r.caughtUp(e)
	}
	if v := r.verifyClean(e); len(v.Schema) > 0 {
		t.Errorf("the schemas differ: %+v", v.Schema)
	}
	r.sameRows()
}

// TestResumeWithoutMending resumes a replication that paused for a table whose rows cannot be routed, and did not mend it.
func TestResumeWithoutMending(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ sql, reason, mend string }{
		"no realm":              {`CREATE TABLE lost (id int PRIMARY KEY); INSERT INTO lost VALUES (1)`, "without the realm key", `DROP TABLE lost`},
		"a key without realm":   {`CREATE TABLE short (realm_id text, id int PRIMARY KEY); INSERT INTO short VALUES ('r1', 1)`, "does not contain its realm key", `ALTER TABLE short DROP CONSTRAINT short_pkey, ADD PRIMARY KEY (realm_id, id)`},
		"the same, to be whole": {`CREATE TABLE short (realm_id text, id int PRIMARY KEY); INSERT INTO short VALUES ('r1', 1)`, "does not contain its realm key", `ALTER TABLE short REPLICA IDENTITY FULL`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, _ := ddlRig(t)
			exec(t, r.srcDB, c.sql)
			for range 3 {
				r.waitPhase(tenant.Paused)
				if st := r.jour.phase(); !strings.Contains(st.Reason, c.reason) {
					t.Fatalf("paused: %+v", st)
				}
				if n := r.total(`SELECT count(*) FROM pg_class WHERE relname IN ('lost', 'short') AND relkind = 'r'`); n != 0 {
					t.Fatalf("the table was made at %d shards", n)
				}
				r.resume()
				r.start()
			}
			r.waitPhase(tenant.Paused)
			exec(t, r.srcDB, c.mend)
			r.resume()
			e, _ := r.start()
			r.caughtUp(e)
			if v := r.verifyClean(e); len(v.Schema) > 0 {
				t.Errorf("the schemas differ: %+v", v.Schema)
			}
		})
	}
}

// TestTableWithoutAKeyThatCannotBeSeenYet has a commit that waits for a synchronous standby: it is streamed before anybody else at
// the source sees what it made.
func TestTableWithoutAKeyThatCannotBeSeenYet(t *testing.T) {
	t.Parallel()
	own := pgcluster.StartT(t, pgcluster.Options{Settings: map[string]string{"synchronous_standby_names": "nobody", "synchronous_commit": "local"}})
	r := newRigOn(t, own, 1, tenant.ReplicationOptions{}, ddlSetup)
	r.start()
	r.waitPhase(tenant.InSync)
	maker := open(t, r.source)
	made := make(chan error, 1)
	go func() {
		_, err := maker.Exec(context.WithoutCancel(t.Context()), `SET synchronous_commit = on; CREATE TABLE keyless (realm_id text)`)
		made <- err
	}()
	pid := maker.PgConn().PID()
	eventually(t, "its commit waits", func() bool {
		return scalar[bool](t, r.srcDB, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'SyncRep')`, pid)
	})
	// The stream pauses though the commit waits: the standby that it waits for could be the stream.
	r.waitPhase(tenant.Paused)
	if st := r.jour.phase(); !strings.Contains(st.Reason, "without a primary key") {
		t.Errorf("paused for %q", st.Reason)
	}
	if !scalar[bool](t, r.srcDB, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'SyncRep')`, pid) {
		t.Error("its commit waited no more")
	}
	exec(t, r.srcDB, `SELECT pg_cancel_backend($1)`, pid) // ends its wait; it is committed
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	// When it can be seen, and dropped, the stream goes on.
	exec(t, r.srcDB, `DROP TABLE keyless`)
	r.resume()
	e, _ := r.start()
	r.caughtUp(e)
}
