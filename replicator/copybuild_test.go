package replicator_test

import (
	"testing"

	"github.com/rehomedb/rehome/tenant"
)

// TestIndexesWhileCopying has one table whose copy does not end: the other one has its indexes and the planner's figures
// meanwhile, also those of another shard; a copy that goes on after that has all of them once.
func TestIndexesWhileCopying(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{RealmsNeverChange: []string{"public.a", "public.b"}}, `
		CREATE TABLE a (id int PRIMARY KEY, realm_id text NOT NULL, v int UNIQUE);
		CREATE TABLE b (id int PRIMARY KEY, realm_id text NOT NULL, v int REFERENCES a);
		CREATE INDEX ON b (realm_id);
		INSERT INTO a SELECT g, 'r' || g % 7, g FROM generate_series(1, 500) g; INSERT INTO b SELECT g, 'r' || g % 7, g FROM generate_series(1, 500) g`)
	r.opts.Accept = []string{"constraint-without-realm:public.a.a_v_key", "constraint-without-realm:public.b.b_v_fkey", "constraint-without-realm:public.a.a_pkey", "constraint-without-realm:public.b.b_pkey"}
	r.jour.first = make(chan struct{})
	_, stop := r.start()
	for _, sh := range r.shards {
		c := open(t, sh.DSN)
		eventually(t, "a table with its indexes and figures", func() bool {
			return scalar[bool](t, c, `SELECT count(*) = 1 FROM pg_class c WHERE c.oid IN (to_regclass('a'), to_regclass('b')) AND c.reltuples > 0
				AND (SELECT count(*) FROM pg_index i WHERE i.indrelid = c.oid) = 2`)
		})
	}
	if p := r.jour.phase().Phase; p != tenant.Copying {
		t.Fatalf("phase %s", p)
	}
	stop()
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	for _, sh := range r.shards {
		c := open(t, sh.DSN)
		if n := scalar[int](t, c, `SELECT count(*)::int FROM pg_index WHERE indrelid IN ('a'::regclass, 'b'::regclass)`); n != 4 {
			t.Errorf("shard %s has %d indexes", sh.Name, n)
		}
	}
	r.verifyClean(e)
}
