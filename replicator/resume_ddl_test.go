package replicator_test

import (
	"testing"

	"github.com/rehomedb/rehome/tenant"
)

// TestInterruptedCopyWhileTheSchemaChanges changes the source's schema while a copy stands still: what the shards get
// behind the copy is of the slot's schema, and the stream brings the change in its place.
func TestInterruptedCopyWhileTheSchemaChanges(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{
		"index on a new column": `ALTER TABLE items ADD COLUMN z int DEFAULT 1; CREATE INDEX items_z ON items (z)`,
		"renamed column":        `ALTER TABLE items RENAME COLUMN n TO nn`,
		"renamed table":         `ALTER TABLE items RENAME TO itemz`,
		"new table referred to": `CREATE TABLE fresh (realm_id text, id bigint, PRIMARY KEY (realm_id, id)); INSERT INTO fresh SELECT realm_id, id FROM items; ALTER TABLE items ADD FOREIGN KEY (realm_id, id) REFERENCES fresh`,
		// The copy of what is left has rows that the slot's schema would refuse.
		"dropped unique": `DROP INDEX kids_n; UPDATE kids SET n = 1`,
		// Tables that were not copied yet, one that others refer to among them.
		"dropped tables": `DROP TABLE parents CASCADE; DROP TABLE log; DROP TABLE rates; UPDATE kids SET parent = 77`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, 2, tenant.ReplicationOptions{CopyJobs: 1, Reference: []string{"public.plans", "public.rates"}}, `
				CREATE TABLE items (realm_id text NOT NULL, id bigint NOT NULL, n int, PRIMARY KEY (realm_id, id));
				CREATE INDEX items_n ON items (n);
				CREATE TABLE parents (realm_id text NOT NULL, id bigint NOT NULL, PRIMARY KEY (realm_id, id));
				CREATE TABLE kids (realm_id text NOT NULL, id bigint NOT NULL, n int, parent bigint, PRIMARY KEY (realm_id, id), FOREIGN KEY (realm_id, parent) REFERENCES parents);
				CREATE UNIQUE INDEX kids_n ON kids (realm_id, n);
				CREATE TABLE log (realm_id text NOT NULL, id bigint NOT NULL, PRIMARY KEY (realm_id, id)) PARTITION BY RANGE (id);
				CREATE TABLE log_1 PARTITION OF log FOR VALUES FROM (0) TO (50);
				CREATE TABLE log_2 PARTITION OF log FOR VALUES FROM (50) TO (1000);
				CREATE TABLE plans (id int PRIMARY KEY, name text);
				CREATE TABLE rates (id int PRIMARY KEY);
				INSERT INTO items SELECT 'r' || (g % 17), g, g FROM generate_series(1, 2000) g;
				INSERT INTO parents SELECT 'r' || (g % 17), g FROM generate_series(1, 100) g;
				INSERT INTO kids SELECT realm_id, id, id, id FROM parents;
				INSERT INTO log SELECT realm_id, id FROM parents;
				INSERT INTO plans VALUES (1, 'one'); INSERT INTO rates VALUES (1);`)
			first := make(chan struct{})
			r.jour.first = first
			_, stop := r.start()
			<-first // the largest table, items
			stop()
			exec(t, r.srcDB, sql)
			r.copySome(0) // and once more
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
