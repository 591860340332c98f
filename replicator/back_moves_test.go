package replicator_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/rehomedb/rehome/gate"
	"github.com/rehomedb/rehome/tenant"
)

const accountsDDL = `CREATE TABLE accounts (id int PRIMARY KEY, realm_id text NOT NULL, mail text UNIQUE, n int);
	INSERT INTO accounts SELECT g, 'r' || (g % 20), 'mail' || g, 0 FROM generate_series(1, 100) g;`

// holdLane keeps a shard's lane from committing at the source until release is called.
func (b *backRig) holdLane(shard int) (release func()) {
	b.t.Helper()
	c := open(b.t, b.source)
	exec(b.t, c, "BEGIN")
	if n := scalar[int](b.t, c, `SELECT count(*) FROM (SELECT FROM rehome.applier WHERE replication = $1 FOR UPDATE) x`, b.id+"."+b.shards[shard].Name); n != 1 {
		b.t.Fatalf("%d lanes to hold", n)
	}
	return func() { exec(b.t, c, "ROLLBACK") }
}

// waitsForAnother waits until a lane says that it waits for another shard.
func (b *backRig) waitsForAnother() {
	b.t.Helper()
	eventually(b.t, "a lane waits for another shard's row", func() bool {
		return strings.Contains(b.back.Progress().Reason, "waits for another shard")
	})
}

// TestBackMovesBetweenShards deletes rows at one shard and inserts them at another, whose lane is faster.
func TestBackMovesBetweenShards(t *testing.T) {
	t.Parallel()
	b := newBackRig(t, 2, tenant.ReplicationOptions{FixIdentity: true}, accountsDDL)
	here, there := b.realmsOf(0, 1)[0], b.realmsOf(1, 1)[0]
	exec(t, b.clients[0], `INSERT INTO accounts VALUES (1001, $1, 'a@x', 1), (1002, $1, 'b@x', 1), (1003, $1, 'c@x', 1), (1004, $1, 'k@x', 1)`, here)
	b.settle()
	for name, move := range map[string]struct{ leaves, comes string }{ // each of rows of its own: in any order
		"the key":                  {`DELETE FROM accounts WHERE id = 1001`, `INSERT INTO accounts VALUES (1001, '` + there + `', 'a@x', 2)`},
		"a unique value":           {`UPDATE accounts SET mail = 'old' WHERE id = 1002`, `INSERT INTO accounts VALUES (2002, '` + there + `', 'b@x', 2)`},
		"within a transaction":     {`BEGIN; UPDATE accounts SET n = 9 WHERE id = 1003; DELETE FROM accounts WHERE id = 1003; COMMIT`, `BEGIN; INSERT INTO accounts VALUES (1003, '` + there + `', 'c@x', 2); UPDATE accounts SET n = 3 WHERE id = 1003; COMMIT`},
		"behind others' of theirs": {`DELETE FROM accounts WHERE id = 1004`, `INSERT INTO accounts VALUES (1004, '` + there + `', 'again', 2); INSERT INTO accounts VALUES (3001, '` + there + `', 'own', 2); DELETE FROM accounts WHERE id = 3001`},
	} {
		release := b.holdLane(0)
		exec(t, b.clients[0], move.leaves)
		exec(t, b.clients[1], move.comes)
		b.waitsForAnother()
		release()
		b.settle()
		b.same("accounts")
		if t.Failed() {
			t.Fatal(name)
		}
	}
	b.waitRunning()
	b.lanesDoNotWaitTogether(here, there)
	b.largeTransactionWaits(here, there)
	b.rowOnTwoShards(here, there)
}

