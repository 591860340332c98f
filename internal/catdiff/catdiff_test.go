package catdiff_test

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/internal/catdiff"
	"github.com/rehomedb/rehome/internal/pgcluster"
)

var cluster *pgcluster.Cluster

func TestMain(m *testing.M) {
	os.Exit(pgcluster.Main(m, pgcluster.Options{Settings: map[string]string{"max_prepared_transactions": "5"}}, &cluster))
}

// TestEveryChangeIsSeen makes one change after the other and wants to see a line of its section each time.
func TestEveryChangeIsSeen(t *testing.T) {
	t.Parallel()
	const base = `CREATE TABLE a (id bigint PRIMARY KEY, n int, t text DEFAULT 'x'); CREATE SEQUENCE s; CREATE TYPE mood AS ENUM ('sad');
		CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; CREATE TRIGGER tr AFTER INSERT ON a EXECUTE FUNCTION f();
		CREATE VIEW v AS SELECT id FROM a; CREATE FUNCTION ev() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'`
	dsn := pgcluster.NewDatabase(t, cluster)
	session := func() *pgx.Conn {
		conn, err := pgx.Connect(t.Context(), dsn.Reveal())
		must(t, err)
		t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
		return conn
	}
	conn, other := session(), session()
	_, err := conn.Exec(t.Context(), base)
	must(t, err)
	before, err := catdiff.Take(t.Context(), other)
	must(t, err)
	again, err := catdiff.Take(t.Context(), other)
	must(t, err)
	if d := catdiff.Diff(before, again); d != "" {
		t.Fatalf("nothing happened, and: %s", d)
	}
	for _, c := range []struct{ section, sql string }{
		{"relation", `CREATE TABLE b ()`},
		{"relation", `ALTER TABLE a REPLICA IDENTITY FULL`},
		{"relation", `GRANT SELECT ON a TO PUBLIC`},
		{"relation", `ALTER TABLE a SET (fillfactor = 50)`},
		{"relation", `CREATE OR REPLACE VIEW v AS SELECT id + 0 AS id FROM a`},
		{"column", `ALTER TABLE a ALTER n SET STATISTICS 7`},
		{"column", `ALTER TABLE a ADD x int; ALTER TABLE a DROP x`},
		{"column", `ALTER TABLE a ALTER t SET DEFAULT 'y'`},
		{"column", `GRANT SELECT (n) ON a TO PUBLIC`},
		{"constraint", `ALTER TABLE a ADD CHECK (n > 0) NOT VALID`},
		{"index", `CREATE INDEX ON a (n)`},
		{"trigger", `ALTER TABLE a DISABLE TRIGGER tr`},
		{"trigger", `ALTER TABLE a ENABLE ALWAYS TRIGGER tr`},
		{"event-trigger", `CREATE EVENT TRIGGER e ON ddl_command_end EXECUTE FUNCTION ev()`},
		{"rule", `CREATE RULE r AS ON DELETE TO a DO INSTEAD NOTHING`},
		{"policy", `CREATE POLICY p ON a`},
		{"function", `CREATE OR REPLACE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'`},
		{"function", `REVOKE ALL ON FUNCTION f() FROM PUBLIC`},
		{"function", `ALTER FUNCTION f() SET work_mem = '1MB'`},
		{"type", `ALTER TYPE mood ADD VALUE 'happy'`},
		{"schema", `CREATE SCHEMA other`},
		{"schema", `REVOKE USAGE ON SCHEMA public FROM PUBLIC`},
		{"sequence", `ALTER SEQUENCE s MAXVALUE 9`},
		{catdiff.SequenceValues, `SELECT nextval('s')`},
		{"statistics", `CREATE STATISTICS st ON id, n FROM a`},
		{"publication", `CREATE PUBLICATION p`},
		{"publication-table", `CREATE PUBLICATION q FOR TABLE a`},
		{"default-privilege", `ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC`},
		{"large-object", `SELECT lo_create(4711)`},
		{"comment", `COMMENT ON TABLE a IS 'x'`},
		{"system-privilege", `GRANT SELECT ON pg_authid TO PUBLIC`},
		{"system-privilege", `GRANT EXECUTE ON FUNCTION pg_read_file(text) TO PUBLIC`},
		{"database", `DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO PUBLIC', current_database()); END $$`},
		{"setting", `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = ''2MB''', current_database()); END $$`},
		{"slot", `SELECT pg_create_logical_replication_slot(current_database(), 'pgoutput', true)`},
		{"advisory-lock", `SELECT pg_advisory_lock(7)`},
		{"object", `CREATE OPERATOR === (FUNCTION = int4eq, LEFTARG = int, RIGHTARG = int)`},
		{"object", `CREATE TEXT SEARCH DICTIONARY d (TEMPLATE = simple)`},
		{"object", `CREATE CAST (mood AS text) WITH INOUT`},
		{"relation", `DROP PUBLICATION q; ALTER TABLE a SET UNLOGGED`},
	} {
		_, err := conn.Exec(t.Context(), c.sql)
		must(t, err)
		after, err := catdiff.Take(t.Context(), other)
		must(t, err)
		if d := catdiff.Diff(before, after); !strings.Contains("\n"+d, "\n+ "+c.section+" ") && !strings.Contains("\n"+d, "\n- "+c.section+" ") {
			t.Errorf("%s: not seen in section %s: %q", c.sql, c.section, d)
		}
		before = after
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
