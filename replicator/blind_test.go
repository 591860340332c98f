package replicator_test

import (
	"fmt"
	"testing"

	"github.com/rehomedb/rehome/tenant"
)

// blindDDL is a table whose replica identity says nothing of the realm, which the owner asserts never to change.
const blindDDL = `CREATE TABLE items (id bigint PRIMARY KEY, realm_id text NOT NULL, n int, big text);
	ALTER TABLE items ALTER big SET STORAGE EXTERNAL;
	CREATE TABLE gen (id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY, realm_id text NOT NULL, n int, big text);
	ALTER TABLE gen ALTER big SET STORAGE EXTERNAL;
	INSERT INTO items SELECT g, 'r' || (g % 20), 0, repeat('x', 5000) FROM generate_series(1, 200) g;
	INSERT INTO gen (realm_id, n, big) SELECT 'r' || g, g, repeat('x', 5000) FROM generate_series(1, 20) g;`

func blindRig(t *testing.T) *rig {
	return newRig(t, 2, tenant.ReplicationOptions{RealmsNeverChange: []string{"items", "public.gen"}}, blindDDL)
}

// TestRealmsThatNeverChange replicates a table whose deleted rows come without their realm.
func TestRealmsThatNeverChange(t *testing.T) {
	t.Parallel()
	r := blindRig(t)
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	for i, sql := range []string{
		`UPDATE items SET n = n + 1`,
		`DELETE FROM items WHERE id % 7 = 0`,
		`DELETE FROM items WHERE id = 1`,
		// The same keys in other realms, deleted and made anew, also within a transaction.
		`INSERT INTO items SELECT g, 's' || g, 3 FROM generate_series(7, 200, 7) g`,
		`BEGIN; DELETE FROM items WHERE id % 7 = 0; INSERT INTO items SELECT g, 't' || g, 4 FROM generate_series(7, 200, 7) g; DELETE FROM items WHERE id % 14 = 0; COMMIT`,
		// Keys that change, alone and with a value that only an INSERT may set.
		`UPDATE items SET id = id + 1000 WHERE id % 5 = 0`,
		`BEGIN; UPDATE items SET id = id + 1000, n = 9 WHERE id % 5 = 0; DELETE FROM items WHERE id % 10 = 0; COMMIT`,
		`UPDATE gen SET id = DEFAULT WHERE n % 2 = 0`,
		// A realm that changes and stays at its shard does no harm.
		fmt.Sprintf(`UPDATE items SET realm_id = '%s' WHERE id = 2`, r.sameShardAs("r2")),
	} {
		exec(t, r.srcDB, sql)
		if i%3 == 0 {
			r.verifyClean(e)
		}
	}
	if v := r.verifyClean(e); v.Rows < 100 {
		t.Errorf("only %d rows were compared", v.Rows)
	}
}

// sameShardAs finds another realm of the same shard.
func (r *rig) sameShardAs(realm string) string {
	for i := 0; ; i++ {
		if other := fmt.Sprintf("other%d", i); r.place.ShardOf(other) == r.place.ShardOf(realm) {
			return other
		}
	}
}

// TestRealmThatChangesAllTheSame pauses: where the row was is not known, and nothing is guessed.
func TestRealmThatChangesAllTheSame(t *testing.T) {
	t.Parallel()
	for name, set := range map[string]string{"key kept": "", "key changed": ", id = 5000", "many rows": " , n = 4"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := blindRig(t)
			r.start()
			r.waitPhase(tenant.InSync)
			exec(t, r.srcDB, `INSERT INTO items VALUES (4000, $1, 1)`, r.realmOf(0))
			where := "id = 4000"
			if name == "many rows" {
				where = "id >= 100" // one of them changes its shard; the group is applied as a statement over arrays first
			}
			exec(t, r.srcDB, fmt.Sprintf(`UPDATE items SET realm_id = CASE id WHEN 4000 THEN '%s' ELSE realm_id END %s WHERE %s`, r.realmOf(1), set, where))
			r.waitPhase(tenant.Paused)
			if st := r.jour.phase(); !containsAll(st.Reason, "public.items", "id=4000", "realm_id was changed") || !containsAll(st.Remedy, "--fix-identity") {
				t.Errorf("paused for %q, remedy %q", st.Reason, st.Remedy)
			}
			if n := r.total(`SELECT count(*) FROM items WHERE id = 4000`); n > 1 {
				t.Errorf("the row is there %d times", n)
			}
		})
	}
}
