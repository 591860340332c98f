package replicator_test

import (
	"testing"

	"github.com/rehomedb/rehome/tenant"
)

const valuesDDL = `CREATE TABLE vals (realm_id text NOT NULL, id int NOT NULL, n int, big text, other text, PRIMARY KEY (realm_id, id));
	ALTER TABLE vals ALTER big SET STORAGE EXTERNAL, ALTER other SET STORAGE EXTERNAL;
	INSERT INTO vals SELECT 'r' || g % 5, g, 0, repeat('x', 5000), repeat('y', 6000) FROM generate_series(1, 60) g;`

// TestHazardUnchangedLargeValues changes rows with and without their large values, several times within one group.
func TestHazardUnchangedLargeValues(t *testing.T) {
	h := hazard{before: valuesDDL, stream: []string{
		`UPDATE vals SET n = 1`,
		`BEGIN; UPDATE vals SET big = repeat('z', 7000) WHERE id % 2 = 0; UPDATE vals SET n = 2; UPDATE vals SET other = NULL WHERE id % 3 = 0; UPDATE vals SET n = 3; COMMIT`,
		`UPDATE vals SET big = NULL WHERE id % 4 = 0; UPDATE vals SET n = n + 1; UPDATE vals SET big = repeat('q', 9000), n = 7 WHERE id % 4 = 0; UPDATE vals SET n = n + 1, other = 'short' WHERE id > 50`,
		`BEGIN; DELETE FROM vals WHERE id < 10; INSERT INTO vals SELECT 'r' || g % 5, g, 1, repeat('new', 3000), '' FROM generate_series(1, 9) g; UPDATE vals SET n = 5 WHERE id < 12; COMMIT`,
		`BEGIN; SAVEPOINT a; UPDATE vals SET big = 'lost'; ROLLBACK TO a; UPDATE vals SET n = n + 1; SAVEPOINT b; DELETE FROM vals; ROLLBACK TO b; RELEASE b; COMMIT`,
		`UPDATE vals SET id = id + 1000 WHERE id BETWEEN 5 AND 9 AND length(big) > 0; UPDATE vals SET n = -1 WHERE id > 1000`,
	}}
	for name, held := range map[string]bool{"one by one": false, "in one group": true} {
		t.Run(name, func(t *testing.T) {
			h := h
			h.held = held
			h.run(t)
		})
	}
}

// TestHazardEmptyFirstValue has the empty string as the very first value that a lane gets.
func TestHazardEmptyFirstValue(t *testing.T) {
	hazard{before: `CREATE TABLE notes (note text, realm_id text NOT NULL, id int, PRIMARY KEY (realm_id, id))`, stream: []string{`INSERT INTO notes VALUES ('', 'r', 1)`}, shards: 1}.run(t)
}

const doublesDDL = `
	CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
	CREATE TYPE pair AS (a int, b text);
	CREATE TABLE doubles (realm_id text NOT NULL, a int, b json, c point, d text COLLATE loose, e pair, f numeric, big text);
	ALTER TABLE doubles REPLICA IDENTITY FULL; ALTER TABLE doubles ALTER big SET STORAGE EXTERNAL;
	INSERT INTO doubles SELECT 'r' || g % 4, g % 3, '{"a": 1}', '(1,2)', 'same', '(1,x)', 1.0, repeat('x', 5000) FROM generate_series(1, 48) g;
	-- equal to the eye of an operator, and yet other rows:
	INSERT INTO doubles VALUES ('s', 1, '{}', NULL, 'word', NULL, 1.0), ('s', 1, '{}', NULL, 'WORD', NULL, 1.0), ('s', 1, '{}', NULL, 'word', '(,)', 1.0), ('s', 1, '{}', NULL, 'word', NULL, 1.00),
		('s', 1, '{ }', NULL, 'word', NULL, 1.0), ('s', NULL, NULL, NULL, NULL, NULL, NULL), ('s', NULL, NULL, NULL, NULL, NULL, NULL);
	CREATE TABLE parted (realm_id text NOT NULL, a int NOT NULL, b text) PARTITION BY LIST (a);
	CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1); CREATE TABLE parted_2 (b text, gone int, a int NOT NULL, realm_id text NOT NULL); ALTER TABLE parted_2 DROP gone;
	ALTER TABLE parted ATTACH PARTITION parted_2 FOR VALUES IN (2, 3); CREATE TABLE parted_rest PARTITION OF parted DEFAULT;
	ALTER TABLE parted REPLICA IDENTITY FULL; ALTER TABLE parted_1 REPLICA IDENTITY FULL; ALTER TABLE parted_2 REPLICA IDENTITY FULL; ALTER TABLE parted_rest REPLICA IDENTITY FULL;
	INSERT INTO parted SELECT 'r' || g % 2, g % 5, 'same' FROM generate_series(1, 60) g;`

