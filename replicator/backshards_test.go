package replicator_test

import (
	"slices"
	"testing"

	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/tenant"
)

// What was written while the shards take the writes, and is at the source but not at every shard that should have it, is told
// by the comparison, which is clean; after a rollback a repair mends it, and changes of such rows go on.
func TestWhatTheShardsLackIsToldAndMended(t *testing.T) {
	t.Parallel()
	b := newBackRig(t, 2, backOptions, backDDL)
	here, there := b.realmsOf(0, 1)[0], b.realmsOf(1, 1)[0]
	exec(t, b.clients[0], `INSERT INTO units VALUES ('fresh', 1)`)
	exec(t, b.clients[0], `INSERT INTO items (realm_id, id, n) VALUES ($1, 77777, 1)`, here)
	b.settle()
	exec(t, b.clients[0], `UPDATE items SET realm_id = $1 WHERE id = 77777`, there)
	b.settle()
	v := b.mustVerify()
	told := map[string]tenant.TableVerification{}
	for _, tv := range v.Tables {
		told[tv.Table] = tv
	}
	if u := told["public.units"]; !v.Clean || !u.Equal || !slices.Equal(u.ShardsDiffer, []string{b.shards[1].Name}) {
		t.Errorf("clean %v, the reference table: %+v", v.Clean, u)
	}
	if i := told["public.items"]; !i.Equal || i.Misplaced != 1 || i.ShardsDiffer != nil {
		t.Errorf("the realm that was changed in place: %+v", i)
	}
	b.stop()
	b.forward.SetState(tenant.State{Phase: tenant.RolledBack})
	exec(t, b.srcDB, `SELECT set_config('rehome.pass', $1, false)`, pass.Reveal())
	mended, err := b.forward.Verify(within(t), replicator.VerifyOptions{Repair: true})
	if err != nil || !mended.Clean {
		t.Fatalf("repair: %+v, %v", mended, err)
	}
	exec(t, b.srcDB, `UPDATE units SET factor = 9 WHERE name = 'fresh'`)
	exec(t, b.srcDB, `UPDATE items SET n = 9 WHERE id = 77777`)
	c := open(t, b.shards[1].DSN)
	eventually(t, "the changes are at the shard", func() bool {
		return scalar[int](t, c, `SELECT (SELECT count(*) FROM units WHERE name = 'fresh' AND factor = 9)::int + (SELECT count(*) FROM items WHERE id = 77777 AND n = 9)::int`) == 2
	})
}
