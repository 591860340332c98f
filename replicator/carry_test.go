package replicator_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/tenant"
)

// bigDDL has values that are stored apart in every kind of type that can be, and keys that may move.
const bigDDL = `
	CREATE TYPE point3 AS (x float8, y float8, label text);
	CREATE TABLE items (realm_id text NOT NULL, id bigint NOT NULL, n int, big text, raw bytea, doc jsonb, tags text[], at timestamptz[], c point3, x xml, pad char(9000), PRIMARY KEY (realm_id, id));
	DO $$ DECLARE col text; BEGIN FOREACH col IN ARRAY ARRAY['big','raw','doc','tags','at','c','x','pad'] LOOP EXECUTE format('ALTER TABLE items ALTER %I SET STORAGE EXTERNAL', col); END LOOP; END $$;
	INSERT INTO items SELECT 'r' || (g % 20), g, 0, repeat(E'é"\\{}'',\n' || g, 1000), decode(repeat('00ff5c', 2000), 'hex'), jsonb_build_object('k', repeat('j"\u00e9', 2000)),
		array_fill((E'a"b\\,{}' || g)::text, ARRAY[1000]), array_fill('infinity'::timestamptz, ARRAY[600]), ROW(g, -0.1, repeat('(",)', 3000))::point3,
		('<a>' || repeat('&lt;', 2000) || '</a>')::xml, repeat('p', 5000) FROM generate_series(1, 100) g;
	CREATE FUNCTION shout(point3) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT 'not what the type writes' $$;
	CREATE CAST (point3 AS text) WITH FUNCTION shout(point3);
	CREATE TABLE log (realm_id text NOT NULL, at date NOT NULL, id int NOT NULL, big text, PRIMARY KEY (realm_id, at, id)) PARTITION BY RANGE (at);
	CREATE TABLE log_old PARTITION OF log FOR VALUES FROM ('2000-01-01') TO ('2020-01-01');
	CREATE TABLE log_new PARTITION OF log FOR VALUES FROM ('2020-01-01') TO ('2040-01-01');
	ALTER TABLE log_old ALTER big SET STORAGE EXTERNAL; ALTER TABLE log_new ALTER big SET STORAGE EXTERNAL;
	INSERT INTO log SELECT 'r' || (g % 20), '2019-12-01'::date + g, g, repeat('l', 5000) FROM generate_series(1, 60) g;`

// TestLargeValuesFollowTheirRows moves rows to other shards without their large values being sent.
func TestLargeValuesFollowTheirRows(t *testing.T) {
	t.Parallel()
	r := newRig(t, 3, tenant.ReplicationOptions{}, bigDDL)
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	for i, sql := range []string{
		`UPDATE items SET realm_id = 'm' || id, n = 1`,
		// A→B→A within a transaction, with a change of the key and of a value on the way.
		`BEGIN; UPDATE items SET realm_id = 'a' WHERE id < 30; UPDATE items SET realm_id = 'b', id = id + 1000 WHERE realm_id = 'a'; UPDATE items SET realm_id = 'm' || (id - 1000) WHERE realm_id = 'b'; COMMIT`,
		`BEGIN; UPDATE items SET big = repeat('new', 3000) WHERE id BETWEEN 40 AND 50; UPDATE items SET realm_id = 'c' || id WHERE id BETWEEN 40 AND 50;
			UPDATE items SET raw = NULL, doc = doc || '{"more": 1}' WHERE id BETWEEN 45 AND 55; UPDATE items SET realm_id = 'd' || id WHERE id BETWEEN 40 AND 55; COMMIT`,
		// Over several transactions, one behind the other.
		`UPDATE items SET realm_id = 'e' || id WHERE id BETWEEN 60 AND 80`,
		`UPDATE items SET realm_id = 'f' || id WHERE id BETWEEN 60 AND 80`,
		`UPDATE items SET realm_id = 'm' || id WHERE id BETWEEN 60 AND 80`,
		// Rolled back to a savepoint after a move.
		`BEGIN; UPDATE items SET realm_id = 'g' WHERE id = 90; SAVEPOINT s; UPDATE items SET realm_id = 'h', big = 'lost' WHERE id = 90; ROLLBACK TO s; COMMIT`,
		`UPDATE log SET realm_id = 'p' || id, at = at + 30 WHERE id % 2 = 0`,
		`BEGIN; UPDATE items SET realm_id = 'z' || id; DELETE FROM items WHERE id % 10 = 0; INSERT INTO items SELECT realm_id, id + 5000, n, big FROM items WHERE id < 60; COMMIT`,
	} {
		exec(t, r.srcDB, sql)
		if i%3 == 0 {
			r.verifyClean(e) // sometimes each for itself, sometimes in one group
		}
	}
	if v := r.verifyClean(e); v.Rows < 150 {
		t.Errorf("only %d rows were compared", v.Rows)
	}
	if n := r.total(`SELECT count(*) FROM items WHERE id < 5000 AND length((c).label) = 12000 AND (c).y = -0.1 AND length(pad) = 5000`); n != 90 {
		t.Errorf("%d rows have their large values, want 90", n)
	}
	// What was kept for other shards goes when all of them have it.
	eventually(t, "kept values are removed", func() bool { return r.total(`SELECT count(*) FROM rehome.carry`) == 0 })
}

