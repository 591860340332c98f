package replicator_test

import (
	"strings"
	"testing"

	"github.com/rehomedb/rehome/tenant"
)

const setsDDL = `CREATE TYPE colour AS ENUM ('red', 'a "quoted", \ one');
	CREATE DOMAIN short AS varchar(20) CHECK (value <> '');
	CREATE TABLE sets (realm_id text NOT NULL, id numeric NOT NULL, u int NOT NULL UNIQUE DEFERRABLE, s text, c colour, d short, j jsonb, raw bytea, b bit(3), f float8, at timestamptz,
		n char(4), PRIMARY KEY (realm_id, id));
	ALTER TABLE sets ALTER s SET STORAGE EXTERNAL;
	CREATE TABLE with_array (realm_id text NOT NULL, id int NOT NULL, tags text[], PRIMARY KEY (realm_id, id));
	INSERT INTO sets SELECT 'r' || g % 7, g, g, 'x', 'red', 'd', '{"a": "b"}', '\x00ff', '101', 1.5, now(), 'ab' FROM generate_series(1, 100) g;
	INSERT INTO with_array SELECT 'r' || g % 7, g, ARRAY['a', NULL, '"', '\'] FROM generate_series(1, 100) g;`

// TestGroupsAsSets applies groups as statements over arrays: values that need quoting, NULLs, several updates of a row,
// large values that did not change, swapped unique values, keys that are equal in another notation.
func TestGroupsAsSets(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{}, setsDDL)
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	for _, sql := range []string{
		`INSERT INTO sets SELECT 'r' || g % 7, g, g, E'a"b\\c,{}' || g || E'\n', 'a "quoted", \ one', NULL, 'null', NULL, '010', 'NaN', 'infinity', NULL FROM generate_series(1001, 1300) g`,
		`UPDATE sets SET s = repeat('y', 9000) WHERE id % 3 = 0`,
		`UPDATE sets SET f = '-0', n = 'é' WHERE id % 2 = 0`,
		`BEGIN; UPDATE sets SET u = u + 100000; UPDATE sets SET u = 101101 - u WHERE id BETWEEN 1 AND 100; UPDATE sets SET u = u + 5; COMMIT`,
		`BEGIN; UPDATE sets SET f = f + 1 WHERE id < 50; UPDATE sets SET d = 'twice' WHERE id < 50; DELETE FROM sets WHERE id BETWEEN 10 AND 19; INSERT INTO sets SELECT 'r' || g % 7, g, g, 'again' FROM generate_series(10, 19) g; COMMIT`,
		`BEGIN; UPDATE sets SET id = 5000.0 WHERE id = 20; UPDATE sets SET s = 'moved' WHERE id = 5000; UPDATE sets SET id = 5000.00 WHERE id = 5000; UPDATE sets SET s = NULL WHERE id = 5000; COMMIT`,
		`UPDATE with_array SET tags = tags || ARRAY['{x}']`,
		`BEGIN; DELETE FROM with_array WHERE id % 2 = 0; TRUNCATE with_array; INSERT INTO with_array SELECT 'q', g FROM generate_series(1, 50) g; DELETE FROM with_array WHERE id > 40; COMMIT`,
	} {
		exec(t, r.srcDB, sql)
	}
	if v := r.verifyClean(e); v.Rows != 440 {
		t.Errorf("%d rows were compared, want 440", v.Rows)
	}
}

// TestMissingRowWithinASetIsNamed: a statement over many rows hits one too few, and the row is named all the same.
func TestMissingRowWithinASetIsNamed(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, tenant.ReplicationOptions{}, setsDDL)
	r.start()
	r.waitPhase(tenant.InSync)
	c := open(t, r.shards[0].DSN)
	exec(t, c, `SELECT set_config('rehome.pass', $1, false)`, pass.Reveal())
	exec(t, c, `DELETE FROM sets WHERE id = 42`)
	exec(t, r.srcDB, `UPDATE sets SET f = 2`)
	r.waitPhase(tenant.Paused)
	if st := r.jour.phase(); !strings.Contains(st.Reason, "id=42") {
		t.Errorf("paused for %q", st.Reason)
	}
	if n := scalar[int](t, c, `SELECT count(*)::int FROM sets WHERE f = 2`); n != 0 {
		t.Errorf("%d rows of a transaction that could not be applied were committed", n)
	}
}

// TestUpdatesThatNeedTheirOrder: rows hand a unique value on to each other, which works in one order of rows only, and that is
// not the order of their keys.
func TestUpdatesThatNeedTheirOrder(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, tenant.ReplicationOptions{}, `
		CREATE TABLE places (realm_id text NOT NULL, id int NOT NULL, place int NOT NULL UNIQUE, PRIMARY KEY (realm_id, id));
		INSERT INTO places SELECT 'r', g, g FROM generate_series(1, 900) g`)
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	const up = `DO $$ BEGIN FOR i IN REVERSE 900..1 LOOP UPDATE places SET place = place + 1 WHERE id = i; END LOOP; END $$`
	exec(t, r.srcDB, up)
	exec(t, r.srcDB, `DO $$ BEGIN FOR i IN 1..900 LOOP UPDATE places SET place = place - 1 WHERE id = i; END LOOP; END $$`)
	exec(t, r.srcDB, up)
	if v := r.verifyClean(e); v.Rows != 900 {
		t.Errorf("%d rows were compared, want 900", v.Rows)
	}
}
