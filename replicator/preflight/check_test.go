package preflight_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/replicator/preflight"
	"github.com/rehomedb/rehome/tenant"
)

var cluster *pgcluster.Cluster

func TestMain(m *testing.M) { os.Exit(pgcluster.Main(m, pgcluster.Options{}, &cluster)) }

func connect(t *testing.T, dsn tenant.DSN) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func execute(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
		t.Fatalf("%v\n%s", err, sql)
	}
}

func shards(t *testing.T, n int) []preflight.Target {
	t.Helper()
	var out []preflight.Target
	for i := range n {
		out = append(out, preflight.Target{Shard: fmt.Sprintf("s%d", i+1), DSN: pgcluster.NewDatabase(t, cluster)})
	}
	return out
}

func check(t *testing.T, in preflight.Input) preflight.Report {
	t.Helper()
	r, err := preflight.Check(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Findings {
		if f.Severity == tenant.Blocking && f.Remedy == "" {
			t.Errorf("no remedy: %+v", f)
		}
		if f.Code == "not-checked" {
			t.Errorf("not checked: %+v", f)
		}
	}
	return r
}

// ids lists "severity code:object", without what depends on the machine.
func ids(r preflight.Report, severities ...tenant.Severity) []string {
	out := []string{}
	for _, f := range r.Findings {
		if slices.Contains(severities, f.Severity) && f.Code != "fsync-off" && f.Code != "long-transaction" && f.Code != "few-connections" {
			out = append(out, f.ID())
		}
	}
	slices.Sort(out)
	return out
}

func want(t *testing.T, got []string, wanted ...string) {
	t.Helper()
	slices.Sort(wanted)
	if wanted == nil {
		wanted = []string{}
	}
	if d := cmp.Diff(wanted, got); d != "" {
		t.Error(d)
	}
}

const pgbench = `
CREATE TABLE pgbench_accounts (aid int PRIMARY KEY, bid int, abalance int);
CREATE TABLE pgbench_tellers (tid int PRIMARY KEY, bid int, tbalance int);
CREATE TABLE pgbench_branches (bid int PRIMARY KEY, bbalance int);
CREATE TABLE pgbench_history (tid int, bid int, aid int, delta int);`

func TestPgbench(t *testing.T) {
	t.Parallel()
	source := pgcluster.NewDatabase(t, cluster)
	execute(t, connect(t, source), pgbench)
	in := preflight.Input{Source: source, Targets: shards(t, 3), Options: tenant.ReplicationOptions{RealmKey: "bid"}}
	r := check(t, in)
	want(t, ids(r, tenant.Blocking),
		"constraint-without-realm:public.pgbench_accounts_pkey", "constraint-without-realm:public.pgbench_tellers_pkey",
		"no-identity:public.pgbench_history",
		"realm-key-nullable:public.pgbench_accounts", "realm-key-nullable:public.pgbench_history", "realm-key-nullable:public.pgbench_tellers",
		"realm-not-in-identity:public.pgbench_accounts", "realm-not-in-identity:public.pgbench_tellers")
	if r.Catalogue == nil || len(r.Catalogue.Tables) != 4 {
		t.Error("no catalogue")
	}

	in.Options.RealmsNeverChange = []string{"pgbench_tellers", "slip"}
	r = check(t, in)
	want(t, ids(r, tenant.Blocking),
		"constraint-without-realm:public.pgbench_accounts_pkey", "constraint-without-realm:public.pgbench_tellers_pkey",
		"no-identity:public.pgbench_history",
		"realm-key-nullable:public.pgbench_accounts", "realm-key-nullable:public.pgbench_history", "realm-key-nullable:public.pgbench_tellers",
		"realm-not-in-identity:public.pgbench_accounts")
	for _, f := range r.Findings {
		if f.Code == "realm-not-in-identity" && f.Severity == tenant.Blocking && !strings.Contains(f.Remedy, "--realms-never-change public.pgbench_accounts") {
			t.Errorf("the remedy is %q", f.Remedy)
		}
	}
	if w := ids(r, tenant.Warning, tenant.Notice); !slices.Contains(w, "pattern-matches-nothing:--realms-never-change slip") || !slices.Contains(w, "realm-not-in-identity:public.pgbench_tellers") {
		t.Errorf("warnings and notices: %v", w)
	}
	in.Options.RealmsNeverChange = nil

	in.Options.FixIdentity = true
	in.Options.Accept = []string{"constraint-without-realm:public.pgbench_accounts_pkey", "constraint-without-realm:public.pgbench_tellers_pkey", "typo:x"}
	r = check(t, in)
	if tenant.Blocks(r.Findings) {
		t.Errorf("%+v", r.Findings)
	}
	want(t, ids(r, tenant.Warning), "identity-full:public.pgbench_history")
	if !slices.Contains(ids(r, tenant.Notice), "accept-unused:typo:x") {
		t.Error("the unused acceptance is not named")
	}

	// One shard needs less.
	r = check(t, preflight.Input{Source: source, Targets: in.Targets[:1], Options: tenant.ReplicationOptions{RealmKey: "bid"}})
	want(t, ids(r, tenant.Blocking), "no-identity:public.pgbench_history")
}

var restrictKey = regexp.MustCompile(`(?m)^\\(un)?restrict .*$`)

func schemaDump(t *testing.T, dsn tenant.DSN) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), filepath.Join(cluster.BinDir(), "pg_dump"), "--schema-only", "-d", dsn.Reveal()).Output()
	if err != nil {
		t.Fatal(err)
	}
	return restrictKey.ReplaceAllString(string(out), "")
}

