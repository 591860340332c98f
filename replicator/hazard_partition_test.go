package replicator_test

import (
	"testing"

	"github.com/rehomedb/rehome/tenant"
)

// Levels of list, range and hash; leaves with other columns in another order than their root; a key that is not the realm.
const partitionsDDL = `CREATE TABLE events (realm_id text NOT NULL, kind text NOT NULL, id int NOT NULL, n int, big text, PRIMARY KEY (realm_id, kind, id)) PARTITION BY LIST (kind);
	CREATE TABLE events_a PARTITION OF events FOR VALUES IN ('a') PARTITION BY RANGE (id);
	CREATE TABLE events_a_low PARTITION OF events_a FOR VALUES FROM (MINVALUE) TO (100) PARTITION BY HASH (realm_id);
	CREATE TABLE events_a_low_0 PARTITION OF events_a_low FOR VALUES WITH (MODULUS 2, REMAINDER 0);
	CREATE TABLE events_a_low_1 (gone int, big text, n int, junk text, id int NOT NULL, kind text NOT NULL, realm_id text NOT NULL);
	ALTER TABLE events_a_low_1 DROP gone, DROP junk; ALTER TABLE events_a_low ATTACH PARTITION events_a_low_1 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
	CREATE TABLE events_a_high PARTITION OF events_a DEFAULT;
	CREATE SCHEMA "other schema"; CREATE TABLE "other schema"."events.b" PARTITION OF events FOR VALUES IN ('b', 'c');
	CREATE TABLE events_rest PARTITION OF events DEFAULT;
	ALTER TABLE events ALTER big SET STORAGE EXTERNAL; ALTER TABLE events_a_low_1 ALTER big SET STORAGE EXTERNAL;
	INSERT INTO events SELECT 'r' || g % 7, (ARRAY['a','b','c','zzz'])[1 + g % 4], g * 3, 0, CASE WHEN g % 3 = 0 THEN repeat('x', 5000) END FROM generate_series(1, 80) g;
	CREATE TABLE places (realm_id text NOT NULL, at date NOT NULL, ident int NOT NULL, name text) PARTITION BY RANGE (at);
	CREATE TABLE places_old PARTITION OF places FOR VALUES FROM (MINVALUE) TO ('2000-01-01'); CREATE TABLE places_new (name text, ident int NOT NULL, at date NOT NULL, realm_id text NOT NULL);
	ALTER TABLE places ATTACH PARTITION places_new FOR VALUES FROM ('2000-01-01') TO (MAXVALUE);
	CREATE UNIQUE INDEX places_identity ON places (realm_id, ident, at);
	ALTER TABLE places REPLICA IDENTITY USING INDEX places_identity;
	DO $$ DECLARE x text; BEGIN FOR x IN SELECT format('ALTER TABLE %s REPLICA IDENTITY USING INDEX %I', i.indrelid::regclass, c.relname) FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhrelid JOIN pg_index i ON i.indexrelid = c.oid
		WHERE h.inhparent = 'places_identity'::regclass LOOP EXECUTE x; END LOOP; END $$;
	INSERT INTO places SELECT 'r' || g % 7, date '1999-12-01' + g, g, 'p' || g FROM generate_series(1, 60) g;`

// TestHazardPartitions changes rows of partition trees, through the root and in the leaves, and moves them between leaves.
func TestHazardPartitions(t *testing.T) {
	h := hazard{shards: 3, before: partitionsDDL, stream: []string{
		`UPDATE events SET n = n + 1; UPDATE events SET kind = 'b' WHERE id % 4 = 1; UPDATE events SET kind = 'new', n = 9 WHERE id % 5 = 0; UPDATE events_a_low_1 SET n = 77; DELETE FROM "other schema"."events.b" WHERE id % 3 = 0`,
		`INSERT INTO events SELECT 'q' || g % 7, (ARRAY['a','b','c','zzz'])[1 + g % 4], g + 1000, 0, repeat('y', 4000) FROM generate_series(1, 40) g; INSERT INTO events_a_low_0 SELECT realm_id, kind, id - 5000, n, big FROM events_a_low_0`,
		`BEGIN; UPDATE events SET id = id + 300 WHERE kind = 'a'; UPDATE events SET n = 5 WHERE kind = 'a'; UPDATE events SET id = id - 300 WHERE kind = 'a' AND id > 500; UPDATE events SET kind = 'a', id = 99 WHERE id = 1001; COMMIT`,
		`UPDATE events SET realm_id = 'moved' || id % 3, big = 'z' WHERE id % 7 = 0; DELETE FROM events WHERE id % 11 = 0`,
		`UPDATE places SET at = at - 30 WHERE ident % 2 = 0; UPDATE places SET at = at + 60, name = 'later' WHERE ident % 3 = 0; UPDATE places SET realm_id = 'm' || ident % 4 WHERE ident % 5 = 0; DELETE FROM places_new WHERE ident % 7 = 0; UPDATE places_new SET name = NULL`,
	}}
	for name, held := range map[string]bool{"one by one": false, "in one group": true} {
		t.Run(name, func(t *testing.T) {
			h := h
			h.held = held
			h.run(t)
		})
	}
}