// realmOf finds a realm of a shard.
func (r *rig) realmOf(shard int) string {
	for i := 0; ; i++ {
		realm := fmt.Sprintf("realm%d", i)
		if r.place.ShardOf(realm) == r.shards[shard].Name {
			return realm
		}
	}
}

// TestLanesDoNotWaitInACircle has transactions with more rows for one shard, after a row that moved there, than may wait
// for it: its lane needs what the other one has not been handed out, and the reader waits for its lane.
func TestLanesDoNotWaitInACircle(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{}, itemsDDL)
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	realm := [2]string{r.realmOf(0), r.realmOf(1)}
	exec(t, r.srcDB, `INSERT INTO items SELECT $1, g, 0, repeat('x', 9000) FROM generate_series(1001, 1010) g`, realm[0])
	const many, wide = 6000, 2400 // rows and bytes each: more than an inbox and a group hold together
	for to := 1; to >= 0; to-- {
		tx, err := r.srcDB.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []string{`UPDATE items SET realm_id = $1 WHERE id BETWEEN 1001 AND 1005`, fmt.Sprintf(`INSERT INTO items SELECT $1, g, 0, repeat('w', %d) FROM generate_series(%d, %d) g`, wide, 100000*(to+1), 100000*(to+1)+many)} {
			if _, err := tx.Exec(t.Context(), s, realm[to]); err != nil {
				t.Fatal(err)
			}
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	// Both ways in one transaction, many rows between.
	exec(t, r.srcDB, fmt.Sprintf(`BEGIN;
		UPDATE items SET realm_id = '%[2]s' WHERE id = 1001; INSERT INTO items SELECT '%[2]s', g, 0, repeat('w', %[3]d) FROM generate_series(300000, 303000) g;
		UPDATE items SET realm_id = '%[1]s' WHERE id = 1001; INSERT INTO items SELECT '%[1]s', g, 0, repeat('w', %[3]d) FROM generate_series(400000, 403000) g;
		UPDATE items SET realm_id = '%[2]s' WHERE id BETWEEN 1001 AND 1010; DELETE FROM items WHERE id >= 100000; COMMIT`, realm[0], realm[1], wide))
	exec(t, r.srcDB, `INSERT INTO items VALUES ($1, 1), ($2, 1)`, realm[0], realm[1])
	eventually(t, "the last rows arrive", func() bool { return r.total(`SELECT count(*) FROM items WHERE id = 1 AND realm_id LIKE 'realm%'`) == 2 })
	r.verifyClean(e)
	if n := r.total(`SELECT count(*) FROM items WHERE length(big) = 9000`); n != 10 {
		t.Errorf("%d large values are left, want 10", n)
	}
}

// TestMoreIsCarriedThanMayWait moves more than lanes may have on the way, both ways at once.
func TestMoreIsCarriedThanMayWait(t *testing.T) {
	if os.Getenv("REHOME_LONG") == "" {
		return // make long
	}
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{}, itemsDDL)
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	a, b := r.realmOf(0), r.realmOf(1)
	exec(t, r.srcDB, `INSERT INTO items SELECT CASE WHEN g % 2 = 0 THEN $1 ELSE $2 END, g, 0, repeat('x', 1 << 20) FROM generate_series(1001, 1060) g`, a, b)
	exec(t, r.srcDB, `UPDATE items SET realm_id = CASE WHEN realm_id = $1 THEN $2 ELSE $1 END WHERE id > 1000`, a, b)
	r.verifyClean(e)
	if n := r.total(`SELECT count(*) FROM items WHERE length(big) = 1 << 20`); n != 60 {
		t.Errorf("%d large values are left, want 60", n)
	}
}

