package gate_test

import (
	"context"
	"testing"
	"time"

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
	exec(t, client, `BEGIN; LOCK TABLE ONLY `+last+` IN ROW EXCLUSIVE MODE`)
	follower, err := gate.ShardSession(ctx, s.owner)
	must(t, err)
	t.Cleanup(func() { _ = follower.Close(context.Background()) })
	prelocked, err := gate.PrepareFollow(ctx, follower)
	must(t, err)
	type answer struct {
		hit  bool
		took time.Duration
		err  error
	}
	done := make(chan answer, 1)
	go func() {
		began := time.Now()
		hit, err := prelocked.Follow(ctx, gate.State{Epoch: 2, Side: gate.SideTarget})
		done <- answer{hit, time.Since(began), err}
	}()
	look := connect(t, s.admin)
	for waits := false; !waits; {
		must(t, look.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND NOT granted)`, follower.PgConn().PID()).Scan(&waits))
	}
	exec(t, client, `LOCK TABLE ONLY `+first+` IN ROW EXCLUSIVE MODE; COMMIT`) // fails with a deadlock if nobody lets go
	a := <-done
	must(t, a.err)
	if !a.hit || a.took > 800*time.Millisecond { // the server's deadlock_timeout is a second
		t.Errorf("opened: %v, after %s", a.hit, a.took)
	}
	exec(t, client, `UPDATE accounts SET balance = 1 WHERE id = 1`)
}