const inheritanceDDL = `CREATE TABLE base (realm_id text NOT NULL, id int NOT NULL, n int, PRIMARY KEY (realm_id, id));
	CREATE TABLE child (extra text, PRIMARY KEY (realm_id, id)) INHERITS (base); CREATE TABLE grandchild (more int, PRIMARY KEY (realm_id, id)) INHERITS (child);
	CREATE TABLE other_parent (mark text, realm_id text NOT NULL); ALTER TABLE other_parent REPLICA IDENTITY FULL;
	CREATE TABLE both_parents (id2 int, PRIMARY KEY (realm_id, id)) INHERITS (base, other_parent);
	INSERT INTO base SELECT 'r' || g % 5, g, 0 FROM generate_series(1, 20) g; INSERT INTO child SELECT 'r' || g % 5, g, 1, 'e' FROM generate_series(1, 20) g;
	INSERT INTO grandchild SELECT 'r' || g % 5, g, 2, 'f', g FROM generate_series(1, 20) g; INSERT INTO both_parents (realm_id, id, n, mark, id2) SELECT 'r' || g % 5, g, 3, 'm', g FROM generate_series(1, 20) g;
	INSERT INTO other_parent SELECT 'm', 'r' || g % 3 FROM generate_series(1, 20) g;`

// TestHazardInheritance has the same keys in parents and children, and statements that reach one or all of them.
func TestHazardInheritance(t *testing.T) {
	hazard{before: inheritanceDDL, stream: []string{
		`UPDATE base SET n = n + 10; UPDATE ONLY base SET n = n + 100; UPDATE ONLY child SET extra = NULL WHERE id % 2 = 0; DELETE FROM ONLY base WHERE id % 3 = 0; DELETE FROM child WHERE id % 5 = 0`,
		`BEGIN; UPDATE base SET realm_id = 'm' || id % 3 WHERE id % 4 = 0; UPDATE other_parent SET mark = 'n' WHERE realm_id = 'r1'; INSERT INTO base VALUES ('q', 3, 3); INSERT INTO grandchild VALUES ('q', 3, 3, 'g', 3); COMMIT`,
		`TRUNCATE ONLY child; INSERT INTO child VALUES ('t', 1, 1, 'after')`,
		`BEGIN; INSERT INTO both_parents (realm_id, id) VALUES ('gone', 1); TRUNCATE other_parent; INSERT INTO both_parents (realm_id, id) VALUES ('stays', 1); COMMIT`,
	}}.run(t)
}

const truncatesDDL = `CREATE TABLE a (realm_id text NOT NULL, id int NOT NULL GENERATED BY DEFAULT AS IDENTITY, PRIMARY KEY (realm_id, id));
	CREATE TABLE b (realm_id text NOT NULL, id int NOT NULL, a int, PRIMARY KEY (realm_id, id), FOREIGN KEY (realm_id, a) REFERENCES a);
	CREATE TABLE plans (code text PRIMARY KEY, n serial); CREATE TABLE uses (realm_id text NOT NULL, code text REFERENCES plans, id int, PRIMARY KEY (realm_id, id));
	INSERT INTO a SELECT 'r' || g % 7, g FROM generate_series(1, 50) g; INSERT INTO b SELECT realm_id, id, id FROM a;
	INSERT INTO plans SELECT 'p' || g FROM generate_series(1, 9) g; INSERT INTO uses SELECT 'r' || g % 7, 'p' || 1 + g % 9, g FROM generate_series(1, 40) g;`

// TestHazardTruncates truncates in every form, with rows before and after in the same transactions.
func TestHazardTruncates(t *testing.T) {
	h := hazard{before: truncatesDDL + partitionsDDL, opts: tenant.ReplicationOptions{Reference: []string{"plans"}}, stream: []string{
		`BEGIN; INSERT INTO b VALUES ('r1', 900, 1); TRUNCATE b; INSERT INTO b SELECT realm_id, id, id FROM a WHERE id < 20; UPDATE b SET a = NULL WHERE id < 5; DELETE FROM b WHERE id > 15; COMMIT`,
		`BEGIN; UPDATE a SET id = id + 1000 WHERE id > 40; TRUNCATE a RESTART IDENTITY CASCADE; INSERT INTO a (realm_id) SELECT 'n' || g FROM generate_series(1, 9) g; INSERT INTO b SELECT realm_id, id, id FROM a; COMMIT`,
		`BEGIN; INSERT INTO uses VALUES ('x', 'p1', 900); TRUNCATE plans, uses; INSERT INTO plans VALUES ('new'), ('newer'), ('newest'); INSERT INTO uses VALUES ('x', 'new', 1), ('y', 'newer', 2); COMMIT`,
		`BEGIN; SAVEPOINT s; TRUNCATE plans CASCADE; ROLLBACK TO s; INSERT INTO plans VALUES ('kept'); COMMIT; TRUNCATE uses, b`,
		`BEGIN; INSERT INTO events_a_low_0 SELECT realm_id, kind, id - 2000, 1, NULL FROM events_a_low_0; TRUNCATE events_a_low_0; INSERT INTO events SELECT 'after' || g % 5, 'a', -g, 1, NULL FROM generate_series(1, 20) g; COMMIT`,
		`TRUNCATE "other schema"."events.b"; INSERT INTO events VALUES ('r1', 'b', 1, 1, NULL)`,
		`TRUNCATE events_a, places_old; INSERT INTO events VALUES ('r1', 'a', 1, 1, NULL), ('r1', 'a', 1001, 1, NULL); TRUNCATE ONLY events_rest; INSERT INTO events VALUES ('r1', 'rest', 1, 1, NULL)`,
		`BEGIN; INSERT INTO places VALUES ('r1', '1990-01-01', 1000, 'x'); TRUNCATE places; INSERT INTO places VALUES ('r1', '1990-01-01', 1000, 'x'), ('r2', '2010-01-01', 1001, 'y'); COMMIT`,
	}}
	for name, held := range map[string]bool{"one by one": false, "in one group": true} {
		t.Run(name, func(t *testing.T) {
			h := h
			h.held = held
			h.run(t)
		})
	}
}