// lanesDoNotWaitTogether lets each of two lanes have, among other transactions, one that waits for the other's: applied as
// one group they would wait for ever.
func (b *backRig) lanesDoNotWaitTogether(here, there string) {
	t := b.t
	t.Helper()
	exec(t, b.clients[0], `INSERT INTO accounts VALUES (4001, $1, 'd@x', 1)`, here)
	exec(t, b.clients[1], `INSERT INTO accounts VALUES (4002, $1, 'e@x', 1)`, there)
	b.settle()
	first, second := b.holdLane(0), b.holdLane(1)
	for _, c := range b.clients { // both lanes wait with this, and take what follows as one group
		exec(t, c, `UPDATE accounts SET n = n + 1 WHERE id IN (4001, 4002)`)
	}
	eventually(t, "both lanes are held", func() bool {
		return scalar[int](t, b.srcDB, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'rehome-lane-%' AND wait_event_type = 'Lock'`) == 2
	})
	exec(t, b.clients[0], `DELETE FROM accounts WHERE id = 4001`)
	exec(t, b.clients[1], `DELETE FROM accounts WHERE id = 4002`)
	exec(t, b.clients[0], `INSERT INTO accounts VALUES (4002, $1, 'e@x', 2)`, here)
	exec(t, b.clients[1], `INSERT INTO accounts VALUES (4001, $1, 'd@x', 2)`, there)
	exec(t, b.clients[0], `UPDATE accounts SET n = n + 1`)
	exec(t, b.clients[1], `UPDATE accounts SET n = n + 1`)
	b.flushed()
	first()
	second()
	b.settle()
	b.same("accounts")
	if b.jour.noted("alarm", "way-back-broken", "400") {
		t.Error("the lanes waited for each other until their patience was over")
	}
}

// rowOnTwoShards: the shards do not know of each other's keys, and the source can have only one row of a key.
func (b *backRig) rowOnTwoShards(here, there string) {
	t := b.t
	t.Helper()
	exec(t, b.clients[0], `INSERT INTO accounts VALUES (5001, $1, 'f@x', 1)`, here)
	b.settle()
	exec(t, b.clients[1], `INSERT INTO accounts VALUES (5001, $1, 'g@x', 1)`, there)
	p := b.waitBroken()
	for _, want := range []string{"s1", "accounts", "5001", "two shards"} {
		if !strings.Contains(p.Reason, want) {
			t.Errorf("the reason does not say %q: %s", want, p.Reason)
		}
	}
	if p.Remedy == "" || !b.jour.noted("alarm", "way-back-broken", "5001") {
		t.Errorf("remedy %q; no alarm", p.Remedy)
	}
	if n := scalar[string](t, b.srcDB, `SELECT realm_id FROM accounts WHERE id = 5001`); n != here {
		t.Errorf("the row at the source was replaced: it is of realm %s", n)
	}
	exec(t, b.clients[0], `DELETE FROM accounts WHERE id = 5001`)
	b.settle()
	b.same("accounts")
	b.waitRunning()
}

// largeTransactionWaits: of a transaction that is larger than a group nothing stays while it waits.
func (b *backRig) largeTransactionWaits(here, there string) {
	t := b.t
	t.Helper()
	exec(t, b.clients[0], `INSERT INTO accounts VALUES (6001, $1, 'h@x', 1)`, here)
	b.settle()
	release := b.holdLane(0)
	exec(t, b.clients[0], `DELETE FROM accounts WHERE id = 6001`)
	exec(t, b.clients[1], fmt.Sprintf(`BEGIN; INSERT INTO accounts SELECT g, '%[1]s', g::text, 0 FROM generate_series(10000, 22000) g; INSERT INTO accounts VALUES (6001, '%[1]s', 'h@x', 2); COMMIT`, there))
	eventually(t, "the large transaction waits", func() bool { return strings.Contains(b.back.Progress().Reason, "large transaction waits") })
	if n := scalar[int](t, b.srcDB, `SELECT count(*) FROM accounts WHERE id >= 10000`); n != 0 {
		t.Errorf("%d rows of a transaction that is not over are at the source", n)
	}
	release()
	b.settle()
	b.same("accounts")
}

func TestBackTruncate(t *testing.T) {
	t.Parallel()
	const ddl = backDDL + `CREATE TABLE days (realm_id text NOT NULL, id int NOT NULL, at int NOT NULL, PRIMARY KEY (realm_id, id, at)) PARTITION BY RANGE (at);
		CREATE TABLE days_1 PARTITION OF days FOR VALUES FROM (0) TO (50); CREATE TABLE days_2 PARTITION OF days FOR VALUES FROM (50) TO (100);
		CREATE TABLE parts (realm_id text NOT NULL, id int NOT NULL, item bigint, PRIMARY KEY (realm_id, id), FOREIGN KEY (realm_id, item) REFERENCES items);
		INSERT INTO days SELECT 'r' || (g % 20), g, g FROM generate_series(0, 99) g;`
	for _, shards := range []int{1, 3} {
		t.Run(fmt.Sprint(shards, " shards"), func(t *testing.T) {
			t.Parallel()
			b := newBackRig(t, shards, backOptions, ddl)
			exec(t, b.clients[0], `INSERT INTO items (realm_id, id, n) VALUES ($1, 77777, 1)`, b.realmsOf(0, 1)[0])
			exec(t, b.clients[0], `BEGIN; TRUNCATE items, parts RESTART IDENTITY; INSERT INTO items (realm_id, id, n) VALUES ('`+b.realmsOf(0, 1)[0]+`', 1, 1); COMMIT`)
			exec(t, b.clients[0], `TRUNCATE days_2`)
			exec(t, b.clients[0], `TRUNCATE units`)
			exec(t, b.clients[0], `INSERT INTO units VALUES ('new', 1)`)
			b.settle()
			for _, table := range []string{"items", "days", "parts"} {
				b.same(table)
			}
			b.same("units", 0)
			if shards > 1 && scalar[int](t, b.srcDB, `SELECT count(*) FROM items`) < 50 {
				t.Error("the rows of the other shards went too")
			}
			exec(t, b.clients[shards-1], `TRUNCATE days`)
			if shards > 1 { // reference tables are written at their home; elsewhere that is told of and left out
				exec(t, b.clients[1], `INSERT INTO units VALUES ('stray', 1); TRUNCATE units; INSERT INTO units VALUES ('stray', 2)`)
				exec(t, b.clients[0], `UPDATE units SET factor = 7 WHERE name = 'new'`)
			}
			b.settle()
			b.same("days")
			b.same("units", 0)
			if told := b.jour.noted("alarm", "reference-written-elsewhere", "units", "s1"); told != (shards > 1) {
				t.Errorf("an alarm: %v", told)
			}
			b.waitRunning()
		})
	}
}

// TestBackRefusesSchemaChanges where event triggers can be made, and notices them where they are not there.
func TestBackRefusesSchemaChanges(t *testing.T) {
	t.Parallel()
	b := newBackRig(t, 2, backOptions, backDDL+`CREATE TYPE mood AS ENUM ('sad'); CREATE TABLE moods (realm_id text PRIMARY KEY, m mood);`)
	c := b.clients[0]
	for _, sql := range []string{
		`ALTER TABLE items ADD COLUMN extra int`, `ALTER TABLE logs ALTER line TYPE varchar(9)`, `DROP TABLE logs`, `CREATE TABLE fresh (realm_id text PRIMARY KEY)`,
		`CREATE TABLE fresh AS SELECT * FROM items`, `ALTER TABLE items RENAME TO things`, `ALTER TYPE mood ADD VALUE 'glad'`, `ALTER TABLE items DROP COLUMN big`, `DROP TYPE mood CASCADE`,
	} {
		_, err := c.Exec(t.Context(), sql)
		if err == nil || !strings.Contains(err.Error(), "RH003") {
			t.Errorf("%s: %v", sql, err)
		}
	}
	for _, name := range []string{"rehome gate shard", "rehome-setup-" + b.id} { // a name is not a pass
		exec(t, c, `SELECT set_config('application_name', $1, false)`, name)
		if _, err := c.Exec(t.Context(), `ALTER TABLE items ADD COLUMN extra int`); err == nil || !strings.Contains(err.Error(), "RH003") {
			t.Errorf("as %s: %v", name, err)
		}
	}
	exec(t, c, `RESET application_name`)
	shard, err := gate.ShardSession(within(t), b.shards[0].DSN) // what moves the gate sets its fence
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = shard.Close(context.Background()) }()
	for epoch, side := range []gate.Side{gate.SideClosed, gate.SideTarget} {
		if hit, err := gate.Follow(within(t), shard, gate.State{Epoch: int64(3 + epoch), Side: side, Attempt: "again"}); err != nil || !hit {
			t.Errorf("follow to %s: %v, %v", side, hit, err)
		}
	}
	for _, sql := range []string{
		`CREATE TEMP TABLE mine (id int)`, `DROP TABLE mine`, `CREATE INDEX CONCURRENTLY more ON items (n)`, `DROP INDEX more`, `CREATE VIEW seen AS SELECT n FROM items`, `DROP VIEW seen`,
		`ANALYZE items`, `GRANT SELECT ON items TO PUBLIC`, `CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1'`,
	} {
		exec(t, c, sql)
	}
	exec(t, c, `DROP EVENT TRIGGER rehome_back_end; ALTER TABLE items ADD COLUMN extra int; INSERT INTO items (realm_id, id, extra) VALUES ('`+b.realmsOf(0, 1)[0]+`', 5555, 1)`, pgx.QueryExecModeSimpleProtocol)
	if p := b.waitBroken(); !strings.Contains(p.Reason, "shape") && !strings.Contains(p.Reason, "schema") && !strings.Contains(p.Reason, "extra") {
		t.Errorf("broken for another reason: %+v", p)
	}
	b.again() // another server sees the same
	eventually(t, "the change is noticed", func() bool {
		return b.jour.noted("alarm", "way-back-broken", "the schema at shard s0 was changed")
	})
	if err := b.back.Discard(context.Background()); err != nil {
		t.Fatal(err)
	}
	exec(t, c, `ALTER TABLE logs ADD COLUMN extra int`)
}
