package schema_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/internal/pgcluster"
	"github.com/rehomedb/rehome/replicator/catalog"
	"github.com/rehomedb/rehome/replicator/schema"
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

func one[T any](t *testing.T, conn *pgx.Conn, sql string) (v T) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), sql).Scan(&v); err != nil {
		t.Fatalf("%v\n%s", err, sql)
	}
	return v
}

var restrictKey = regexp.MustCompile(`(?m)^\\(un)?restrict .*$`)

// dumpText is the schema as pg_dump tells it, without Rehome's.
func dumpText(t *testing.T, dsn tenant.DSN) []string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), filepath.Join(cluster.BinDir(), "pg_dump"), "--schema-only", "--no-owner", "--no-privileges",
		"--no-publications", "-N", "rehome", "-d", dsn.Reveal()).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(restrictKey.ReplaceAllString(string(out), ""), "\n")
}

func dump(t *testing.T, dsn tenant.DSN, opts tenant.ReplicationOptions, snapshot string) *schema.Archive {
	t.Helper()
	cat, err := catalog.Describe(t.Context(), connect(t, dsn), opts)
	if err != nil {
		t.Fatal(err)
	}
	a, err := schema.Dump(t.Context(), schema.Config{DSN: dsn, Catalogue: cat, Options: opts, Snapshot: snapshot, TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

const everything = `
CREATE EXTENSION citext; CREATE EXTENSION btree_gist; COMMENT ON EXTENSION citext IS 'x';
CREATE SCHEMA "We""ird.Schema 🐘"; COMMENT ON SCHEMA public IS 'ours'; CREATE SCHEMA rehome; CREATE TABLE rehome.marker (id int PRIMARY KEY);
CREATE TYPE mood AS ENUM ('sad','it''s ok','🐘'); CREATE TYPE pair AS (a int, b text); CREATE DOMAIN posint AS int CHECK (VALUE > 0);
CREATE TYPE span AS RANGE (subtype = float8);
CREATE TABLE realms (realm_id uuid PRIMARY KEY, name citext UNIQUE, parent uuid REFERENCES realms);
CREATE TABLE items (realm_id uuid NOT NULL REFERENCES realms ON DELETE CASCADE, id bigint GENERATED ALWAYS AS IDENTITY, m mood[] DEFAULT '{sad}', p pair, d posint,
	n numeric(10,2), total numeric GENERATED ALWAYS AS (n * 2) STORED, PRIMARY KEY (realm_id, id), CHECK (n > 0));
CREATE UNIQUE INDEX items_ident ON items (realm_id, id); ALTER TABLE items REPLICA IDENTITY USING INDEX items_ident;
CREATE INDEX ON items USING gin (m); CREATE INDEX items_expr ON items ((n + 1)) WHERE n > 5;
CREATE STATISTICS st ON realm_id, id FROM items;
CREATE TABLE "We""ird.Schema 🐘"."t.a ""b"" 🦣" (id serial PRIMARY KEY, "realm_id" text COLLATE "C", "Or der" int, e serial,
	"0123456789012345678901234567890123456789012345678901234567890🐘" int UNIQUE);
CREATE TABLE ev (realm_id uuid, at date, id int, PRIMARY KEY (realm_id, at, id)) PARTITION BY RANGE (at);
CREATE TABLE ev_a PARTITION OF ev FOR VALUES FROM ('2020-01-01') TO ('2021-01-01') PARTITION BY LIST (id);
CREATE TABLE ev_a1 PARTITION OF ev_a DEFAULT;
CREATE TABLE ev_b PARTITION OF ev FOR VALUES FROM ('2021-01-01') TO ('2022-01-01');
CREATE INDEX ev_id ON ev (id); CREATE UNIQUE INDEX ev_ident ON ev (realm_id, at, id); ALTER TABLE ev REPLICA IDENTITY USING INDEX ev_ident;
CREATE TABLE refs_ev (realm_id uuid, at date, id int, FOREIGN KEY (realm_id, at, id) REFERENCES ev);
CREATE TABLE parent (id int PRIMARY KEY, t text); CREATE TABLE child (x int) INHERITS (parent); CREATE INDEX ON child (x);
CREATE TABLE booking (room int, during tsrange, EXCLUDE USING gist (room WITH =, during WITH &&));
CREATE TABLE full_one (a int); ALTER TABLE full_one REPLICA IDENTITY FULL;
CREATE UNLOGGED TABLE cache (id int PRIMARY KEY);
CREATE FUNCTION tricky() RETURNS trigger LANGUAGE plpgsql AS $f$
BEGIN
--
-- TOC entry 1 (class 1259 OID 1)
-- Name: nothing; Type: TABLE; Schema: public; Owner: -
--
/*
\unrestrict x
\connect postgres
*/
  PERFORM 1; -- '; $$ "
  RETURN new;
END $f$;
CREATE FUNCTION not_there_yet() RETURNS int LANGUAGE sql AS 'SELECT count(*)::int FROM items';
CREATE TRIGGER "tr ""1""" BEFORE INSERT ON items FOR EACH ROW EXECUTE FUNCTION tricky(); ALTER TABLE items DISABLE TRIGGER "tr ""1""";
CREATE TRIGGER always AFTER UPDATE ON items EXECUTE FUNCTION tricky(); ALTER TABLE items ENABLE ALWAYS TRIGGER always;
CREATE RULE r AS ON DELETE TO booking DO INSTEAD NOTHING;
ALTER TABLE items ENABLE ROW LEVEL SECURITY; CREATE POLICY pol ON items USING (id > 0);
CREATE VIEW v AS SELECT realm_id, count(*) AS n FROM items GROUP BY realm_id;
CREATE VIEW grouped AS SELECT realm_id, name FROM realms GROUP BY realm_id;
CREATE FUNCTION atomic() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT count(*) FROM (SELECT realm_id, name FROM realms GROUP BY realm_id) x; END;
CREATE MATERIALIZED VIEW mv AS SELECT count(*) AS n FROM full_one; CREATE UNIQUE INDEX ON mv (n);
CREATE MATERIALIZED VIEW mv_empty AS SELECT 1 AS one WITH NO DATA;
CREATE SEQUENCE free_one INCREMENT 10;
CREATE CAST (pair AS text) WITH INOUT; CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq);
COMMENT ON INDEX items_expr IS 'it''s'; COMMENT ON TABLE items IS '\restrict';
CREATE PUBLICATION pub FOR TABLE items;
INSERT INTO full_one VALUES (1), (2);
`

func TestSchemaArrivesAsItWas(t *testing.T) {
	t.Parallel()
	source, target := pgcluster.NewDatabase(t, cluster), pgcluster.NewDatabase(t, cluster)
	execute(t, connect(t, source), everything)
	a := dump(t, source, tenant.ReplicationOptions{}, "")
	hooked := 0
	hook := func(ctx context.Context, tx pgx.Tx) error {
		hooked++
		_, err := tx.Exec(ctx, "SELECT FROM public.items")
		return err
	}
	for range 2 {
		if err := a.RestorePre(t.Context(), target, "abc", hook); err != nil {
			t.Fatal(err)
		}
	}
	if hooked != 1 {
		t.Errorf("the hook ran %d times", hooked)
	}
	conn := connect(t, target)
	if n := one[int](t, conn, "SELECT count(*)::int FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid WHERE c.relnamespace = 'public'::regnamespace"); n != 0 {
		t.Errorf("%d indexes before the rows", n)
	}
	execute(t, conn, "INSERT INTO full_one VALUES (7)")
	last, total := 0, 0
	err := a.RestorePost(t.Context(), target, "abc", 3, nil, func(done, of int, item string) {
		if done != last+1 || item == "" {
			t.Errorf("progress %d after %d", done, last)
		}
		last, total = done, of
	})
	if err != nil {
		t.Fatal(err)
	}
	if last != total || total == 0 {
		t.Errorf("%d of %d", last, total)
	}
	// Comments on extensions belong to who owns them.
	execute(t, conn, "COMMENT ON EXTENSION citext IS 'x'")
	if d := cmp.Diff(dumpText(t, source), dumpText(t, target)); d != "" {
		t.Error(d)
	}
	if n := one[int](t, conn, "SELECT n::int FROM mv"); n != 1 {
		t.Errorf("the materialized view says %d", n)
	}
	if one[bool](t, conn, "SELECT relispopulated FROM pg_class WHERE relname = 'mv_empty'") {
		t.Error("mv_empty is populated")
	}
	if one[bool](t, conn, "SELECT to_regclass('rehome.marker') IS NOT NULL") {
		t.Error("the source's schema rehome was carried")
	}
}

// A new process after a crash dumps again and goes on where the other stopped.
func TestPostDataGoesOnAfterACrash(t *testing.T) {
	t.Parallel()
	source, target := pgcluster.NewDatabase(t, cluster), pgcluster.NewDatabase(t, cluster)
	execute(t, connect(t, source), everything)
	if err := dump(t, source, tenant.ReplicationOptions{}, "").RestorePre(t.Context(), target, "abc"); err != nil {
		t.Fatal(err)
	}
	crashed := errors.New("crash")
	for stop := 1; ; stop += 7 {
		ctx, cancel := context.WithCancelCause(t.Context())
		err := dump(t, source, tenant.ReplicationOptions{}, "").RestorePost(ctx, target, "abc", 2, nil, func(done, _ int, _ string) {
			if done == stop {
				cancel(crashed)
			}
		})
		cancel(nil)
		if err == nil {
			break
		}
		if !errors.Is(err, context.Canceled) && !errors.Is(err, crashed) {
			t.Fatal(err)
		}
	}
	execute(t, connect(t, target), "COMMENT ON EXTENSION citext IS 'x'")
	if d := cmp.Diff(dumpText(t, source), dumpText(t, target)); d != "" {
		t.Error(d)
	}
}

func TestPreDataIsAllOrNothing(t *testing.T) {
	t.Parallel()
	source, target := pgcluster.NewDatabase(t, cluster), pgcluster.NewDatabase(t, cluster)
	execute(t, connect(t, source), "CREATE TABLE aaa (id int); CREATE TABLE zzz (id int)")
	conn := connect(t, target)
	execute(t, conn, "CREATE TABLE zzz (other int)")
	a := dump(t, source, tenant.ReplicationOptions{}, "")
	err := a.RestorePre(t.Context(), target, "abc")
	if err == nil || !strings.Contains(err.Error(), "TABLE public.zzz") || !strings.Contains(err.Error(), "already exists") {
		t.Fatal(err)
	}
	if one[bool](t, conn, "SELECT to_regclass('aaa') IS NOT NULL") {
		t.Error("aaa is there")
	}
	execute(t, conn, "DROP TABLE zzz")
	if err := a.RestorePre(t.Context(), target, "abc"); err != nil {
		t.Fatal(err)
	}
}

func TestPostErrorNamesItsItem(t *testing.T) {
	t.Parallel()
	source, target := pgcluster.NewDatabase(t, cluster), pgcluster.NewDatabase(t, cluster)
	execute(t, connect(t, source), "CREATE TABLE t (id int PRIMARY KEY)")
	a := dump(t, source, tenant.ReplicationOptions{}, "")
	if err := a.RestorePre(t.Context(), target, "abc"); err != nil {
		t.Fatal(err)
	}
	conn := connect(t, target)
	execute(t, conn, "INSERT INTO t VALUES (1), (1)")
	err := a.RestorePost(t.Context(), target, "abc", 2, nil, nil)
	if err == nil || !strings.Contains(err.Error(), "CONSTRAINT public.t t_pkey") || !strings.Contains(err.Error(), "(id)=(1)") {
		t.Fatal(err)
	}
	execute(t, conn, "DELETE FROM t")
	if err := a.RestorePost(t.Context(), target, "abc", 2, nil, nil); err != nil {
		t.Fatal(err)
	}
}

func TestExcludedTablesStayBehind(t *testing.T) {
	t.Parallel()
	source, target := pgcluster.NewDatabase(t, cluster), pgcluster.NewDatabase(t, cluster)
	execute(t, connect(t, source), everything+`
		CREATE TABLE points_out (id int PRIMARY KEY, r int REFERENCES parent, x int);
		CREATE VIEW gone AS SELECT 1 AS one; CREATE SEQUENCE gone_seq;`)
	opts := tenant.ReplicationOptions{Exclude: []string{"ev", "refs_ev", "*.t.a*", "parent", "child", "gone", "gone_*"}}
	a := dump(t, source, opts, "")
	if err := a.RestorePre(t.Context(), target, "abc"); err != nil {
		t.Fatal(err)
	}
	if err := a.RestorePost(t.Context(), target, "abc", 2, nil, nil); err != nil {
		t.Fatal(err)
	}
	conn := connect(t, target)
	rows, err := conn.Query(t.Context(), `SELECT relname::text FROM pg_class WHERE relkind IN ('r','p','v','m','S') AND relnamespace::regnamespace::text NOT LIKE 'pg_%'
		AND relnamespace::regnamespace::text NOT IN ('information_schema','rehome') ORDER BY 1`)
	if err != nil {
		t.Fatal(err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"booking", "cache", "free_one", "full_one", "grouped", "items", "items_id_seq", "mv", "mv_empty", "points_out", "realms", "v"}
	if d := cmp.Diff(want, names); d != "" {
		t.Error(d)
	}
	if n := one[int](t, conn, "SELECT count(*)::int FROM pg_constraint WHERE conrelid = 'points_out'::regclass AND contype <> 'n'"); n != 1 {
		t.Errorf("%d constraints", n)
	}
}

func TestAcceptedForeignKeyMayFail(t *testing.T) {
	t.Parallel()
	source := pgcluster.NewDatabase(t, cluster)
	execute(t, connect(t, source), `CREATE TABLE a (id int PRIMARY KEY, realm_id int); CREATE TABLE b (a int CONSTRAINT "b→a" REFERENCES a, realm_id int)`)
	for _, accept := range []string{"", `constraint-without-realm:public.b."b→a"`} {
		target := pgcluster.NewDatabase(t, cluster)
		a := dump(t, source, tenant.ReplicationOptions{Accept: []string{accept}}, "")
		if err := a.RestorePre(t.Context(), target, "abc"); err != nil {
			t.Fatal(err)
		}
		execute(t, connect(t, target), "INSERT INTO b VALUES (1, 1)")
		err := a.RestorePost(t.Context(), target, "abc", 1, nil, nil)
		if accept == "" && (err == nil || !strings.Contains(err.Error(), "FK CONSTRAINT")) || accept != "" && err != nil {
			t.Errorf("accept %q: %v", accept, err)
		}
	}
}

func TestDumpSeesItsSnapshot(t *testing.T) {
	t.Parallel()
	source, target := pgcluster.NewDatabase(t, cluster), pgcluster.NewDatabase(t, cluster)
	holder, other := connect(t, source), connect(t, source)
	execute(t, other, "CREATE TABLE before (id int)")
	execute(t, holder, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
	snapshot := one[string](t, holder, "SELECT pg_export_snapshot()")
	execute(t, other, "CREATE TABLE after (id int)")
	if err := dump(t, source, tenant.ReplicationOptions{}, snapshot).RestorePre(t.Context(), target, "abc"); err != nil {
		t.Fatal(err)
	}
	conn := connect(t, target)
	if !one[bool](t, conn, "SELECT to_regclass('before') IS NOT NULL AND to_regclass('after') IS NULL") {
		t.Error("not the snapshot's tables")
	}
}

func TestCancelKillsPgDump(t *testing.T) {
	t.Parallel()
	source := pgcluster.NewDatabase(t, cluster)
	holder, watcher := connect(t, source), connect(t, source)
	execute(t, holder, "CREATE TABLE t (id int)")
	cat, err := catalog.Describe(t.Context(), watcher, tenant.ReplicationOptions{})
	if err != nil {
		t.Fatal(err)
	}
	execute(t, holder, "BEGIN; LOCK TABLE t")
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	temp := t.TempDir()
	go func() {
		_, err := schema.Dump(ctx, schema.Config{DSN: source, Catalogue: cat, TempDir: temp})
		result <- err
	}()
	const waiting = "SELECT count(*)::int FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'rehome schema' AND wait_event_type = 'Lock'"
	for one[int](t, watcher, waiting) == 0 {
		if t.Context().Err() != nil {
			t.FailNow()
		}
	}
	start := time.Now()
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("took %s", d)
	}
	if left, _ := filepath.Glob(filepath.Join(temp, "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestToolsAreNewEnough(t *testing.T) {
	t.Parallel()
	tools, err := schema.FindTools(t.Context(), 130000)
	if err != nil || tools.Major < 13 {
		t.Fatal(tools, err)
	}
	if _, err := schema.FindTools(t.Context(), 990000); !errors.Is(err, &tenant.Error{Code: "pg-dump-too-old"}) {
		t.Fatal(err)
	}
}

// TestWrappersAreAskedLast: a script in the place of pg_dump on PATH is asked only when no program serves.
func TestWrappersAreAskedLast(t *testing.T) { // not parallel: it sets the process's environment
	dir := t.TempDir()
	asked, path := filepath.Join(dir, "asked"), filepath.Join(dir, "pg_dump")
	script := "#!/bin/sh\n: > '" + asked + "'\necho 'pg_dump (PostgreSQL) 99.1'\n"
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(filepath.ListSeparator)+os.Getenv("PATH"))
	if tools, err := schema.FindTools(t.Context(), 130000); err != nil || tools.PgDump == path {
		t.Errorf("%+v, %v", tools, err)
	}
	if _, err := os.Stat(asked); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the script was asked although a program serves: %v", err)
	}
	if _, err := schema.FindTools(t.Context(), 990000); !errors.Is(err, &tenant.Error{Code: "pg-dump-too-old"}) {
		t.Error(err) // one of an unknown version is no help either
	}
	if _, err := os.Stat(asked); err != nil {
		t.Errorf("the script was not asked although no program serves: %v", err)
	}
}

// TestNamedWrapperServes: a script in a folder of REHOME_PG_BINDIR goes before a program that is as new.
func TestNamedWrapperServes(t *testing.T) { // not parallel: it sets the process's environment
	found, err := schema.FindTools(t.Context(), 130000)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "pg_dump")
	script := fmt.Sprintf("#!/bin/sh\necho 'pg_dump (PostgreSQL) %d.1'\n", found.Major)
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("REHOME_PG_BINDIR", dir+string(filepath.ListSeparator)+os.Getenv("REHOME_PG_BINDIR"))
	want := schema.Tools{PgDump: path, Major: found.Major}
	if tools, err := schema.FindTools(t.Context(), 130000); err != nil || tools != want {
		t.Errorf("%+v, %v; want %+v", tools, err, want)
	}
}
