package gate_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rehomedb/rehome/gate"
)

// schemaChanges are commands on the tables of a source that was cut over, each with what the detail must name.
var schemaChanges = []struct{ sql, names string }{
	{"ALTER TABLE accounts ADD COLUMN extra int", "ALTER TABLE on public.accounts"},
	{"ALTER TABLE accounts DROP COLUMN balance", "public.accounts"},
	{"ALTER TABLE accounts RENAME TO accounts_old", "public.accounts"},
	{"ALTER TABLE accounts RENAME COLUMN balance TO money", "public.accounts"},
	{"ALTER TABLE accounts SET SCHEMA app", "accounts"},
	{"ALTER TABLE accounts DISABLE TRIGGER rehome_fence", "public.accounts"},
	{"ALTER TABLE accounts DISABLE TRIGGER ALL", "public.accounts"},
	{"ALTER TABLE accounts ENABLE REPLICA TRIGGER rehome_fence", "public.accounts"},
	{"DROP TRIGGER rehome_fence ON accounts", "trigger"},
	{"ALTER TRIGGER rehome_fence ON accounts RENAME TO other", "public.accounts"},
	{"DROP TABLE accounts", "public.accounts"},
	{"DROP TABLE app.events_2025", "app.events_2025"},
	{"ALTER TABLE app.events DETACH PARTITION app.events_2025", "app.events"},
	{"ALTER TABLE app.events DETACH PARTITION app.events_2025 CONCURRENTLY", "CONCURRENTLY"},
	{"CREATE TABLE app.events_2027 PARTITION OF app.events FOR VALUES FROM ('2027-01-01') TO ('2028-01-01')", "app.events_2027"},
	{"CREATE TABLE fresh (id int)", "public.fresh"},
	{"CREATE UNLOGGED TABLE fresh (id int)", "public.fresh"},
	{"CREATE TABLE fresh AS SELECT * FROM accounts", "public.fresh"},
	{"SELECT * INTO fresh FROM accounts", "public.fresh"},
	{"CREATE TABLE fresh (LIKE accounts) INHERITS (accounts)", "public.fresh"},
	{"CREATE SCHEMA fresh CREATE TABLE fresh.t (id int)", "fresh.t"},
	{"DROP SCHEMA app CASCADE", "app.events"},
	{"ALTER SCHEMA app RENAME TO app2", "app2"},
	{"CREATE INDEX fresh_idx ON accounts (balance)", "fresh_idx"},
	{"CREATE INDEX CONCURRENTLY fresh_idx ON accounts (balance)", "CONCURRENTLY"},
	{"CREATE RULE fresh AS ON INSERT TO accounts DO INSTEAD NOTHING", "public.accounts"},
	{"CREATE TRIGGER fresh BEFORE INSERT ON accounts EXECUTE FUNCTION rehome.fence()", "public.accounts"},
	{"ALTER SEQUENCE app.events_id_seq NO MAXVALUE", "app.events_id_seq"},
	{"CREATE SEQUENCE fresh", "public.fresh"},
	{"DO $$ BEGIN EXECUTE 'DROP TABLE accounts'; END $$", "public.accounts"},
	{"ALTER TYPE mood ADD VALUE 'worse'", "mood"},
}

