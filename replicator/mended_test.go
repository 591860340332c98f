package replicator_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/rehomedb/rehome/replicator"
	"github.com/rehomedb/rehome/tenant"
)

// resumed starts an engine after a pause, with mending or without.
func (r *rig) resumed(mending bool) (e *replicator.Engine, stop func()) {
	r.t.Helper()
	r.jour.mu.Lock()
	r.jour.state = tenant.State{Phase: tenant.CatchingUp}
	r.jour.mu.Unlock()
	e, stop = r.start()
	e.SetMending(mending)
	return e, stop
}

// TestMend takes rows from the source anew that a lane cannot go on with, while the source has changed them on and on.
func TestMend(t *testing.T) {
	t.Parallel()
	for _, shards := range []int{1, 2, 3} {
		t.Run(fmt.Sprint(shards), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, shards, tenant.ReplicationOptions{}, itemsDDL+`
				CREATE TABLE seat (realm_id text NOT NULL, id int NOT NULL, slot int NOT NULL, big text, PRIMARY KEY (realm_id, id), UNIQUE (realm_id, slot));
				ALTER TABLE seat ALTER big SET STORAGE EXTERNAL;
				INSERT INTO seat SELECT 'r' || g % 3, g, g, repeat('x', 9000) FROM generate_series(0, 59) g;`)
			e, stop := r.start()
			r.waitPhase(tenant.InSync)
			r.verifyClean(e)
			b := newBreaker(r)
			for _, sh := range r.shards {
				c := b.conns[sh.Name]
				exec(t, c, `DELETE FROM items WHERE id % 10 = 7`)
				exec(t, c, `DELETE FROM seat WHERE id IN (1, 2, 3, 4, 5, 20, 21, 22)`)
				exec(t, c, `UPDATE items SET n = 77 WHERE id = 9`)
			}
			b.at(b.owner("r1"), `INSERT INTO items VALUES ('r1', 5000, 3)`, 1)
			// Everything that can happen to such a row between the lane's position and the mending.
			exec(t, r.srcDB, `UPDATE items SET n = n + 1 WHERE id = 7`)
			for range 3 {
				exec(t, r.srcDB, `UPDATE items SET n = n + 1`)
			}
			exec(t, r.srcDB, `INSERT INTO items VALUES ('r1', 5000, 1)`)
			exec(t, r.srcDB, `UPDATE items SET id = id + 10000 WHERE id IN (17, 18)`) // to keys that nobody mended
			exec(t, r.srcDB, `UPDATE items SET id = 27 + 20000 WHERE id = 28`)        // beside
			exec(t, r.srcDB, `DELETE FROM items WHERE id = 37`)
			exec(t, r.srcDB, `DELETE FROM items WHERE id = 47`)
			exec(t, r.srcDB, `INSERT INTO items VALUES ('r7', 47, 47)`)
			exec(t, r.srcDB, `UPDATE seat SET slot = -slot - 1`)
			exec(t, r.srcDB, `UPDATE seat SET slot = (-slot) % 60`)           // all values of the unique index go round, large values unchanged
			exec(t, r.srcDB, `UPDATE seat SET realm_id = 'r1' WHERE id = 30`) // with its large value on the way
			r.waitPhase(tenant.Paused)
			// Which lane comes first to what was broken is open: rows are missing, and one that nobody asked for is there.
			if st := r.jour.phase(); !strings.Contains(st.Reason, "is not there") && !strings.Contains(st.Reason, "duplicate key") || !strings.Contains(st.Remedy, "verify --repair") {
				t.Fatalf("paused: %+v", st)
			}
			stop()
			e, stop = r.resumed(true)
			r.waitPhase(tenant.InSync)
			exec(t, r.srcDB, `UPDATE items SET n = n + 1; UPDATE seat SET slot = slot + 1000`)
			eventually(t, "it streams", func() bool { _, err := e.Verify(t.Context(), replicator.VerifyOptions{}); return err == nil })
			v, err := e.Verify(t.Context(), replicator.VerifyOptions{Repair: true})
			if err != nil || !v.Clean {
				t.Fatalf("%v: %+v %+v", err, v, v.Repair)
			}
			// What is mended is skipped after a restart too, and forgotten in time.
			stop()
			exec(t, r.srcDB, `TRUNCATE seat; INSERT INTO seat VALUES ('r1', 1, 1), ('r2', 2, 2); UPDATE items SET n = n + 1`)
			e, stop = r.resumed(false)
			eventually(t, "it streams", func() bool { _, err := e.Verify(t.Context(), replicator.VerifyOptions{}); return err == nil })
			r.verifyClean(e)
			stop()
			e, _ = r.resumed(false)
			eventually(t, "it streams", func() bool { _, err := e.Verify(t.Context(), replicator.VerifyOptions{}); return err == nil })
			r.verifyClean(e)
			if n := r.total(`SELECT count(*) FROM rehome.mended`); n != 0 {
				t.Errorf("%d mended keys are remembered for ever", n)
			}
		})
	}
}

// TestMendThenTruncate mends a row whose table is truncated before the mending's position.
func TestMendThenTruncate(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{}, itemsDDL)
	_, stop := r.start()
	r.waitPhase(tenant.InSync)
	b := newBreaker(r)
	b.at(b.owner("r7"), `DELETE FROM items WHERE id = 7`, 1)
	exec(t, r.srcDB, `UPDATE items SET n = 1 WHERE id = 7`)
	r.waitPhase(tenant.Paused)
	stop()
	exec(t, r.srcDB, `UPDATE items SET n = 2 WHERE id = 7`)
	exec(t, r.srcDB, `TRUNCATE items`)
	exec(t, r.srcDB, `INSERT INTO items VALUES ('r7', 7, 3), ('r8', 8, 3)`)
	exec(t, r.srcDB, `UPDATE items SET n = 4 WHERE id = 7`)
	e, _ := r.resumed(true)
	r.waitPhase(tenant.InSync) // perhaps before the lane came to the row, whose mending interrupts the stream
	eventually(t, "it streams", func() bool { _, err := e.Verify(t.Context(), replicator.VerifyOptions{}); return err == nil })
	r.verifyClean(e)
}

// TestMendNeedsAKey leaves a table alone whose rows have none, and says so.
func TestMendNeedsAKey(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, tenant.ReplicationOptions{}, `CREATE TABLE log (realm_id text, line text); ALTER TABLE log REPLICA IDENTITY FULL; INSERT INTO log VALUES ('r1', 'a')`)
	_, stop := r.start()
	r.waitPhase(tenant.InSync)
	b := newBreaker(r)
	b.at(b.owner("r1"), `DELETE FROM log`, 1)
	exec(t, r.srcDB, `UPDATE log SET line = 'b'`)
	r.waitPhase(tenant.Paused)
	stop()
	_, _ = r.resumed(true)
	eventually(t, "it says why", func() bool {
		st := r.jour.phase()
		return st.Phase == tenant.Paused && strings.Contains(st.Reason, "could not be mended") && strings.Contains(st.Remedy, "start it again")
	})
}