// TestHazardDoubleRows changes one of several rows that are equal, or that an operator calls equal.
func TestHazardDoubleRows(t *testing.T) {
	one := func(table, where string) string {
		return `WHERE (tableoid, ctid) = (SELECT tableoid, ctid FROM ` + table + ` WHERE ` + where + ` LIMIT 1)`
	}
	hazard{shards: 3, before: doublesDDL, stream: []string{
		`UPDATE doubles SET a = 100 ` + one("doubles", `realm_id = 'r1' AND a = 1`) + `; DELETE FROM doubles ` + one("doubles", `realm_id = 'r2' AND a = 2`),
		`BEGIN; UPDATE doubles SET realm_id = 'elsewhere' ` + one("doubles", `realm_id = 'r1' AND a = 0`) + `; UPDATE doubles SET realm_id = 'r1' WHERE realm_id = 'elsewhere'; UPDATE doubles SET realm_id = 'far' ` + one("doubles", `realm_id = 'r1' AND a = 0`) + `; COMMIT`,
		`UPDATE doubles SET realm_id = 'q7' ` + one("doubles", `realm_id = 'r0'`) + `; UPDATE doubles SET realm_id = 'r0' WHERE realm_id = 'q7'; UPDATE doubles SET realm_id = 'q8' ` + one("doubles", `realm_id = 'r0'`),
		`UPDATE doubles SET big = 'short' ` + one("doubles", `realm_id = 'r3'`) + `; UPDATE doubles SET a = a + 1 WHERE realm_id = 'r3'`,
		`DELETE FROM doubles WHERE realm_id = 's' AND d COLLATE "C" = 'WORD'`,
		`DELETE FROM doubles WHERE realm_id = 's' AND e IS NOT DISTINCT FROM NULL AND f::text = '1.00'`,
		`UPDATE doubles SET a = 5 WHERE realm_id = 's' AND e::text = '(,)'; UPDATE doubles SET a = 6 WHERE realm_id = 's' AND b::text = '{ }'; DELETE FROM doubles ` + one("doubles", `realm_id = 's' AND a IS NULL`),
		`BEGIN; INSERT INTO doubles SELECT * FROM doubles WHERE realm_id = 'r3'; UPDATE doubles SET f = 1.00 WHERE realm_id = 'r3'; DELETE FROM doubles ` + one("doubles", `realm_id = 'r3'`) + `; COMMIT`,
		`UPDATE parted SET b = 'other' ` + one("parted", `a = 2`) + `; DELETE FROM parted ` + one("parted", `a = 1 AND realm_id = 'r1'`) + `; UPDATE parted SET a = 1 ` + one("parted", `a = 4`),
		`BEGIN; UPDATE parted SET a = 3 WHERE a = 2; UPDATE parted SET realm_id = 'moved', a = 1 ` + one("parted", `a = 3`) + `; UPDATE parted SET a = 77 WHERE a = 0; UPDATE parted SET a = 2 ` + one("parted", `a = 77`) + `; COMMIT`,
	}}.run(t)
}

