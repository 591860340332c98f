package replicator_test

import (
	"testing"

	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/tenant"
)

// TestShardIsLeftClean ends one of two replications of a shard, then the other: no table knows the first any more, and
// after the second none is left.
func TestShardIsLeftClean(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, tenant.ReplicationOptions{}, `CREATE TABLE items (realm_id text NOT NULL, id int NOT NULL, PRIMARY KEY (realm_id, id)); INSERT INTO items VALUES ('a', 1)`)
	_, stopEngine := r.start()
	r.waitPhase(tenant.InSync)
	stopEngine()
	c := open(t, r.shards[0].DSN)
	// What is made only in need; their columns do not matter here.
	exec(t, c, `CREATE TABLE IF NOT EXISTS rehome.mended (replication text); CREATE TABLE IF NOT EXISTS rehome.ddl_later (replication text)`)
	exec(t, c, `INSERT INTO rehome.mended (replication) VALUES ($1)`, r.id)
	exec(t, c, `INSERT INTO rehome.applier VALUES ('another', 1)`)
	const notes = `SELECT count(*) FROM pg_class k JOIN pg_attribute a ON a.attrelid = k.oid WHERE k.relnamespace = 'rehome'::regnamespace AND k.relkind = 'r' AND a.attname = 'replication'`
	tables := scalar[int64](t, c, notes)
	if err := replicator.UninstallShard(t.Context(), c, r.id); err != nil {
		t.Fatal(err)
	}
	if n := scalar[int64](t, c, notes); n != tables {
		t.Errorf("%d of %d tables are left while another replication needs them", n, tables)
	}
	rows := `SELECT coalesce(sum((xpath('//n/text()', query_to_xml(format('SELECT count(*) AS n FROM rehome.%I WHERE replication = %L', k.relname, $1::text), false, true, '')))[1]::text::int), 0)::bigint
		FROM pg_class k JOIN pg_attribute a ON a.attrelid = k.oid WHERE k.relnamespace = 'rehome'::regnamespace AND k.relkind = 'r' AND a.attname = 'replication'`
	if n := scalar[int64](t, c, rows, r.id); n != 0 {
		t.Errorf("%d rows of the replication are left", n)
	}
	for range 2 {
		if err := replicator.UninstallShard(t.Context(), c, "another"); err != nil {
			t.Fatal(err)
		}
	}
	if n := scalar[int64](t, c, notes); n != 0 {
		t.Errorf("%d tables are left", n)
	}
}