func TestEverythingThatCanBeWrong(t *testing.T) {
	t.Parallel()
	source := pgcluster.NewDatabase(t, cluster)
	conn := connect(t, source)
	execute(t, conn, `CREATE ROLE "only 🐘 here"`)
	t.Cleanup(func() {
		c, err := pgx.Connect(context.Background(), cluster.DSN("postgres").Reveal())
		if err == nil {
			_, _ = c.Exec(context.Background(), `DROP ROLE IF EXISTS "only 🐘 here"`)
			_ = c.Close(context.Background())
		}
	})
	execute(t, conn, `
		CREATE EXTENSION citext; CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
		CREATE COLLATION nd (provider = icu, locale = 'und', deterministic = false);
		CREATE TABLE realms (realm_id uuid PRIMARY KEY, email citext UNIQUE);
		CREATE TABLE plans (id int PRIMARY KEY, note text, favourite uuid REFERENCES realms);
		CREATE TABLE orphan (id int PRIMARY KEY);
		CREATE TABLE a (realm_id uuid NOT NULL, id int, plan int REFERENCES plans, UNIQUE (realm_id, id), PRIMARY KEY (id, realm_id));
		CREATE TABLE b (realm_id uuid NOT NULL, id int, PRIMARY KEY (realm_id, id), a int, FOREIGN KEY (realm_id, a) REFERENCES a (realm_id, id),
			z int, old int, during int4range, EXCLUDE USING gist (during WITH &&));
		CREATE TABLE gone (id int PRIMARY KEY);
		ALTER TABLE b ADD CONSTRAINT to_gone FOREIGN KEY (z) REFERENCES gone;
		CREATE TABLE c (realm_id uuid NOT NULL, id int UNIQUE, PRIMARY KEY (realm_id, id), a_realm uuid, a int, FOREIGN KEY (a_realm, a) REFERENCES a (realm_id, id));
		CREATE TABLE nulls (realm_id uuid, id int PRIMARY KEY); INSERT INTO nulls VALUES (NULL, 1);
		CREATE TABLE by_num (realm_id numeric NOT NULL, PRIMARY KEY (realm_id));
		CREATE TABLE by_nd (realm_id text COLLATE nd PRIMARY KEY);
		CREATE TABLE regs (realm_id uuid PRIMARY KEY, r regclass);
		CREATE TABLE child () INHERITS (gone); ALTER TABLE child ADD realm_id uuid PRIMARY KEY;
		CREATE TABLE ev (realm_id uuid, at date, PRIMARY KEY (realm_id, at)) PARTITION BY RANGE (at);
		CREATE UNLOGGED TABLE ev_u PARTITION OF ev DEFAULT;
		CREATE UNLOGGED TABLE cache (realm_id uuid);
		CREATE FOREIGN TABLE ft (x text) SERVER files OPTIONS (filename '/dev/null');
		CREATE VIEW on_gone AS SELECT * FROM gone; CREATE VIEW on_ft AS SELECT * FROM ft; CREATE MATERIALIZED VIEW mv AS SELECT 1 AS one;
		CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; CREATE FUNCTION ef() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
		CREATE TRIGGER tr AFTER INSERT ON a EXECUTE FUNCTION f(); CREATE TRIGGER tra AFTER INSERT ON a EXECUTE FUNCTION f(); ALTER TABLE a ENABLE ALWAYS TRIGGER tra;
		CREATE EVENT TRIGGER et ON sql_drop EXECUTE FUNCTION ef();
		ALTER TABLE a ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON a TO "only 🐘 here" USING (true);
		SELECT lo_create(0); CREATE PUBLICATION pub FOR ALL TABLES;
		CREATE SEQUENCE small AS smallint; SELECT setval('small', 32700);`)
	targets := shards(t, 2)
	execute(t, connect(t, targets[0].DSN), "CREATE TABLE a (x int)")
	in := preflight.Input{Source: source, Targets: targets, Options: tenant.ReplicationOptions{
		Reference: []string{"plans", "slip*"}, Exclude: []string{"gone"}, TableKeys: map[string]string{"nowhere": "x"}, FixIdentity: true,
	}}
	before := schemaDump(t, source)
	r := check(t, in)
	if before != schemaDump(t, source) {
		t.Error("the check changed the source")
	}
	want(t, ids(r, tenant.Blocking),
		"constraint-without-realm:public.realms_email_key", "constraint-without-realm:public.plans.plans_favourite_fkey",
		"constraint-without-realm:public.b_during_excl", "constraint-without-realm:public.c_id_key", "constraint-without-realm:public.c.c_a_realm_a_fkey",
		"constraint-without-realm:public.nulls_pkey",
		"foreign-key-to-excluded:public.b.to_gone", "foreign-table:public.ft", "inherits-excluded:public.child", "large-objects:source",
		"realm-key-collation:public.by_nd", "realm-key-missing:public.orphan", "realm-key-null:public.nulls", "realm-key-type:public.by_num",
		"sequence-exhausted:public.small", "target-not-empty:shard s1", "trigger-always:public.a.tra", "unlogged-partition:public.ev_u", "unlogged-table:public.cache",
		"view-on-excluded:public.on_ft", "view-on-excluded:public.on_gone")
	want(t, ids(r, tenant.Warning), "event-trigger:et", "materialized-view:public.mv", "pattern-matches-nothing:--reference slip*", "pattern-matches-nothing:--table-key nowhere")
	want(t, ids(r, tenant.Notice), "grants-not-carried:source", "publication:source", "realm-key-nullable:public.nulls", "realm-not-in-identity:public.nulls",
		"sequences:source", "text-format:public.regs", "triggers:source", "two-phase:source")
}