const indexedDDL = `CREATE TABLE indexed (id int PRIMARY KEY, realm_id text NOT NULL, code text NOT NULL, n int, val text);
	CREATE UNIQUE INDEX indexed_identity ON indexed (realm_id, code); ALTER TABLE indexed REPLICA IDENTITY USING INDEX indexed_identity;
	INSERT INTO indexed SELECT g, 'r' || g % 5, 'code ' || g, 0, 'v' FROM generate_series(1, 40) g;
	CREATE TABLE whole (id int PRIMARY KEY, realm_id text NOT NULL, n int, big text); ALTER TABLE whole REPLICA IDENTITY FULL; ALTER TABLE whole ALTER big SET STORAGE EXTERNAL;
	INSERT INTO whole SELECT g, 'r' || g % 5, 0, repeat('x', 4000) FROM generate_series(1, 40) g;
	CREATE TABLE wide_key (realm_id text NOT NULL, id int NOT NULL, n int, PRIMARY KEY (realm_id, id)); INSERT INTO wide_key SELECT 'r' || g % 5, g, 0 FROM generate_series(1, 40) g;`

// TestHazardRealmChanges moves rows between realms, there and back, in one transaction and over several, by each kind of
// identity.
func TestHazardRealmChanges(t *testing.T) {
	h := hazard{shards: 3, before: indexedDDL, opts: tenant.ReplicationOptions{}, stream: []string{
		each([]string{"indexed", "whole", "wide_key"}, `UPDATE %[1]s SET realm_id = 'a' || id %% 7 WHERE id %% 2 = 0; UPDATE %[1]s SET realm_id = 'b' || id %% 5, n = n + 1 WHERE id %% 3 = 0;
			UPDATE %[1]s SET realm_id = 'r' || id %% 5 WHERE id %% 4 = 0; UPDATE %[1]s SET n = n + 1`),
		each([]string{"indexed", "whole", "wide_key"}, `BEGIN; UPDATE %[1]s SET realm_id = 'b' WHERE id < 9; UPDATE %[1]s SET n = 50 WHERE id < 9; UPDATE %[1]s SET realm_id = 'c' WHERE id < 9; UPDATE %[1]s SET realm_id = 'r' || id %% 5 WHERE id < 9; COMMIT`),
		each([]string{"indexed", "whole", "wide_key"}, `BEGIN; DELETE FROM %[1]s WHERE id = 11; UPDATE %[1]s SET id = 11, realm_id = 'z' WHERE id = 12; UPDATE %[1]s SET id = id + 1000, realm_id = 'y' || id WHERE id > 35; COMMIT`),
		`BEGIN; UPDATE indexed SET code = 'tmp' WHERE id = 1; UPDATE indexed SET code = 'code 1' WHERE id = 11; UPDATE indexed SET code = 'code 11' WHERE id = 1; COMMIT; UPDATE indexed SET code = code || '!'`,
		`UPDATE indexed SET id = id + 500; UPDATE whole SET big = NULL WHERE id % 2 = 1; UPDATE whole SET realm_id = 'last' || id % 3 WHERE id % 5 = 0`,
	}}
	h.opts.Accept = nil
	for name, held := range map[string]bool{"one by one": false, "in one group": true} {
		t.Run(name, func(t *testing.T) {
			h := h
			h.held = held
			h.run(t)
		})
	}
}

const uniquesDDL = `CREATE TABLE seats (realm_id text NOT NULL, id int NOT NULL, later int NOT NULL, atonce int NOT NULL, slot int4range, n int DEFAULT 0, PRIMARY KEY (realm_id, id),
		UNIQUE (realm_id, later) DEFERRABLE INITIALLY IMMEDIATE, UNIQUE (realm_id, atonce));
	CREATE EXTENSION btree_gist;
	ALTER TABLE seats ADD EXCLUDE USING gist (realm_id WITH =, slot WITH &&) DEFERRABLE;
	INSERT INTO seats SELECT 'r' || g % 2, g, g, g, int4range(g * 10, g * 10 + 10) FROM generate_series(1, 40) g;
	CREATE TABLE ranks (realm_id text NOT NULL, id int NOT NULL, PRIMARY KEY (realm_id, id) DEFERRABLE INITIALLY DEFERRED, word text UNIQUE DEFERRABLE INITIALLY DEFERRED);
	CREATE UNIQUE INDEX ranks_lower ON ranks (realm_id, lower(word), id); ALTER TABLE ranks REPLICA IDENTITY FULL;
	INSERT INTO ranks SELECT 'r' || g % 2, g, 'w' || g FROM generate_series(1, 30) g;`

