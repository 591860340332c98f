package replicator_test

import (
	"fmt"
	"testing"

	"github.com/rehomedb/rehome/tenant"
)

// TestWhatWaitsWhileTheSchemaChanges changes, between the watermarks of an interrupted copy, keys and indexes at the source
// that wait at the shards for the stream.
func TestWhatWaitsWhileTheSchemaChanges(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{
		"dropped foreign key":         `ALTER TABLE kids DROP CONSTRAINT kids_fk; DELETE FROM items WHERE id < 10`,
		"dropped unique":              `DROP INDEX items_n; UPDATE items SET n = 5`,
		"renamed column":              `ALTER TABLE items RENAME COLUMN n TO nn`,
		"renamed target":              `ALTER TABLE items RENAME TO itemz; ALTER TABLE itemz RENAME COLUMN realm_id TO realm; ALTER TABLE itemz RENAME COLUMN realm TO realm_id; ALTER TABLE itemz RENAME COLUMN pad TO padding`,
		"renamed key":                 `ALTER TABLE kids RENAME CONSTRAINT kids_fk TO kids_items; ALTER TABLE kids ALTER CONSTRAINT kids_items DEFERRABLE; ALTER INDEX items_n RENAME TO items_nn`,
		"dropped table":               `DROP MATERIALIZED VIEW sizes; DROP TABLE kids CASCADE`,
		"partitions, renamed column":  `ALTER TABLE log RENAME COLUMN n TO nn`,
		"partitions, one more":        `CREATE TABLE log_3 PARTITION OF log FOR VALUES FROM (10000) TO (20000)`,
		"partitions, one less":        `DROP TABLE log_2`,
		"partitions, dropped unique":  `ALTER TABLE log DROP CONSTRAINT log_n; UPDATE log SET n = 1`,
		"partitions, nothing changed": `SELECT 1`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			items, logs := 2000, 60
			if len(name) > 10 && name[:10] == "partitions" {
				items, logs = logs, items
			}
			r := newRig(t, 2, tenant.ReplicationOptions{CopyJobs: 1, ChunkBytes: 24 << 10, Reference: []string{"public.plans"}}, fmt.Sprintf(`
				CREATE TABLE items (id bigint, realm_id text NOT NULL, n int, pad text, PRIMARY KEY (id, realm_id));
				CREATE UNIQUE INDEX items_n ON items (realm_id, n);
				COMMENT ON INDEX items_n IS 'told apart';
				CREATE TABLE kids (realm_id text, id bigint, item bigint, PRIMARY KEY (realm_id, id), CONSTRAINT kids_fk FOREIGN KEY (item, realm_id) REFERENCES items);
				COMMENT ON CONSTRAINT kids_fk ON kids IS 'kept';
				CREATE MATERIALIZED VIEW sizes AS SELECT count(*) AS n FROM items;
				CREATE TABLE log (id bigint, realm_id text NOT NULL, n bigint, pad text, PRIMARY KEY (id, realm_id, n), CONSTRAINT log_n UNIQUE (realm_id, n)) PARTITION BY RANGE (n);
				CREATE TABLE log_1 PARTITION OF log FOR VALUES FROM (0) TO (1000);
				CREATE TABLE log_2 PARTITION OF log FOR VALUES FROM (1000) TO (10000);
				CREATE TABLE plans (id int PRIMARY KEY, name text);
				CREATE TABLE tail (realm_id text, id bigint, PRIMARY KEY (realm_id, id));
				INSERT INTO items SELECT g, 'r' || (g %% 17), g, repeat('x', 80) FROM generate_series(1, %d) g;
				INSERT INTO kids SELECT realm_id, id * 1000 + g, id FROM items, generate_series(1, 10) g WHERE id < 50;
				INSERT INTO log SELECT g, 'r' || (g %% 17), g, repeat('x', 80) FROM generate_series(1, %d) g;
				INSERT INTO tail VALUES ('r1', 1); ANALYZE`, items, logs))
			first := make(chan struct{})
			r.jour.first = first
			_, stop := r.start()
			<-first // a chunk
			stop()
			exec(t, r.srcDB, `UPDATE items SET pad = 'y'; UPDATE log SET pad = 'y'`)
			r.jour.slow = 300
			_, stop = r.start()
			eventually(t, "all but the last table is copied", func() bool {
				n := r.atShards(`SELECT count(*) FROM rehome.copied WHERE relation = 'public.kids'`)
				return n[0] > 0 && n[1] > 0
			})
			stop()
			if n := r.total(`SELECT count(*) FROM rehome.copied WHERE relation = 'public.tail'`); n == 2 {
				t.Fatal("the last table is copied already: this shows nothing")
			}
			r.jour.slow = 0
			exec(t, r.srcDB, sql)
			e, _ := r.start()
			r.waitPhase(tenant.InSync)
			r.caughtUp(e)
			for _, s := range r.verifyClean(e).Schema {
				t.Errorf("the schemas differ: %+v", s)
			}
			if n := r.total(`SELECT count(*) FROM rehome.ddl_later`); n != 0 {
				t.Errorf("%d items still wait", n)
			}
		})
	}
}
