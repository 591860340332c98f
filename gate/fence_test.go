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

var writes = map[string]string{
	"insert":           "INSERT INTO accounts VALUES (1000, 'r', 0)",
	"update":           "UPDATE accounts SET balance = 1 WHERE id = 1",
	"update no row":    "UPDATE accounts SET balance = 1 WHERE id = -1",
	"delete":           "DELETE FROM accounts WHERE id = 1",
	"truncate":         "TRUNCATE accounts",
	"merge":            "MERGE INTO accounts a USING (SELECT 1 AS id) s ON a.id = s.id WHEN MATCHED THEN UPDATE SET balance = 2",
	"upsert":           "INSERT INTO accounts VALUES (1, 'r', 0) ON CONFLICT (id) DO UPDATE SET balance = 5",
	"odd name":         `INSERT INTO "Odd ""name." VALUES (1)`,
	"root":             "INSERT INTO app.events (at) VALUES ('2026-01-02')",
	"root truncate":    "TRUNCATE app.events",
	"leaf":             "INSERT INTO app.events_2026 (at, id) OVERRIDING SYSTEM VALUE VALUES ('2026-01-02', 77)",
	"leaf update":      "UPDATE app.events_2025 SET at = at",
	"leaf truncate":    "TRUNCATE app.events_2025",
	"writable cte":     "WITH w AS (DELETE FROM accounts RETURNING 1) SELECT count(*) FROM w",
	"do block":         "DO $$ BEGIN DELETE FROM accounts; END $$",
	"partition key":    "UPDATE app.events SET at = at + 365",
	"view":             "INSERT INTO accounts_view VALUES (2000, 'r', 0)",
	"view update":      "UPDATE accounts_view SET balance = 3 WHERE id = 2",
	"view trigger":     "DELETE FROM odd_view",
	"function":         "SELECT spend(1)",
	"secure function":  "SELECT spend_as_owner(1)",
	"procedure":        "CALL pay(1)",
	"inheritance":      "UPDATE animals SET id = id",
	"inherited child":  "INSERT INTO cats VALUES (9)",
	"child only":       "UPDATE ONLY cats SET id = id",
	"rule":             "INSERT INTO by_rule VALUES (3000)",
	"foreign key":      "DELETE FROM parents",
	"prepared":         "PREPARE w AS DELETE FROM accounts; EXECUTE w",
	"trigger's write":  "INSERT INTO logged VALUES (1)",
	"copy":             "COPY accounts FROM PROGRAM 'true'",
	"many truncated":   "TRUNCATE cats, accounts CASCADE",
	"deferred replica": "SET LOCAL session_replication_role = origin; DELETE FROM accounts",
}

// waysSQL is what writes may go through.
const waysSQL = `
CREATE VIEW accounts_view AS SELECT * FROM accounts;
CREATE VIEW odd_view AS SELECT id FROM accounts WHERE id < 10 LIMIT 5;
CREATE FUNCTION odd_delete() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN DELETE FROM accounts WHERE id = OLD.id; RETURN OLD; END';
CREATE TRIGGER odd_delete INSTEAD OF DELETE ON odd_view FOR EACH ROW EXECUTE FUNCTION odd_delete();
CREATE FUNCTION spend(i int) RETURNS void LANGUAGE sql AS 'UPDATE accounts SET balance = balance - 1 WHERE id = i';
CREATE FUNCTION spend_as_owner(i int) RETURNS void LANGUAGE sql SECURITY DEFINER AS 'UPDATE accounts SET balance = balance - 1 WHERE id = i';
CREATE PROCEDURE pay(i int) LANGUAGE plpgsql AS 'BEGIN COMMIT; UPDATE accounts SET balance = balance + 1 WHERE id = i; END';
CREATE TABLE animals (id int); CREATE TABLE cats () INHERITS (animals);
INSERT INTO cats VALUES (1);
CREATE VIEW by_rule AS SELECT id FROM accounts;
CREATE RULE by_rule AS ON INSERT TO by_rule DO INSTEAD INSERT INTO accounts VALUES (NEW.id, 'r', 0);
CREATE TABLE parents (id int PRIMARY KEY); CREATE TABLE children (id int REFERENCES parents ON DELETE CASCADE);
INSERT INTO parents VALUES (1); INSERT INTO children VALUES (1);
CREATE UNLOGGED TABLE logged (id int);
`

