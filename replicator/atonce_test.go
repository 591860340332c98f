package replicator_test

import (
	"strings"
	"testing"

	"github.com/rehomedb/rehome/tenant"
)

// TestSmallGroupsWithTheirCommit: a transaction of a lane that keeps up is sent with its COMMIT. One that hits no row, or
// meets one, commits nothing, and says which row it was.
func TestSmallGroupsWithTheirCommit(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, shard, source, reason string }{
		{"an update of a row that is gone", `DELETE FROM items WHERE id = 5`, `UPDATE items SET n = -1 WHERE id = 5`, "is not there"},
		{"a delete of a row that is gone", `DELETE FROM items WHERE id = 5`, `DELETE FROM items WHERE id = 5`, "is not there"},
		{"an insert of a row that is there", `INSERT INTO items (realm_id, id, n) VALUES ('r1', 9001, 0)`, `INSERT INTO items (realm_id, id, n) VALUES ('r1', 9001, 1)`, "cannot be written"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, 1, tenant.ReplicationOptions{}, itemsDDL)
			r.start()
			r.waitPhase(tenant.InSync)
			shard := open(t, r.shards[0].DSN)
			exec(t, r.srcDB, `UPDATE items SET n = 41 WHERE id = 6`)
			eventually(t, "a small transaction is applied", func() bool { return r.total(`SELECT count(*) FROM items WHERE n = 41`) == 1 })
			exec(t, shard, `SET session_replication_role = replica`)
			exec(t, shard, `SELECT set_config('rehome.pass', $1, false)`, pass.Reveal())
			exec(t, shard, tt.shard)
			exec(t, r.srcDB, `BEGIN; UPDATE items SET n = 42 WHERE id = 6; `+tt.source+`; UPDATE items SET n = 43 WHERE id = 7; COMMIT`)
			r.waitPhase(tenant.Paused)
			if st := r.jour.phase(); !strings.Contains(st.Reason, tt.reason) || !strings.Contains(st.Reason, "public.items") {
				t.Errorf("paused for %q", st.Reason)
			}
			if n := r.total(`SELECT count(*) FROM items WHERE n IN (42, 43)`); n != 0 {
				t.Errorf("%d rows of a transaction that does not fit were written", n)
			}
		})
	}
}