func TestSchemaStaysAfterTheDecision(t *testing.T) {
	t.Parallel()
	s := setup(t, schemaSQL)
	ctx := t.Context()
	root := connect(t, s.admin)
	exec(t, root, "ALTER ROLE "+s.ownerName+" SUPERUSER")
	exec(t, s.conn, "CREATE TYPE mood AS ENUM ('bad')")
	before, _ := catalogue(t, s)
	must(t, gate.InstallSource(ctx, s.conn, pass))
	if ok, err := gate.PermitsDDLFence(ctx, s.conn); err != nil || !ok {
		t.Fatalf("a superuser may not make event triggers: %v, %v", ok, err)
	}
	exec(t, s.conn, "CREATE TABLE before_it (id int); DROP TABLE before_it")
	cutOver(t, s, 1)
	replica := connect(t, s.admin)
	exec(t, replica, "SET session_replication_role = replica")
	for who, conn := range map[string]*pgx.Conn{"owner": s.conn, "superuser": root, "replica": replica} {
		for _, c := range schemaChanges {
			_, err := conn.PgConn().Exec(ctx, c.sql).ReadAll()
			pe, ok := errors.AsType[*pgconn.PgError](err)
			if !ok || pe.Code != gate.FenceCode || pe.Message != "database has moved" || !strings.Contains(pe.Hint, newURL) || !strings.Contains(pe.Detail, c.names) {
				t.Errorf("%s by the %s: %v, detail %v", c.sql, who, err, pe)
			}
		}
		if b, err := gate.FindBreaches(ctx, conn, nil); err != nil || b.Any() {
			t.Errorf("after the %s: %+v, %v", who, b, err)
		}
		// Reading goes on as it did.
		for _, sql := range []string{
			"CREATE TEMP TABLE report AS SELECT * FROM accounts; CREATE INDEX ON report (id); CREATE UNIQUE INDEX report_key ON report (id); INSERT INTO report VALUES (-1, '', 0); " +
				"ALTER TABLE report ADD COLUMN note text; CREATE TEMP TABLE child (id int REFERENCES report (id), n serial); DROP TABLE child; DROP TABLE report",
			"CREATE VIEW fresh_view AS SELECT * FROM accounts; CREATE OR REPLACE VIEW fresh_view AS SELECT * FROM accounts WHERE id > 0; DROP VIEW fresh_view",
			"COMMENT ON TABLE accounts IS 'moved'; COMMENT ON TABLE accounts IS NULL; GRANT SELECT ON accounts TO PUBLIC; REVOKE SELECT ON accounts FROM PUBLIC",
			"ANALYZE accounts; VACUUM accounts; REINDEX TABLE accounts",
			"CREATE FUNCTION fresh() RETURNS int LANGUAGE sql AS 'SELECT 1'; DROP FUNCTION fresh()",
		} {
			for part := range strings.SplitSeq(sql, "; ") {
				exec(t, conn, part)
			}
		}
	}
	// What slips by a superuser who knows how is noticed and closed again.
	exec(t, root, "ALTER EVENT TRIGGER rehome_fence_ddl_end DISABLE; ALTER TABLE accounts DISABLE TRIGGER ALL; CREATE TABLE slipped (id int); ALTER EVENT TRIGGER rehome_fence_ddl_end ENABLE ALWAYS")
	if b, err := gate.FindBreaches(ctx, s.conn, nil); err != nil || len(b.Tables) != 2 || b.DDL {
		t.Errorf("breaches: %+v, %v", b, err)
	}
	must(t, gate.Refence(ctx, s.conn, nil))
	exec(t, root, "DROP EVENT TRIGGER rehome_fence_ddl_drop")
	if b, err := gate.FindBreaches(ctx, s.conn, nil); err != nil || len(b.Tables) != 0 || !b.DDL {
		t.Errorf("breaches: %+v, %v", b, err)
	}
	must(t, gate.Refence(ctx, s.conn, nil))
	if b, err := gate.FindBreaches(ctx, s.conn, nil); err != nil || b.Any() {
		t.Errorf("breaches: %+v, %v", b, err)
	}
	if accepts(t, s.conn) {
		t.Error("the table that had been opened accepts writes")
	}
	// The pass lets through.
	passing := connect(t, s.owner)
	must(t, gate.SetPass(ctx, passing, pass))
	exec(t, passing, "DROP TABLE slipped; CREATE TABLE more (id int); DROP TABLE more")
	// The way back opens everything in one transaction; then everything goes.
	backTo(t, s, 2)
	exec(t, connect(t, s.owner), "CREATE TABLE after (id int); DROP TABLE after")
	agrees(t, s)
	cutOver(t, s, 3)
	must(t, gate.UninstallSource(ctx, s.conn, false))
	if _, err := s.conn.Exec(ctx, "CREATE TABLE after (id int)"); !gate.IsFenced(err) {
		t.Errorf("a table made after completion: %v", err)
	}
	for range 2 {
		must(t, gate.UninstallSource(ctx, s.conn, true))
	}
	after, _ := catalogue(t, s)
	if d := cmp.Diff(before, after); d != "" {
		t.Errorf("pg_dump before and after:\n%s", d)
	}
}