// TestHazardSwappedUniques swaps values of unique columns within statements, within transactions and by way of a third value.
func TestHazardSwappedUniques(t *testing.T) {
	h := hazard{before: uniquesDDL, stream: []string{
		`UPDATE seats SET later = CASE later WHEN 1 THEN 3 ELSE 1 END WHERE realm_id = 'r1' AND later IN (1, 3)`,
		`UPDATE seats SET later = 41 - later - CASE realm_id WHEN 'r0' THEN -1 ELSE 1 END`,
		`BEGIN; UPDATE seats SET atonce = -1 WHERE id = 1; UPDATE seats SET atonce = 1 WHERE id = 3; UPDATE seats SET atonce = 3 WHERE id = 1; COMMIT`,
		`BEGIN; UPDATE seats SET atonce = -atonce; UPDATE seats SET atonce = atonce + 45 - CASE realm_id WHEN 'r0' THEN 3 ELSE 5 END; COMMIT`,
		`UPDATE seats SET atonce = 900 WHERE id = 2; UPDATE seats SET atonce = 902 WHERE id = 4; UPDATE seats SET atonce = 904 WHERE id = 2; UPDATE seats SET atonce = 900 WHERE id = 4; UPDATE seats SET atonce = 902 WHERE id = 2`,
		`BEGIN; DELETE FROM seats WHERE id = 5; INSERT INTO seats SELECT 'r1', 105, 5000, atonce FROM seats WHERE false; INSERT INTO seats VALUES ('r1', 5, 5001, 5001, '[9000,9001)'); DELETE FROM seats WHERE id = 7;
			INSERT INTO seats VALUES ('r1', 7, 5003, 5003, '[9001,9002)'); UPDATE seats SET atonce = 5005 WHERE id = 5; UPDATE seats SET atonce = 5001 WHERE id = 7; COMMIT`,
		`BEGIN; SET CONSTRAINTS ALL DEFERRED; UPDATE seats SET slot = '[0,1000)' WHERE id = 10; UPDATE seats SET slot = '[100,110)' WHERE id = 12; UPDATE seats SET slot = '[120,130)' WHERE id = 10; COMMIT`,
		`UPDATE ranks SET id = 31 - id; UPDATE ranks SET word = 'w' || (31 - id)`,
		`BEGIN; UPDATE ranks SET id = 1 WHERE id < 4 AND realm_id = 'r1'; UPDATE ranks SET id = 200 WHERE id = 1 AND word = 'w' || 1; UPDATE ranks SET id = id + (SELECT count(*) FROM ranks x WHERE x.realm_id = 'r1' AND x.ctid < ranks.ctid) * 1000 WHERE id = 1; COMMIT`,
		`UPDATE ranks SET word = NULL WHERE id = 10; UPDATE ranks SET realm_id = 'r2', id = id + 7 WHERE id % 2 = 0; DELETE FROM ranks WHERE id % 5 = 0`,
	}}
	h.opts.Accept = []string{"constraint-without-realm:public.ranks_word_key"}
	for name, held := range map[string]bool{"one by one": false, "in one group": true} {
		t.Run(name, func(t *testing.T) {
			h := h
			h.held = held
			h.run(t)
		})
	}
}