// TestKilledBetweenTheCommitsOfTwoShards stops the engine when one of two shards has a transaction that moved a row between
// them, and the other has not.
func TestKilledBetweenTheCommitsOfTwoShards(t *testing.T) {
	t.Parallel()
	for name, behind := range map[string]int{"the new shard is behind": 1, "the old shard is behind": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, 2, tenant.ReplicationOptions{}, itemsDDL+`CREATE TABLE gate (realm_id text NOT NULL, id int NOT NULL, n int, PRIMARY KEY (realm_id, id));`)
			_, stop := r.start()
			r.waitPhase(tenant.InSync)
			realm := [2]string{r.realmOf(0), r.realmOf(1)}
			exec(t, r.srcDB, `INSERT INTO items SELECT $1, g, 0, repeat('x', 9000) FROM generate_series(1001, 1020) g`, realm[0])
			exec(t, r.srcDB, `INSERT INTO gate VALUES ($1, 1, 0), ($2, 1, 0)`, realm[0], realm[1])
			eventually(t, "the rows arrive", func() bool { return r.total(`SELECT count(*) FROM gate`) == 2 })
			// One shard cannot commit what changes this table.
			blocker := open(t, r.shards[behind].DSN)
			exec(t, blocker, `BEGIN`)
			exec(t, blocker, `LOCK TABLE gate IN EXCLUSIVE MODE`)
			exec(t, r.srcDB, fmt.Sprintf(`BEGIN; UPDATE items SET big = repeat('y', 8000) WHERE id = 1001; UPDATE items SET realm_id = '%[2]s' WHERE id BETWEEN 1001 AND 1010;
				UPDATE items SET realm_id = '%[1]s', n = 7 WHERE id = 1005; UPDATE gate SET n = 1; COMMIT`, realm[0], realm[1]))
			// The other one has it; and what comes later.
			exec(t, r.srcDB, `UPDATE items SET realm_id = realm_id || '', n = n + 1 WHERE id > 1000`)
			ahead := open(t, r.shards[1-behind].DSN)
			eventually(t, "one shard has it", func() bool {
				return scalar[int](t, ahead, `SELECT count(*)::int FROM gate WHERE n = 1`) == 1
			})
			stop()
			if n := r.total(`SELECT count(*) FROM gate WHERE n = 1`); n != 1 {
				t.Fatalf("%d shards have the transaction, want one", n)
			}
			exec(t, blocker, `ROLLBACK`)
			// The values are kept again also when the new shard has the transaction: it may yet lose what is not on its disk.
			old := open(t, r.shards[0].DSN)
			if behind == 0 {
				if n := scalar[int](t, old, `SELECT count(*)::int FROM rehome.carry`); n != 0 {
					t.Fatalf("%d values are kept of a transaction that is not applied", n)
				}
				exec(t, old, `CREATE TABLE rehome.seen (name text)`)
				exec(t, old, `CREATE FUNCTION rehome.see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO rehome.seen VALUES (new.name); RETURN new; END $$`)
				exec(t, old, `CREATE TRIGGER see BEFORE INSERT ON rehome.carry FOR EACH ROW EXECUTE FUNCTION rehome.see()`)
				exec(t, old, `ALTER TABLE rehome.carry ENABLE ALWAYS TRIGGER see`)
			}
			e, _ := r.start()
			eventually(t, "the stream is back", func() bool { return len(e.Progress().Shards) == 2 })
			r.verifyClean(e)
			if behind == 0 {
				if n := scalar[int](t, old, `SELECT count(*)::int FROM rehome.seen`); n < 10 {
					t.Errorf("%d values were kept, want those of 10 rows", n)
				}
			}
			if n := r.total(`SELECT count(*) FROM items WHERE (length(big) = 9000 OR id = 1001 AND length(big) = 8000) AND id > 1000`); n != 20 {
				t.Errorf("%d large values are left, want 20", n)
			}
		})
	}
}

