package gate_test

import (
	"context"
	"testing"

	"github.com/rehomedb/rehome/gate"
)

// A client of a shard locks tables in its own order, as a pipeline of statements does when it is parsed, and waits for one
// that the opening has. The opening lets go: nobody waits until the server finds a deadlock, and nobody gets its error.
func TestFollowLetsGoOfAClientsLocks(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := setup(t, schemaSQL)
	must(t, gate.InstallShard(ctx, s.conn, pass))
	_, err := gate.FenceShardTables(ctx, s.conn)
	must(t, err)
	tables, err := gate.Tables(ctx, s.conn)
	must(t, err)
	first, last := tables[0].Name.Quoted(), tables[len(tables)-1].Name.Quoted()

	client := connect(t, s.admin)
	// A server that found the deadlock would do so long after the test, however long the machine stands.
	exec(t, client, "ALTER ROLE "+s.ownerName+" SET deadlock_timeout = '10min'; SET deadlock_timeout = '10min'")
	exec(t, client, `BEGIN; LOCK TABLE ONLY `+last+` IN ROW EXCLUSIVE MODE`)
	follower, err := gate.ShardSession(ctx, s.owner)
	must(t, err)
	t.Cleanup(func() { _ = follower.Close(context.Background()) })
	prelocked, err := gate.PrepareFollow(ctx, follower)
	must(t, err)
	type answer struct {
		hit bool
		err error
	}
	done := make(chan answer, 1)
	go func() {
		hit, err := prelocked.Follow(ctx, gate.State{Epoch: 2, Side: gate.SideTarget})
		done <- answer{hit, err}
	}()
	look := connect(t, s.admin)
	for waits := false; !waits; {
		must(t, look.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND NOT granted)`, follower.PgConn().PID()).Scan(&waits))
	}
	exec(t, client, `LOCK TABLE ONLY `+first+` IN ROW EXCLUSIVE MODE; COMMIT`) // if nobody lets go, not before the follower's time is over
	a := <-done
	must(t, a.err)
	if !a.hit {
		t.Error("it was not opened")
	}
	exec(t, client, `UPDATE accounts SET balance = 1 WHERE id = 1`)
}