func TestServersThatCannotBeReached(t *testing.T) {
	t.Parallel()
	good := pgcluster.NewDatabase(t, cluster)
	execute(t, connect(t, good), "CREATE TABLE t (realm_id int PRIMARY KEY)")
	with := func(change func(u *url.URL)) tenant.DSN {
		u, err := url.Parse(good.Reveal())
		if err != nil {
			t.Fatal(err)
		}
		change(u)
		return tenant.DSN(u.String())
	}
	const secret = "s3cr3t-pässword"
	for name, dsn := range map[string]tenant.DSN{
		"wrong password": with(func(u *url.URL) { u.User = url.UserPassword(u.User.Username(), secret) }),
		"wrong database": with(func(u *url.URL) { u.Path = "/nowhere" }),
		"wrong port":     with(func(u *url.URL) { u.Host = "127.0.0.1:1" }),
		"wrong host":     with(func(u *url.URL) { u.Host = "nowhere.invalid" }),
		"not a DSN":      tenant.DSN("postgres://u:" + secret + "@h:port/%zz"),
		"not a DSN 2":    tenant.DSN("host=h port=x password=" + secret),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := check(t, preflight.Input{Source: dsn, Targets: []preflight.Target{{Shard: "s1", DSN: good}}})
			want(t, ids(r, tenant.Blocking), "source-unreachable:source")
			r2 := check(t, preflight.Input{Source: good, Targets: []preflight.Target{{Shard: "s1", DSN: dsn}}})
			want(t, ids(r2, tenant.Blocking), "target-unreachable:shard s1")
			out, err := json.Marshal([]any{r.Findings, r2.Findings})
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(out), "s3cr3t") {
				t.Errorf("the password shows: %s", out)
			}
		})
	}
}