const generatedDDL = `CREATE TABLE derived (realm_id text NOT NULL, id int NOT NULL, n int, owner text GENERATED ALWAYS AS ('of ' || realm_id) STORED,
		double int GENERATED ALWAYS AS (n * 2) STORED, PRIMARY KEY (realm_id, id));
	CREATE UNIQUE INDEX derived_owner ON derived (owner, id); CREATE INDEX derived_double ON derived (double) WHERE double > 3;
	INSERT INTO derived (realm_id, id, n) SELECT 'r' || g % 5, g, g FROM generate_series(1, 30) g;
	CREATE TABLE derived_full (realm_id text NOT NULL, n int, up text GENERATED ALWAYS AS (upper(realm_id)) STORED); ALTER TABLE derived_full REPLICA IDENTITY FULL;
	INSERT INTO derived_full SELECT 'r' || g % 5, g % 2 FROM generate_series(1, 30) g;
	CREATE TABLE derived_key (realm_id text NOT NULL, id int NOT NULL, n int, low int GENERATED ALWAYS AS (id % 100) STORED, PRIMARY KEY (realm_id, low)); ALTER TABLE derived_key REPLICA IDENTITY FULL;
	INSERT INTO derived_key SELECT 'r' || g % 5, g, 0 FROM generate_series(1, 30) g;
	CREATE TABLE numbered (realm_id text NOT NULL, id uuid NOT NULL, seq bigint GENERATED ALWAYS AS IDENTITY, n int, big text, PRIMARY KEY (realm_id, id)); ALTER TABLE numbered ALTER big SET STORAGE EXTERNAL;
	INSERT INTO numbered (realm_id, id, n, big) SELECT 'r' || g % 5, md5(g::text)::uuid, g, repeat('x', 5000) FROM generate_series(1, 30) g;
	CREATE TABLE counted (realm_id text NOT NULL, id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int, other int GENERATED BY DEFAULT AS IDENTITY);
	CREATE UNIQUE INDEX counted_identity ON counted (realm_id, id); ALTER TABLE counted REPLICA IDENTITY USING INDEX counted_identity;
	INSERT INTO counted (realm_id, n) SELECT 'r' || g % 5, g FROM generate_series(1, 30) g;`

// TestHazardGeneratedColumns changes rows with stored generated columns and with identities that are always generated.
func TestHazardGeneratedColumns(t *testing.T) {
	h := hazard{before: generatedDDL, stream: []string{
		`UPDATE derived SET n = n + 1; UPDATE derived SET realm_id = 'm' || id % 3 WHERE id % 2 = 0; DELETE FROM derived WHERE double > 50; INSERT INTO derived SELECT 'q', g, g FROM generate_series(1, 10) g`,
		`UPDATE derived_full SET n = 5 WHERE realm_id = 'r1'; UPDATE derived_full SET realm_id = 'moved' WHERE realm_id = 'r2' AND n = 0; DELETE FROM derived_full WHERE realm_id = 'r3'`,
		`UPDATE derived_key SET n = 1; UPDATE derived_key SET id = id + 200, n = n + 1 WHERE id % 2 = 0; UPDATE derived_key SET id = id + 40 WHERE id = 3; DELETE FROM derived_key WHERE id % 7 = 0; UPDATE derived_key SET realm_id = 'z' WHERE id % 5 = 0`,
		`UPDATE numbered SET n = n + 1; UPDATE numbered SET seq = DEFAULT WHERE n % 3 = 0; UPDATE numbered SET seq = DEFAULT, n = 0 WHERE n = 5`,
		`BEGIN; UPDATE numbered SET seq = DEFAULT; UPDATE numbered SET n = 9; UPDATE numbered SET seq = DEFAULT, big = 'small', id = md5(n::text || id)::uuid WHERE realm_id = 'r1'; COMMIT`,
		`INSERT INTO numbered (realm_id, id, seq, n) OVERRIDING SYSTEM VALUE VALUES ('r7', gen_random_uuid(), -5, 1), ('r8', gen_random_uuid(), 9223372036854775807, 1)`,
		`UPDATE counted SET n = n + 1; UPDATE counted SET id = DEFAULT WHERE n % 2 = 0; UPDATE counted SET realm_id = 'm', other = DEFAULT WHERE n % 5 = 0; DELETE FROM counted WHERE n % 7 = 0; UPDATE counted SET id = DEFAULT, realm_id = 'n' WHERE n = 4`,
	}}
	for name, held := range map[string]bool{"one by one": false, "in one group": true} {
		t.Run(name, func(t *testing.T) {
			h := h
			h.held = held
			h.run(t)
		})
	}
}