// TestKeptValuesThatAreMissing: what nobody has any more is not made up.
func TestKeptValuesThatAreMissing(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{}, itemsDDL)
	_, stop := r.start()
	r.waitPhase(tenant.InSync)
	a, b := r.realmOf(0), r.realmOf(1)
	exec(t, r.srcDB, `INSERT INTO items VALUES ($1, 1001, 0, repeat('x', 9000))`, a)
	eventually(t, "the row arrives", func() bool { return r.total(`SELECT count(*) FROM items WHERE id = 1001`) == 1 })
	blocker := open(t, r.shards[1].DSN)
	exec(t, blocker, `BEGIN`)
	exec(t, blocker, `LOCK TABLE items IN EXCLUSIVE MODE`)
	exec(t, r.srcDB, `UPDATE items SET realm_id = $1 WHERE id = 1001`, b)
	old := open(t, r.shards[0].DSN)
	eventually(t, "the old shard has it", func() bool { return scalar[int](t, old, `SELECT count(*)::int FROM rehome.carry`) == 1 })
	stop()
	exec(t, blocker, `ROLLBACK`)
	exec(t, old, `DELETE FROM rehome.carry`)
	r.start()
	r.waitPhase(tenant.Paused)
	if st := r.jour.phase(); !containsAll(st.Reason, "id=1001", "column big", "not kept at shard s0") {
		t.Errorf("paused for %q", st.Reason)
	}
}

// TestRowsThatMoveWithinTheirShard get a new value of a column that no UPDATE may set, with large values that are not sent.
func TestRowsThatMoveWithinTheirShard(t *testing.T) {
	t.Parallel()
	for _, shards := range []int{1, 2} {
		r := newRig(t, shards, tenant.ReplicationOptions{Reference: []string{"public.refs"}}, `
			CREATE TABLE items (realm_id text NOT NULL, id bigint GENERATED ALWAYS AS IDENTITY, n int, big text, PRIMARY KEY (realm_id, id));
			CREATE TABLE refs (id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY, n int, big text);
			ALTER TABLE items ALTER big SET STORAGE EXTERNAL; ALTER TABLE refs ALTER big SET STORAGE EXTERNAL;
			INSERT INTO items (realm_id, n, big) SELECT 'r' || g, g, repeat('x', 5000) FROM generate_series(1, 20) g;
			INSERT INTO refs (n, big) SELECT g, repeat('x', 5000) FROM generate_series(1, 20) g;`)
		e, _ := r.start()
		r.waitPhase(tenant.InSync)
		exec(t, r.srcDB, `UPDATE items SET id = DEFAULT WHERE n % 2 = 0; UPDATE refs SET id = DEFAULT WHERE n % 2 = 0; UPDATE items SET realm_id = 's' || n, id = DEFAULT WHERE n % 3 = 0`)
		r.verifyClean(e)
		if n := r.total(`SELECT count(*) FROM items WHERE length(big) = 5000`); n != 20 {
			t.Errorf("%d large values are left, want 20", n)
		}
	}
}