func TestPlainRole(t *testing.T) {
	t.Parallel()
	source, target := pgcluster.NewDatabase(t, cluster), pgcluster.NewDatabase(t, cluster)
	admin := connect(t, source)
	execute(t, admin, `CREATE ROLE plain LOGIN PASSWORD 'x'; CREATE ROLE other;
		CREATE TABLE mine (realm_id int PRIMARY KEY, id serial); ALTER TABLE mine OWNER TO plain;
		CREATE TABLE theirs (realm_id int PRIMARY KEY, id serial); ALTER TABLE theirs OWNER TO other;
		CREATE TABLE filtered (realm_id int PRIMARY KEY); ALTER TABLE filtered OWNER TO plain;
		ALTER TABLE filtered ENABLE ROW LEVEL SECURITY; ALTER TABLE filtered FORCE ROW LEVEL SECURITY;`)
	t.Cleanup(func() {
		ctx := context.Background()
		for _, dsn := range []tenant.DSN{source, target, cluster.DSN("postgres")} {
			if c, err := pgx.Connect(ctx, dsn.Reveal()); err == nil {
				_, _ = c.Exec(ctx, "DROP OWNED BY plain, other CASCADE")
				_, _ = c.Exec(ctx, "DROP ROLE plain, other")
				_ = c.Close(ctx)
			}
		}
	})
	as := func(dsn tenant.DSN) tenant.DSN {
		u, err := url.Parse(dsn.Reveal())
		if err != nil {
			t.Fatal(err)
		}
		u.User = url.UserPassword("plain", "x")
		return tenant.DSN(u.String())
	}
	in := preflight.Input{Source: as(source), Targets: []preflight.Target{{Shard: "s1", DSN: as(target)}}}
	want(t, ids(check(t, in), tenant.Blocking),
		"no-replication-privilege:source", "no-create-privilege:source", "not-owner:public.theirs", "not-owner:public.theirs_id_seq", "no-select:public.theirs", "row-security:public.filtered",
		"no-create-privilege:shard s1", "no-create-privilege:shard s1: schema public", "session-replication-role:shard s1", "row-security-forced:shard s1", "no-select:public.theirs_id_seq")

	// What the remedies say helps.
	execute(t, admin, fmt.Sprintf(`ALTER ROLE plain REPLICATION BYPASSRLS; GRANT other TO plain; GRANT CREATE ON DATABASE %s TO plain`, tenant.QuoteIdent(admin.Config().Database)))
	c := connect(t, target)
	execute(t, c, fmt.Sprintf(`GRANT SET ON PARAMETER session_replication_role TO plain; GRANT CREATE ON DATABASE %s TO plain; GRANT CREATE ON SCHEMA public TO plain`, tenant.QuoteIdent(c.Config().Database)))
	want(t, ids(check(t, in), tenant.Blocking))
}

func TestSourceSettings(t *testing.T) {
	t.Parallel()
	own := pgcluster.StartT(t, pgcluster.Options{Settings: map[string]string{
		"wal_level": "replica", "max_replication_slots": "1", "max_wal_senders": "1",
		"max_slot_wal_keep_size": "1GB", "max_prepared_transactions": "2",
	}})
	dsn := pgcluster.NewDatabase(t, own)
	conn := connect(t, dsn)
	execute(t, conn, `CREATE TABLE t (realm_id int PRIMARY KEY); CREATE SCHEMA rehome`)
	execute(t, conn, `BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'it''s 2pc'`)
	r := check(t, preflight.Input{Source: dsn, Targets: []preflight.Target{{Shard: "self", DSN: dsn}}})
	want(t, ids(r, tenant.Blocking), "wal-level:source", "same-database:shard self", "target-not-empty:shard self")
	want(t, ids(r, tenant.Warning), "no-free-slot:source", "no-free-walsender:source", "slot-wal-limit:source", "prepared-transaction:it's 2pc")
	for _, n := range []string{"two-phase:source", "rehome-schema-present:source"} {
		if !slices.Contains(ids(r, tenant.Notice), n) {
			t.Errorf("%s is missing", n)
		}
	}
	execute(t, conn, `ROLLBACK PREPARED 'it''s 2pc'`)
}

func TestTargetLacksWhatTheSourceNeeds(t *testing.T) {
	t.Parallel()
	own := pgcluster.StartT(t, pgcluster.Options{})
	source := pgcluster.NewDatabase(t, own)
	conn := connect(t, source)
	// An extension that no other server has.
	execute(t, conn, `CREATE ROLE reader; CREATE EXTENSION citext; UPDATE pg_extension SET extname = 'homemade' WHERE extname = 'citext';
		CREATE EXTENSION hstore; UPDATE pg_extension SET extversion = '0.1' WHERE extname = 'hstore';
		CREATE TABLE t (realm_id int PRIMARY KEY); CREATE POLICY p ON t TO reader USING (true)`)
	in := preflight.Input{Source: source, Targets: shards(t, 1)}
	r := check(t, in)
	want(t, ids(r, tenant.Blocking), "role-missing:shard s1: reader", "extension-missing:homemade")
	want(t, ids(r, tenant.Warning), "extension-version:shard s1: hstore")
}
