package replicator_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/rehomedb/rehome/tenant"
)

const shiftedTable = `CREATE TABLE seats (realm_id int NOT NULL, id int NOT NULL, n int NOT NULL, PRIMARY KEY (realm_id, id), UNIQUE (realm_id, n));
	INSERT INTO seats SELECT i % 3, i, i FROM generate_series(1, 9000) i;
	CREATE TABLE other (realm_id int NOT NULL, id int NOT NULL, PRIMARY KEY (realm_id, id));`

// swapSeats has neighbours exchange their numbers by way of a third: what is left of a row's updates fits in no order.
const swapSeats = `DO $$ DECLARE i int; BEGIN
	FOR i IN 1..8990 LOOP CONTINUE WHEN i % 6 > 3 OR i % 6 = 0;
		UPDATE seats SET n = -n WHERE realm_id = i % 3 AND id = i;
		UPDATE seats SET n = n - 3 WHERE realm_id = i % 3 AND id = i + 3;
		UPDATE seats SET n = 3 - n WHERE realm_id = i % 3 AND id = i; END LOOP; END $$`

// TestPiecesInOrder has a transaction of several pieces whose rows fit a unique index in their order only, with statements
// before and after it that need no order.
func TestPiecesInOrder(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{}, shiftedTable)
	e, _ := r.start()
	r.waitPhase(tenant.InSync)
	exec(t, r.srcDB, `BEGIN`)
	exec(t, r.srcDB, `INSERT INTO other SELECT i % 3, i FROM generate_series(1, 10000) i`)
	exec(t, r.srcDB, swapSeats)
	exec(t, r.srcDB, `UPDATE seats SET n = -n WHERE id % 2 = 0`)
	exec(t, r.srcDB, `INSERT INTO other SELECT i % 3, i FROM generate_series(10001, 20000) i`)
	exec(t, r.srcDB, `COMMIT`)
	r.verifyClean(e)
}

// TestPieceThatDoesNotFit has a row in the way of a later piece of a transaction, in its midst and at its end: the pause names
// it, and nothing of the transaction is there.
func TestPieceThatDoesNotFit(t *testing.T) {
	t.Parallel()
	for _, id := range []int{9001, 8000, 4000} {
		t.Run(fmt.Sprint(id), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, 1, tenant.ReplicationOptions{}, shiftedTable)
			_, _ = r.start()
			r.waitPhase(tenant.InSync)
			shard := open(t, r.shards[0].DSN)
			exec(t, shard, `SET rehome.pass = '`+string(pass)+`'; SET session_replication_role = replica; INSERT INTO other VALUES (1, `+fmt.Sprint(id)+`)`)
			exec(t, r.srcDB, `INSERT INTO other SELECT 1, i FROM generate_series(1, 30000) i`)
			r.waitPhase(tenant.Paused)
			if st := r.jour.phase(); !strings.Contains(st.Reason, fmt.Sprintf("id=%d)", id)) {
				t.Errorf("paused with %q", st.Reason)
			}
			if n := scalar[int](t, shard, `SELECT count(*) FROM other`); n != 1 {
				t.Errorf("%d rows are at the shard", n)
			}
		})
	}
}
