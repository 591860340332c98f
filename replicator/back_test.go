package replicator_test

import (
	"testing"

	"github.com/rehomedb/rehome/tenant"
)

const backDDL = `CREATE TABLE items (realm_id text NOT NULL, id bigint NOT NULL, n int, big text, twice int GENERATED ALWAYS AS (n * 2) STORED, num bigint GENERATED ALWAYS AS IDENTITY, PRIMARY KEY (realm_id, id));
	ALTER TABLE items ALTER big SET STORAGE EXTERNAL;
	CREATE TABLE logs (realm_id text NOT NULL, line text);
	CREATE TABLE units (name text PRIMARY KEY, factor int);
	INSERT INTO items (realm_id, id, n, big) SELECT 'r' || (g % 20), g, 0, repeat('x', CASE WHEN g % 3 = 0 THEN 9000 ELSE 10 END) FROM generate_series(1, 200) g;
	INSERT INTO logs SELECT 'r' || (g % 20), 'line' FROM generate_series(1, 40) g;
	INSERT INTO units VALUES ('m', 1), ('km', 1000);`

var backOptions = tenant.ReplicationOptions{Reference: []string{"public.units"}, FixIdentity: true}

func TestBackCarriesWrites(t *testing.T) {
	t.Parallel()
	for _, shards := range []int{1, 3} {
		t.Run(map[int]string{1: "one shard", 3: "three shards"}[shards], func(t *testing.T) {
			t.Parallel()
			b := newBackRig(t, shards, backOptions, backDDL)
			for i, c := range b.clients {
				realm := b.realmsOf(i, 2) // new ones
				exec(t, c, `INSERT INTO items (realm_id, id, n, big) SELECT $1, g, g, repeat('z', 9000) FROM generate_series(1000, 1100) g`, realm[0])
				exec(t, c, `UPDATE items SET n = n + 1`) // large values unchanged
				exec(t, c, `UPDATE items SET big = NULL WHERE id % 7 = 0`)
				exec(t, c, `UPDATE items SET id = id + 5000 WHERE id % 11 = 0`)
				exec(t, c, `DELETE FROM items WHERE id % 5 = 0`)
				exec(t, c, `UPDATE items SET num = DEFAULT WHERE id % 13 = 0`)
				exec(t, c, `BEGIN; INSERT INTO items (realm_id, id, n) VALUES ('`+realm[1]+`', 1, 1); SAVEPOINT s; DELETE FROM items; ROLLBACK TO s; UPDATE items SET n = 7 WHERE id = 1; COMMIT`)
				exec(t, c, `INSERT INTO logs VALUES ($1, 'line'), ($1, 'line'), ($1, NULL)`, realm[0])
				exec(t, c, `UPDATE logs SET line = 'other' WHERE ctid = (SELECT min(ctid) FROM logs WHERE line = 'line')`)
				exec(t, c, `DELETE FROM logs WHERE ctid = (SELECT min(ctid) FROM logs WHERE line = 'line')`)
			}
			exec(t, b.clients[0], `INSERT INTO units VALUES ('mm', 1); UPDATE units SET factor = 2 WHERE name = 'm'; DELETE FROM units WHERE name = 'km'`)
			b.settle()
			b.same("items")
			b.same("logs")
			b.same("units", 0)
			if n := scalar[int](t, b.srcDB, `SELECT count(*) FROM items WHERE twice IS DISTINCT FROM n * 2`); n > 0 {
				t.Errorf("%d generated values are wrong", n)
			}
			if p := b.back.Progress(); p.State != tenant.WayBackRunning || len(p.Shards) != shards {
				t.Errorf("progress: %+v", p)
			}
		})
	}
}
