package verify

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rehomedb/rehome/tenant"
)

// TestDoublesOfDeferrableKeys puts equal keys into a shard in the way that the applier writes: nothing refuses them.
func TestDoublesOfDeferrableKeys(t *testing.T) {
	t.Parallel()
	p := newPair(t, placement("a", "b"), richSchema, richSchema, `INSERT INTO item (realm, id, status) VALUES (1, 1, 'new'), (2, 2, 'old')`, richRealms)
	p.in.Jobs = 1
	p.in.Shards["b"] = p.faulty(`SET LOCAL session_replication_role = replica;
		INSERT INTO item (realm, id, num) VALUES (2, 70, 1000), (2, 71, 1000), (2, 72, NULL), (2, 73, NULL), (2, 74, 2000), (2, 75, 2000), (2, 76, 2000)`)
	v := p.compare()
	want := []tenant.SchemaDiff{{
		Object: "public.item.item_realm_num_key", Kind: ConstraintViolated, Shard: "b",
		Source: "UNIQUE (realm, num) DEFERRABLE INITIALLY DEFERRED", Target: "2 keys are there more than once",
	}}
	if diff := cmp.Diff(want, v.Schema); diff != "" {
		t.Error(diff)
	}
}