// TestCarriesUnderRestarts moves rows to and fro while the engine is stopped at any moment.
func TestCarriesUnderRestarts(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{}, itemsDDL+`UPDATE items SET big = repeat('x', 5000 + id::int) WHERE id <= 40;`)
	_, stop := r.start()
	r.waitPhase(tenant.InSync)
	var e *replicator.Engine
	for i := range 12 {
		for j := range 6 {
			exec(t, r.srcDB, `UPDATE items SET realm_id = 'm' || ((id * 7 + $1) % 31), n = n + 1 WHERE id <= 40`, i*6+j)
		}
		waitTicks(t, (i*37)%150)
		stop()
		e, stop = r.start()
	}
	eventually(t, "the stream is back", func() bool { return len(e.Progress().Shards) == 2 })
	r.verifyClean(e)
	if n := r.total(`SELECT count(*) FROM items WHERE length(big) = 5000 + id`); n != 40 {
		t.Errorf("%d large values are left, want 40", n)
	}
}

func containsAll(s string, parts ...string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return false
		}
	}
	return true
}

// TestSwappedUniques exchanges unique values of two rows within one transaction, with a constraint that is checked at once
// and with one that is checked at the end, alone and among other changes.
func TestSwappedUniques(t *testing.T) {
	t.Parallel()
	for _, shards := range []int{1, 2} {
		r := newRig(t, shards, tenant.ReplicationOptions{}, `
			CREATE TABLE atonce (realm_id text NOT NULL, id int NOT NULL, u int UNIQUE, n int, PRIMARY KEY (realm_id, id));
			CREATE TABLE atend (realm_id text NOT NULL, id int NOT NULL, u int UNIQUE DEFERRABLE INITIALLY DEFERRED, n int, PRIMARY KEY (realm_id, id));
			INSERT INTO atonce SELECT 'r' || g % 3, g, g FROM generate_series(1, 60) g; INSERT INTO atend SELECT * FROM atonce;`)
		e, _ := r.start()
		r.waitPhase(tenant.InSync)
		for i, sql := range []string{
			`BEGIN; UPDATE atonce SET u = NULL WHERE id = 1; UPDATE atonce SET u = 1 WHERE id = 4; UPDATE atonce SET u = 4 WHERE id = 1; COMMIT`,
			`BEGIN; UPDATE atend SET u = 4 WHERE id = 1; UPDATE atend SET u = 1 WHERE id = 4; COMMIT`,
			`BEGIN; UPDATE atonce SET n = id; UPDATE atonce SET u = -u WHERE id IN (10, 13); UPDATE atonce SET u = 23 + u WHERE id IN (10, 13); UPDATE atonce SET n = n + 1; COMMIT`,
			`BEGIN; UPDATE atend SET n = id; UPDATE atend SET u = 61 - u; UPDATE atend SET n = n + 1; COMMIT`,
			`BEGIN; DELETE FROM atonce WHERE id = 20; UPDATE atonce SET u = 20 WHERE id = 23; INSERT INTO atonce VALUES ('r2', 20, 23), ('r2', 1020, 1020), ('r2', 1021, 1021); COMMIT`,
		} {
			exec(t, r.srcDB, sql)
			if i%2 == 1 {
				r.verifyClean(e)
			}
		}
		r.verifyClean(e)
		if n := r.total(`SELECT count(*) FROM atonce WHERE (id = 1 AND u = 4) OR (id = 4 AND u = 1) OR (id = 10 AND u = 13) OR (id = 13 AND u = 10) OR (id = 23 AND u = 20) OR (id = 20 AND u = 23)`); n != 6 {
			t.Errorf("%d of 6 swapped rows are right", n)
		}
	}
}