func TestFenceRefusesEveryWrite(t *testing.T) {
	t.Parallel()
	s := setup(t, schemaSQL)
	exec(t, s.conn, waysSQL)
	exec(t, s.conn, "GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC")
	must(t, gate.InstallSource(t.Context(), s.conn, pass))

	// A transaction with an old snapshot is refused as well.
	old := connect(t, s.owner)
	exec(t, old, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM pg_class LIMIT 1")
	cutOver(t, s, 1)
	_, err := old.Exec(t.Context(), writes["update"])
	if !gate.IsFenced(err) {
		t.Errorf("a transaction with an old snapshot: %v", err)
	}

	root := connect(t, s.admin)
	replica := connect(t, s.admin)
	exec(t, replica, "SET session_replication_role = replica")
	sessions := map[string]*pgx.Conn{"owner": connect(t, s.owner), "client": connect(t, s.client), "superuser": root, "replica": replica}
	for who, conn := range sessions {
		for what, sql := range writes {
			if who != "superuser" && (what == "deferred replica" || what == "copy") {
				continue // not permitted
			}
			if who == "replica" && what == "view trigger" {
				continue // it does not fire, so nothing is written
			}
			_, err := conn.PgConn().Exec(t.Context(), sql).ReadAll()
			pe, ok := errors.AsType[*pgconn.PgError](err)
			switch {
			case !ok:
				t.Errorf("%s by %s was accepted: %v", what, who, err)
			case pe.Code != gate.FenceCode || pe.Message != "database has moved" || !strings.Contains(pe.Hint, newURL):
				t.Errorf("%s by %s: %s %q, hint %q, detail %q", what, who, pe.Code, pe.Message, pe.Hint, pe.Detail)
			}
		}
		_, err := conn.CopyFrom(t.Context(), pgx.Identifier{"accounts"}, []string{"id", "realm_id"}, pgx.CopyFromRows([][]any{{5000, "r"}}))
		if !gate.IsFenced(err) {
			t.Errorf("copy by %s: %v", who, err)
		}
		var n int
		must(t, conn.QueryRow(t.Context(), "SELECT count(*) FROM accounts").Scan(&n))
		if n != 100 {
			t.Errorf("%d accounts are left", n)
		}
	}

	// What only reads goes on, row locks included.
	for _, sql := range []string{
		"SELECT * FROM accounts FOR UPDATE", "SELECT * FROM accounts_view FOR SHARE", "BEGIN; LOCK TABLE accounts IN ACCESS EXCLUSIVE MODE; COMMIT",
		"DECLARE c CURSOR WITH HOLD FOR SELECT * FROM accounts; FETCH c; CLOSE c", "COPY accounts TO STDOUT", "EXPLAIN DELETE FROM accounts", "ANALYZE accounts",
		"CREATE TEMP TABLE scratch AS SELECT * FROM accounts; DELETE FROM scratch; DROP TABLE scratch",
	} {
		exec(t, connect(t, s.owner), sql)
	}

	// The applier passes; a wrong pass does not.
	passing := connect(t, s.owner)
	must(t, gate.SetPass(t.Context(), passing, "wrong"))
	if accepts(t, passing) {
		t.Error("a wrong pass was let through")
	}
	must(t, gate.SetPass(t.Context(), passing, pass))
	for _, what := range []string{"insert", "update", "root", "leaf", "delete", "truncate"} {
		if _, err := passing.Exec(t.Context(), writes[what]); err != nil {
			t.Errorf("%s with the pass: %v", what, err)
		}
	}
}

func TestOthersCannotTouchTheGate(t *testing.T) {
	t.Parallel()
	s := setup(t, schemaSQL)
	client := connect(t, s.client)
	// Default privileges that would let a client in.
	exec(t, s.conn, "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC; ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO PUBLIC; ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO PUBLIC")
	must(t, gate.InstallSource(t.Context(), s.conn, pass))
	for _, sql := range []string{
		"UPDATE rehome.gate SET epoch = 99", "SELECT * FROM rehome.gate", "INSERT INTO rehome.marker VALUES ('a', 'a', 'cutover', now())",
		"INSERT INTO rehome.heartbeat VALUES ('a', 1, now())", "TRUNCATE rehome.marker", "DO $$ BEGIN LOCK rehome.gate; END $$", "CREATE TABLE rehome.x ()",
		"CREATE TEMP TABLE x (); CREATE TRIGGER x BEFORE INSERT ON x EXECUTE FUNCTION rehome.fence()",
	} {
		_, err := client.PgConn().Exec(t.Context(), sql).ReadAll()
		pe, ok := errors.AsType[*pgconn.PgError](err)
		if !ok || pe.Code != "42501" {
			t.Errorf("%s: %v", sql, err)
		}
	}

	// A schema that somebody else prepared is refused.
	s2 := setup(t, "")
	root := connect(t, s2.admin)
	exec(t, root, "CREATE SCHEMA rehome")
	if err := gate.InstallSource(t.Context(), s2.conn, pass); !errors.Is(err, gate.ErrForeignSchema) {
		t.Errorf("a foreign schema: %v", err)
	}
}

func TestShardFollowsOnlyUpwards(t *testing.T) {
	t.Parallel()
	s := setup(t, schemaSQL)
	ctx := t.Context()
	must(t, gate.InstallShard(ctx, s.conn, pass))
	must(t, gate.InstallShard(ctx, s.conn, pass))
	n, err := gate.FenceShardTables(ctx, s.conn)
	must(t, err)
	if n != 5 {
		t.Errorf("fenced %d tables, want 5", n)
	}
	client := connect(t, s.client)
	if accepts(t, client) {
		t.Fatal("a shard that never followed accepts writes")
	}
	_, err = client.Exec(ctx, "DELETE FROM accounts")
	if pe, ok := errors.AsType[*pgconn.PgError](err); !ok || pe.Message != "database is not open yet" || pe.Hint == "" {
		t.Errorf("refusal at a closed shard: %v", err)
	}
	exec(t, s.conn, "CREATE TABLE later (id int)")
	if n, err = gate.FenceShardTables(ctx, s.conn); err != nil || n != 1 {
		t.Errorf("a table that appeared later: %d, %v", n, err)
	}
	if _, err := s.conn.Exec(ctx, "INSERT INTO later VALUES (1)"); !gate.IsFenced(err) {
		t.Errorf("a table that appeared later: %v", err)
	}

	follow := func(epoch int64, side gate.Side, want bool) {
		t.Helper()
		hit, err := gate.Follow(ctx, s.conn, gate.State{Epoch: epoch, Side: side, NewURL: newURL})
		must(t, err)
		if hit != want {
			t.Errorf("follow (%d, %s): hit %v, want %v", epoch, side, hit, want)
		}
	}
	follow(3, gate.SideSource, true) // an attempt that was aborted
	if accepts(t, client) {
		t.Error("open after an aborted attempt")
	}
	follow(2, gate.SideTarget, false) // stale
	if accepts(t, client) {
		t.Error("a stale open arrived")
	}
	// A reader does not hold the opening up.
	reader := connect(t, s.client)
	exec(t, reader, "BEGIN; SELECT count(*) FROM accounts; SELECT count(*) FROM app.events")
	follow(4, gate.SideTarget, true)
	follow(4, gate.SideTarget, false)
	if !accepts(t, client) {
		t.Error("closed after the decision")
	}
	exec(t, s.conn, "CREATE TABLE afterwards (id int)")
	_, err = gate.FenceShardTables(ctx, s.conn)
	must(t, err)
	exec(t, s.conn, "INSERT INTO afterwards VALUES (1)")
	if err := gate.UninstallShard(ctx, connect(t, s.client)); err == nil {
		t.Error("a client removed the shard's gate")
	}
	follow(6, gate.SideSource, true) // the way back
	if accepts(t, client) {
		t.Error("open after the way back")
	}
	if _, err := s.conn.Exec(ctx, "INSERT INTO afterwards VALUES (1)"); !gate.IsFenced(err) {
		t.Errorf("a table made while open: %v", err)
	}
}

func TestUninstallShard(t *testing.T) {
	t.Parallel()
	s := setup(t, schemaSQL)
	ctx := t.Context()
	dump, _ := catalogue(t, s)
	must(t, gate.InstallShard(ctx, s.conn, pass))
	_, err := gate.FenceShardTables(ctx, s.conn)
	must(t, err)
	if err := gate.UninstallShard(ctx, s.conn); !errors.Is(err, gate.ErrShardClosed) {
		t.Errorf("a closed shard: %v", err)
	}
	if accepts(t, connect(t, s.client)) {
		t.Error("a closed shard was opened")
	}
	_, err = gate.Follow(ctx, s.conn, gate.State{Epoch: 2, Side: gate.SideTarget})
	must(t, err)
	for range 2 {
		must(t, gate.UninstallShard(ctx, s.conn))
	}
	after, _ := catalogue(t, s)
	if d := cmp.Diff(dump, after); d != "" {
		t.Errorf("pg_dump before and after:\n%s", d)
	}
}

func TestPrelockedFollowerAndItsSuccessor(t *testing.T) {
	t.Parallel()
	s := setup(t, schemaSQL)
	ctx := t.Context()
	must(t, gate.InstallShard(ctx, s.conn, pass))
	_, err := gate.FenceShardTables(ctx, s.conn)
	must(t, err)
	first, err := gate.ShardSession(ctx, s.owner)
	must(t, err)
	defer func() { _ = first.Close(ctx) }()
	_, err = gate.PrepareFollow(ctx, first) // and then its coordinator vanishes
	must(t, err)
	applier := connect(t, s.owner)
	must(t, gate.SetPass(ctx, applier, pass))
	if !accepts(t, applier) {
		t.Error("the prelock holds the applier up")
	}
	start := time.Now()
	hit, err := gate.Follow(ctx, s.conn, gate.State{Epoch: 2, Side: gate.SideTarget})
	if err != nil || !hit {
		t.Fatalf("a successor follows: %v, %v", hit, err)
	}
	t.Logf("the successor waited %s", time.Since(start).Round(time.Millisecond))
	if !accepts(t, connect(t, s.client)) {
		t.Error("the shard is not open")
	}
}

func TestSubscribedTablesGetRowTriggers(t *testing.T) {
	t.Parallel()
	s := setup(t, schemaSQL)
	root := connect(t, s.admin)
	exec(t, root, "CREATE SUBSCRIPTION sub_"+s.ownerName+" CONNECTION 'host=127.0.0.1 port=1' PUBLICATION p WITH (connect = false, slot_name = NONE)")
	defer exec(t, root, "DROP SUBSCRIPTION sub_"+s.ownerName)
	exec(t, root, "INSERT INTO pg_subscription_rel SELECT oid, 'accounts'::regclass, 'r', NULL FROM pg_subscription WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())")
	must(t, gate.InstallSource(t.Context(), s.conn, pass))
	cutOver(t, s, 1)
	var n int
	must(t, root.QueryRow(t.Context(), "SELECT count(*) FROM pg_trigger WHERE tgname = 'rehome_fence_row' AND tgenabled = 'A' AND tgrelid = 'accounts'::regclass").Scan(&n))
	if n != 1 {
		t.Error("no row trigger on a table that a subscription writes to")
	}
	exec(t, root, "DELETE FROM pg_subscription_rel")
}