// backTo moves the gate back to the source from epoch e, as the decision of a rollback does.
func backTo(t *testing.T, s side, e int64) {
	t.Helper()
	ctx := t.Context()
	must(t, pgx.BeginFunc(ctx, s.conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `UPDATE rehome.gate SET epoch = epoch + 1, side = 'source', attempt = '', new_url = '' WHERE epoch = $1 AND side = 'target'`, e); err != nil {
			return err
		}
		return gate.OpenSource(ctx, tx)
	}))
}

// Without the right to make event triggers everything works as well, and nothing counts as a breach that cannot be closed.
func TestSchemaFenceIsNotForOwners(t *testing.T) {
	t.Parallel()
	s := installed(t)
	ctx := t.Context()
	if ok, err := gate.PermitsDDLFence(ctx, s.conn); err != nil || ok {
		t.Fatalf("an owner may make event triggers: %v, %v", ok, err)
	}
	cutOver(t, s, 1)
	if b, err := gate.FindBreaches(ctx, s.conn, nil); err != nil || b.Any() {
		t.Errorf("breaches: %+v, %v", b, err)
	}
	exec(t, s.conn, "ALTER TABLE accounts DISABLE TRIGGER rehome_fence; CREATE TABLE slipped (id int)")
	if b, err := gate.FindBreaches(ctx, s.conn, nil); err != nil || len(b.Tables) != 2 || b.DDL {
		t.Errorf("breaches: %+v, %v", b, err)
	}
	must(t, gate.Refence(ctx, s.conn, nil))
	if b, err := gate.FindBreaches(ctx, s.conn, nil); err != nil || b.Any() || accepts(t, connect(t, s.client)) {
		t.Errorf("breaches: %+v, %v", b, err)
	}
	backTo(t, s, 2)
	agrees(t, s)
	if b, err := gate.FindBreaches(ctx, s.conn, nil); err != nil || b.Any() {
		t.Errorf("breaches of an open source: %+v, %v", b, err)
	}
}

// An attempt that is taken back leaves no event trigger, and one under way holds nobody up who looks whether it may.
func TestSchemaFenceOfAnAttempt(t *testing.T) {
	t.Parallel()
	s := setup(t, schemaSQL)
	ctx := t.Context()
	exec(t, connect(t, s.admin), "ALTER ROLE "+s.ownerName+" SUPERUSER")
	must(t, gate.InstallSource(ctx, s.conn, pass))
	a := open(t, s, 1)
	must(t, a.Prelock(ctx))
	must(t, a.Fence(ctx, time.Now().Add(5*time.Second)))
	must(t, a.CreateTriggers(ctx))
	// The attempt's own statements go on: sequences are frozen after the triggers.
	if _, err := a.Tx().Exec(ctx, "ALTER SEQUENCE app.events_id_seq MAXVALUE 1000"); err != nil {
		t.Errorf("the attempt's own: %v", err)
	}
	exec(t, s.conn, "SET statement_timeout = '1s'")
	if ok, err := gate.PermitsDDLFence(ctx, s.conn); err != nil || !ok {
		t.Errorf("beside an attempt: %v, %v", ok, err)
	}
	exec(t, s.conn, "CREATE TABLE meanwhile (id int)")
	a.Rollback(ctx)
	exec(t, s.conn, "DROP TABLE meanwhile")
	agrees(t, s)
}

// Whoever looks again and again asks once for a right that is not there: each try is an ERROR in the source's log.
func TestSchemaFenceIsAskedForOnce(t *testing.T) {
	t.Parallel()
	s := installed(t)
	ctx := t.Context()
	cutOver(t, s, 1)
	var right gate.DDLRight
	look := func(want bool, right *gate.DDLRight) {
		t.Helper()
		if b, err := gate.FindBreaches(ctx, s.conn, right); err != nil || b.DDL != want {
			t.Errorf("breaches: %+v, %v", b, err)
		}
	}
	look(false, &right)
	// A role that is given the right shows who asks again.
	exec(t, connect(t, s.admin), "ALTER ROLE "+s.ownerName+" SUPERUSER")
	look(false, &right)
	must(t, gate.Refence(ctx, s.conn, &right))
	look(true, nil)
	var other gate.DDLRight
	look(true, &other)
	look(true, &other)
}
